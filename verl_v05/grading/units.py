r"""The words beside a value: one side may leave out a unit or what is counted, two units must be one; none is converted.
All other words make another answer."""

import re

from verl_v05.grading.latex import TEXT, UnparsedError

# Names that are not the plural of their unit.
NAMES = {
    "in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "m": "meter", "cm": "centimeter", "mm": "millimeter",
    "km": "kilometer", "kg": "kilogram", "g": "gram", "mg": "milligram", "s": "second", "sec": "second", "h": "hour",
    "hr": "hour", "min": "minute", "per": "/",
}  # fmt: skip
KNOWN = {*NAMES.values(), *"""percent degree dollar cent usd euro yuan rupee people men women children am pm celsius unit
    way mph kmph mile pound erg C F J W N K V A Pa Hz eV mol rad L ml lb kelvin""".split()}  # fmt: skip
# Words that make another statement of a number: a closed class, unlike the nouns that are counted.
CHANGING = re.compile(
    r"\b(is|are|was|be|not?|none|never|than|more|less|fewer|least|most|over|under|above|below|about|around|to|up|if|when|"
    r"unless|but|except|plus|minus|mod|base|half|twice|does|do|fails|as|us|this|thus|various|\w+ous|between|at|for|with|"
    r"without|only|\w*(?:(?:hundred|thousand|million|billion|trillion|dozen)(?:th)?s?|(?:third|fourth|fifth|tenth)s)|tens|"
    r"halves)\b|[百千万亿不或至多少以上下左右倍半非无第](?!米|克|瓦)"
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


def agree(answer: str, gold: str) -> bool:
    """Whether the words beside two values may be different for one answer.

    Raises:
        UnparsedError: the words of one side are no unit.
    """
    if answer and gold:
        return _unit(answer) == _unit(gold)
    if words := answer or gold:
        last = re.findall(r"[^\W\d_]+", words)[-1]
        if CHANGING.search(words) or not (last >= "\u3400" or last.removesuffix("s") in KNOWN or _singular(last) != last):
            raise UnparsedError(f"{words!r} is no unit")
    return True


def _unit(text: str) -> list[str]:
    text = re.sub(r"\bsquare (\w+)", r"\1 2", re.sub(r"\bcubic (\w+)", r"\1 3", text))
    return [_singular(word) for word in re.findall(r"[^\W\d_]+|/|-?\d", text)]


def _singular(word: str) -> str:
    return NAMES.get(word) or re.sub(r"^(.{3,}[^s])s$", r"\1", word.replace("metre", "meter"))
