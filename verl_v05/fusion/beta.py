"""Beta prior and its posterior: the formulas of ``fusion=empirical_bayes``.

The success probability of a prompt is taken as p ~ Beta(m q, m (1 - q)), so its mean reward 2p - 1 has the prior mean
V = 2q - 1, and k rollouts leave the posterior Beta(m q + successes, m (1 - q) + failures). The strength m is counted
in rollouts: a prior worth m = 4 has as much weight as four of them. Unlike Eq. 9 it is never a yes or no, and a useless
prior gets a small m instead of being tested prompt by prompt.

Same conventions as :mod:`verl_v05.fusion.shrinkage`.
"""

from __future__ import annotations

from verl_v05.fusion.base import Array, Fusion, as_float64, check
from verl_v05.fusion.shrinkage import squared_bias


def fuse_beta(mean_reward: Array, k: Array, prior: Array, strength: Array) -> Fusion:
    """Posterior mean of the mean reward, (k v + m V) / (k + m), as the advantage baseline.

    Args:
        mean_reward: mean of the group's outcome rewards, in [-1, 1].
        k: number of rollouts the mean is taken over, >= 1.
        prior: V = 2q - 1, in [-1, 1].
        strength: m > 0, in rollouts.

    Returns:
        :class:`~verl_v05.fusion.Fusion` with weight k / (k + m) and the squared bias of Eq. 7, which is not used here
        but measures how far prior and rollouts are apart in the paper's terms.

    Raises:
        ValueError: a value out of range, or NaN.
    """
    xp, (mean_reward, k, prior, strength) = as_float64(mean_reward, k, prior, strength)
    check(bool(xp.all(xp.abs(mean_reward) <= 1)), "mean_reward must be in [-1, 1] and not NaN", mean_reward)
    check(bool(xp.all(k >= 1)), "k must be at least 1 and not NaN", k)
    check(bool(xp.all(xp.abs(prior) <= 1)), "prior must be in [-1, 1] and not NaN", prior)
    check(bool(xp.all(strength > 0)), "strength must be positive and not NaN", strength)
    weight = k / (k + strength)
    return Fusion(weight * mean_reward + (1 - weight) * prior, weight, squared_bias(mean_reward, k, prior))


def posterior_variance(baseline: Array, k: Array, strength: Array) -> Array:
    """Variance of the mean reward given the rollouts, (1 - mu^2) / (k + m + 1), in [0, 1); mu is the fused baseline."""
    _, (baseline, k, strength) = as_float64(baseline, k, strength)
    return (1 - baseline**2) / (k + strength + 1)
