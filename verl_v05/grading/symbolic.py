"""Comparison of expressions: parsed by math-verify's parser, decided by values at random points, else by math-verify.

Values at points take milliseconds and always end, where sympy's simplification may take minutes; what has no values
(relations, sets) goes to math-verify. Importing this module takes most of a second.
"""

import functools
import logging
import random
import re
from collections.abc import Iterator
from fractions import Fraction

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from math_verify import verify
from sympy import Basic, Derivative, Expr, I, Integer, Rational, Symbol, binomial, ceiling, factorial, floor
from sympy.core.function import AppliedUndef

from verl_v05.grading import number
from verl_v05.grading.latex import UnparsedError

# It warns once a process that it has no time limit: by design, its limit needs signals.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# Its units are off because they eat variables: "3 m" would become 3.
NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
# Letters that the parser takes for constants or functions (I_{1} would be the imaginary unit) get letters that nobody
# uses; i alone is the imaginary unit, and e the base of the logarithm.
LETTERS = {"I": r"\iota ", "E": r"\omicron ", "e_": r"\omicron _", r"\gamma": r"\upsilon "}
TAKEN = re.compile(r"\\[a-zA-Z]+|[IE]|e_")
POINTS = 6
DIGITS = 30
# Relative difference of two exact expressions that are equal, evaluated to DIGITS digits or holding double floats.
ROUNDING = 1e-12


class NoValueError(UnparsedError):
    """An expression without a finite value at a point."""


def same(answer: str, gold: str) -> bool:
    """Whether two LaTeX expressions without list structure are equal.

    Raises:
        UnparsedError: one of them is no expression that the parser knows.
    """
    left, right = _parse(answer), _parse(gold)
    if isinstance(left, Expr) and isinstance(right, Expr):
        try:
            return _same_values(left, right, number.read(answer), number.read(gold))
        except NoValueError:
            pass
    return verify(right, left, allow_set_relation_comp=True, timeout_seconds=None)


def same_equation(answer: tuple[str, str], gold: tuple[str, str]) -> bool:
    """Whether two equations, as (left side, right side), say the same: their differences are in a constant ratio.

    Raises:
        UnparsedError: a side is no expression that the parser knows, or has no value.
    """
    sides = [_parse(side) for side in (*answer, *gold)]
    if not all(isinstance(side, Expr) for side in sides):
        raise UnparsedError(f"no equation of two expressions: {answer} or {gold}")
    left, right = sides[0] - sides[1], sides[2] - sides[3]
    ratios = []
    for mine, theirs in _values(left, right):
        if abs(theirs) < ROUNDING or abs(mine) < ROUNDING:
            return False
        ratios.append(mine / theirs)
    return all(abs(ratio - ratios[0]) <= ROUNDING * abs(ratios[0]) for ratio in ratios)


# Parsing is nearly all of the time, and a gold is asked for by every rollout of its group.
@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Basic:
    text = TAKEN.sub(lambda match: LETTERS.get(match[0], match[0]), text)
    try:
        return latex2sympy(text, is_real=True, convert_degrees=False, normalization_config=NORMALIZATION)
    except Exception as error:
        raise UnparsedError(f"no expression: {text!r}") from error


def _same_values(left: Expr, right: Expr, answer: number.Written | None, gold: number.Written | None) -> bool:
    if _names(left, right):
        return all(_close(mine, theirs, ROUNDING) for mine, theirs in _values(left, right))
    mine, theirs = next(_values(left, right))
    if gold is not None and gold.place is not None:
        return mine.is_real and number.same(number.Written(Fraction(str(mine))), gold)
    decimal = answer is not None and answer.place is not None
    return _close(mine, theirs, float(number.EXACT_TOLERANCE) if decimal else ROUNDING)


def _close(mine: Expr, theirs: Expr, tolerance: float) -> bool:
    return bool(abs(mine - theirs) <= tolerance * max(abs(mine), abs(theirs), ROUNDING))


def _values(left: Expr, right: Expr) -> Iterator[tuple[Expr, Expr]]:
    """Values of both at the same random points, the same in every process; one for expressions without unknowns."""
    names = _names(left, right)
    # Identities of floors and factorials hold at integers only.
    integers = any(side.has(floor, ceiling, factorial, binomial) for side in (left, right))
    generator = random.Random(0)
    for _ in range(POINTS if names else 1):
        point = {"i": I} | {
            name: Integer(generator.randint(2, 40)) if integers else Rational(generator.randint(300, 2700), 1009)
            for name in names
        }
        yield _value(left, point), _value(right, point)


def _names(*expressions: Expr) -> list[str]:
    unknowns = {atom for side in expressions for atom in side.free_symbols | side.atoms(AppliedUndef, Derivative)}
    return sorted({str(unknown) for unknown in unknowns} - {"i"})


def _value(expression: Expr, point: dict[str, Expr]) -> Expr:
    # Derivatives and unknown functions first: they hold symbols.
    for kinds in ((Derivative,), (AppliedUndef,), (Symbol,)):
        expression = expression.xreplace(
            {atom: point[str(atom)] for atom in expression.atoms(*kinds) if str(atom) in point}
        )
    value = expression.doit().evalf(DIGITS)
    if (
        not value.is_number
        or not value.is_finite
        or not all(part.is_Float or part.is_Integer or part.is_Rational for part in value.as_real_imag())
    ):
        raise NoValueError(f"no value of {expression}")
    return value
