"""What ``python -m value_model.evaluate`` writes: tables in Markdown and JSON, and the reliability figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from rich.table import Table

from value_model.evaluation import metrics
from value_model.trajectories import success

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LARGER_IS_BETTER = ("auc", "grouped_auc", "pair_accuracy", "separated_pairs")
ON_SCREEN = ("auc", "grouped_auc", "pair_accuracy", "brier", "ece", "value_mse_unbiased")
PANELS_A_ROW = 4
LINE, BAR = "#1b6ca8", "#52a7e0"


def write(
    folder: Path,
    sets: Mapping[str, Sequence[Any]],
    tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    settings: Mapping[str, Any],
) -> None:
    """Write ``evaluation.json`` and ``evaluation.md``.

    Args:
        folder: made if it is not there.
        sets: name -> tasks (:class:`value_model.evaluate.EvalTask`).
        tables: name -> (summary, differences) of :mod:`value_model.evaluate`.
        settings: JSON-serialisable, with ``"reference"``, the predictor that the differences are to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {name: {"predictors": _records(t), "differences": _records(gaps)} for name, (t, gaps) in tables.items()}
    document = {"settings": settings, "sets": written}
    (folder / "evaluation.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sections = [_section(name, sets[name], *tables[name], settings["reference"]) for name in sets]
    (folder / "evaluation.md").write_text("\n\n".join(["# Evaluation", *sections]) + "\n")


def markdown(table: pd.DataFrame, emphasise: bool = False) -> str:
    """A table of metrics with intervals in Markdown; ``emphasise`` prints in bold what lies off zero."""
    names, timed = metric_names(table), "seconds_per_query" in table
    head = ["predictor", *(f"{name} {'↑' if name in LARGER_IS_BETTER else '↓'}" for name in names)]
    lines = [head + ["ms a query"] * timed, ["---"] * (len(head) + timed)]
    for predictor, row in table.iterrows():
        cells = [_cell(*row[[name, f"{name}_low", f"{name}_high"]], emphasise=emphasise) for name in names]
        time = [f"{1e3 * row['seconds_per_query']:.2f}"] if timed else []
        lines.append([str(predictor), *cells, *time])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def screen_table(table: pd.DataFrame, title: str) -> Table:
    """The main metrics without their intervals, narrow enough for a terminal."""
    shown = Table(title=title)
    shown.add_column("predictor", no_wrap=True)
    for name in ON_SCREEN:
        shown.add_column(name.replace("_", " "), justify="right")
    for predictor, row in table.iterrows():
        shown.add_row(str(predictor), *(f"{row[name]:.3f}" for name in ON_SCREEN))
    return shown


def metric_names(table: pd.DataFrame) -> list[str]:
    """The columns that have an interval."""
    return [column for column in table if f"{column}_low" in table]


def draw_reliability(queries: pd.DataFrame, p: pd.DataFrame, path: Path, title: str, bins: int = 10) -> None:
    """A panel a predictor: measured success against p in bins with 95 % intervals, and how often each p was said.

    Args:
        queries: trajectories.
        p: one column a predictor, rows as in ``queries``.
        path: PNG to write.
        title: of the figure.
        bins: of equal width in p.
    """
    columns = min(PANELS_A_ROW, p.shape[1])
    rows = math.ceil(p.shape[1] / columns)
    figure = plt.figure(figsize=(3.3 * columns, 4.2 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=13)
    for panel, name in zip(figure.subfigures(rows, columns, squeeze=False).flat, p, strict=False):
        panel.suptitle(name, fontsize=11)
        curve, histogram = panel.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _draw_curve(curve, queries, p[name].to_numpy(), bins)
        histogram.hist(p[name], bins=np.linspace(0, 1, 2 * bins + 1), color=BAR, edgecolor="white", linewidth=0.5)
        histogram.set(xlabel="predicted p", ylabel="queries")
        histogram.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_curve(axis: plt.Axes, queries: pd.DataFrame, p: np.ndarray, bins: int) -> None:
    score, unit = queries["score"].to_numpy(), queries["prompt_id"].to_numpy()
    table = metrics.reliability(score, p, bins)
    low, high = metrics.bootstrap(lambda *rows: _measured(*rows, bins), score, p, unit=unit, n=200)
    measured = table["success"].to_numpy()
    around = np.clip([measured - low, high - measured], 0, None)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    axis.errorbar(table["p"], measured, yerr=around, marker="o", markersize=4, capsize=2, color=LINE)
    axis.text(0.03, 0.92, f"ECE {metrics.ece(score, p, bins):.3f}", transform=axis.transAxes, fontsize=9)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="measured success")
    axis.grid(alpha=0.3)


def _measured(score: np.ndarray, p: np.ndarray, bins: int) -> np.ndarray:
    """Mean success of each bin, NaN in an empty one."""
    rows, _, success_sum = metrics.bin_sums(score, p, bins)
    return np.divide(success_sum, rows, out=np.full(bins, np.nan), where=rows > 0)


def _section(name: str, tasks: Sequence[Any], table: pd.DataFrame, differences: pd.DataFrame, reference: str) -> str:
    contexts = [len(task.context) for task in tasks]
    queries = pd.concat([task.queries for task in tasks])
    return "\n\n".join(
        [
            f"## {name[0].upper()}{name[1:]}",
            f"{len(tasks)} (model, step) groups, {len(queries)} queries of {queries['prompt_id'].nunique()} prompts, "
            f"{queries['n'].median():g} rollouts each (median), mean success {success(queries).mean():.3f}; contexts "
            f"of {min(contexts)} to {max(contexts)} prompts. In brackets: 95 % intervals over resampled prompts. Time "
            "is without the encoding of texts.",
            markdown(table),
            f"Difference to **{reference}** (predictor minus {reference}, paired); bold: the interval excludes zero.",
            markdown(differences, emphasise=True),
        ]
    )


def _cell(value: float, low: float, high: float, emphasise: bool) -> str:
    text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"**{text}**" if emphasise and low * high > 0 else text


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """JSON rows, NaN as null."""
    rows = table.reset_index().to_dict(orient="records")
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
