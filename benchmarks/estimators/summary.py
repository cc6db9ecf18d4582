"""From batches to figures with intervals. A sequence of batches is one observation: its batches share calibrations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.estimators.allocations import COST

LEVEL = 0.95
CASE = ["distribution", "prior"]
CELL = [*CASE, "allocation", "estimator"]


class Interval(NamedTuple):
    """A figure and its 95 % interval over sequences (Student's t)."""

    value: float
    low: float
    high: float


class Method(NamedTuple):
    """An estimator under an allocation."""

    allocation: str
    estimator: str


def sequence_means(found: pd.DataFrame, warm_up: int) -> pd.DataFrame:
    """Means over each sequence's batches from ``warm_up`` on, indexed by ``CELL`` and sequence."""
    kept = found[found["batch"] >= warm_up].drop(columns="batch")
    return kept.groupby([*CELL, "sequence"], sort=False).mean()


def cells(means: pd.DataFrame) -> pd.DataFrame:
    """One row a cell.

    Args:
        means: of :func:`sequence_means`.

    Returns:
        ``CELL``; ``mse`` with ``mse_low`` and ``mse_high``; ``bias``, ``rollouts``; ``worth``: rollouts with which a
        plain group mean has that mse; ``saving``: worth over rollouts; ``rank`` by saving within the population, 1 the
        best; ``to_bayes``: mse over the Bayes risk given the same evidence and rollouts; ``cost``: mse + c rollouts.
    """
    grouped = means.groupby(level=CELL, sort=False)
    table = grouped.mean()
    half = stats.t.ppf((1 + LEVEL) / 2, grouped.size() - 1) * grouped["mse"].sem()
    table = table.assign(mse_low=table["mse"] - half, mse_high=table["mse"] + half)
    table["worth"] = table["spread"] / table["mse"]
    table["saving"] = table["worth"] / table["rollouts"]
    table["rank"] = table.groupby(level=CASE)["saving"].rank(ascending=False, method="min").astype(int)
    table["to_bayes"] = table["mse"] / table["bayes"]
    table["cost"] = table["mse"] + COST * table["rollouts"]
    return table.reset_index()


def ratio(means: pd.DataFrame, distribution: str, prior: str, above: Method, below: Method) -> Interval:
    """Geometric mean over sequences of mse(above) / mse(below), which saw the same prompts and outcomes."""
    log_mse = np.log(means["mse"].xs((distribution, prior), level=CASE).unstack("sequence"))
    return geometric(log_mse.loc[tuple(above)] - log_mse.loc[tuple(below)])


def geometric(logs: pd.Series) -> Interval:
    """exp of the mean of one logarithm a sequence."""
    half = stats.t.ppf((1 + LEVEL) / 2, len(logs) - 1) * logs.sem()
    return Interval(*np.exp(logs.mean() + np.array([0.0, -half, half])).tolist())


def learning(found: pd.DataFrame) -> pd.DataFrame:
    """Excess over the Bayes risk by batch: ``prompts``, batch, ``CELL``; ``to_bayes`` with ``low`` and ``high``."""
    logs = np.log(found["mse"] / found["bayes"]).groupby([found[c] for c in ["prompts", *CELL, "batch"]], sort=False)
    table = logs.apply(lambda values: pd.Series(geometric(values)._asdict())).unstack()
    return table.rename(columns={"value": "to_bayes"}).reset_index()
