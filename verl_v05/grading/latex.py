"""How one value is written in many ways: cosmetics taken away, lists and brackets taken apart. Only strings here."""

import re
from collections.abc import Callable

# ruff: noqa: RUF001  The signs that models write are the point.


class UnparsedError(ValueError):
    """Neither equal strings nor anything that can be compared."""


UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
        "°": r"^\circ ", "≤": r"\leq ", "≥": r"\geq ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "≈": r"\approx ",
        "√": r"\sqrt ", "²": "^2", "³": "^3", "½": r"\frac12", "\uff0c": ",", "\u00a0": " ", "€": "", "£": "",
    }
)  # fmt: skip

Replacement = str | Callable[[re.Match[str]], str]
_PATTERNS: list[tuple[str, Replacement]] = [
    (r"(?<!\\)\\[()\[\]]|\\?\$", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\{,\}", ","),
    (r"\\!\s*|\\displaystyle|\\(?:hspace|vspace|label|tag)\{[^{}]*\}", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\s", " "),
    (r"\\(?:boldsymbol|mathbf|mathit|mathcal|vec|hat|overrightarrow)\s*\{([^{}]*)\}", r"{\1}"),
    (r"\\(?:mathrm|operatorname)\s*\{([dei])\}", r"\1"),
    (r"(?<=[a-zA-Z}])('+)", lambda match: r"^{" + r"\prime" * len(match[1]) + "}"),
    (r"_\s*([a-zA-Z\d])", r"_{\1}"),
    (r"\\operatorname\s*\{(?:a|arc)(sin|cos|tan)\}", r"\\arc\1"),
    (r"\\operatorname\s*\{((?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|gcd|lcm|max|min)\}", r"\\\1"),
    (r"\\(?:mbox|mathrm|mathsf|textbf|textrm|textit|textnormal|operatorname)(?![a-zA-Z])", r"\\text"),
    (r"\\geqslant|\\ge(?![a-zA-Z])|>=", r"\\geq"),
    (r"\\leqslant|\\le(?![a-zA-Z])|<=", r"\\leq"),
    (r"\s*\^\s*\{?\s*\\circ\s*\}?(?:\s*[CF]\b)?|\\degrees?(?![a-zA-Z])", " "),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\bnp\.log\b", r"\\ln"),
    (r"\bnp\.((?:arc)?(?:sin|cos|tan)|exp|sqrt|pi)\b", r"\\\1"),
    (r"\\sqrt\s*\(([^()]*)\)|(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
    (r"(?<=\d) (?=\d{3}(?!\d))(?<!\d{4} )", ","),
    (r" {2,}", " "),
]
REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _PATTERNS]
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
# Words behind a number are its unit; a single letter may be a variable, so only words that cannot be a product count.
WORDS = (
    r"(?:degrees?|deg|radians?|rad|units?|dollars?|cents?|percent|inch(?:es)?|feet|foot|ft|yards?|miles?|mph|"
    r"(?:centi|kilo|milli)?met(?:er|re)s?|cm|mm|km|nm|kg|mol|seconds?|sec|minutes?|min|hours?|days?|weeks?|months?|"
    r"years?|[kMG]?eV|k?Hz|k?Pa|ergs?|square|cubic|per|points?|people|ways?|integers?|solutions?|numbers?|pairs?|times)"
)
ONE_UNIT = rf"(?:\\text\s*\{{[^{{}}\d]*\}}|(?<![a-zA-Z\\]){WORDS}(?![a-zA-Z]))(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?"
UNITS = rf"\{{\s*(?:{ONE_UNIT}\s*)+\}}"
UNIT = re.compile(rf"(?<=[\d}}) ])\s*(?:/|\\cdot)?\s*(?:{ONE_UNIT}|\\frac\s*{UNITS}\s*{UNITS})\s*$")
OPEN, CLOSE = "([{", ")]}"


def tidy(text: str) -> str:
    r"""An answer without the marks that carry no value: delimiters, sizes, spacing, currency, degree sign, full stop.

    `$\dfrac{1}{2}$.` and `\frac{1}{2}` become the same; numbers keep their digits.
    """
    text = text.translate(UNICODE)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip(" *").rstrip(".,;: ")


def compact(text: str) -> str:
    r"""A key for equality of spelling: no spaces, no braces around one sign, `\text` opened."""
    text = re.sub(r"(?<!\d) | (?!\d)", "", TEXT.sub(r"\1", text))
    return re.sub(r"\{(\\?\w)\}", r"\1", text)


def without_unit(text: str) -> str:
    r"""The text without trailing units: `15\text{ cm}^2` is `15`; a text that is nothing but words stays."""
    while (stripped := UNIT.sub("", text).rstrip()) and stripped != text:
        text = stripped
    return text


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between separators that stand outside all brackets; escaped braces are brackets too."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if depth <= 0 and (match := separator.match(text, position)):
            parts.append(text[start : match.start()])
            start = position = match.end()
            continue
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def brackets(text: str) -> tuple[str, str, str] | None:
    r"""(opening, inside, closing) of a bracket that spans the whole text: ( [ or \{, half-open intervals too."""
    text = text.strip()
    width = 2 if text.startswith("\\{") else 1
    if len(text) <= 2 * width or (width == 1 and text[0] not in "([") or (width == 2 and not text.endswith("\\}")):
        return None
    if width == 1 and text[-1] not in ")]":
        return None
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign in OPEN) - (sign in CLOSE)
        if depth == 0 and position >= width and position < len(text) - 1:
            return None
    return text[:width], text[width:-width].strip(), text[-width:]
