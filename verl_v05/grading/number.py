"""Plain numbers as they are written, and the words beside a value.

One side may leave out a unit or what is counted; two units must be one. All other words make another answer.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from verl_v05.grading.latex import TEXT, UnparsedError, compact, tidy

# Longer answers are no values: the longest published gold has 198 characters, and parsing is not linear.
LENGTH_LIMIT = 1000
# Its digits, not int(): Python refuses to read more than 4300 of them.
INTEGER = re.compile(r"[\s$*]*\+?(-?)0*([0-9]+)[\s$*.]*")
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
KNOWN = set("""percent degree dollar cent usd euro pound yuan rupee people men women children am pm celsius unit way
    inch foot mile mph meter m cm mm km gram kg g mg second s sec hour h hr minute min J W N K V A C F Pa Hz eV erg mol
    rad L ml lb""".split())  # fmt: skip
NAMES = {"in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "per": "/"}
PLURAL = re.compile(r"(?<=\w\w\w[^\Ws])s\b")
# Words that make another statement of a number: a closed class, unlike the nouns that are counted.
CHANGING = re.compile(
    r"\b(is|are|was|be|not?|none|never|than|more|less|fewer|least|most|over|under|above|below|about|around|to|up|if|when|"
    r"unless|but|except|plus|minus|mod|base|half|twice|does|do|fails|as|us|this|thus|various|\w+ous|between|at|for|with|"
    r"without|only|\w*(?:(?:hundred|thousand|million|billion|trillion|dozen)(?:th)?s?|(?:third|fourth|fifth|tenth)s)|tens|"
    r"halves)\b|[百千万亿不或至多少以上下左右倍半非无第](?!米|克|瓦)"
)
# Everything behind a value that can be its unit: words with powers, products and ratios.
# Possessive, so that a text that does not match costs no more than its square.
WORD = r"\\text\s*+\{[^{}]*+\}(?:\s*+\^\s*+\{?\s*+-?\d\s*+\}?)?+"
TAIL = re.compile(rf"(.*?[^\s\\{{/(])([\s(/~]*+(?:\\cdot)?+\s*+(?:{WORD}|[\s/()]|\\cdot)++)")


class Written(NamedTuple):
    """A number's exact value, and the unit of its last decimal place (None for integers and fractions)."""

    value: Fraction
    place: Fraction | None = None


def read(text: str) -> Written | None:
    r"""The number that a tidy text is: `-12`, `.5`, `4.5e33`, `4.5 \times 10^{33}`, `\frac{1}{2}`, `1\frac{4}{5}`."""
    power = re.fullmatch(r"[+-]?\s*10\s*\^.*", text)
    text = TEN_TO.sub(lambda ten: ("" if ten["one"] else "1") + f"e{ten[2] or ''}{ten[3] or ten[4]}", text).strip()
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

    A gold written as a decimal or in e-notation is a rounded value: right is what rounds to it and lies within 1 %.
    """
    error, size = abs(answer.value - gold.value), max(abs(answer.value), abs(gold.value))
    return error == 0 if gold.place is None else error <= min(gold.place / 2, TOLERANCE * size)


def plainly(answer: str, gold: str) -> bool | None:
    """Whether two tidy texts are one value, if they have one spelling or both are plain numbers."""
    if compact(answer) == compact(gold):
        return bool(compact(gold))
    left, right = read(answer), read(gold)
    return same(left, right) if left and right else None


def quickly(answer: str, gold: str) -> bool | None:
    """`equivalence.equivalent` where microseconds are enough (two numbers, or one spelling), else None."""
    left, right = INTEGER.fullmatch(answer), INTEGER.fullmatch(gold)
    if left and right:
        return left.groups() == right.groups()
    if max(len(answer), len(gold)) > LENGTH_LIMIT:
        return None
    try:
        return plainly(tidy(answer), tidy(gold))
    except UnparsedError:
        return None


def separate(text: str) -> tuple[str, str]:
    """(value, the words of its unit); a text of words only has no unit."""
    if "\\text" not in text or not (match := TAIL.fullmatch(text)) or match[1].endswith(("_", "^", "=")):
        return text, ""
    words = re.sub(r"\b([ap])\s*\.\s*m\b\.?", r"\1m", TEXT.sub(r" \1 ", match[2]))
    words = re.sub(r"\b(?:sq|square) (\w+)", r"\1 2", words)
    words = re.sub(rf"\b(?:{'|'.join(NAMES)})\b", lambda word: NAMES[word[0]], words)
    words = re.sub(r"[A-Za-z]{3,}|\b[AP]M\b", lambda word: word[0].lower(), words)
    value = match[1] + ")" * (match[1].count("(") - match[1].count(")"))
    return value, " ".join(re.sub(r"\\cdot|[{}()~.^]", " ", words).split())


def agree(answer: str, gold: str) -> bool:
    """Whether the words beside two values may be different for one answer.

    Raises:
        UnparsedError: the words of one side are no unit.
    """
    if answer and gold:
        return PLURAL.sub("", answer) == PLURAL.sub("", gold)
    if words := answer or gold:
        last = re.findall(r"[^\W\d_]+", words)[-1]
        known = last >= "\u3400" or PLURAL.search(last) or {last, last.removesuffix("s")} & KNOWN
        if CHANGING.search(words) or not known:
            raise UnparsedError(f"{words!r} is no unit")
    return True
