"""Figures of the estimators' page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.estimators import allocations as rules
from benchmarks.estimators.baselines import (
    BAYES,
    EMPIRICAL_BAYES,
    GROUP_MEAN,
    JAMES_STEIN,
    LEFT_OUT_EMPIRICAL_BAYES,
    SHRINKAGE,
)
from benchmarks.estimators.error_tables import of_case
from benchmarks.estimators.summary import Method
from benchmarks.png import to_png
from value_model.files import write_bytes

COLOURS = {
    GROUP_MEAN: "tab:grey",
    JAMES_STEIN: "tab:olive",
    SHRINKAGE: "tab:orange",
    EMPIRICAL_BAYES: "tab:blue",
    LEFT_OUT_EMPIRICAL_BAYES: "tab:cyan",
    BAYES: "black",
}
POINTS = {
    Method(rules.OSLA_ROUNDS, SHRINKAGE): "v",
    Method(rules.OSLA, SHRINKAGE): "o",
    Method(rules.OSLA_TO_TARGET, SHRINKAGE): "s",
    Method(rules.POSTERIOR, EMPIRICAL_BAYES): "D",
    Method(rules.POSTERIOR_EQUAL, EMPIRICAL_BAYES): "o",
    Method(rules.BAYES_EQUAL, BAYES): "x",
}
COLUMNS = 3
ERRORS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4)  # ticks


def by_rollouts(cells: pd.DataFrame, cases: Sequence[tuple[str, str]], file: Path) -> None:
    """Squared error against rollouts, one panel a population: lines are fixed k, points are allocations."""
    figure, panels = _panels(len(cases), "rollouts a prompt", "squared error")
    for panel, case in zip(panels, cases, strict=True):
        here = of_case(cells, *case)
        for name in (GROUP_MEAN, SHRINKAGE, EMPIRICAL_BAYES, BAYES):
            line = here[(here["estimator"] == name) & here["allocation"].str.startswith("k = ")]
            style = "--" if name == BAYES else "-"
            panel.plot(line["rollouts"], line["mse"], style, color=COLOURS[name], label=f"{name}, fixed k", lw=1.2)
        table = here.set_index(["allocation", "estimator"])
        for method, marker in POINTS.items():
            x, y = table.loc[tuple(method), ["rollouts", "mse"]]
            label = f"{method.estimator}: {method.allocation}"
            panel.plot(x, y, marker, color=COLOURS[method.estimator], label=label, ms=6, fillstyle="none")
        panel.set(xscale="log", yscale="log", title=" / ".join(case))
        panel.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        errors = [e for e in ERRORS if 0.9 * here["mse"].min() <= e <= 1.1 * here["mse"].max()]
        panel.set_yticks(errors, map(str, errors))
    _save(figure, panels, file)


def to_bayes(cells: pd.DataFrame, distributions: Sequence[str], file: Path) -> None:
    """Squared error over the Bayes risk at k = 4 by prior, one panel a distribution."""
    figure, panels = _panels(len(distributions), "", "squared error / Bayes risk, k = 4")
    for panel, distribution in zip(panels, distributions, strict=True):
        here = cells[(cells["distribution"] == distribution) & (cells["allocation"] == "k = 4")]
        for name, colour in COLOURS.items():
            line = here[here["estimator"] == name]
            panel.plot(line["prior"], line["to_bayes"], ".-", color=colour, label=name, lw=1.2)
        panel.set(yscale="log", title=distribution)
        panel.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        panel.set_ylim(0.95, 12)
        panel.tick_params(axis="x", labelrotation=40, labelsize=7)
    _save(figure, panels, file)


def learning_curves(learning: pd.DataFrame, file: Path) -> None:
    """Squared error over the Bayes risk by batch, one panel a prior and batch size; bands are 95 % intervals."""
    grouped = learning.groupby(["prior", "prompts"], sort=False)
    figure, panels = _panels(grouped.ngroups, "batch", "squared error / Bayes risk")
    for panel, ((prior, prompts), here) in zip(panels, grouped, strict=True):
        for (allocation, name), line in here.groupby(["allocation", "estimator"], sort=False):
            if name not in (EMPIRICAL_BAYES, SHRINKAGE):
                continue
            style = "-" if allocation.startswith("k = ") else "--"
            x, colour = line["batch"] + 1, COLOURS[name]
            panel.plot(x, line["to_bayes"], style, color=colour, label=f"{name}, {allocation}", lw=1.2)
            panel.fill_between(x, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        panel.set(title=f"{prior}, {prompts} prompts a batch", yscale="log")
        panel.set_yticks([1, 1.1, 1.2, 1.5, 2, 3, 5], ["1", "1.1", "1.2", "1.5", "2", "3", "5"])
    _save(figure, panels, file)


def _panels(count: int, x: str, y: str) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.9), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    figure.supylabel(y, fontsize=9)
    for panel in panels[max(count - columns, 0) : count]:
        panel.set_xlabel(x, fontsize=9)
    return figure, panels[:count]


def _save(figure: Figure, panels: Sequence[Axes], file: Path) -> None:
    for panel in panels:
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
        panel.minorticks_off()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, frameon=False
    )
    write_bytes(file, to_png(figure, dpi=110))
