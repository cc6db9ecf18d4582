"""Whether an answer is the gold: pure functions of two strings. Structure first, then numbers, then sympy."""

import contextlib
import re
from collections.abc import Sequence
from itertools import zip_longest

from verl_v05.grading import number, symbolic
from verl_v05.grading.latex import TEXT, UnparsedError, brackets, compact, split, tidy

COMMA = re.compile(r"\s*[,;]\s*")
EQUALS = re.compile(r"(?<![\\<>!])=|\\equiv(?![a-zA-Z])")
APPROXIMATION = re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])")
IMPLIES = re.compile(r"\\Rightarrow(?![a-zA-Z])")
SET = re.compile(r"\\(?:cup|cap|setminus|infty|mathbb|emptyset)(?![a-zA-Z])|[<>]|\\[lg]eq|\\neq|^[(\[].*\]$|^\[.*\)$")
INDEX = r"_\s*(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w)\s*"
NAME = re.compile(
    rf"(\\?[a-zA-Z]+|\\text\s*\{{[^{{}}]*\}}|\\angle\s*[A-Z\s]+|\|[^|]*\|)\s*"
    rf"(?:{INDEX})*(?:\^\{{(?:\\prime)+\}})?\s*(\([^()=]*\))?"
)
SUM = re.compile(r"\d*([a-zA-Z])(?:\s*[+-]\s*\d*(?!\1)[a-zA-Z])+")
CHOICE = re.compile(r"(?:\\text\s*\{\s*)?\(?\s*(?:\\text\s*\{)?\s*([A-J])\s*\}?\s*(?:[).:]+\s*\}?\s*([^,\s].*?)?\}?)?")


def equivalent(answer: str, gold: str) -> bool:
    r"""Whether an answer as written by a model has the value of a gold as published.

    Lists (commas, "and", "or", \pm, braces) are compared without order and must be complete; tuples, intervals and
    matrices in order, with their kinds of brackets. `x=5` is `5`; names, units and conditions must agree where both
    sides have them. Numbers: see `number.same`.

    Raises:
        UnparsedError: no comparison could be made.
    """
    if max(len(answer), len(gold)) > number.LENGTH_LIMIT:
        raise UnparsedError(f"an answer of {len(answer)} characters; up to {number.LENGTH_LIMIT} are compared")
    return _same(tidy(answer), tidy(gold))


def _same(answer: str, gold: str) -> bool:
    answer, gold = (_peeled(split(text, IMPLIES)[-1]) for text in (answer, gold))
    answer = _approximated(answer, gold)
    for rule in (number.plainly, _choices, _sets, _tuples, _lists, _equations, _texts):
        verdict = rule(answer, gold)
        if verdict is not None:
            return verdict
    (mine, unit), (theirs, their_unit) = number.separate(answer), number.separate(gold)
    if (mine, theirs) == (answer, gold):
        return symbolic.same(mine, theirs)
    if not number.agree(unit, their_unit):
        return False
    # An angle in degrees or a share in percent is also a number without unit.
    size = symbolic.SIZES.get(unit, 1) / symbolic.SIZES.get(their_unit, 1)
    return _same(mine, theirs) or (size != 1 and symbolic.same(mine, theirs, size))


def _approximated(answer: str, gold: str) -> str:
    """One side of an approximation, so that it cannot list candidates: the exact one, for a rounded gold the other."""
    sides = split(answer, APPROXIMATION)
    rounded = (written := number.read(gold)) is not None and written.place is not None
    exact = sides[0] and (not NAME.fullmatch(sides[0]) or compact(sides[0]) == compact(gold))
    return sides[0] if exact and not rounded else sides[-1]


def _peeled(text: str) -> str:
    """The text without brackets around one value."""
    while (inside := brackets(text)) and inside[0] in "({" and len(split(inside[1], COMMA)) == 1 and inside[2] in ")}":
        text = inside[1]
    return text.strip()


def _choices(answer: str, gold: str) -> bool | None:
    """A letter of a multiple choice, with or without the value behind it."""
    left, right = CHOICE.fullmatch(answer), CHOICE.fullmatch(gold)
    if left and right:
        return left[1] == right[1] and (not left[2] or not right[2] or _same(left[2], right[2]))
    return _same(answer, right[2]) if right and right[2] else None


def _sets(answer: str, gold: str) -> bool | None:
    if not SET.search(answer) and not SET.search(gold):
        return None
    with contextlib.suppress(UnparsedError):
        return symbolic.same_set(answer, gold)
    return None


def _tuples(answer: str, gold: str) -> bool | None:
    left, right = brackets(answer), brackets(gold)
    if right is None or right[0] == "\\{" or len(inside := split(right[1], COMMA)) == 1:
        return None
    if left:
        return left[::2] == right[::2] and _matching(split(left[1], COMMA), inside, ordered=True)
    named = dict(filter(None, map(_assigned, _members(answer))))
    return _matching([named[name] for name in sorted(named)], inside, True) if len(named) == len(inside) else None


def _lists(answer: str, gold: str) -> bool | None:
    left, right = _members(answer), _members(gold)
    if len(left) == len(right) == 1:
        return None if (left, right) == ([answer], [gold]) else _same(left[0], right[0])
    mine, theirs = (dict(filter(None, map(_assigned, side))) for side in (left, right))
    if len(mine) == len(left) and len(theirs) == len(right) > 1:
        # Every value has a name of its own: x=1, y=2 is no y=1, x=2.
        return mine.keys() == theirs.keys() and all(_same(mine[name], theirs[name]) for name in theirs)
    return _matching(left, right)


def _assigned(text: str) -> tuple[str, str] | None:
    parts = split(text, EQUALS)
    return (compact(parts[0]), parts[-1]) if len(parts) > 1 and NAME.fullmatch(parts[0]) else None


def _members(text: str) -> list[str]:
    r"""The values of a list: commas, "and", "or", a set in braces, `\pm`; a name before the first goes for all."""
    sides = split(text, EQUALS)
    if (inside := brackets(text)) and inside[0] == "\\{":
        text = inside[1]
    elif len(sides) == 2 and NAME.fullmatch(sides[0]):
        values = _members(sides[1])
        if len(values) > 1 and not any(EQUALS.search(value) for value in values):
            return values
    elif len(sides) == 2 and all(bracket and bracket[0] == "(" for bracket in map(brackets, sides)):
        return [f"{a}={b}" for a, b in zip_longest(*(split(side[1:-1], COMMA) for side in sides), fillvalue="")]
    parts = [part for part in split(text, COMMA) if part] or [text]
    return [
        part.replace(r"\pm", a).replace(r"\mp", b)
        for part in parts
        for a, b in (("+", "-"), ("-", "+"))[: 1 + (r"\pm" in part or r"\mp" in part)]
    ]


def _matching(left: Sequence[str], right: Sequence[str], ordered: bool = False) -> bool:
    """Whether every member of one list is a member of the other, one to one."""
    rest = list(left)
    for gold in right if len(left) == len(right) else ():
        hit = next((index for index, answer in enumerate(rest[:1] if ordered else rest) if _same(answer, gold)), None)
        if hit is None:
            return False
        del rest[hit]
    return not rest


def _equations(answer: str, gold: str) -> bool | None:
    left, right = split(answer, EQUALS), split(gold, EQUALS)
    if len(left) == len(right) == 1:
        return None
    mine, theirs = NAME.fullmatch(left[0]), NAME.fullmatch(right[0])
    if len(right) == 1:
        # The numbers of a chain must agree, and an unknown is solved for only where it stands alone.
        sides = [side for side in left[:-1] if not NAME.fullmatch(side) and not SUM.fullmatch(side)]
        return all(_same(side, left[-1]) for side in sides) and _same(left[-1], gold)
    if len(left) == 1:
        return bool(theirs) and _same(answer, right[-1])
    if len(right) > 2 and sum(bool(NAME.fullmatch(side)) for side in right) > 1:
        return _matching(left, right)
    if mine and theirs and compact(mine[1]) == compact(theirs[1]):
        return _same(left[-1], right[-1])
    # Both sides in one: terms may stand on either.
    difference = f"{left[0]}-({left[-1]})"
    return any(symbolic.same(difference, f"{a}-({b})") for a, b in ((right[0], right[-1]), (right[-1], right[0])))


def _texts(answer: str, gold: str) -> bool | None:
    """Words: names, "even"; letters are compared, whatever the case and brackets."""
    words = [bool(TEXT.search(text)) and not re.search(r"\w", TEXT.sub("", text)) for text in (answer, gold)]
    mine, theirs = (re.sub(r"[^\w+*/=^<>-]|_", "", TEXT.sub(r"\1", text)).lower() for text in (answer, gold))
    return mine == theirs if any(words) else None
