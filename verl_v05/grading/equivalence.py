"""Whether an answer is the gold: pure functions of two strings. Structure first, then numbers, then sympy."""

import re
from collections.abc import Sequence
from itertools import accumulate

from verl_v05.grading import number
from verl_v05.grading.latex import CLOSE, OPEN, TEXT, UnparsedError, brackets, compact, split, tidy, without_unit

# Longer answers are no values: the longest published gold has 198 characters, and parsing is not linear.
LENGTH_LIMIT = 1000
DEPTH_LIMIT = 20

INTEGER = re.compile(r"[\s$*]*([+-]?\d+)[\s$*.]*")
COMMA = re.compile(
    r"\s*(?:[,;]\s*)?(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*|\s*[,;]\s*"
)
EQUALS = re.compile(r"(?<![\\<>!])=|\\equiv(?![a-zA-Z])")
APPROXIMATION = re.compile(r"\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])")
UNION = re.compile(r"\\cup(?![a-zA-Z])")
MEMBER = re.compile(r"\\in(?![a-zA-Z])")
ROW = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])")
CELL = re.compile(r"&")
PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
MATRIX = re.compile(r"\\begin\s*\{([pbBvV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
BASED = re.compile(r"\(?\s*([0-9A-F]+)\s*\)?_(?:\{\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}|(\d))")
INDEX = r"_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w)\s*"
NAME = re.compile(
    rf"(\\?[a-zA-Z]+|\\angle\s*[A-Z\s]+|\|[^|]*\|)\s*(?:{INDEX})*(?:\^\{{(?:\\prime)+\}})?\s*(\([^()=]*\))?"
)
PERCENT = re.compile(r"\s*\\?%$|\s*\\text\s*\{\s*percent\s*\}$|\s+percent$")


def quickly(answer: str, gold: str) -> bool | None:
    """`equivalent` where microseconds are enough (two numbers, or one spelling), else None: integers first."""
    left, right = INTEGER.fullmatch(answer), INTEGER.fullmatch(gold)
    if left and right:
        return _integer(left[1]) == _integer(right[1])
    if max(len(answer), len(gold)) > LENGTH_LIMIT:
        return None
    return _plain(tidy(answer), tidy(gold))


def _integer(text: str) -> str:
    # Digits, not int(): Python refuses to read more than 4300 of them.
    digits = text.lstrip("+-").lstrip("0") or "0"
    return "-" + digits if text[0] == "-" and digits != "0" else digits


def equivalent(answer: str, gold: str) -> bool:
    r"""Whether an answer as written by a model has the value of a gold as published.

    Lists (commas, "and", "or", \pm, braces) are compared without order and must be complete; tuples, intervals and
    matrices in order, with their kinds of brackets. `x=5` is `5`; names must agree where both sides have one.
    Units, percent and degree signs of one side are no difference. Numbers: see `number.same`.

    Raises:
        UnparsedError: no comparison could be made.
    """
    if max(len(answer), len(gold)) > LENGTH_LIMIT:
        raise UnparsedError(f"an answer of {len(answer)} characters; up to {LENGTH_LIMIT} are compared")
    if max(accumulate((sign in OPEN) - (sign in CLOSE) for sign in answer), default=0) > DEPTH_LIMIT:
        raise UnparsedError(f"an answer with more than {DEPTH_LIMIT} brackets within each other")
    answer, gold = tidy(answer), tidy(gold)
    return _same(_approximated(answer, gold), gold)


def _approximated(answer: str, gold: str) -> str:
    """One side of an approximation, so that it cannot list candidates: the exact one, for a rounded gold the other."""
    sides = split(answer, APPROXIMATION)
    rounded = (written := _read(gold)) is not None and written.place is not None
    return sides[-1] if rounded or not sides[0] or NAME.fullmatch(sides[0]) else sides[0]


def _same(answer: str, gold: str) -> bool:
    for rule in (_plain, _tuples, _lists, _equations, _unions, _matrices, _bases, _texts):
        verdict = rule(answer, gold)
        if verdict is not None:
            return verdict
    from verl_v05.grading import symbolic  # Here, so that training on integers never loads sympy.

    return symbolic.same(without_unit(answer), without_unit(gold))


def _plain(answer: str, gold: str) -> bool | None:
    """One spelling, or two plain numbers."""
    if compact(answer) == compact(gold):
        return bool(compact(gold))
    left, right = _read(answer), _read(gold)
    return _same_number(answer, gold, left, right) if left and right else None


def _read(text: str) -> number.Written | None:
    return number.read(PERCENT.sub("", without_unit(text)))


def _same_number(answer: str, gold: str, left: number.Written, right: number.Written) -> bool:
    """Numbers; where one side has a percent sign the other may hold the same number or its hundredth part."""
    percents = bool(PERCENT.search(without_unit(answer))), bool(PERCENT.search(without_unit(gold)))
    if number.same(left, right):
        return True
    if percents == (True, False):
        return number.same(_hundredth(left), right)
    return percents == (False, True) and number.same(left, _hundredth(right))


def _hundredth(written: number.Written) -> number.Written:
    return number.Written(written.value / 100, written.place and written.place / 100)


def _lists(answer: str, gold: str) -> bool | None:
    left, right = _members(answer), _members(gold)
    if len(left) == len(right) == 1:
        return None if (left, right) == ([answer], [gold]) else _same(left[0], right[0])
    return _matching(left, right)


def _members(text: str) -> list[str]:
    r"""The values of a list: commas, "and", "or", a set in braces, `\pm`; a name before the first goes for all."""
    if (inside := brackets(text)) and inside[0] == "\\{":
        text = inside[1]
    elif len(assigned := split(text, EQUALS)) == 2 and NAME.fullmatch(assigned[0].strip()):
        values = _members(assigned[1])
        if len(values) > 1 and not any(EQUALS.search(value) for value in values):
            return values
    parts = [part for part in split(text, COMMA) if part] or [text]
    return [sign for part in parts for sign in _signs(part)]


def _signs(text: str) -> list[str]:
    return [PLUS_MINUS.sub(sign, text) for sign in "+-"] if PLUS_MINUS.search(text) else [text]


def _matching(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether every member of one list is a member of the other, one to one."""
    if len(left) != len(right):
        return False
    rest = list(left)
    for gold in right:
        hit = next((index for index, answer in enumerate(rest) if _same(answer, gold)), None)
        if hit is None:
            return False
        del rest[hit]
    return True


def _equations(answer: str, gold: str) -> bool | None:
    left, right = split(answer, EQUALS), split(gold, EQUALS)
    if len(left) == len(right) == 1:
        left, right = split(answer, MEMBER), split(gold, MEMBER)
    if len(left) == len(right) == 1:
        return None
    if len(right) == 1:
        return _same(left[-1], gold)
    named = NAME.fullmatch(right[0])
    if len(left) == 1:
        return bool(named) and _same(answer, right[-1])
    other = NAME.fullmatch(left[0])
    if named and other and _stem(named) == _stem(other):
        return _same(left[-1], right[-1])
    if compact(left[0]) == compact(right[-1]) and compact(left[-1]) == compact(right[0]):
        return True
    from verl_v05.grading import symbolic

    return symbolic.same_equation((left[0], left[-1]), (right[0], right[-1]))


def _stem(name: re.Match[str]) -> str:
    return name[1].replace(" ", "")


def _unions(answer: str, gold: str) -> bool | None:
    left, right = split(answer, UNION), split(gold, UNION)
    return None if len(left) == len(right) == 1 else _matching(left, right)


def _tuples(answer: str, gold: str) -> bool | None:
    left, right = brackets(answer), brackets(gold)
    if right is None or len(inside := split(right[1], COMMA)) == 1:
        return None
    if left is None:
        named = [split(part, EQUALS) for part in split(answer, COMMA)]
        if all(len(part) == 2 and NAME.fullmatch(part[0]) for part in named):
            return _in_order([part[1] for part in named], inside) if right[0] == "(" else False
        matrix = _cells(answer)
        return _in_order([row[0] for row in matrix], inside) if matrix and right[0] == "(" else None
    if (left[0], left[2]) != (right[0], right[2]):
        return False
    return _in_order(split(left[1], COMMA), inside)


def _matrices(answer: str, gold: str) -> bool | None:
    right = _cells(gold)
    if right is None:
        return None
    left = _cells(answer)
    if left is None:
        bracket = brackets(answer)
        left = [[cell] for cell in split(bracket[1], COMMA)] if bracket else None
    if left is None or [len(row) for row in left] != [len(row) for row in right]:
        return False
    return all(_in_order(mine, theirs) for mine, theirs in zip(left, right, strict=True))


def _cells(text: str) -> list[list[str]] | None:
    match = MATRIX.fullmatch(text.strip())
    return [split(row, CELL) for row in split(match[2], ROW) if row] if match else None


def _in_order(left: Sequence[str], right: Sequence[str]) -> bool:
    return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))


def _bases(answer: str, gold: str) -> bool | None:
    """Numerals with a base, which sympy would read as plain numbers; the base must be written."""
    left, right = BASED.fullmatch(answer), BASED.fullmatch(gold)
    if right is None and left is None:
        return None
    return left is not None and right is not None and _numeral(left) == _numeral(right)


def _numeral(match: re.Match[str]) -> tuple[str, str]:
    return match[1].lstrip("0"), match[2] or match[3]


def _texts(answer: str, gold: str) -> bool | None:
    """Words: names, choices, "even"; letters are compared, whatever the case and brackets."""
    if not TEXT.search(gold) or re.search(r"\w", TEXT.sub("", gold)):
        return None
    return _letters(answer) == _letters(gold)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", TEXT.sub(r"\1", text)).lower()
