"""Golds written as models write answers: every one of them true, or every one wrong."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pandas as pd
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy import Expr, expand, factor, latex, nan, zoo

from recipes.data.sources import TESTS
from verl_v05.grading.answer import gold_text

SOURCES = tuple(source.name for source in TESTS)

INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d*\.\d+")
SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)e(-?\d+)")
FRACTION = re.compile(r"(-?)\\d?frac\{?(\d+)\}?\{?(\d+)\}?")
TUPLE = re.compile(r"\((-?\d+),\s*(-?\d+)\)")
INTERVAL = re.compile(r"([\[(])([^()\[\]]*),([^()\[\]]*)([\])])")
LIST = re.compile(r"-?[\w^+{}\\/ -]+(?:,\s*-?[\w^+{}\\/ -]+)+")
NAMED = re.compile(r"([a-zA-Z](?:\([a-z]\))?)\s*=([^=,]+)")

Writer = Callable[[str], str | None]  # of a gold; None where it has no such writing


def boxed(answer: str | None) -> str | None:
    """The answer at the end of a short solution that also mentions another number."""
    return (
        None if answer is None else f"First we find 17, and from it the rest.\n\nThe result is $\\boxed{{{answer}}}$."
    )


def is_list(gold: str) -> bool:
    """A comma list without brackets that is no number with thousands separators."""
    return (
        bool(LIST.fullmatch(gold))
        and "\\{" not in gold
        and not re.fullmatch(r"\d{1,3}(,\d{3})+", gold)
        and "=" not in gold
    )


def members(gold: str) -> list[str]:
    """Of a gold that :func:`is_list`."""
    return [part.strip() for part in gold.split(",")]


def unless_equal(gold: str, new: str) -> str | None:
    """``new``, or None where it is the gold again."""
    return new if new != gold else None


def exact_decimal(gold: str) -> str | None:
    """A fraction as a decimal, where it has a finite one."""
    if not (match := FRACTION.fullmatch(gold)):
        return None
    value = Fraction(int(match[2]), int(match[3]))
    if value.denominator not in {2**a * 5**b for a in range(8) for b in range(8)} or value.denominator == 1:
        return None
    return match[1] + f"{float(value):.12f}".rstrip("0")


def plain_number(gold: str) -> bool:
    """Whether the gold is an integer or a decimal."""
    return bool(INTEGER.fullmatch(gold) or DECIMAL.fullmatch(gold))


@functools.cache
def parsed(gold: str) -> Expr | None:
    """The gold as a sympy expression, if it is one and no plain number."""
    if plain_number(gold) or SCIENTIFIC.fullmatch(gold) or re.search(r"[=,]|text|mbox|dot|^\d+_|\^\{?\\circ", gold):
        return None
    try:
        expression = latex2sympy(gold, is_real=True, conversion_config=ConversionConfig(lowercase_symbols=False))
    except Exception:
        return None
    # Where the parser reads a letter as a function (\\gamma), nothing true can be printed.
    return expression.doit() if isinstance(expression, Expr) and not expression.has(zoo, nan) else None


def printed(gold: str, rewrite: Callable[[Expr], Expr]) -> str | None:
    """An equal expression as sympy writes it."""
    return (
        None
        if (expression := parsed(gold)) is None
        else unless_equal(gold, latex(rewrite(expression), ln_notation=True))
    )


def substitute(pattern: re.Pattern[str], template: str, full: bool = True) -> Writer:
    """A writer for golds of a pattern; for all other golds it has nothing to write."""

    def write(gold: str) -> str | None:
        match = pattern.fullmatch(gold) if full else pattern.search(gold)
        return None if match is None else unless_equal(gold, pattern.sub(template, gold))

    return write


def when(condition: Callable[[str], object], write: Writer) -> Writer:
    """A writer for the golds that meet the condition."""
    return lambda gold: write(gold) if condition(gold) else None


def thousands(gold: str, separator: str) -> str | None:
    """An integer of four digits or more with separators."""
    return f"{int(gold):,}".replace(",", separator) if INTEGER.fullmatch(gold) and abs(int(gold)) > 999 else None


IN_BOX: dict[str, Writer] = {
    "as the gold": lambda gold: gold,
    "full stop in the box": lambda gold: gold + ".",
    r"\dfrac": substitute(re.compile(r"\\frac"), r"\\dfrac", full=False),
    r"\tfrac": substitute(re.compile(r"\\frac"), r"\\tfrac", full=False),
    r"\left( \right)": when(
        lambda gold: "\\left" not in gold and re.search(r"\(.*\)", gold),
        lambda gold: re.sub(r"\)", r"\\right)", re.sub(r"\(", r"\\left(", gold)),
    ),
    "no spaces": when(
        lambda gold: "text" not in gold and "mbox" not in gold and "where" not in gold,
        lambda gold: unless_equal(gold, re.sub(r"(?<![a-zA-Z])\s+|\s+(?![a-zA-Z])", "", gold)),
    ),
    "more spaces": when(
        lambda gold: not re.search(r"text|mbox|\d,(\\! ?)?\d{3}|where", gold),
        lambda gold: unless_equal(gold, re.sub(r"([,+=])", r" \1 ", gold).strip()),
    ),
    "unit": when(plain_number, lambda gold: gold + r"\text{ cm}"),
    "square unit": when(plain_number, lambda gold: gold + r"\text{ cm}^2"),
    "unit in words": when(plain_number, lambda gold: gold + " meters"),
    r"degrees: 30^{\circ}": substitute(re.compile(r"\^\\circ$"), r"^{\\circ}", full=False),
    "degrees: left out": substitute(re.compile(r"\^\{?\\circ\}?$|\\text\{ degrees\}$"), "", full=False),
    "degrees: in words": substitute(re.compile(r"\^\{?\\circ\}?$"), r"\\text{ degrees}", full=False),
    "decimal of an integer": when(INTEGER.fullmatch, lambda gold: gold + ".0"),
    "decimal of a fraction": exact_decimal,
    "slash for a fraction": substitute(FRACTION, r"\1\2/\3"),
    "fraction of a decimal": when(
        DECIMAL.fullmatch, lambda gold: "\\frac{{{}}}{{{}}}".format(*Fraction(gold).as_integer_ratio())
    ),
    r"e-notation as 4.5 \times 10^{33}": substitute(SCIENTIFIC, r"\1 \\times 10^{\2}"),
    r"e-notation as 4.5 \cdot 10^{33}": substitute(SCIENTIFIC, r"\1 \\cdot 10^{\2}"),
    "e-notation with a unit": substitute(SCIENTIFIC, r"\1 \\times 10^{\2} \\, \\mathrm{erg/s}"),
    "x = ...": when(
        lambda gold: plain_number(gold) or FRACTION.fullmatch(gold) or SCIENTIFIC.fullmatch(gold),
        lambda gold: "x = " + gold,
    ),
    "without its name": substitute(NAMED, r"\2"),
    "list reversed": when(is_list, lambda gold: unless_equal(gold, ", ".join(reversed(members(gold))))),
    "list with and": when(is_list, lambda gold: ", ".join(members(gold)[:-1]) + r" \text{ and } " + members(gold)[-1]),
    "list in braces": when(is_list, lambda gold: r"\{" + ", ".join(members(gold)) + r"\}"),
    "list with names": when(is_list, lambda gold: ", ".join("x = " + part for part in members(gold))),
    "tuples reversed": when(
        lambda gold: len(TUPLE.findall(gold)) > 1 and not TUPLE.sub("", gold).strip(", "),
        lambda gold: ", ".join(f"({a}, {b})" for a, b in reversed(TUPLE.findall(gold))),
    ),
    "tuple or interval, spaced": substitute(INTERVAL, r"\1 \2 , \3 \4"),
    "thousands 10,080": lambda gold: thousands(gold, ","),
    "thousands 10{,}080": lambda gold: thousands(gold, "{,}"),
    r"thousands 10\,080": lambda gold: thousands(gold, r"\,"),
    "text without \\text": substitute(re.compile(r"\\text\{\(?(\w+)\)?\}"), r"\1"),
    "text in \\textbf": substitute(re.compile(r"\\text\{(.*)\}"), r"\\textbf{\1}"),
    "base in braces": substitute(re.compile(r"(\d+)_(\d)"), r"\1_{\2}"),
    "percent sign escaped": substitute(re.compile(r"([\d.]+)\s*\\?%"), r"\1\\%"),
    "as sympy prints it": lambda gold: printed(gold, lambda expression: expression),
    "expanded": lambda gold: printed(gold, expand),
    "factored": lambda gold: printed(gold, factor),
    "pm as two": substitute(re.compile(r"(\d) \\pm (.*)"), r"\1 - \2, \1 + \2"),
}
RENDERINGS: dict[str, Writer] = {
    **{name: (lambda gold, write=write: boxed(write(gold))) for name, write in IN_BOX.items()},
    "display box": lambda gold: f"Thus\n\\[\n\\boxed{{ {gold} }}\n\\]",
    "last of two boxes": lambda gold: f"We had $\\boxed{{17}}$ as a first guess; it is really $\\boxed{{{gold}}}$",
    "separate boxes": when(
        is_list,
        lambda gold: (
            "So "
            + ", ".join(f"$\\boxed{{{part}}}$" for part in members(gold)[:-1])
            + f" and $\\boxed{{{members(gold)[-1]}}}$."
        ),
    ),
    "Answer: line": lambda gold: f"We find 17 first.\n\nAnswer: {gold}",
    "Answer: $...$ line": lambda gold: f"We find 17 first.\n\nAnswer: ${gold}$.",
    "final answer is": lambda gold: f"We find 17 first.\n\nThe final answer is ${gold}$.",
    "**...** line": when(plain_number, lambda gold: f"We find 17 first.\n\n**{gold}**"),
}


def plus_one(gold: str) -> str | None:
    """The gold plus one, in the form of the gold."""
    if INTEGER.fullmatch(gold):
        return str(int(gold) + 1)
    if match := FRACTION.fullmatch(gold):
        return f"{match[1]}\\frac{{{int(match[2]) + int(match[3])}}}{{{match[3]}}}"
    return None


def last_digit(gold: str) -> str | None:
    """A decimal or e-notation gold with one more in its last place."""
    if not (match := re.fullmatch(r"(-?)(\d*)\.(\d+)(e.*)?", gold)):
        return None
    digits = str(int(match[2] + match[3]) + 1).zfill(len(match[3]) + 1)
    return f"{match[1]}{digits[: -len(match[3])]}.{digits[-len(match[3]) :]}{match[4] or ''}"


WRONG_IN_BOX: dict[str, Writer] = {
    "off by one": plus_one,
    "sign flipped": when(
        lambda gold: re.fullmatch(r"[-\d.e\\frac{}]+", gold) and re.search("[1-9]", gold),
        lambda gold: gold.removeprefix("-") if gold.startswith("-") else "-" + gold,
    ),
    "fraction inverted": when(
        lambda gold: (m := FRACTION.fullmatch(gold)) and m[2] != m[3], substitute(FRACTION, r"\1\\frac{\3}{\2}")
    ),
    "last digit": last_digit,
    "wrong exponent": substitute(SCIENTIFIC, r"\1 \\times 10^{\g<2>1}"),
    "digits without the power of ten": substitute(SCIENTIFIC, r"\1"),
    "one more candidate": when(lambda gold: not gold.startswith("\\text"), lambda gold: gold + ", 4711"),
    "several candidates": when(INTEGER.fullmatch, lambda gold: ", ".join(str(int(gold) + i) for i in range(-1, 3))),
    "list cut": when(is_list, lambda gold: ", ".join(members(gold)[:-1])),
    "tuple swapped": when(lambda gold: (m := TUPLE.fullmatch(gold)) and m[1] != m[2], substitute(TUPLE, r"(\2, \1)")),
    "other kind of interval": when(
        lambda gold: "infty" not in gold and INTERVAL.fullmatch(gold),
        lambda gold: gold.translate(str.maketrans("()[]", "[]()")),
    ),
    "base left out": substitute(re.compile(r"(\d+)_\{?(\d)\}?"), r"\1"),
    "times a variable": when(lambda gold: INTEGER.fullmatch(gold) and gold != "0", lambda gold: gold + "x"),
    "power": when(lambda gold: INTEGER.fullmatch(gold) and abs(int(gold)) > 1, lambda gold: gold + "^2"),
}
PROBES: dict[str, Writer] = {
    **{name: (lambda gold, write=write: boxed(write(gold))) for name, write in WRONG_IN_BOX.items()},
    "mentioned, other boxed": lambda gold: f"First we get ${gold}$, hence $\\boxed{{4711}}$.",
    "boxed before another": lambda gold: f"Perhaps $\\boxed{{{gold}}}$? No: with the sign, $\\boxed{{4711}}$.",
    "box cut off": lambda gold: f"So it is $\\boxed{{{gold}",
    "mentioned at the end": lambda gold: f"Then we still have to check the case {gold}",
}


def golds_of(folder: Path) -> pd.DataFrame:
    """One row a gold: source, id, gold.

    Raises:
        FileNotFoundError: a benchmark is missing from the folder.
    """
    tables = []
    for source in SOURCES:
        if (parquet := folder / f"{source}.parquet").exists():
            rows = pd.read_parquet(parquet, columns=["reward_model", "extra_info"])
            ids, answers = rows["extra_info"].str["id"], rows["reward_model"].str["ground_truth"]
        elif (lines := folder / f"{source}.jsonl").exists():
            rows = pd.read_json(lines, lines=True, dtype=False)
            ids, answers = rows["id"], rows["answer"]
        else:
            raise FileNotFoundError(
                f"{parquet}: no such file, nor a jsonl; make the data with `python -m recipes.data`"
            )
        tables.append(pd.DataFrame({"source": source, "id": ids, "gold": answers.map(gold_text)}))
    return pd.concat(tables, ignore_index=True)


def hand_made(paths: Sequence[Path]) -> pd.DataFrame:
    """The tries of files as rows: source (the file's name), gold, true, response; golds keep their types."""
    # Columns of objects: pandas' own strings refuse half a surrogate pair, which a model may write.
    lines = [(path.name, json.loads(line)) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [(name, case["ground_truth"], case["expected"], case["response"]) for name, case in lines]
    return pd.DataFrame(rows, columns=["source", "gold", "true", "response"], dtype=object).astype({"true": bool})


def cases_of(golds: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every response to grade: source, id, gold, true (whether it is right), writing (its name), response."""
    rows = []
    for true, writers in ((True, RENDERINGS), (False, PROBES)):
        for name, write in writers.items():
            for row in golds.itertuples():
                if (response := write(row.gold)) is not None:
                    rows.append((row.source, row.id, row.gold, true, name, response))
    generator = random.Random(seed)
    for source, group in golds.groupby("source"):
        others = group["gold"].tolist()
        for row in group.itertuples():
            wrong = generator.choice([gold for gold in others if gold != row.gold])
            rows.append((source, row.id, row.gold, False, "gold of another problem", boxed(wrong)))
    return pd.DataFrame(rows, columns=["source", "id", "gold", "true", "writing", "response"])
