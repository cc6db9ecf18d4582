"""Rollouts in groups, and the statistics of a group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_v05.fusion import Array, as_float64

EPS = 1e-6  # added to a standard deviation, as in verl's GRPO


@dataclass(frozen=True)
class Groups:
    """Rollouts in G groups, one a prompt, of any size; made by :func:`make_groups`."""

    xp: Any  # array namespace
    rewards: Array  # (R,) float64
    index: Array  # (R,) int64, group of each rollout
    size: Array  # (G,) float64, at least 1

    def total(self, values: Array) -> Array:
        """Sum of (R,) values over each group, (G,)."""
        return self.xp.bincount(self.index, weights=values, minlength=len(self.size))

    def mean(self) -> Array:
        """Mean reward of each group, (G,)."""
        return self.total(self.rewards) / self.size

    def squares(self) -> Array:
        """Sum of squared deviations from the mean of each group, (G,)."""
        return self.total((self.rewards - self.mean()[self.index]) ** 2)

    def std(self) -> Array:
        """Standard deviation of each group with the divisor k - 1 (verl's GRPO), (G,); 0 where k = 1."""
        return self.xp.sqrt(self.squares() / self.xp.clip(self.size - 1, 1.0, None))

    def quantile(self, values: Array, q: float, *, interpolate: bool = False) -> Array:
        """``q``-quantile of (R,) values in each group, (G,).

        The smallest value v with F(v) >= q, F the group's empirical distribution; at q = 0.5 the lower of two middle
        values. With ``interpolate`` linear between the two neighbours of position q (k - 1), as ``torch.quantile``.
        """
        xp = self.xp
        order = xp.argsort(values)
        order = order[xp.argsort(self.index[order], stable=True)]
        values, start = values[order], xp.cumulative_sum(self.size) - self.size
        if interpolate:
            position = q * (self.size - 1)
            low, high = xp.floor(position), xp.ceil(position)
        else:  # the smallest j with j / k >= q; 0.07 * 100 is 7.000000000000001
            position = low = high = xp.ceil(q * self.size - 1e-9) - 1
        low_value, high_value = (values[xp.astype(start + rank, xp.int64)] for rank in (low, high))
        return low_value + (position - low) * (high_value - low_value)


def make_groups(rewards: Array, group: Array) -> Groups:
    """Check rollouts and put them in groups.

    Args:
        rewards: outcome of each rollout, finite, shape (R,), R >= 1.
        group: index of each rollout's group, in 0..G-1, every group present, integer, shape (R,).

    Raises:
        ValueError: an argument is not so.
    """
    xp, (rewards,) = as_float64(rewards)
    group = xp.asarray(group, device=rewards.device)
    check(xp.isdtype(group.dtype, "integral"), f"group must be integers; got {group.dtype}")
    check(
        rewards.ndim == 1 and group.shape == rewards.shape and len(group) > 0,
        f"rewards and group must be of one shape (R,), R >= 1; got {tuple(rewards.shape)} and {tuple(group.shape)}",
    )
    finite = xp.isfinite(rewards)
    check(bool(xp.all(finite)), f"rewards must be finite; got {rewards[~finite]}")
    check(bool(xp.all(group >= 0)), f"group must be in 0..G-1; got {group[group < 0]}")
    _, (size,) = as_float64(xp.bincount(group))
    check(bool(xp.all(size >= 1)), f"group must use every index of 0..{len(size) - 1}; sizes are {size}")
    return Groups(xp, rewards, xp.astype(group, xp.int64), size)


def relative(values: np.ndarray, group: np.ndarray, normalise: bool) -> np.ndarray:
    """Values (R,) less their group's mean, over its standard deviation (k - 1) if ``normalise``; 0 in a group of one.

    Args:
        group: any integers, equal where the group is, (R,).
    """
    groups = make_groups(values, np.unique(group, return_inverse=True)[1])
    centred = groups.rewards - groups.mean()[groups.index]
    return centred / (groups.std()[groups.index] + EPS) if normalise else centred


def success(rewards: Array, low: float, high: float) -> Array:
    """Rewards in [low, high] as degrees of success in [0, 1], which the papers of binary rewards are written for.

    Raises:
        ValueError: a bound is not finite, ``low`` is not below ``high``, or a reward is outside them or NaN.
    """
    check(-math.inf < low < high < math.inf, f"low must be below high, both finite; got low={low}, high={high}")
    xp, (rewards,) = as_float64(rewards)
    inside = (rewards >= low) & (rewards <= high)
    check(
        bool(xp.all(inside)),
        f"rewards must be in [low, high] = [{low}, {high}]; got {rewards[~inside]}: set low and high to the reward "
        "of a failure and of a success, and add no penalty to the reward",
    )
    return (rewards - low) / (high - low)


def check(ok: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless ``ok``."""
    if not ok:
        raise ValueError(message)
