"""How one value is written in many ways: cosmetics taken away, lists and brackets taken apart. Only strings here."""

import functools
import re
import unicodedata
from collections.abc import Callable

# ruff: noqa: RUF001  The signs that models write are the point.


class UnparsedError(ValueError):
    """Neither equal strings nor anything that can be compared."""


# The first spelling of each group stands for all; other signs get their compatibility form (NFKC).
GROUPS = r"""- −; / ÷ ⁄; * ∗; ^ **; : ∶; , 、; . 。; ' ′; ( \langle; ) \rangle; \times ×; \cdot · ⋅ •; \pm ± +/-; \mp ∓
\infty ∞; ^\circ ° º \degree \degrees; \leq ≤ <= \le \leqslant; \geq ≥ >= \ge \geqslant; \neq ≠ != \ne; \cup ∪ \lor
\cap ∩; \setminus ∖ \backslash; \in ∈; \approx ≈; \emptyset ∅ \varnothing; \surd √; \surd[3] ∛; \lfloor ⌊; \rfloor ⌋
\lceil ⌈; \rceil ⌉; \Rightarrow ⇒ \implies; \mathbb{R} ℝ; \mathbb{Z} ℤ; \mathbb{N} ℕ; \ldots … ... \dots \cdots
\angle ∠; \triangle △; | \vert \lvert \rvert; \| \Vert \lVert \rVert; \{ \lbrace; \} \rbrace
\frac \dfrac \tfrac \cfrac; \text \mbox \mathrm \mathsf \textbf \textrm \textit \textnormal \operatorname
\binom \dbinom \tbinom; \log_{10} \lg
~ \quad \qquad \displaystyle \limits \large \Large \bf \rm \left \right \middle \big \Big"""
SPELLINGS = {sign: group.split()[0] for group in re.split("[;\n]", GROUPS) for sign in group.split()[1:]}
SPELLING = re.compile(r"\\[a-zA-Z]+|>=|<=|!=|\*\*|\+/-|\.\.\.|[^\x00-\x7f]")
FUNCTIONS = r"(?:arc|a)?(?:sin|cos|tan)h?|cot|sec|csc|ln|exp|sqrt|gcd|lcm|max|min|det|binom"
GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|sigma|phi|omega|pi"
# A word is at least three letters with a vowel, written apart from what may be a product, or one of these.
UNITS = "[cmkn]m|[km]g|ft|mph|hrs?|sec|min|lbs?|deg|rad|mol|ml|st|[nr]d|th|[ap]m|[kMG]?eV|k?Hz|k?Pa|per|or|and|odd|inch"
WORD = rf"(?:(?<=\d)(?:{UNITS})|(?<![\\a-zA-Z{{_\d])(?:{UNITS}|[A-Za-z](?=[a-z]*[aeiouy])[a-z]{{2,}}))(?![a-zA-Z_(\d])"
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
OPEN, CLOSE = "([{", ")]}"
CURRENCY = r"\\\$|[€£¥]|(?:\\text\s*\{\s*)?Rs\.?\s*\}?(?=\d)"
CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "pound", "¥": "yuan"}
DEGREE = r"\s*\^\s*\{?\s*\\circ\s*\}?"
_PATTERNS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$|[`\"]", " "),
    # A product of vectors has an order, unlike one of numbers.
    (r"(\\(?:vec|mathbf|hat)\b[^=,]*)\\times", r"\1\\wedge"),
    (r"\\text\s*\{\s*all reals?(?: numbers?)?\s*\}", r"\\mathbb{R}"),
    (r"\\frac\s*(\d)(?=\s*[\d{\\])", r"\\frac{\1}"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\{,\}", ","),
    (r"\\!\s*|\\(?:hspace|vspace|label|tag|color)\s*\{[^{}]*\}", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\s", " "),
    (r"\\(?:boldsymbol|mathbf|mathit|mathcal|bm|vec|hat|overrightarrow)\s*(?:\{([^{}]*)\}|([a-zA-Z]))", r"{\1\2}"),
    (r"\\text\s*\{([deiC])\}", r"\1"),
    (r"\^\s*(?:\{\s*(?:\\text\s*\{\s*T\s*\}|T|\\top|\\intercal)\s*\}|(?:T|\\top|\\intercal)(?![a-zA-Z]))", r"^{\\top}"),
    (r"(?<=[a-zA-Z}])('+)", lambda match: r"^{" + r"\prime" * len(match[1]) + "}"),
    (r"_\s*([a-zA-Z\d])", r"_{\1}"),
    (rf"\\text\s*\{{({FUNCTIONS}|log)\}}", r"\\\1"),
    (r"(?<![\\a-zA-Z])(?:np\.)?log\s*(\d*)\(", lambda match: rf"\log_{{{match[1]}}}(" if match[1] else r"\ln("),
    (rf"(?<![\\a-zA-Z])(?:np\.)?({FUNCTIONS}|{GREEK})(?![a-zA-Z])(?=\s*[({{]|(?<=pi|ta|ha|ma|da)|\s*\d)", r"\\\1 "),
    (r"\\a(sin|cos|tan)", r"\\arc\1"),
    (r"(?<![\\a-zA-Z])inf(?:inity)?(?![a-zA-Z])", r"\\infty"),
    (r"\\begin\s*\{cases\}(.*?)(?:\\\\\s*)?\\end\s*\{cases\}", lambda match: match[1].replace(r"\\", ", ")),
    (r"C\s*_\{?(\d+)\}?\s*\^\{?(\d+)\}?|(?<![a-zA-Z\\])C\((\d+),\s*(\d+)\)", r"\\binom{\1\3}{\2\4}"),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
    (r"(?<![\\\d,])(?<!\d )(\d+) (\d+)/(\d+)", r"\1\\frac{\2}{\3}"),
    (r"\\surd\s*(\[3\])?\s*(\d+(?:\.\d+)?|\\?[a-zA-Z]+)", lambda match: rf"\sqrt{match[1] or ''}{{{match[2]}}}"),
    (r"\\sqrt\s*(\[\d\])\s*(\w)", r"\\sqrt\1{\2}"),
    (r"\{\s*([^{}]+?)\s*\\choose\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}"),
    (rf"(\\(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*\{{?-?\d\}}?)?[ ({{]*)(\d[\d.]*){DEGREE}", r"\1\\frac{\2\\pi}{180}"),
    (r"(?<=\d) (?=\d{3}(?!\d))(?<!\d{4} )", ","),
    # What is said around a value. A condition that holds for everything is none.
    (r"^\s*\\text\s*\{\s*(?i:there (?:are|is)|(?:the )?(?:final )?answer(?: is)?:?|exactly|(?:a )?total of)\s*\}", ""),
    (r",? *\\text *\{ *for (?:all|any|every|each)(?: real)? *\} *[a-zA-Z](?: *\\in *\\mathbb *\{?R\}?)?[ .]*$", ""),
    (r"(?<=\d)\s*\^?\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?|(?<=\d)(?:st|nd|rd|th)(?![a-z])", ""),
    (r"(?<=[)\]}])\s*(?:\\text\s*\{\s*union\s*\}|U)\s*(?=[(\[\\])", r"\\cup "),
    # Units that are signs.
    (rf"{DEGREE}\s*([CF](?![a-zA-Z]))?", r"\\text{ degree \1}"),
    (r"\\?%|\\text\s*\{\s*per ?cent\s*\}|per ?cent(?![a-z])", r"\\text{ percent}"),
    (rf"^(-?)\s*({CURRENCY})\s*(-?[\d,]*\.?\d+)", lambda m: rf"{m[1]}{m[3]}\text{{ {CURRENCIES.get(m[2], 'rupee')} }}"),
    (r"\\\$", ""),
    (
        rf"\\text\s*\{{[^{{}}]*\}}|[\u3400-\u9fff]+|{WORD}(?:[\s.]+(?:{WORD}|(?:is|of|at|if|no|to|in)(?![a-zA-Z])))*",
        lambda match: match[0] if match[0][0] == "\\" else rf"\text{{ {match[0]} }}",
    ),
]  # fmt: skip
REWRITES = [(re.compile(pattern, re.DOTALL), replacement) for pattern, replacement in _PATTERNS]
CALL = re.compile(r"(\\(?:sqrt|surd)(?:\[\d+\])?|\^|(?<![\\a-zA-Z])abs)\s*\(")
BRACKETED = re.compile(r"(?=\\\{.*\\\}$|\{.*[^\\]\}$|[(\[].*[)\]]$)(\\?.)(.+?)(?<!\\)(\\?.)", re.DOTALL)
# A single letter beside a number is a unit; elsewhere it is a variable.
UNIT, BESIDE = re.compile(r"[a-zA-Z.~/ ]+(?<!or )(?<!and )"), re.compile(r"(?:[\d)/]|\}\{?)\s*$")
JOINED = re.compile(r"\s*,?\s*(?<![a-zA-Z])(?:and|or|和|或)(?![a-zA-Z])\s*,?\s*")
RELATION = re.compile(r"[<>]|\\[lg]eq|\\neq")
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")


# A gold is asked for by every rollout of its group.
@functools.lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""An answer in one notation: no delimiters, sizes, spacing or full stop, ASCII signs, words in `\text`.

    Degree, percent and currency signs become words, "and" and "or" commas; between relations "or" is a union.

    Raises:
        UnparsedError: it has control characters or halves of surrogate pairs.
    """
    if re.search(r"[\x00-\x07\x0e-\x1f\x7f\ud800-\udfff]", text):
        raise UnparsedError("control characters")
    # One space first: some patterns below are cubic in the length of a run of spaces.
    text = re.sub("([⁰¹²³⁴-ⁿ]+)", r"^{\1}", re.sub("([₀-ₜ]+)", r"_{\1}", " ".join(text.split())))
    text = SPELLING.sub(lambda match: _respelled(match[0]), text)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    while match := CALL.search(text):
        end = closing(text, match.end() - 1)
        left, right = ("|", "|") if match[1] == "abs" else (match[1].replace("surd", "sqrt") + "{", "}")
        text = text[: match.start()] + left + text[match.end() : end] + right + text[end + 1 :]
    either = r" \cup " if RELATION.search(text) and re.search(r"\bor\b|或", text) else " , "
    text = TEXT.sub(lambda match: _words(match, either), text)
    if re.search(r"\d, -?\d", text) or not re.search(r"[(\[]", text):
        text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return re.sub(r"\\text\{\s*\}|^\s*,|(?<=,) ,", "", text).strip(" *").rstrip(".,;: ")


@functools.cache
def _respelled(sign: str) -> str:
    if sign in SPELLINGS:
        return SPELLINGS[sign] + " " * (sign[0] != "\\" and SPELLINGS[sign][0] == "\\")
    if sign.isascii():
        return sign
    kind, name = unicodedata.category(sign), unicodedata.name(sign, "")
    if kind in ("Cf", "Pi", "Pf"):  # invisible signs, quotation marks
        return ""
    if name.startswith("GREEK") and "LETTER" in name:
        letter = name.split()[-1]
        return "\\" + (letter.lower() if "SMALL" in name else letter.capitalize()) + " "
    plain = unicodedata.normalize("NFKC", sign)
    if "\u2044" in plain:
        return r"\frac{{{}}}{{{}}}".format(*plain.split("\u2044"))
    return "-" if kind == "Pd" else "".join(SPELLINGS.get(part, part) for part in plain)


def _words(match: re.Match[str], either: str) -> str:
    r"""A `\text` by its kind: values as they are, words and units in `\text`, lists with commas."""
    text = match[1]
    if UNIT.fullmatch(text) and BESIDE.search(match.string[: match.start()]):
        return match[0]
    joint = either if re.search(r"\bor\b|或", text) else " , "
    parts = [part.strip() for part in JOINED.split(text)]
    return joint.join(
        rf"\text{{ {part} }}" if re.search(r"[^\W\d_]{2}|[\u3400-\u9fff]", part) else f" {part} " for part in parts
    )


def closing(text: str, start: int) -> int:
    """Where the bracket at a position closes; the text's length if it never does."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        if depth == 0:
            return position
    return len(text)


def compact(text: str) -> str:
    r"""A key for equality of spelling: no spaces, no braces around one sign, `\text` opened."""
    text = re.sub(r"(?<!\d) | (?!\d)", "", TEXT.sub(r"\1", text))
    return re.sub(r"\{(\\?\w)\}", r"\1", text)


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
    match = BRACKETED.fullmatch(text.strip())
    if match is None or closing(match[0], match.end(1) - 1) < len(match[0]) - 1:
        return None
    return match[1], match[2].strip(), match[3]
