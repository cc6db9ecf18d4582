r"""The words beside a value. Those that only name a unit or what is counted may be absent on one side; all other words
make another answer. Units of both sides must measure the same, and their sizes count."""

import re

from sympy import Expr, S, Symbol, pi
from sympy.physics import units
from sympy.physics.units import convert_to

from verl_v05.grading.latex import TEXT, UnparsedError

SIGNS = {"mph": units.mile / units.hour, "kmph": units.km / units.hour, "sec": units.second, "hr": units.hour,
         "min": units.minute, "h": units.hour, "s": units.second, "in": units.inch}  # fmt: skip
NAMES = "dollar cent usd euro yuan rupee people men women children am pm celsius unit way".split()
SIZES = {"percent": S(1) / 100, "degree": pi / 180}
BASE = [units.meter, units.kilogram, units.second]
# Words that make another statement of a number: a closed class, unlike the nouns that are counted.
CHANGING = re.compile(
    r"\b(is|are|was|be|not?|none|never|than|more|less|fewer|least|most|over|under|above|below|about|around|to|up|if|when|"
    r"unless|but|except|plus|minus|mod|base|half|twice|does|do|fails|as|us|this|thus|various|\w+ous|between|at|for|with|"
    r"without|only|\w*(?:hundred|thousand|million|billion|dozen)(?:th)?s|tens|halves|\w*(?:third|fourth|fifth|tenth)s)\b|"
    r"[百万亿不或至多少以上下左右倍半非无第]|千(?![米克瓦])"
)
LEADING = re.compile(
    r"\\text\s*\{\s*(?:there (?:are|is)|(?:the )?(?:final )?answer(?: is)?:?|exactly|(?:a )?total(?: of)?:?|is)\s*\}",
    re.I,
)
# Everything behind a value that can be its unit: words with powers, products and ratios.
# Possessive, so that a text that does not match costs no more than its square.
WORD = r"\\text\s*+\{[^{}]*+\}(?:\s*+\^\s*+\{?\s*+-?\d\s*+\}?)?+"
TAIL = re.compile(rf"(.*?[^\s\\{{/(])([\s(/~]*+(?:\\cdot)?+\s*+(?:{WORD}|[\s/()]|\\cdot)++)")
ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?")


def separate(text: str) -> tuple[str, str]:
    """(value, the words of its unit); a text of words only has no unit."""
    text = ORDINAL.sub("", LEADING.sub("", text, count=1)).strip()
    if "\\text" not in text or not (match := TAIL.fullmatch(text)) or match[1].endswith(("_", "^", "=")):
        return text, ""
    words = re.sub(r"\b([ap])\s*\.\s*m\b\.?", r"\1m", TEXT.sub(r" \1 ", match[2]))
    words = re.sub(r"[A-Za-z]{3,}|\b[AP]M\b", lambda word: word[0].lower(), words)
    value = match[1] + ")" * (match[1].count("(") - match[1].count(")"))
    return value, " ".join(re.sub(r"\\cdot|[{}()~.]", " ", words).split())


def ratio(answer: str, gold: str) -> Expr:
    """How many of the gold's unit one unit of the answer is; 1 where one side has none.

    Raises:
        UnparsedError: they measure different things, or the words of one side are no unit.
    """
    if answer == gold:
        return S.One
    if answer and gold:
        if (size := convert_to(_unit(answer) / _unit(gold), BASE)).is_number:
            return size
        raise UnparsedError(f"{answer} and {gold} are different units")
    words = answer or gold
    last = re.findall(r"[^\W\d_]+", words)[-1]
    if CHANGING.search(words) or not (last >= "\u3400" or _known(last)):
        raise UnparsedError(f"{words!r} is no unit")
    return S.One


def _unit(text: str) -> Expr:
    text = re.sub(r"\bsquare (\w+)", r"\1 2", re.sub(r"\bcubic (\w+)", r"\1 3", text))
    result, sign, last = S.One, 1, S.One
    for token in re.findall(r"[^\W\d_]+|/|-?\d", text):
        if token in ("/", "per"):
            sign = -1
        elif token[-1].isdigit():
            result *= last ** (int(token) - 1)
        else:
            last = (_known(token) or Symbol(token.lower())) ** sign
            result *= last
    return result


def _known(word: str) -> Expr | None:
    """A unit that sympy knows, else a symbol for a noun in the plural or of our list, else None."""
    for name in (word, word.removesuffix("s"), word.replace("metre", "meter").removesuffix("s")):
        if name in SIGNS or isinstance(getattr(units, name, None), units.Quantity):
            return SIGNS.get(name) or getattr(units, name)
        if name.lower() in NAMES:
            return Symbol(name)
    return Symbol(word[:-1]) if re.fullmatch(r".{3,}[^s]s", word) else None
