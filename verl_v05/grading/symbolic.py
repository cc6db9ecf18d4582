"""Exact comparison of expressions and sets: parsed by math-verify's parser, decided by sympy.

Unknowns get values at points of both signs and of many sizes: sympy's simplification may take minutes.
"""

import functools
import random
import re
from collections.abc import Iterator

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import And, ConversionConfig
from sympy import Basic, Derivative, Eq, Expr, Float, Integer, MatrixBase, Rational, Set, Symbol
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from verl_v05.grading.latex import UnparsedError, brackets, split

# Its units are off because they eat variables: "3 m" would become 3.
NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
CASED = ConversionConfig(lowercase_symbols=False)
# Letters that the parser takes for constants or functions (I_{1} would be the imaginary unit) get letters that nobody
# uses; i alone is the imaginary unit, and e the base of the logarithm.
LETTERS = {"I": r"\iota ", "E": r"\omicron ", "e": r"\varpi ", r"\gamma": r"\upsilon ", r"\Gamma": r"\Upsilon ",
           r"\top": r"\varrho "}  # fmt: skip
TAKEN = re.compile(r"\\[a-zA-Z]+|[IE]|e(?=_)")
# What the parser drops, or reads as a product of letters or without the base of a numeral.
UNREADABLE = re.compile(r"\d_|\\(?:ldots|subset|supset|wedge|angle|mod|pmod|perp|parallel|to|mapsto|\|)|:|\?|\d \d")
MIXED = re.compile(r"(?<![\d.}\\])(\d+)\s*(\\frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d))")
# The usual letters of integers: identities of floors and powers of -1 hold for them only.
INTEGERS = re.compile(r"[jklmnNMK](?:_.*)?")
# What is also a number without unit.
SIZES = {"percent": Rational(1, 100), "degree": sympy.pi / 180}
SCALES = (1, 1, -1, -1, 20, -20, 300, -300, 0, 0)
POINTS = 3
DIGITS = 60
# Between inequalities, which the parser cannot join.
COMMA = re.compile(",")
OPERATIONS = ((re.compile(r"\\cup(?![a-zA-Z])"), sympy.Union), (COMMA, sympy.Intersection))


def same(answer: str, gold: str, factor: Expr = sympy.S.One) -> bool:
    """Whether an answer times a factor has the value of a gold, both without list structure."""
    left, right = _parse(answer), _parse(gold)
    if isinstance(left, MatrixBase) and isinstance(right, MatrixBase):
        return left.shape == right.shape and all(map(_same_values, left, right))
    if isinstance(left, Expr) and isinstance(right, Expr):
        return _same_values(left * factor, right)
    return type(left) is type(right) and left == right


def same_set(answer: str, gold: str) -> bool:
    """Whether two sets of real numbers, as intervals, inequalities or by their elements, are one."""
    (left, mine), (right, theirs) = _set(answer), _set(gold)
    same_names = not mine or not theirs or mine == theirs
    return same_names and (left == right or bool(left.symmetric_difference(right).is_empty))


def _set(text: str) -> tuple[Set, set[Symbol]]:
    """A set, and the unknowns that are said to be its elements."""
    for pattern, operation in OPERATIONS:
        if len(parts := split(text, pattern)) > 1:
            sets, names = zip(*map(_set, parts), strict=True)
            return operation(*sets), set().union(*names)
    bracket = brackets(text)
    if bracket and bracket[0] in "([" and len(ends := [_parse(end) for end in split(bracket[1], COMMA)]) == 2:
        # Not left to the parser, which takes ten times as long for an interval as for its ends.
        if all(end.is_number for end in ends) and ends[0] < ends[1]:
            return sympy.Interval(*ends, bracket[0] == "(", bracket[2] == ")"), set()
    value = _parse(text)
    if isinstance(value, Eq) and isinstance(value.rhs, Set):  # how the parser reads "is an element of"
        return value.rhs.doit(), value.free_symbols
    if isinstance(value, Relational | And):
        return sympy.And(*(value.args if isinstance(value, And) else [value])).as_set(), value.free_symbols
    if isinstance(value, Set):
        return value.doit(), set()
    raise UnparsedError(f"no set: {text}")


# Parsing is nearly all of the time, and a gold is asked for by every rollout of its group.
@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Basic:
    if UNREADABLE.search(text) or "\\text" in re.sub(r"_\s*\{[^{}]*\{[^{}]*\}[^{}]*\}", "", text) or not text.strip():
        raise UnparsedError(f"no expression: {text!r}")
    text = MIXED.sub(r"(\1+\2)", text)
    text = TAKEN.sub(lambda match: LETTERS.get(match[0], match[0]), text)
    try:
        value = latex2sympy(text, is_real=True, normalization_config=NORMALIZATION, conversion_config=CASED)
        value = value.xreplace({atom: Rational(str(atom)) for atom in value.atoms(Float)})
        return value if isinstance(value, Relational | Set) or value.has(Derivative) else value.doit()
    except Exception as error:
        raise UnparsedError(f"no expression: {text!r}") from error


def _same_values(left: Expr, right: Expr) -> bool:
    return all(_close(mine, theirs) for mine, theirs in _values(left, right))


def _close(mine: Expr, theirs: Expr) -> bool:
    if mine.is_Rational and theirs.is_Rational:
        return mine == theirs
    # A precision of one bit is how sympy marks a value of which no digit differs from zero.
    if all(part == 0 or getattr(part, "_prec", 0) == 1 for side in (mine, theirs) for part in side.as_real_imag()):
        return True
    return bool(abs(mine - theirs) <= Rational(1, 10**40) * max(abs(mine), abs(theirs)))


def _values(left: Expr, right: Expr) -> Iterator[tuple[Expr, Expr]]:
    """Values of both at the same points, the same in every process; one for expressions without unknowns.

    Points where neither has a value are left out: identities hold on the domain that both have.
    """
    both = sympy.Tuple(left, right)
    unknowns = both.free_symbols | both.atoms(AppliedUndef, Derivative)
    names, generator, found = sorted({str(unknown) for unknown in unknowns} - {"i"}), random.Random(0), 0
    # Steps agree almost everywhere with their neighbours: x at integers too.
    stepped = both.has(sympy.floor, sympy.ceiling)
    imaginary = Symbol("i", real=True) in unknowns
    for scale in SCALES if names else (1,):
        point: dict[str, Expr] = {"i": sympy.I} if imaginary else {}
        for name in names:
            size = scale or generator.choice((1, -1, 3, -3))
            if INTEGERS.fullmatch(name) or (stepped and not scale):
                point[name] = Integer(size // abs(size) * generator.randint(abs(size) + 1, abs(size) + 12))
            else:
                point[name] = Rational(size * generator.randint(300, 2700), 1009)
        mine, theirs = _value(left, point), _value(right, point)
        if mine is not None and theirs is not None:
            found += 1
            yield mine, theirs
        elif names and mine is not theirs and not both.has(sympy.factorial, sympy.binomial):
            raise UnparsedError(f"{left} and {right} have values at different points")
    if found < (POINTS if names else 1):
        raise UnparsedError(f"no value of {left} or {right}")


def _value(expression: Expr, point: dict[str, Expr]) -> Expr | None:
    """The value at a point; None if there is none, or none among the reals where the point has no i."""
    # Derivatives and unknown functions first: they hold symbols.
    for kind in (Derivative, AppliedUndef, Symbol):
        known = {atom: point[str(atom)] for atom in expression.atoms(kind) if str(atom) in point}
        expression = expression.xreplace(known)
    value = expression.doit()
    if "i" not in point:
        # The real root of a negative number. Not of whole powers: a sign taken out of a difference costs its digits.
        value = value.replace(
            lambda part: part.is_Pow and part.exp.is_Rational and part.exp.q in (3, 5, 7, 9) and part.base.is_negative,
            lambda part: (-1) ** part.exp.p * (-part.base) ** part.exp,
        )
    value = value if value.is_Rational else value.evalf(DIGITS, maxn=400)
    parts = value.as_real_imag() if value.is_number and value.is_finite else [sympy.oo]
    exists = all(part.is_Float or part.is_Rational for part in parts) and ("i" in point or parts[1] == 0)
    return value if exists else None
