"""Empirical shrinkage fusion, ``fusion=shrinkage``: the paper's (section 3.3, Eq. 6-9).

Every function takes numpy arrays, torch tensors or plain numbers, broadcasts, computes in
float64 and returns arrays of the namespace it was given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from value_model.conversions import value_of_probability
from verl_v05.fusion.base import Array, Belief, Fusion, FusionMethod, as_float64, check


def noise_variance(k: Array) -> Array:
    """Upper bound of the variance of the mean of ``k`` rewards in [-1, 1] (Eq. 6)."""
    _, (k,) = as_float64(k)
    return 1.0 / k


def squared_bias(mean_reward: Array, k: Array, prior: Array) -> Array:
    """Squared bias of the prior in excess of sampling noise (Eq. 7); 0 where the prior is NaN (missing)."""
    xp, (mean_reward, k, prior) = as_float64(mean_reward, k, prior)
    excess = (mean_reward - prior) ** 2 - 1.0 / k
    return xp.where(excess > 0, excess, xp.zeros_like(excess))


def fuse(mean_reward: Array, k: Array, prior: Array) -> Fusion:
    """Fuse the mean of ``k`` rewards with the prior into the advantage baseline (Eq. 6-9).

    Args:
        mean_reward: mean of the group's outcome rewards, in [-1, 1].
        k: number of rollouts the mean is taken over, >= 1.
        prior: predicted mean reward V = 2p - 1, in [-1, 1]; NaN where it is missing.

    Returns:
        :class:`Fusion`. Where the prior is missing the baseline is the mean reward, the weight 1
        and the squared bias 0 (so that no further rollout is ever asked for on its behalf).

    Raises:
        ValueError: a mean reward outside [-1, 1] or NaN, ``k`` below 1, a prior outside [-1, 1].
    """
    xp, (mean_reward, k, prior) = as_float64(mean_reward, k, prior)
    check(bool(xp.all(xp.abs(mean_reward) <= 1)), "mean_reward must be in [-1, 1] and not NaN", mean_reward)
    check(bool(xp.all(k >= 1)), "k must be at least 1", k)
    missing = xp.isnan(prior)
    check(bool(xp.all((xp.abs(prior) <= 1) | missing)), "prior must be in [-1, 1], or NaN if missing", prior)

    bias_sq = squared_bias(mean_reward, k, prior)
    shrinkage = bias_sq / (bias_sq + noise_variance(k))  # Eq. 8
    weight = xp.where(missing, xp.ones_like(shrinkage), shrinkage)
    known_prior = xp.where(missing, xp.zeros_like(prior), prior)
    baseline = weight * mean_reward + (1 - weight) * known_prior  # Eq. 9
    return Fusion(baseline, weight, bias_sq)


class ShrinkageFusion(FusionMethod):
    """Eq. 9: the provider's answer is the prior, V = 2 p - 1, and each prompt's own rollouts test it."""

    def believe(self, prompt_ids: Sequence[str], probability: np.ndarray) -> Belief:
        prior = value_of_probability(np.asarray(probability, dtype=np.float64))
        return Belief(prior, np.full_like(prior, np.nan))

    def fuse(self, mean_reward: Array, k: Array, belief: Belief) -> Fusion:
        return fuse(mean_reward, k, belief.prior)
