"""Whether an answer is the gold: pure functions of two strings. Structure first, then numbers, then sympy."""

import re
from collections.abc import Sequence
from itertools import accumulate

from verl_v05.grading import number
from verl_v05.grading.latex import CLOSE, OPEN, RELATION, TEXT, UnparsedError, brackets, compact, split, tidy

# Longer answers are no values: the longest published gold has 198 characters, and parsing is not linear.
LENGTH_LIMIT = 1000
DEPTH_LIMIT = 20

INTEGER = re.compile(r"[\s$*]*([+-]?[0-9]+)[\s$*.]*")
COMMA = re.compile(r"\s*[,;]\s*")
EQUALS = re.compile(r"(?<![\\<>!])=|\\equiv(?![a-zA-Z])")
APPROXIMATION = re.compile(r"\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])")
IMPLIES = re.compile(r"\\Rightarrow(?![a-zA-Z])")
MEMBER = re.compile(r"\\in(?![a-zA-Z])")
ROW = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])")
CELL = re.compile(r"&")
COLON = re.compile(r":")
PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
MATRIX = re.compile(r"\\begin\s*\{([pb]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
SET = re.compile(r"\\(?:cup|cap|setminus|infty|mathbb|emptyset)(?![a-zA-Z])|^\](?=.*\[$)|^[(\[].*[\[\]]$|^[\[\]].*[)\[\]]$")
BASED = re.compile(r"\(?\s*([0-9A-Fa-f]+)\s*\)?(?:_\{?\s*\(?\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\)?\s*\}?|[\s(]*\\text\s*\{\s*\(?base (\w+)\)?\s*\}\)?)")
DIGIT_NAMES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
INDEX = r"_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w)\s*"
NAME = re.compile(
    rf"(\\?[a-zA-Z]+|\\text\s*\{{[^{{}}]*\}}|\\angle\s*[A-Z\s]+|\|[^|]*\|)\s*(?:{INDEX})*(?:\^\{{(?:\\prime)+\}})?\s*(\([^()=]*\))?"
)
# A condition behind an answer; one that holds for everything may be absent.
CONDITION = re.compile(r"[\s,(]*\\text\s*\{\s*((?:for|if|when|where|with|unless|provided|given|such|only)\b.*)")
ANY = re.compile(r"(?:for|where) *(?:all|any|every|each|some|\}(?! *[a-z] *\\text))|for *\}")
FREE = re.compile(r"\s*[a-zA-Z]\s*\\in\s*\\mathbb\s*\{?[RZNQ]\}?\s*")
CHOICE = re.compile(r"(?:\\text\s*\{\s*)?\(?\s*(?:\\text\s*\{)?\s*([A-J])\s*\}?\s*(?:[).:]+\s*\}?\s*(.*?)\}?)?")


def quickly(answer: str, gold: str) -> bool | None:
    """`equivalent` where microseconds are enough (two numbers, or one spelling), else None: integers first."""
    left, right = INTEGER.fullmatch(answer), INTEGER.fullmatch(gold)
    if left and right:
        return _integer(left[1]) == _integer(right[1])
    if max(len(answer), len(gold)) > LENGTH_LIMIT:
        return None
    try:
        return _plain(tidy(answer), tidy(gold))
    except UnparsedError:
        return False


def _integer(text: str) -> str:
    # Digits, not int(): Python refuses to read more than 4300 of them.
    digits = text.lstrip("+-").lstrip("0") or "0"
    return "-" + digits if text[0] == "-" and digits != "0" else digits


def equivalent(answer: str, gold: str) -> bool:
    r"""Whether an answer as written by a model has the value of a gold as published.

    Lists (commas, "and", "or", \pm, braces) are compared without order and must be complete; tuples, intervals and
    matrices in order, with their kinds of brackets. `x=5` is `5`; names and units must agree where both sides have one.
    Numbers: see `number.same`.

    Raises:
        UnparsedError: no comparison could be made.
    """
    if max(len(answer), len(gold)) > LENGTH_LIMIT:
        raise UnparsedError(f"an answer of {len(answer)} characters; up to {LENGTH_LIMIT} are compared")
    if max(accumulate((sign in OPEN) - (sign in CLOSE) for sign in answer), default=0) > DEPTH_LIMIT:
        raise UnparsedError(f"an answer with more than {DEPTH_LIMIT} brackets within each other")
    crossed = re.search(r"\\(?:vec|mathbf|hat)\b.*\\times\s*\\(?:vec|mathbf|hat)\b", answer + gold)
    answer, gold = tidy(answer), tidy(gold)
    if crossed and compact(answer) != compact(gold):
        raise UnparsedError("a product of vectors has an order")
    verdict = _conditions(answer, gold)
    if verdict is not None:
        return verdict
    return _same(answer, gold)


def _conditions(answer: str, gold: str) -> bool | None:
    mine, theirs = CONDITION.search(answer), CONDITION.search(gold)
    if mine and theirs:
        return _letters(mine[1]) == _letters(theirs[1]) and _same(answer[: mine.start()], gold[: theirs.start()])
    if mine or theirs:
        condition = mine or theirs
        if not ANY.match(condition[1]):
            return False
        return _same(answer[: mine.start()] if mine else answer, gold[: theirs.start()] if theirs else gold)
    return None


def _approximated(answer: str, gold: str) -> str:
    """One side of an approximation, so that it cannot list candidates: the exact one, for a rounded gold the other."""
    sides = split(answer, APPROXIMATION)
    rounded = (written := number.read(gold)) is not None and written.place is not None
    exact = sides[0] and (not NAME.fullmatch(sides[0]) or compact(sides[0]) == compact(gold))
    return sides[0] if exact and not rounded else sides[-1]


def _same(answer: str, gold: str) -> bool:
    answer, gold = (_peeled(split(text, IMPLIES)[-1]) for text in (answer, gold))
    answer = _approximated(answer, gold)
    for rule in (_plain, _choices, _sets, _tuples, _lists, _equations, _matrices, _bases, _texts, _ratios):
        verdict = rule(answer, gold)
        if verdict is not None:
            return verdict
    from verl_v05.grading import symbolic, units  # Here, so that training on integers never loads sympy.

    (mine, my_unit), (theirs, their_unit) = units.separate(answer), units.separate(gold)
    if not my_unit and not their_unit:
        return symbolic.same(mine, theirs) if (mine, theirs) == (answer, gold) else _same(mine, theirs)
    factor = units.ratio(my_unit, their_unit)
    if factor == 1 and _same(mine, theirs):
        return True
    if factor == 1:
        # An angle in degrees or a share in percent is also a number without unit.
        factor = units.SIZES.get(my_unit, 1) / units.SIZES.get(their_unit, 1)
    return factor != 1 and symbolic.same(mine, theirs, factor)


def _peeled(text: str) -> str:
    while (inside := brackets(text)) and inside[0] in "({" and len(split(inside[1], COMMA)) == 1 and inside[2] in ")}":
        text = inside[1]
    element = split(text, MEMBER)
    return (element[1] if len(element) == 2 and NAME.fullmatch(element[0]) and element[1][:1] == "\\" else text).strip()


def _plain(answer: str, gold: str) -> bool | None:
    """One spelling, or two plain numbers."""
    if compact(answer) == compact(gold):
        return bool(compact(gold))
    left, right = number.read(answer), number.read(gold)
    return number.same(left, right) if left and right else None


def _choices(answer: str, gold: str) -> bool | None:
    """A letter of a multiple choice, with or without the value behind it."""
    left, right = CHOICE.fullmatch(answer), CHOICE.fullmatch(gold)
    letters = [re.fullmatch(r"[A-F]{2,6}", re.sub(r"[\s,]|\\text|[{}]", "", text)) for text in (answer, gold)]
    if all(letters) and ("," in answer) != ("," in gold):
        return sorted(letters[0][0]) == sorted(letters[1][0])
    if right is None or (left is None and not right[2]):
        return None
    if left is None:
        return _same(answer, right[2])
    return left[1] == right[1] and (not left[2] or not right[2] or _same(left[2], right[2]))


def _sets(answer: str, gold: str) -> bool | None:
    if not any(SET.search(text) or RELATION.search(text) for text in (answer, gold)):
        return None
    if answer.count("(") > 1 and "\\cup" not in answer + gold and not RELATION.search(answer + gold):
        return None
    from verl_v05.grading import symbolic

    try:
        sides = [text.rpartition("=")[2] if NAME.fullmatch(text.rpartition("=")[0].strip()) else text for text in (answer, gold)]
        return symbolic.same_set(*(re.sub(r"\\text\s*\{\s*all reals?(?: numbers?)?\s*\}", r"\\mathbb{R}", side) for side in sides))
    except UnparsedError:
        if RELATION.search(answer) and RELATION.search(gold):
            return False
        return None


def _lists(answer: str, gold: str) -> bool | None:
    left, right = _members(answer), _members(gold)
    if len(left) == len(right) == 1:
        return None if (left, right) == ([answer], [gold]) else _same(left[0], right[0])
    names = [_assigned(part) for part in left], [_assigned(part) for part in right]
    if all(all(side) for side in names) and len({name for name, _ in names[1]}) == len(right) > 1:
        # Every value has its name: x=1, y=2 is no y=1, x=2.
        mine, theirs = dict(names[0]), dict(names[1])
        return mine.keys() == theirs.keys() and all(_same(mine[name], theirs[name]) for name in theirs)
    return _matching(left, right)


def _assigned(text: str) -> tuple[str, str] | None:
    parts = split(text, EQUALS)
    return (compact(parts[0]), parts[-1]) if len(parts) > 1 and NAME.fullmatch(parts[0]) else None


def _members(text: str) -> list[str]:
    r"""The values of a list: commas, "and", "or", a set in braces, `\pm`; a name before the first goes for all."""
    if (inside := brackets(text)) and inside[0] == "\\{":
        text = inside[1]
    elif len(assigned := split(text, EQUALS)) == 2 and NAME.fullmatch(assigned[0].strip()):
        values = _members(assigned[1])
        if len(values) > 1 and not any(EQUALS.search(value) for value in values):
            return values
    elif len(sides := split(text, EQUALS)) == 2 and all(bracket and bracket[0] == "(" for bracket in map(brackets, sides)):
        names, values = (split(brackets(side)[1], COMMA) for side in sides)
        if len(names) == len(values):
            return [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    parts = [part for part in split(text, COMMA) if part] or [text]
    parts = [part for part in parts if not FREE.fullmatch(part)] or parts
    return [sign for part in parts for sign in _signs(part)]


def _signs(text: str) -> list[str]:
    if not PLUS_MINUS.search(text):
        return [text]
    return [PLUS_MINUS.sub(lambda match: signs[match[1] == "mp"], text) for signs in ("+-", "-+")]


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
    from verl_v05.grading import symbolic

    named = NAME.fullmatch(right[0])
    if len(right) == 1:
        # The sides must agree, and one unknown is solved for only where it stands alone.
        if not NAME.fullmatch(left[0]) and symbolic.letters(left[0]) == 1:
            return False
        numbers = [side for side in left[:-1] if not NAME.fullmatch(side) and not symbolic.letters(side)]
        return all(_same(side, left[-1]) for side in numbers) and _same(left[-1], gold)
    if len(left) == 1:
        return bool(named) and _same(answer, right[-1])
    other = NAME.fullmatch(left[0])
    if len(right) > 2 and sum(bool(NAME.fullmatch(side)) for side in right) > 1:
        return _matching(left, right)
    if named and other and _stem(named) == _stem(other):
        return _same(left[-1], right[-1])
    if compact(left[0]) == compact(right[-1]) and compact(left[-1]) == compact(right[0]):
        return True
    return symbolic.same_equation((left[0], left[-1]), (right[0], right[-1]))


def _stem(name: re.Match[str]) -> str:
    return re.sub(r"\\text|[{}\s]", "", name[1])


def _tuples(answer: str, gold: str) -> bool | None:
    left, right = brackets(answer), brackets(gold)
    if right is None or right[0] == "\\{" or len(inside := split(right[1], COMMA)) == 1:
        return None
    if left is None:
        named = sorted(filter(None, map(_assigned, _members(answer))))
        if len(named) == len(inside) and len(dict(named)) == len(named):
            return _in_order([value for _, value in named], inside) if right[0] == "(" else False
        matrix = _cells(answer)
        if point := re.fullmatch(r"[A-Z]\s*(\(.*\))", answer):
            return _same(point[1], gold)
        return _in_order([row[0] for row in matrix], inside) if matrix and right[0] == "(" else None
    if (left[0], left[2]) != (right[0], right[2]):
        return False
    mine = [_signs(part) for part in split(left[1], COMMA)]
    return _in_order(split(left[1], COMMA), inside) if all(len(part) == 1 for part in mine) else None


def _matrices(answer: str, gold: str) -> bool | None:
    right = _cells(gold)
    if right is None or "\\begin" in MATRIX.sub("", answer):
        return None
    left = _cells(answer)
    if left is None:
        if "matrix" in answer:
            return None
        bracket = brackets(answer)
        rows = [brackets(row) for row in split(bracket[1], COMMA)] if bracket else []
        left = [split(row[1], COMMA) if row else [cell] for row, cell in zip(rows, split(bracket[1], COMMA))] if bracket else None
    if left is None or [len(row) for row in left] != [len(row) for row in right]:
        return False
    return all(_in_order(mine, theirs) for mine, theirs in zip(left, right, strict=True))


def _cells(text: str) -> list[list[str]] | None:
    bracket = brackets(text)
    match = MATRIX.fullmatch(bracket[1] if bracket and bracket[0] in "([" else text.strip())
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
    base = match[2] or match[3]
    return match[1].lstrip("0").upper(), DIGIT_NAMES.get(base, base)


def _texts(answer: str, gold: str) -> bool | None:
    """Words: names, choices, "even"; letters are compared, whatever the case and brackets."""
    words = [bool(TEXT.search(text)) and not re.search(r"\w", TEXT.sub("", text)) for text in (answer, gold)]
    return _letters(answer) == _letters(gold) if any(words) else None


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", TEXT.sub(r"\1", text)).lower().removeprefix("the")


def _ratios(answer: str, gold: str) -> bool | None:
    left, right = split(answer, COLON), split(gold, COLON)
    if len(left) == len(right) == 1:
        return None
    if len(left) == 2 and len(right) == 1:
        return _same(rf"\frac{{{left[0]}}}{{{left[1]}}}", gold)
    return _in_order(left, right)
