"""Verdicts on statements, from the numbers that were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

TOLERANCE = 1e-9  # to which an equality or a bound is to hold; what is enumerated is exact to about 1e-14


class Verdict(StrEnum):
    """Whether a statement is true of the enumerated numbers."""

    HOLDS = "holds"
    WITH_CONDITION = "holds with a condition"
    FAILS = "fails"


class Author(StrEnum):
    """Whose statement it is."""

    PAPER = "the paper"
    OURS = "this page"


@dataclass(frozen=True)
class Statement:
    """A verdict and whose statement it is on; a template prints the verdict."""

    verdict: Verdict
    author: Author = Author.PAPER

    def __format__(self, spec: str) -> str:
        return format(str(self.verdict), spec)


def verdict(everywhere: bool, with_condition: bool = False, author: Author = Author.PAPER) -> Statement:
    """The verdict on a statement.

    Args:
        everywhere: whether it is true at every point that was enumerated.
        with_condition: whether it is where a condition is met that the paper does not state; False without one.
        author: whose statement it is.
    """
    if everywhere:
        return Statement(Verdict.HOLDS, author)
    return Statement(Verdict.WITH_CONDITION if with_condition else Verdict.FAILS, author)


def count_verdicts(statements: Iterable[Statement], author: Author) -> Counter[Verdict]:
    """How many statements of ``author`` have each verdict."""
    return Counter(statement.verdict for statement in statements if statement.author == author)


class Listed(tuple):
    """Numbers to which a template's format applies one by one, with commas between them."""

    def __format__(self, spec: str) -> str:
        return ", ".join(format(value, spec) for value in self)


class Span:
    """The least and the greatest of some numbers, to which a template's format applies."""

    def __init__(self, values: Iterable[float]):
        found = list(values)
        self.low, self.high = min(found), max(found)

    def __format__(self, spec: str) -> str:
        return f"{format(self.low, spec)} to {format(self.high, spec)}"
