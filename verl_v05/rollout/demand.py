"""What the groups of a batch would do with more rollouts, by the rule ``algorithm.v05.allocation``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from verl_v05.allocation import marginal_return, posterior_gain, posterior_target, rollout_target
from verl_v05.fusion import squared_bias
from verl_v05.fusion.empirical_bayes import fuse_beta, posterior_variance
from verl_v05.rollout.group import Group
from verl_v05.settings import V05Settings


@dataclass(frozen=True)
class Demand:
    """Of G groups."""

    k: np.ndarray  # (G,) scored rollouts
    spent: np.ndarray  # (G,) dispatched rollouts
    known: np.ndarray  # (G,) there is a prior
    target: np.ndarray  # (G,) k to stop at; below k or NaN where nothing more is wanted
    gain: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (groups' indices, rollouts before it) -> worth of one more


def make_demand(groups: Sequence[Group], settings: V05Settings) -> Demand:
    """By the configured rule."""
    k, spent, prior, strength = (np.array([getattr(g, n) for g in groups]) for n in ("k", "spent", "prior", "strength"))
    mean_reward = np.array([g.mean_reward for g in groups])
    known = ~np.isnan(prior)
    if settings.allocation == "posterior":
        target, gain = _posterior(mean_reward, k, prior, strength, known, settings.cost)
    else:
        target, gain = _osla(mean_reward, k, prior, settings.cost)
    return Demand(k, spent, known, target, gain)


def _osla(mean_reward: np.ndarray, k: np.ndarray, prior: np.ndarray, cost: float) -> tuple[np.ndarray, Callable]:
    # A group with nothing scored has mean 0 and counts as k = 1, which no prior in [-1, 1] contradicts.
    bias_sq = squared_bias(mean_reward, np.maximum(k, 1), prior)
    return rollout_target(bias_sq, cost), lambda group, before: marginal_return(bias_sq[group], k[group] + before)


def _posterior(
    mean_reward: np.ndarray, k: np.ndarray, prior: np.ndarray, strength: np.ndarray, known: np.ndarray, cost: float
) -> tuple[np.ndarray, Callable]:
    variance = np.full(len(k), np.nan)
    # With nothing scored the posterior is the prior, whatever the mean: one rollout that agrees with it says so.
    seen = np.where(k > 0, mean_reward, prior)
    baseline = fuse_beta(seen[known], np.maximum(k, 1)[known], prior[known], strength[known]).baseline
    variance[known] = posterior_variance(baseline, k[known], strength[known])
    n = k + strength
    return (
        posterior_target(variance, n, k, cost),
        lambda group, before: posterior_gain(variance[group], n[group], before),
    )
