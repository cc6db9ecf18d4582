"""Tables of metrics in Markdown, in JSON and for the console."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from value_model.evaluation.tasks import EvalTask
from value_model.files import nan_as_none, write_text
from value_model.trajectories import success

LARGER_IS_BETTER = ("auc", "grouped_auc", "pair_accuracy", "separated_pairs")
CONSOLE_METRICS = ("auc", "grouped_auc", "pair_accuracy", "brier", "ece", "value_mse_unbiased")


def write_evaluation(
    folder: Path,
    sets: Mapping[str, Sequence[EvalTask]],
    tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    settings: Mapping[str, Any],
) -> None:
    """Write ``evaluation.json`` and ``evaluation.md``.

    Args:
        folder: created if missing.
        sets: name -> tasks.
        tables: name -> (summary, differences) of :mod:`value_model.evaluation.summary`.
        settings: JSON-serialisable, with ``"reference"``, the predictor that the differences refer to.
    """
    written = {name: {"predictors": _records(t), "differences": _records(gaps)} for name, (t, gaps) in tables.items()}
    document = {"settings": settings, "sets": written}
    write_text(folder / "evaluation.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    sections = [_section(name, sets[name], *tables[name], settings["reference"]) for name in sets]
    write_text(folder / "evaluation.md", "\n\n".join(["# Evaluation", *sections]) + "\n")


def markdown_table(table: pd.DataFrame, emphasise: bool = False) -> str:
    """A table of metrics with intervals in Markdown; ``emphasise``: bold where the interval excludes zero."""
    names, timed = _metric_names(table), "seconds_per_query" in table
    head = ["predictor", *(f"{name} {'↑' if name in LARGER_IS_BETTER else '↓'}" for name in names)]
    lines = [head + ["ms a query"] * timed, ["---"] * (len(head) + timed)]
    for predictor, row in table.iterrows():
        cells = [_cell(row[name], row[f"{name}_low"], row[f"{name}_high"], emphasise) for name in names]
        time = [f"{1e3 * row['seconds_per_query']:.2f}"] if timed else []
        lines.append([str(predictor), *cells, *time])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def console_table(table: pd.DataFrame, title: str) -> Table:
    """The main metrics without their intervals, narrow enough for a terminal."""
    shown = Table(title=title)
    shown.add_column("predictor", no_wrap=True)
    for name in CONSOLE_METRICS:
        shown.add_column(name.replace("_", " "), justify="right")
    for predictor, row in table.iterrows():
        shown.add_row(str(predictor), *(f"{row[name]:.3f}" for name in CONSOLE_METRICS))
    return shown


def _metric_names(table: pd.DataFrame) -> list[str]:
    """The columns that have an interval."""
    return [column for column in table if f"{column}_low" in table]


def _section(
    name: str, tasks: Sequence[EvalTask], table: pd.DataFrame, differences: pd.DataFrame, reference: str
) -> str:
    contexts = [len(task.context) for task in tasks]
    queries = pd.concat([task.queries for task in tasks])
    return "\n\n".join(
        [
            f"## {name[0].upper()}{name[1:]}",
            f"{len(tasks)} (model, step) groups, {len(queries)} queries of {queries['prompt_id'].nunique()} prompts, "
            f"{queries['n'].median():g} rollouts each (median), mean success {success(queries).mean():.3f}; contexts "
            f"of {min(contexts)} to {max(contexts)} prompts. In brackets: 95 % intervals over resampled prompts. Time "
            "is without the encoding of texts.",
            markdown_table(table),
            f"Difference to **{reference}** (predictor minus {reference}, paired); bold: the interval excludes zero.",
            markdown_table(differences, emphasise=True),
        ]
    )


def _cell(value: float, low: float, high: float, emphasise: bool) -> str:
    text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"**{text}**" if emphasise and low * high > 0 else text


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [nan_as_none(row) for row in table.reset_index().to_dict(orient="records")]
