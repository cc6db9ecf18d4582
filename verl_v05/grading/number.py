"""Plain numbers as they are written: exact fractions of integers, with the place of the last digit where one is cut."""

import re
from dataclasses import dataclass
from fractions import Fraction

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
DECIMAL = rf"(?:{DIGITS}(?:\.\d*)?|\.\d+)"
TEN_TO = r"10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<t>[+-]?\s*\d{1,3})\s*\}|(?P<u>[+-]?\d{1,3}))"
POWER = rf"(?:[eE]\s*(?P<e>[+-]?\d{{1,3}})|(?:\\times|\\cdot|\*)\s*{TEN_TO})"
SCALAR = re.compile(rf"(?P<sign>[+-]?)\s*(?P<mantissa>{DECIMAL})\s*{POWER}?")
TEN = re.compile(rf"(?P<sign>[+-]?)\s*{TEN_TO}")
RATIO = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<whole>\d+(?=\s*\\frac))?\s*"
    rf"(?:\\frac\s*(?:\{{\s*(?P<a>[+-]?\s*{DECIMAL})\s*\}}|(?P<c>\d))\s*"
    rf"(?:\{{\s*(?P<b>[+-]?\s*{DECIMAL})\s*\}}|(?P<d>\d))|(?P<p>{DECIMAL})\s*/\s*(?P<q>{DECIMAL}))"
)
# A cut value is the gold's if it rounds to it, and never if they differ by more than this share of the larger.
TOLERANCE = Fraction(1, 100)


@dataclass(frozen=True)
class Written:
    """A number on paper: its exact value, and the unit of its last decimal place (None for integers and fractions)."""

    value: Fraction
    place: Fraction | None = None


def read(text: str) -> Written | None:
    r"""The number that a text is: `-12`, `58,500`, `.5`, `4.5e33`, `4.5 \times 10^{33}`, `\frac{1}{2}`, `-1./3`.

    Mixed numbers are sums (`1\frac{4}{5}`). None for anything else.
    """
    text = text.strip()
    if match := SCALAR.fullmatch(text):
        return _scalar(match)
    if match := TEN.fullmatch(text):
        return Written(_sign(match) * Fraction(10) ** int((match["t"] or match["u"]).replace(" ", "")))
    if match := RATIO.fullmatch(text):
        return _ratio(match)
    return None


def same(answer: Written, gold: Written) -> bool:
    """Whether an answer is the gold value.

    A gold written as a decimal or in e-notation is a rounded value: right is what rounds to it (half a unit of its last
    place) and lies within 1 %. An integer gold is right only exactly, a fraction also as a decimal of six good digits.
    """
    if answer.value == gold.value:
        return True
    error, size = abs(answer.value - gold.value), max(abs(answer.value), abs(gold.value))
    if gold.place is not None:
        return error <= gold.place / 2 and error <= TOLERANCE * size
    terminates = 10 ** gold.value.denominator.bit_length() % gold.value.denominator == 0
    return not terminates and rounded(answer, gold.value)


def rounded(answer: Written, value: Fraction) -> bool:
    """Whether a decimal is an exact value cut or rounded to six significant digits or more; an integer never is."""
    place, size = answer.place, abs(answer.value)
    if place is None or size < place * 10**5 or answer.value.denominator == 1 or (answer.value > 0) != (value > 0):
        return False
    return size in (abs(value) // place * place, round(abs(value) / place) * place)


def _sign(match: re.Match[str]) -> int:
    return -1 if match["sign"] == "-" else 1


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").rstrip("."))


def _scalar(match: re.Match[str]) -> Written:
    mantissa = match["mantissa"].rstrip(".")
    power = match["e"] or match["t"] or match["u"]
    scale = Fraction(10) ** int((power or "0").replace(" ", ""))
    decimals = len(mantissa.partition(".")[2])
    place = scale / 10**decimals if power or decimals else None
    return Written(_sign(match) * _decimal(mantissa) * scale, place)


def _ratio(match: re.Match[str]) -> Written | None:
    numerator, denominator = (
        _decimal(match[long] or match[short] or match[plain])
        for long, short, plain in (("a", "c", "p"), ("b", "d", "q"))
    )
    if denominator == 0:
        return None
    return Written(_sign(match) * (Fraction(match["whole"] or 0) + numerator / denominator))
