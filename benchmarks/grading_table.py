"""False negatives and false positives of the grader and of the scorers that verl has, on the published golds.

`python -m benchmarks.grading_table --data data/test` writes every gold as models write answers, each of them true, and
as wrong answers; every scorer grades all of them. The folder holds a parquet file a benchmark (`python -m recipes.data`
makes it) or a jsonl file with `id` and `answer`. Writes benchmarks/results/grading.md.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import pandas as pd
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from rich.console import Console
from sympy import Expr, expand, factor, latex, nan, zoo

from recipes.data.sources import TESTS
from verl_v05.grading import GradingPool

SOURCES = tuple(source.name for source in TESTS)
OUR = "verl_v05"
RESULT = Path(__file__).parent / "results" / "grading.md"

INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d*\.\d+")
SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)e(-?\d+)")
FRACTION = re.compile(r"(-?)\\d?frac\{?(\d+)\}?\{?(\d+)\}?")
TUPLE = re.compile(r"\((-?\d+),\s*(-?\d+)\)")
INTERVAL = re.compile(r"([\[(])([^()\[\]]*),([^()\[\]]*)([\])])")
LIST = re.compile(r"-?[\w^+{}\\/ -]+(?:,\s*-?[\w^+{}\\/ -]+)+")
NAMED = re.compile(r"([a-zA-Z](?:\([a-z]\))?)\s*=([^=,]+)")

Writer = Callable[[str], str | None]
Scorer = Callable[[str, str], bool]


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
    return [part.strip() for part in gold.split(",")]


def changed(gold: str, new: str) -> str | None:
    return new if new != gold else None


def exact_decimal(gold: str) -> str | None:
    if not (match := FRACTION.fullmatch(gold)):
        return None
    value = Fraction(int(match[2]), int(match[3]))
    if value.denominator not in {2**a * 5**b for a in range(8) for b in range(8)} or value.denominator == 1:
        return None
    return match[1] + f"{float(value):.12f}".rstrip("0")


def plain_number(gold: str) -> bool:
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
    return None if (expression := parsed(gold)) is None else changed(gold, latex(rewrite(expression), ln_notation=True))


def substitute(pattern: re.Pattern[str], template: str, full: bool = True) -> Writer:
    """A writer for golds of a pattern; for all other golds it has nothing to write."""

    def write(gold: str) -> str | None:
        match = pattern.fullmatch(gold) if full else pattern.search(gold)
        return None if match is None else changed(gold, pattern.sub(template, gold))

    return write


def when(condition: Callable[[str], object], write: Writer) -> Writer:
    return lambda gold: write(gold) if condition(gold) else None


def thousands(gold: str, separator: str) -> str | None:
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
        lambda gold: changed(gold, re.sub(r"(?<![a-zA-Z])\s+|\s+(?![a-zA-Z])", "", gold)),
    ),
    "more spaces": when(
        lambda gold: not re.search(r"text|mbox|\d,(\\! ?)?\d{3}|where", gold),
        lambda gold: changed(gold, re.sub(r"([,+=])", r" \1 ", gold).strip()),
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
    "list reversed": when(is_list, lambda gold: changed(gold, ", ".join(reversed(members(gold))))),
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


def other(gold: str) -> str | None:
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
    "off by one": other,
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
        tables.append(pd.DataFrame({"source": source, "id": ids, "gold": answers.astype(str)}))
    return pd.concat(tables, ignore_index=True)


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


def plain_math_verify(delimited: bool) -> Scorer:
    """As the library's README has it: parse both, verify; golds bare as published or between dollars."""
    from math_verify import parse, verify

    return lambda response, gold: verify(parse(f"${gold}$" if delimited else gold), parse(response))


def verl_math_verify() -> Scorer:
    # What verl runs in its subprocesses, without those: the verdicts are the same, and imports are paid once.
    from verl.utils.reward_score.math_verify import _verify_in_subprocess

    return lambda response, gold: _verify_in_subprocess(f"\\boxed{{{gold}}}", response) > 0


def verl_scorer(module: str) -> Scorer:
    import importlib

    compute_score = importlib.import_module(f"verl.utils.reward_score.{module}").compute_score
    if module == "math_dapo":
        return lambda response, gold: compute_score(response, gold)["acc"]
    if module == "prime_math":
        return lambda response, gold: compute_score(response, gold)[0]
    return lambda response, gold: compute_score(response, gold) > 0


SCORERS: dict[str, Callable[[], Scorer]] = {
    "math-verify, bare gold": lambda: plain_math_verify(False),
    "math-verify, $gold$": lambda: plain_math_verify(True),
    "verl math_verify": verl_math_verify,
    "verl math_dapo": lambda: verl_scorer("math_dapo"),
    "verl math_reward": lambda: verl_scorer("math_reward"),
    "verl prime_math": lambda: verl_scorer("prime_math"),
}


def judge(name: str, pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    """One of the others' verdicts and its seconds; it has the process's main thread, for its signals."""
    scorer = SCORERS[name]()
    started, verdicts = time.perf_counter(), []
    # Their warnings and prints, thousands of lines.
    with open(os.devnull, "w") as void:
        os.dup2(void.fileno(), 1)
        os.dup2(void.fileno(), 2)
    for pair in pairs:
        try:
            verdicts.append(bool(scorer(*pair)))
        except Exception:
            verdicts.append(False)
    return verdicts, time.perf_counter() - started


def grade_all(cases: pd.DataFrame, workers: int) -> tuple[pd.DataFrame, float]:
    """The cases with our verdicts and failures, and grades a second."""
    pairs = list(zip(cases["response"], cases["gold"], strict=True))
    with GradingPool(workers=workers) as pool:
        pool.grade_many([("\\boxed{x+y}", "y-x")] * workers)
        started = time.perf_counter()
        verdicts = pool.grade_many(pairs)
        rate = len(pairs) / (time.perf_counter() - started)
    return cases.assign(
        **{OUR: [v.correct for v in verdicts], "failure": [v.failure or "compared" for v in verdicts]}
    ), rate


def judge_all(
    cases: pd.DataFrame, scorers: list[str], workers: int, console: Console
) -> tuple[pd.DataFrame, pd.Series]:
    """The cases with a column of verdicts a scorer, and grades a second of each."""
    pairs = list(zip(cases["response"], cases["gold"], strict=True))
    context = multiprocessing.get_context("spawn")
    seconds = {}
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as executor:
        futures = {name: executor.submit(judge, name, pairs) for name in scorers}
        for name, future in futures.items():
            verdicts, seconds[name] = future.result()
            cases = cases.assign(**{name: verdicts})
            console.print(f"{name}: {seconds[name]:.0f} s")
    return cases, len(pairs) / pd.Series(seconds, dtype=float)


def table(cases: pd.DataFrame, by: str, scorers: list[str], wrong: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
    """Markdown: wrong verdicts by a column, with totals."""
    verdicts = wrong(cases[scorers]).astype(int)
    order = list(dict.fromkeys(cases[by]))
    sums = verdicts.groupby(cases[by]).sum().loc[order]
    sums.insert(0, "responses", cases.groupby(by).size())
    sums.loc["all"] = sums.sum()
    return sums.reset_index(names=by).to_markdown(index=False).replace("\\", "\\\\")


def listing(rows: pd.DataFrame) -> str:
    return "\n".join(
        f"- {row.source}, {row.writing} ({row.failure}): gold `{row.gold}`, `{row.response.splitlines()[-1]}`"
        for row in rows.itertuples()
    )


def report(cases: pd.DataFrame, sample: pd.DataFrame, rates: pd.Series, arguments: argparse.Namespace) -> str:
    """The result page: our verdicts on all cases, everybody's on a sample of them."""
    scorers = list(rates.index)
    true, wrong = sample[sample["true"]], sample[~sample["true"]]
    negatives, positives = cases[cases["true"] & ~cases[OUR]], cases[~cases["true"] & cases[OUR]]
    return f"""# Grading the published golds

`python -m benchmarks.grading_table --data data/test --most {arguments.most} --seed {arguments.seed}`

{cases["id"].nunique()} golds, {cases["true"].sum()} true answers and {(~cases["true"]).sum()} wrong ones, written by
rule from the golds: no model wrote them, and who wrote the rules also wrote the grader. On all of them {OUR}
has {len(negatives)} false negatives and {len(positives)} false positives, listed at the end. The tables are on a random
sample, the same for every scorer. "math-verify" is the library as its README shows it. verl's scorers get what verl
gives them, its math_verify without its subprocesses; math_reward reads boxes only, math_dapo "Answer:" lines or boxes.

## False negatives by benchmark

{table(true, "source", scorers, lambda v: ~v)}

## False negatives by writing

{table(true, "writing", scorers, lambda v: ~v)}

## False positives by writing

{table(wrong, "writing", scorers, lambda v: v)}

## Grades a second, start-up left out

{rates.round().astype(int).rename("grades/s").to_markdown()}

## What {OUR} still misses ({len(negatives)})

{listing(negatives)}

## Known misses that no writing above shows

Counted wrong on purpose or for want of a rule: a derivative in another notation (`dy/dt` for `y'`), `\\log` for
`\\ln`, a unit that is one bare letter (`9.6 m`: it might be a variable), a list in round brackets (it might be a
tuple), a base-b numeral without its base, another argument's name (`f(t)=2t` for `f(x)=2x`), the right side alone
of an equation whose left side is no name, golds that are sentences or misprints unless copied, and a physical value
that does not round to the gold.

## What {OUR} wrongly accepts ({len(positives)})

{listing(positives)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the six benchmarks")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--scorers", nargs="*", default=list(SCORERS), choices=list(SCORERS))
    parser.add_argument("--most", type=int, default=30, help="responses a writing and benchmark for the other scorers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the wrong golds")
    arguments = parser.parse_args()
    console = Console()
    cases = cases_of(golds_of(arguments.data), arguments.seed)
    console.print(f"{len(cases)} responses")
    cases, rate = grade_all(cases, arguments.workers)
    console.print(f"{OUR}: {rate:.0f} a second")
    sample = cases.sample(frac=1, random_state=arguments.seed).groupby(["writing", "source"]).head(arguments.most)
    sample, rates = judge_all(sample.sort_index(), arguments.scorers, arguments.workers, console)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(report(cases, sample, pd.concat([pd.Series({OUR: rate}), rates]), arguments))
    os.replace(partial, arguments.out)
    console.print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
