"""Plain numbers as they are written: exact fractions of integers, with the place of the last digit where one is cut."""

import re
from dataclasses import dataclass
from fractions import Fraction

TEN_TO = re.compile(
    r"(?P<one>(?<!\d)|\s*(?:\\times|\\cdot|\*)\s*)10\s*\^\s*(?:\{\s*([+-]?)\s*(\d{1,3})\s*\}|([+-]?\d{1,3}))"
)
DECIMAL = r"\s*(?:\d+\.?\d*|\.\d+)\s*"
SCALAR = re.compile(rf"([+-]?)({DECIMAL}(?:[eE][+-]?\d{{1,3}})?)")
RATIO = re.compile(
    rf"([+-]?)\s*(\d*)\s*\\frac\s*\{{([+-]?{DECIMAL})\}}\s*\{{([+-]?{DECIMAL})\}}|([+-]?{DECIMAL})/({DECIMAL})"
)
# A cut value is the gold's if it rounds to it, and never if they differ by more than this share of the larger.
TOLERANCE = Fraction(1, 100)


@dataclass(frozen=True)
class Written:
    """A number on paper: its exact value, and the unit of its last decimal place (None for integers and fractions)."""

    value: Fraction
    place: Fraction | None = None


def read(text: str) -> Written | None:
    r"""The number that a tidy text is: `-12`, `.5`, `4.5e33`, `4.5 \times 10^{33}`, `\frac{1}{2}`, `-1./3`.

    Mixed numbers are sums (`1\frac{4}{5}`). None for anything else.
    """
    power = re.fullmatch(r"[+-]?\s*10\s*\^.*", text)
    text = TEN_TO.sub(
        lambda match: ("" if match["one"] else "1") + f"e{match[2] or ''}{match[3] or match[4]}", text
    ).strip()
    if match := SCALAR.fullmatch(text):
        digits = match[2].strip()
        cut = not power and not digits.isdigit()
        mantissa, _, exponent = digits.lower().partition("e")
        place = Fraction(10) ** (int(exponent or 0) - len(mantissa.strip().partition(".")[2])) if cut else None
        return Written(Fraction(match[1] + digits), place if not digits.endswith(".") else None)
    if (match := RATIO.fullmatch(text)) and (bottom := Fraction(match[4] or match[6])):
        whole, part = Fraction(match[2] or 0), Fraction(match[3] or match[5]) / bottom
        return Written(-(whole + part) if match[1] == "-" else whole + part)
    return None


def same(answer: Written, gold: Written) -> bool:
    """Whether an answer is the gold value.

    A gold written as a decimal or in e-notation is a rounded value: right is what rounds to it (half a unit of its last
    place) and lies within 1 %. Every other gold is exact.
    """
    error, size = abs(answer.value - gold.value), max(abs(answer.value), abs(gold.value))
    if gold.place is not None:
        return error <= gold.place / 2 and error <= TOLERANCE * size
    return error == 0
