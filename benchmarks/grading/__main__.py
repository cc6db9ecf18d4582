"""False negatives and false positives of the grader and of the scorers that verl has, on the published golds.

`python -m benchmarks.grading --data data/test` writes every gold as models write answers, each of them true, and as
wrong answers; every scorer grades all of them. The folder holds a parquet file for each benchmark (made by `python -m
recipes.data`) or a jsonl file with `id` and `answer`. `--cases` are hand-made tries, a line each: `response`,
`ground_truth`, `expected` (is it right?). Writes benchmarks/grading/README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks.grading.scorers import OUR, SCORERS, grade_all, judge_all
from benchmarks.grading.writings import cases_of, golds_of, hand_made
from value_model.files import write_text

TEMPLATE = Path(__file__).parent / "page.md"
PAGE = Path(__file__).parent / "README.md"
OWN_CASES = Path(__file__).parent / "own_cases.jsonl"


def table(cases: pd.DataFrame, by: str, scorers: Sequence[str], wrong: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
    """Markdown: wrong verdicts by a column, with totals."""
    verdicts = wrong(cases[list(scorers)]).astype(int)
    order = list(dict.fromkeys(cases[by]))
    sums = verdicts.groupby(cases[by]).sum().loc[order]
    sums.insert(0, "responses", cases.groupby(by).size())
    sums.loc["all"] = sums.sum()
    return sums.reset_index(names=by).to_markdown(index=False).replace("\\", "\\\\")


def listing(rows: pd.DataFrame) -> str:
    """Markdown list of graded responses."""
    return "\n".join(
        f"- {row.source}, {row.writing} ({row.failure}): gold `{row.gold}`, `{row.response.splitlines()[-1]}`"
        for row in rows.itertuples()
    )


def page(cases: pd.DataFrame, sample: pd.DataFrame, hand: pd.DataFrame, rates: pd.Series, most: int, seed: int) -> str:
    """Markdown of the whole page.

    Args:
        cases: all of them with the verdicts of ``OUR``.
        sample: some of them with the verdicts of every scorer.
        hand: the hand-made cases with the verdicts of every scorer.
        rates: grades a second of every scorer, by name.
        most, seed: of the sample.
    """
    true, wrong = sample[sample["true"]], sample[~sample["true"]]
    misses, accepts = cases[cases["true"] & ~cases[OUR]], cases[~cases["true"] & cases[OUR]]
    return TEMPLATE.read_text().format(
        most=most,
        seed=seed,
        our=OUR,
        golds=cases["id"].nunique(),
        true=cases["true"].sum(),
        wrong=(~cases["true"]).sum(),
        missed=len(misses),
        accepted=len(accepts),
        hand_positives=table(hand[~hand["true"]], "source", rates.index, lambda verdicts: verdicts),
        hand_negatives=table(hand[hand["true"]], "source", rates.index, lambda verdicts: ~verdicts),
        negatives_by_benchmark=table(true, "source", rates.index, lambda verdicts: ~verdicts),
        negatives_by_writing=table(true, "writing", rates.index, lambda verdicts: ~verdicts),
        positives_by_writing=table(wrong, "writing", rates.index, lambda verdicts: verdicts),
        rates=rates.round().astype(int).rename("grades/s").to_markdown(),
        misses=listing(misses) or "None.",
        accepts=listing(accepts) or "None.",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the six benchmarks")
    parser.add_argument("--cases", type=Path, nargs="*", default=[OWN_CASES], help="files of hand-made tries")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--scorers", nargs="*", default=list(SCORERS), choices=list(SCORERS))
    parser.add_argument("--most", type=int, default=30, help="responses a writing and benchmark for the other scorers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of the wrong golds")
    args = parser.parse_args()
    console = Console()
    cases = cases_of(golds_of(args.data), args.seed)
    console.print(f"{len(cases)} responses")
    cases, rate = grade_all(cases, args.workers)
    console.print(f"{OUR}: {rate:.0f} a second")
    sample = cases.sample(frac=1, random_state=args.seed).groupby(["writing", "source"]).head(args.most)
    sample, rates = judge_all(sample.sort_index(), args.scorers, args.workers, console)
    hand, _ = grade_all(hand_made(args.cases), args.workers)
    hand, _ = judge_all(hand, args.scorers, args.workers, console)
    write_text(args.out, page(cases, sample, hand, pd.concat([pd.Series({OUR: rate}), rates]), args.most, args.seed))
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
