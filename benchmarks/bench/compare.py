"""Several results side by side: `python -m benchmarks.bench.compare RESULT_DIR... --out FILE`.

Every result is compared with the first one on the problems that all of them answered: the mean difference with its
bootstrap interval, and a sign-flip permutation test, corrected for the number of benchmarks (Holm).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.bench import BenchError
from benchmarks.bench.results_page import OVERALL, percent, span
from benchmarks.bench.samples import differences
from benchmarks.bench.statistics import holm, interval, mean_of_means, sign_flip
from value_model.files import write_text

NOTE = (
    "Percent; differences in points to the first result, with a 95 % bootstrap interval over problems. p: sign-flip "
    "permutation test; Holm: corrected for the number of benchmarks. Only what differs between problems is counted as "
    "chance: another training run with another seed is not in the interval."
)


@dataclass(frozen=True)
class Result:
    """A `result.json`: ``scores`` is the mean over a problem's samples, by benchmark and problem id."""

    label: str
    samples: int
    scores: Mapping[str, Mapping[str, float]]
    fingerprint: Mapping[str, Any]


def read_results(folders: Sequence[Path]) -> list[Result]:
    """Read results; those of one model are told apart by their folders.

    Raises:
        BenchError: a folder has no result, or there are fewer than two.
    """
    if len(set(folders)) < max(2, len(folders)):
        raise BenchError(f"{', '.join(map(str, folders))}: a comparison needs two or more different folders")
    found = []
    for folder in folders:
        path = folder / "result.json"
        if not path.is_file():
            raise BenchError(f"{folder}: no result.json; pass the --out of a finished `python -m benchmarks.bench`")
        try:
            content = json.loads(path.read_text())
            found.append({key: content[key] for key in ("model", "samples", "scores", "fingerprint")})
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} is no result of this bench ({error!r}); measure that model again") from error
    models = [content["model"] for content in found]
    return [
        Result(
            label=model if models.count(model) == 1 else f"{model} ({folder})",
            samples=content["samples"],
            scores=content["scores"],
            fingerprint=content["fingerprint"],
        )
        for folder, model, content in zip(folders, models, found, strict=True)
    ]


def pair(results: Sequence[Result]) -> dict[str, list[np.ndarray]]:
    """Scores on the common problems by benchmark: an array for each result, problems in one order.

    Raises:
        BenchError: there is no common problem.
    """
    paired = {}
    for name in results[0].scores:
        ids = sorted(set.intersection(*(set(r.scores.get(name, ())) for r in results)))
        if ids:
            paired[name] = [np.array([r.scores[name][i] for i in ids]) for r in results]
    if not paired:
        has = "\n".join(
            f"  {r.label}: " + ", ".join(f"{name} ({len(scores)} problems)" for name, scores in r.scores.items())
            for r in results
        )
        raise BenchError(f"the results share no problem:\n{has}\nMeasure the same --benchmarks, --sample and --seed")
    return paired


def compare(results: Sequence[Result], seed: int = 0) -> pd.DataFrame:
    """One row for each benchmark and result, then for the mean of benchmarks.

    Columns ``accuracy`` in [0, 1], and beside the first result ``difference``, ``low``, ``high``, ``p`` and ``holm``.
    """
    paired = pair(results)
    rows = [row for name, scores in paired.items() for row in _rows(name, results, [[s] for s in scores], seed)]
    rows += _rows(OVERALL, results, [list(scores) for scores in zip(*paired.values(), strict=True)], seed)
    table = pd.DataFrame(rows)
    for result in results[1:]:
        family = (table["result"] == result.label) & (table["benchmark"] != OVERALL)
        table.loc[family, "holm"] = holm(table.loc[family, "p"].tolist())
    return table


def _rows(
    benchmark: str, results: Sequence[Result], scores: Sequence[Sequence[np.ndarray]], seed: int
) -> list[dict[str, Any]]:
    """``scores`` has for each result the arrays of one or several benchmarks."""
    rows = []
    for result, own in zip(results, scores, strict=True):
        row = {
            "benchmark": benchmark,
            "problems": sum(map(len, own)),
            "result": result.label,
            "accuracy": float(mean_of_means(*own)),
        }
        if result is not results[0]:
            change = [mine - first for mine, first in zip(own, scores[0], strict=True)]
            low, high = interval(change, seed) or (None, None)
            row |= {
                "difference": float(mean_of_means(*change)),
                "low": low,
                "high": high,
                "p": sign_flip(change, seed),
            }
        rows.append(row)
    return rows


def caveats(results: Sequence[Result]) -> list[str]:
    """What but the model differs between a result and the first one."""
    first = results[0]
    lines = []
    for result in results[1:]:
        before, now = ({**r.fingerprint, "samples": r.samples} for r in (first, result))
        changed = [line for line in differences(before, now) if not line.startswith("model:")]
        lines += [f"{result.label} differs in more than the model: {line}" for line in changed]
    return lines


def markdown(table: pd.DataFrame, notes: Sequence[str]) -> str:
    """The comparison as a page."""
    has = table["p"].notna()
    shown = pd.DataFrame(
        {
            "benchmark": table["benchmark"],
            "common problems": table["problems"],
            "result": table["result"],
            "accuracy": table["accuracy"].map(percent),
            "difference": (100 * table["difference"]).map("{:+.1f}".format).where(has, ""),
            "95 % interval": [span(*bounds) for bounds in table[["low", "high"]].to_numpy(float)],
            "p": table["p"].map("{:.3g}".format).where(has, ""),
            "p (Holm)": table["holm"].map("{:.3g}".format).where(table["holm"].notna(), ""),
        }
    )
    lines = ["# Comparison", "", shown.to_markdown(index=False, disable_numparse=True), "", NOTE]
    lines += ["", *(f"- **{note}**" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="folders with a result.json; the first is the baseline")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file; the figures go beside it as .csv")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and the permutations")
    args = parser.parse_args(argv)
    try:
        results = read_results(args.results)
        table = compare(results, args.seed)
    except BenchError as error:
        raise SystemExit(f"compare: {error}") from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page = markdown(table, caveats(results))
    write_text(args.out, page)
    write_text(args.out.with_suffix(".csv"), table.to_csv(index=False))
    Console().print(page, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
