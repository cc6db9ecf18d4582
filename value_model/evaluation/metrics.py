"""Metrics of predicted success probabilities. Pure functions of numpy arrays, in float64.

``score`` is a measured mean reward in [-1, 1], ``p`` a predicted success probability in [0, 1], ``V = 2p - 1`` the
value that V0.5's baseline uses, ``group`` the (model, step) a row belongs to; all of shape (rows,). A metric that is
undefined for the data, such as the AUC of one class, is NaN.

Names in the authors' V0 code: their gAUC is :func:`grouped_auc` (over steps there, over (model, step) here),
their "strict" pair accuracy is :func:`separated_pair_accuracy`, their "RLHF" (ranking) pair accuracy is
:func:`pair_accuracy` with ``strict=True``; they select a few pairs of one prompt set, here all pairs count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from value_model.conversions import hard_label, success_of_reward, value_of_probability


def auc(label: ArrayLike, p: ArrayLike) -> float:
    """Probability that a positive row has a larger p than a negative one, ties counting half; NaN with one class."""
    return grouped_auc(label, p, np.zeros(len(np.asarray(label))))


def grouped_auc(label: ArrayLike, p: ArrayLike, group: ArrayLike, weighted: bool = True) -> float:
    """Mean AUC over the groups that have both classes; NaN if there is none.

    Args:
        label: truth, shape (rows,).
        p: prediction, shape (rows,).
        group: any labels, shape (rows,).
        weighted: weight each group by its number of rows, as the V0 code does; False weights all groups equally.
    """
    label, p = _checked_rows(label, p)
    key, index, size = _ranked_in_groups(p, group)
    # Ranks of the composite key run through the groups one after another; each group's own start at 1.
    rank = stats.rankdata(key) - (np.cumsum(size) - size)[index]
    positive = np.bincount(index, label, len(size))
    negative = size - positive
    wins = np.bincount(index, label * rank, len(size)) - positive * (positive + 1) / 2
    both = (positive > 0) & (negative > 0)
    if not both.any():
        return float("nan")
    return float(np.average((wins[both] / (positive * negative)[both]), weights=size[both] if weighted else None))


def pair_accuracy(score: ArrayLike, p: ArrayLike, group: ArrayLike | None = None, strict: bool = False) -> float:
    """Share of the pairs of a group with different scores that p orders as the scores do; NaN without such pairs.

    Uses all scores, where the AUC uses two classes only. All pairs of all groups have the same weight.

    Args:
        score: shape (rows,).
        p: shape (rows,).
        group: pairs are only made inside a group, shape (rows,); None is one group.
        strict: a tie in p is an error; False counts it half, so that a constant p has 0.5 instead of 0.
    """
    score, p = _checked_rows(score, p)
    group = np.zeros(len(score)) if group is None else group
    x, y = _ranked_in_groups(score, group)[0], _ranked_in_groups(p, group)[0]
    pairs, tied_x, tied_y, tied_both = (_tied_pairs(t) for t in (np.zeros_like(x), x, y, _category_codes(x, y)))
    # x and y order two rows of different groups in the same way, so such pairs are concordant and are subtracted below.
    across = pairs - _tied_pairs(_category_codes(group))
    comparable = pairs - tied_x - across
    if comparable == 0:
        return float("nan")
    untied = pairs - tied_x - tied_y + tied_both
    difference = 0.0
    if untied:
        tau = stats.kendalltau(x, y, method="asymptotic").statistic
        difference = tau * np.sqrt(float(pairs - tied_x) * float(pairs - tied_y))
    concordant = (untied + difference) / 2 - across
    ties = tied_y - tied_both
    return float((concordant + (0 if strict else ties / 2)) / comparable)


def separated_pair_accuracy(score: ArrayLike, p: ArrayLike, group: ArrayLike | None = None) -> float:
    """Share of a group's (success, failure) pairs with p > 0.5 for the success and p <= 0.5 for the failure.

    Depends on the values of p, not only on their order; NaN if no group has both classes.
    """
    score, p = _checked_rows(score, p)
    index = _category_codes(np.zeros(len(score)) if group is None else group)
    label, predicted = hard_label(score), p > 0.5
    right = np.bincount(index, label & predicted) * np.bincount(index, ~label & ~predicted)
    pairs = np.bincount(index, label) * np.bincount(index, ~label)
    return float(right.sum() / pairs.sum()) if pairs.any() else float("nan")


def brier(score: ArrayLike, p: ArrayLike, n: ArrayLike | None = None) -> float:
    """Mean squared error of p against the measured success rate, in [0, 1].

    With ``n`` (rollouts of each row) it is the Brier score of p against each single rollout instead, which
    includes the rollouts' variance; exact for rewards of -1 and 1.
    """
    score, p = _checked_rows(score, p)
    rate = success_of_reward(score)
    if n is None:
        return float(np.mean((p - rate) ** 2))
    return float(np.average((p - rate) ** 2 + rate * (1 - rate), weights=_checked_rows(n)[0]))


def reliability(score: ArrayLike, p: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Rows by p in bins of equal width: columns low, high, rows, p (mean), success (mean), NaN in an empty bin."""
    rows, p, rate = bin_sums(score, p, bins)
    edges = np.linspace(0, 1, bins + 1)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "rows": rows.astype(int), "p": p, "success": rate})
    return table.assign(p=table["p"] / table["rows"], success=table["success"] / table["rows"])


def bin_sums(score: ArrayLike, p: ArrayLike, bins: int) -> np.ndarray:
    """Rows, sum of p and sum of the success rates of each bin of p, shape (3, bins)."""
    score, p = _checked_rows(score, p)
    index = np.minimum((p * bins).astype(int), bins - 1)  # p = 1 belongs to the last bin
    return np.array([np.bincount(index, x, bins) for x in (np.ones_like(p), p, success_of_reward(score))])


def ece(score: ArrayLike, p: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean over rows of |mean p - mean success| of their bin.

    Sampling noise in the bins biases it upwards: compare it at equal numbers of rows only.
    """
    rows, p, rate = bin_sums(score, p, bins)
    return float(np.abs(p - rate).sum() / rows.sum())


def value_mse(score: ArrayLike, p: ArrayLike) -> float:
    """Mean of (V - score)^2: the squared error of the value, plus the sampling noise of the scores."""
    score, p = _checked_rows(score, p)
    return float(np.mean((value_of_probability(p) - score) ** 2))


def value_mse_unbiased(score: ArrayLike, n: ArrayLike, p: ArrayLike) -> float:
    """Estimate of the mean of (V - E[reward])^2, the error of V as the baseline of V0.5.

    Subtracts the sampling variance of each score, estimated by (1 - score^2) / (n - 1), from :func:`value_mse`.
    Unbiased for rewards of -1 and 1 (biased low for rewards in between), so it can be negative. Rows with n = 1 allow
    no estimate of their variance and are left out; NaN if there are no others.
    """
    score, n, p = _checked_rows(score, n, p)
    several = n >= 2
    if not several.any():
        return float("nan")
    score, n, p = score[several], n[several], p[several]
    return float(np.mean((value_of_probability(p) - score) ** 2 - (1 - score**2) / (n - 1)))


def resample(
    metric: Callable[..., Any], *arrays: ArrayLike, unit: ArrayLike, seed: int = 0, n: int = 1000
) -> np.ndarray:
    """The metric on ``n`` cluster bootstrap resamples: units are drawn with replacement, with all their rows.

    Rows of one prompt are not independent of each other, so the unit should be the prompt. The draws depend on
    ``unit`` and ``seed`` alone: two metrics can be compared draw by draw.

    Args:
        metric: function of the arrays, in their order; gives a float or an array of fixed shape.
        arrays: first axis of length rows.
        unit: cluster of each row, shape (rows,).
        seed: of the draws.
        n: number of resamples.

    Returns:
        Shape (n, *shape of the metric).
    """
    columns = [np.asarray(a) for a in arrays]
    index = _category_codes(unit)
    rows_of = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        rows = np.concatenate([rows_of[u] for u in rng.integers(len(rows_of), size=len(rows_of))])
        draws.append(metric(*(column[rows] for column in columns)))
    return np.array(draws, dtype=np.float64)


def interval(draws: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Percentile interval over the first axis of ``draws``, shape (2, ...); NaN draws are ignored."""
    tail = 50 * (1 - level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an all-NaN slice gives NaN
        return np.nanpercentile(draws, [tail, 100 - tail], axis=0)


def bootstrap_interval(
    metric: Callable[..., Any], *arrays: ArrayLike, unit: ArrayLike, seed: int = 0, n: int = 1000, level: float = 0.95
) -> np.ndarray:
    """(low, high) of the metric by :func:`resample`, shape (2, *shape of the metric)."""
    return interval(resample(metric, *arrays, unit=unit, seed=seed, n=n), level)


def _checked_rows(*arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    """The arrays as float64, checked to be one-dimensional, equally long, finite and not empty."""
    columns = tuple(np.asarray(a, dtype=np.float64) for a in arrays)
    shapes = [column.shape for column in columns]
    if len(set(shapes)) > 1 or columns[0].ndim != 1 or not len(columns[0]):
        raise ValueError(f"expected arrays of one shape (rows,) with at least one row, got {shapes}")
    for column in columns:
        if not np.isfinite(column).all():
            row = int((~np.isfinite(column)).argmax())
            raise ValueError(f"row {row} is {column[row]}; leave rows without a prediction or a score out")
    return columns


def _category_codes(*columns: ArrayLike) -> np.ndarray:
    """Integer codes 0, 1, ... of the distinct (combinations of) values, in sorted order."""
    index = np.unique(np.asarray(columns[0]), return_inverse=True)[1].reshape(-1)
    for column in columns[1:]:
        other = np.unique(np.asarray(column), return_inverse=True)[1].reshape(-1)
        index = np.unique(index * (len(other) + 1) + other, return_inverse=True)[1].reshape(-1)
    return index


def _ranked_in_groups(value: np.ndarray, group: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(keys that order rows by (group, value), group code of each row, number of rows of each group)."""
    index = _category_codes(group)
    return _category_codes(index, value), index, np.bincount(index)


def _tied_pairs(key: np.ndarray) -> int:
    count = np.bincount(key).astype(np.int64)
    return int((count * (count - 1) // 2).sum())
