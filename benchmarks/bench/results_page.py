"""From finished samples to `result.json`, `result.md` and `result.csv`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from benchmarks.bench.queue import Request
from benchmarks.bench.samples import Key, Sample
from benchmarks.bench.statistics import interval, mean_of_means, pass_at_k, powers_of_two
from value_model.files import write_text

OVERALL = "mean of benchmarks"
PACKAGES = ("verl-v05", "sglang", "torch", "transformers", "math-verify", "sympy")
GRADING_FAILURES = ("timeout", "error")
TEMPLATE = Path(__file__).parent / "result_page.md"


def requested_samples(finished: Mapping[Key, Sample], asked: Sequence[Request]) -> pd.DataFrame:
    """One row for each sample that was asked for, with its problem's ``contaminated``.

    Raises:
        KeyError: one is not finished.
    """
    return pd.DataFrame({**asdict(finished[r.key]), "contaminated": r.problem.contaminated} for r in asked)


def measure(table: pd.DataFrame, samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """The figures of each benchmark and, under ``OVERALL``, of all, where each benchmark weighs the same."""
    groups = {str(name): group for name, group in table.groupby("benchmark", sort=False)}
    rows = {name: figures([group], samples, seed) for name, group in groups.items()}
    return {**rows, OVERALL: figures(list(groups.values()), samples, seed)}


def figures(groups: Sequence[pd.DataFrame], samples: int, seed: int) -> dict[str, Any]:
    """Figures of one or several benchmarks: shares in [0, 1] are means of the benchmarks' own, counts are sums."""
    counts = [correct_counts(group).to_numpy() for group in groups]
    shares = [count / samples for count in counts]
    low, high = interval(shares, seed) or (None, None)

    def mean(of: Callable[[pd.DataFrame], pd.Series]) -> float | None:
        values = [of(group).mean() for group in groups if len(of(group))]
        return float(np.mean(values)) if values else None

    return {
        "problems": sum(map(len, counts)),
        "samples": sum(map(len, groups)),
        "accuracy": float(mean_of_means(*shares)),
        "low": low,
        "high": high,
        **{
            f"pass@{k}": float(mean_of_means(*(pass_at_k(count, samples, k) for count in counts)))
            for k in powers_of_two(samples)
        },
        "tokens_mean": mean(lambda g: g["tokens"]),
        "tokens": int(sum(g["tokens"].sum() for g in groups)),
        "truncated": mean(lambda g: g["finish"] == "length"),
        "no_answer": mean(lambda g: g["failure"] == "no_answer"),
        "unparsed": mean(lambda g: g["failure"] == "unparsed"),
        "grading_failures": int(sum(g["failure"].isin(GRADING_FAILURES).sum() for g in groups)),
        "contaminated_problems": int(sum(g.loc[g["contaminated"], "id"].nunique() for g in groups)),
        "accuracy_clean": mean(lambda g: g.loc[~g["contaminated"], "correct"]),
        "accuracy_contaminated": mean(lambda g: g.loc[g["contaminated"], "correct"]),
    }


def correct_counts(group: pd.DataFrame) -> pd.Series:
    """Right responses of each problem, by id."""
    return group.groupby("id", sort=False)["correct"].sum()


def throughput(table: pd.DataFrame) -> dict[str, float | int]:
    """Generated tokens over generating seconds, which run in each session from its first request to its last response.

    What an interrupted session had begun and not finished is not counted, its time up to its last response is.
    """
    seconds = float(table.groupby("session")["seconds"].max().sum())
    tokens = int(table["tokens"].sum())
    return {
        "sessions": int(table["session"].nunique()),
        "generation_seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": gpus,
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_result(out: Path, result: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Write the three files; ``result`` lacks only each problem's score, the mean over its samples, by benchmark."""
    scores = {
        str(name): group.groupby("id", sort=False)["correct"].mean().to_dict()
        for name, group in table.groupby("benchmark", sort=False)
    }
    write_text(out / "result.json", json.dumps({**result, "scores": scores}, indent=1) + "\n")
    write_text(out / "result.md", markdown(result))
    flat = pd.DataFrame.from_dict(result["benchmarks"], orient="index").rename_axis("benchmark")
    write_text(out / "result.csv", flat.to_csv())


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    machine, sampling = result["machine"], result["sampling"]
    drawn = ", ".join(f"{name} {share}" for name, share in result["drawn"].items())
    tables = (_accuracy_table(result), _details_table(result))
    main, details = (table.to_markdown(index=False, disable_numparse=True) for table in tables)
    return TEMPLATE.read_text().format(
        **result,
        kind="SAMPLE, not a benchmark result: " if result["sample"] else "",
        sample_note=f"Problems drawn with seed {sampling['seed']}: {drawn}.\n\n" if result["sample"] else "",
        main=main,
        details=details,
        deterministic=", deterministic" if sampling["deterministic"] else "",
        devices=", ".join(machine["gpus"]) or f"no GPU, {machine['cpus']} CPU cores",
        versions=", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        engine_arguments=", ".join(f"{key}={value}" for key, value in result["engine"].items()),
    )


def _accuracy_table(result: Mapping[str, Any]) -> pd.DataFrame:
    samples = result["samples"]
    return pd.DataFrame(
        {
            "benchmark": name,
            "problems": row["problems"],
            f"mean@{samples}": percent(row["accuracy"]),
            "95 % interval": span(row["low"], row["high"]),
            **{f"pass@{k}": percent(row[f"pass@{k}"]) for k in powers_of_two(samples)},
        }
        for name, row in result["benchmarks"].items()
    )


def _details_table(result: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "benchmark": name,
            "tokens a response": f"{row['tokens_mean']:.0f}",
            "truncated": percent(row["truncated"]),
            "no answer": percent(row["no_answer"]),
            "unparsed": percent(row["unparsed"]),
            "grading failures": row["grading_failures"],
            "problems in training set": row["contaminated_problems"],
            "accuracy without them": percent(row["accuracy_clean"]),
            "accuracy on them": percent(row["accuracy_contaminated"]),
        }
        for name, row in result["benchmarks"].items()
    )


def percent(share: float | None) -> str:
    """A share as it is printed; nothing for None or NaN."""
    return "" if pd.isna(share) else f"{100 * share:.1f}"


def span(low: float | None, high: float | None) -> str:
    """An interval as it is printed; nothing for None or NaN."""
    return "" if pd.isna(low) or pd.isna(high) else f"{100 * low:.1f} to {100 * high:.1f}"
