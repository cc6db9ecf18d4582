"""The reliability figure: measured success against predicted probability."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from value_model.evaluation import metrics

matplotlib.use("Agg")  # draws to files; the default backend may need a display
import matplotlib.pyplot as plt

PANELS_A_ROW = 4
LINE, BAR = "#1b6ca8", "#52a7e0"


def plot_reliability(queries: pd.DataFrame, p: pd.DataFrame, path: Path, title: str, bins: int = 10) -> None:
    """One panel per predictor: measured success against p in bins with 95 % intervals, and a histogram of p.

    Args:
        queries: trajectories.
        p: one column per predictor, rows as in ``queries``.
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
        _plot_curve(curve, queries, p[name].to_numpy(), bins)
        histogram.hist(p[name], bins=np.linspace(0, 1, 2 * bins + 1), color=BAR, edgecolor="white", linewidth=0.5)
        histogram.set(xlabel="predicted p", ylabel="queries")
        histogram.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_curve(axis: plt.Axes, queries: pd.DataFrame, p: np.ndarray, bins: int) -> None:
    score, unit = queries["score"].to_numpy(), queries["prompt_id"].to_numpy()
    table = metrics.reliability(score, p, bins)
    low, high = metrics.bootstrap_interval(lambda score, p: _bin_success(score, p, bins), score, p, unit=unit, n=200)
    measured = table["success"].to_numpy()
    around = np.clip([measured - low, high - measured], 0, None)
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    axis.errorbar(table["p"], measured, yerr=around, marker="o", markersize=4, capsize=2, color=LINE)
    axis.text(0.03, 0.92, f"ECE {metrics.ece(score, p, bins):.3f}", transform=axis.transAxes, fontsize=9)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="measured success")
    axis.grid(alpha=0.3)


def _bin_success(score: np.ndarray, p: np.ndarray, bins: int) -> np.ndarray:
    """Mean success of each bin, NaN in an empty one."""
    rows, _, success_sum = metrics.bin_sums(score, p, bins)
    return np.divide(success_sum, rows, out=np.full(bins, np.nan), where=rows > 0)
