"""The figures: the paper's by their numbers, and accuracy against cost, group sizes, priors and baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmarks.dashboard import panels
from benchmarks.dashboard.methods import REFERENCE, Style, styles
from benchmarks.dashboard.panels import Axis, Curve, Stack
from benchmarks.dashboard.runs import Comparison, Run

Groups = Mapping[str, Sequence[Run]]
Lines = Mapping[str, pd.DataFrame]  # by method: index x, columns mean and sd

FEW = 15  # points of a line that are all marked; on longer ones markers only tell lines apart
MARKER_GAP = 0.12  # of the panel
THOUSAND = 1000  # ticks from here on are written 1k, 1M
PANEL = (3.7, 3.1)  # inches
FONT = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
PRIOR_COLOURS = {"accepted": "#009E73", "rejected": "#D55E00", "missing": "#BBBBBB"}


class MissingDataError(Exception):
    """The runs lack the data of a figure; the message names them."""


@dataclass(frozen=True)
class FigurePlan:
    """A figure: ``name`` is that of its file; ``draw`` raises MissingDataError."""

    name: str
    title: str
    caption: str
    draw: Callable[[Comparison], Figure]


def band(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and sample standard deviation over seeds at the steps that all of them have.

    Args:
        curves: one a seed, indexed by step, columns ``x`` and ``y``.

    Returns:
        Index: the mean ``x`` at each step; columns ``mean`` and ``sd`` of ``y``; ``sd`` is NaN for one seed.
    """
    x, y = (pd.concat([curve[name] for curve in curves], axis=1, join="inner").mean(axis=1) for name in "xy")
    sd = pd.concat([curve["y"] for curve in curves], axis=1, join="inner").std(axis=1)
    return pd.DataFrame({"mean": y, "sd": sd}).set_axis(pd.Index(x, name="x"))


def curve(run: Run, values: pd.Series, axis: Axis = panels.STEPS) -> pd.DataFrame:
    """Values by step with what the run had spent at each."""
    spent = values.index if axis.metric is None else run.frame.loc[values.index, axis.metric] / axis.unit
    return pd.DataFrame({"x": spent, "y": values}, dtype=float)


def bands(groups: Groups, values: Callable[[Run], pd.Series], axis: Axis = panels.STEPS) -> dict[str, pd.DataFrame]:
    """A band for every method whose seeds share steps with values."""
    found = {method: band([curve(run, values(run), axis) for run in runs]) for method, runs in groups.items()}
    return {method: line for method, line in found.items() if len(line)}


def draw_accuracy(comparison: Comparison, groups: Groups, axis: Axis) -> Figure:
    """One panel a benchmark, their mean first."""
    axis = axis.readable(max(run.frame[panels.SECONDS].max() for run in comparison.runs))
    none = pd.Series(dtype=float)
    found = {s: bands(groups, lambda run, s=s: run.accuracy.get(s, none), axis) for s in comparison.sources}
    found = {source: lines for source, lines in found.items() if lines}
    if not found:
        raise MissingDataError("no validation accuracy (val-core/*/acc/mean@*) in these runs")
    return _line_figure(found, axis.label, "validation accuracy", styles(comparison.by_method))


def draw_curve(comparison: Comparison, groups: Groups, panel: Curve) -> Figure:
    """A metric of every method against steps."""
    lines = bands(groups, lambda run: run.metric(panel.metric))
    if not lines:
        raise MissingDataError(f"no {panel.metric} in these runs")
    return _line_figure({"": lines}, panels.STEPS.label, panel.label, styles(comparison.by_method))


def draw_fixed(comparison: Comparison) -> Figure:
    """V0.5 without extra rollouts, by the number of rollouts, against GRPO-16."""
    if not any(run.setup.fixed for run in comparison.runs):
        raise MissingDataError("no run of V0.5 with schedule=fixed")
    groups = _methods(comparison, lambda run: run.setup.fixed or run.setup.label == REFERENCE)
    return draw_accuracy(comparison, groups, panels.STEPS)


def shares(runs: Sequence[Run], stack: Stack) -> pd.DataFrame:
    """Share of each part by step, the mean over the seeds that all have the step; empty parts are left out."""
    parts = stack.parts(runs[0].frame)
    seeds = [run.frame[list(parts.values())].dropna() for run in runs if set(parts.values()) <= set(run.frame)]
    if not parts or len(seeds) < len(runs):
        return pd.DataFrame()
    steps = sorted(set.intersection(*(set(frame.index) for frame in seeds)))
    mean = sum(f.loc[steps].div(f.loc[steps].sum(axis=1), axis=0) for f in seeds) / len(seeds)
    mean.columns = list(parts)
    return mean.loc[:, (mean > 0).any()]


def draw_stack(comparison: Comparison, groups: Groups, stack: Stack, needs: str) -> Figure:
    """Shares against steps as stacked areas, one panel a method."""
    found = {method: shares(runs, stack) for method, runs in groups.items()}
    found = {method: frame for method, frame in found.items() if len(frame)}
    if not found:
        raise MissingDataError(needs)
    names = sorted({name for frame in found.values() for name in frame}, key=lambda name: (len(name), name))
    colours = _part_colours(names)
    figure, axes, spare = _grid(len(found))
    for axis, (method, frame) in zip(axes, found.items(), strict=True):
        axis.stackplot(frame.index, frame.to_numpy().T, colors=[colours[name] for name in frame], linewidth=0)
        axis.set(title=method, xlabel=panels.STEPS.label, ylim=(0, 1), xlim=(frame.index[0], frame.index[-1]))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_ylabel("share of prompts")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    labels = [f"k = {name}" if name.isdigit() else name for name in names]
    _legend(figure, spare, handles[::-1], labels[::-1])  # from top to bottom, as the areas lie
    return figure


def draw_baseline_error(comparison: Comparison) -> Figure:
    """Leave-one-out squared error of the fused baseline and of the group mean, one panel a method."""
    style = styles(comparison.by_method)
    found = {}
    for method, runs in _methods(comparison).items():
        lines = {
            label: bands({method: runs}, lambda run, m=metric: run.metric(m))
            for label, metric in panels.BASELINE_ERRORS.items()
        }
        if all(lines.values()) and any((line[method]["mean"] != 0).any() for line in lines.values()):
            found[method] = {label: line[method] for label, line in lines.items()}
    if not found:
        raise MissingDataError("no v05/baseline_mse/* other than zero: no V0.5 run with two rollouts a prompt or more")
    figure, axes, spare = _grid(len(found), sharey=True)
    for axis, (method, lines) in zip(axes, found.items(), strict=True):
        looks = (Style(style[method].colour, "None"), Style("#666666", "None", "--"))
        for line, look in zip(lines.values(), looks, strict=True):
            _draw_line(axis, line, look)
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set(title=method, xlabel=panels.STEPS.label)
    axes[0].set_ylabel("squared error of the baseline")
    handles = [plt.Line2D([], [], color="#0072B2"), plt.Line2D([], [], color="#666666", linestyle="--")]
    _legend(figure, spare, handles, ["fused baseline (in the method's colour)", "group mean"])
    return figure


def _methods(comparison: Comparison, keep: Callable[[Run], bool] = lambda run: True) -> Groups:
    """Runs by method in the order of legends, of the methods whose first run is kept."""
    groups = comparison.by_method
    return {label: groups[label] for label in styles(groups) if keep(groups[label][0])}


def _full(comparison: Comparison) -> Groups:
    """All methods but V0.5 without extra rollouts, which is an ablation with a figure of its own."""
    groups = _methods(comparison, lambda run: not run.setup.fixed)
    if not groups:
        raise MissingDataError("all runs are of V0.5 with schedule=fixed")
    return groups


def _line_figure(found: Mapping[str, Lines], xlabel: str, ylabel: str, style: Mapping[str, Style]) -> Figure:
    """One panel a title; the lines of a single one are labelled at their ends if they end together."""
    figure, axes, spare = _grid(len(found))
    for axis, (title, lines) in zip(axes, found.items(), strict=True):
        for method, line in lines.items():
            _draw_line(axis, line, style[method])
        axis.set(title=title, xlabel=xlabel)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        if axis.get_xlim()[1] >= THOUSAND:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0].set_ylabel(ylabel)
    first = next(iter(found.values()))
    if len(found) == 1 and len({line.index[-1] for line in first.values()}) == 1:
        _label_ends(axes[0], first, style)
        return figure
    drawn = {method: style[method] for method in style if any(method in lines for lines in found.values())}
    handles = [plt.Line2D([], [], color=s.colour, linestyle=s.line, marker=s.marker) for s in drawn.values()]
    _legend(figure, spare, handles, list(drawn))
    return figure


def _draw_line(axis: plt.Axes, line: pd.DataFrame, style: Style) -> None:
    look = {
        "color": style.colour,
        "linestyle": style.line,
        "marker": style.marker,
        "markevery": None if len(line) <= FEW else MARKER_GAP,
    }
    axis.plot(line.index, line["mean"], linewidth=1.4, markersize=4.5, **look)
    axis.fill_between(
        line.index, line["mean"] - line["sd"], line["mean"] + line["sd"], color=style.colour, alpha=0.13, linewidth=0
    )


def _grid(count: int, sharey: bool = False) -> tuple[Figure, list[plt.Axes], plt.Axes | None]:
    """``count`` panels, and the empty one after them if the grid has one."""
    rows = 1 if count <= 3 else 2
    columns = math.ceil(count / rows)
    width, height = PANEL if count > 1 else (PANEL[0] * 1.7, PANEL[1] * 1.3)
    with plt.rc_context(FONT):
        size = (width * columns, height * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=sharey, layout="constrained")
    drawn, rest = list(axes.flat[:count]), list(axes.flat[count:])
    for axis in drawn:
        axis.grid(alpha=0.25, linewidth=0.6)
    for axis in rest:
        axis.axis("off")
    return figure, drawn, rest[0] if rest else None


def _legend(figure: Figure, spare: plt.Axes | None, handles: list, labels: list[str]) -> None:
    if spare is not None:
        spare.legend(handles, labels, loc="center", frameon=False)
    else:
        figure.legend(handles, labels, loc="outside right center", frameon=False)


def _label_ends(axis: plt.Axes, lines: Lines, style: Mapping[str, Style]) -> None:
    """Names of the methods right of the panel, each led to the end of its line, pushed apart where they would touch."""
    ends = sorted((line["mean"].iloc[-1], method) for method, line in lines.items())
    low, high = axis.get_ylim()
    wanted = [(y - low) / (high - low) for y, _ in ends]
    for place, (y, method) in zip(spread_apart(wanted, gap=0.06), ends, strict=True):
        axis.annotate(
            method,
            xy=(lines[method].index[-1], y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            color=style[method].colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style[method].colour, "linewidth": 0.6, "relpos": (0, 0.5)},
        )


def spread_apart(places: Sequence[float], gap: float) -> list[float]:
    """Increasing places in [0, 1] moved as little as keeps them ``gap`` apart and, if they fit, not above 1."""
    result: list[float] = []
    for place in places:
        result.append(place if not result else max(place, result[-1] + gap))
    ceiling = 1.0
    for i in reversed(range(len(result))):
        result[i] = min(result[i], ceiling)
        ceiling = result[i] - gap
    return result


def _part_colours(names: Sequence[str]) -> dict[str, object]:
    if set(names) <= set(PRIOR_COLOURS):
        return PRIOR_COLOURS
    return dict(zip(names, plt.colormaps["viridis"](np.linspace(0.95, 0.05, len(names))), strict=True))


OVER_SEEDS = "Lines are means over seeds, bands one sample standard deviation."

PLANS = (
    FigurePlan(
        "figure_1",
        "Figure 1: validation accuracy against steps",
        f"Accuracy on each benchmark. {OVER_SEEDS} V0.5 without extra rollouts is in Figure 5.",
        lambda c: draw_accuracy(c, _full(c), panels.STEPS),
    ),
    *(
        FigurePlan(
            panel.name,
            f"{panel.title} against steps",
            f"`{panel.metric}` at every training step, not smoothed. {OVER_SEEDS}",
            lambda c, panel=panel: draw_curve(c, _full(c), panel),
        )
        for panel in (panels.GRADIENT_NORM, panels.ENTROPY)
    ),
    FigurePlan(
        "figure_5",
        "Figure 5: V0.5 with a fixed number of rollouts against GRPO-16",
        f"Accuracy against steps; V0.5 with k rollouts for every prompt and no more. {OVER_SEEDS}",
        draw_fixed,
    ),
    *(
        FigurePlan(
            f"accuracy_by_{axis.name}",
            f"Validation accuracy against {what}",
            f"All methods, at the mean over seeds of what they had spent when they were validated. {OVER_SEEDS}",
            lambda c, axis=axis: draw_accuracy(c, _methods(c), axis),
        )
        for axis, what in zip(panels.AXES[1:], ("rollouts", "response tokens", "wall time"), strict=True)
    ),
    FigurePlan(
        panels.GROUP_SIZES.name,
        panels.GROUP_SIZES.title,
        "Share of the step's prompts with k scored rollouts, mean over seeds; V0.5 with extra rollouts.",
        lambda c: draw_stack(c, _full(c), panels.GROUP_SIZES, "no run of V0.5 with extra rollouts"),
    ),
    FigurePlan(
        panels.PRIORS.name,
        panels.PRIORS.title,
        "Share of the step's prompts whose prior was within the noise of its rollouts (accepted), beyond it (rejected) "
        "or not there (missing), mean over seeds.",
        lambda c: draw_stack(c, _methods(c), panels.PRIORS, "no run of V0.5"),
    ),
    FigurePlan(
        "baseline_mse",
        "Squared error of the baseline",
        f"Leave-one-out estimate, fused baseline against the mean of the same rollouts. {OVER_SEEDS}",
        draw_baseline_error,
    ),
    FigurePlan(
        panels.RESPONSE_LENGTH.name,
        f"{panels.RESPONSE_LENGTH.title} against steps",
        f"`{panels.RESPONSE_LENGTH.metric}` of the training rollouts. {OVER_SEEDS}",
        lambda c: draw_curve(c, _methods(c), panels.RESPONSE_LENGTH),
    ),
)
