"""BNPO: advantages normalised by a Beta density fitted to the batch (Xiao, Zhang and Cao, "BNPO: Beta Normalization
Policy Optimization", arXiv 2506.02864).

Source: the authors' code, github.com/changyi7231/BNPO at ``recipe/bnpo/src/bnpo_ray_trainer.py``, and accounts of the
paper that state the same formulas; its equation numbers were not at hand. The paper's decomposition of a reward into
several binary ones is not here.
"""

from __future__ import annotations

import math

from verl_v05.estimators.base import GroupAdvantage, estimator
from verl_v05.estimators.groups import Groups, check, make_groups, success
from verl_v05.fusion import Array


@estimator("bnpo")
def advantages(
    rewards: Array, group: Array, *, low: float = 0.0, high: float = 1.0, max_weight: float = 1e6
) -> GroupAdvantage:
    """A = (s - p) / f(p; alpha, beta), with s the rollout's success, p its group's mean of s and f the Beta density.

    alpha and beta are those of :func:`normaliser`: at alpha = beta = 1 this is REINFORCE with the group mean as the
    baseline, at 3/2 it is GRPO up to a constant.

    Args:
        rewards: in [low, high], (R,); s = (r - low) / (high - low), as in the authors' code.
        group: (R,) in 0..G-1, as for :func:`verl_v05.estimators.groups.make_groups`.
        low, high: reward of a failure and of a success.
        max_weight: upper bound of 1 / f, > 0.

    Returns:
        Advantages in units of success, and group means on the rewards' scale. All 0 for a group of one and for a
        group of equal rewards.

    Raises:
        ValueError: as ``make_groups``, a reward outside [low, high], or a parameter out of range.
    """
    check(max_weight > 0, f"max_weight must be positive; got {max_weight}")
    groups = make_groups(success(rewards, low, high), group)
    xp, p = groups.xp, groups.mean()
    alpha, beta = normaliser(groups)
    inner = (p > 0) & (p < 1)  # elsewhere s = p: no weight is needed, and the density may be 0
    safe = xp.where(inner, p, xp.full_like(p, 0.5))
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    log_density = (alpha - 1) * xp.log(safe) + (beta - 1) * xp.log1p(-safe) - log_norm
    weight = xp.exp(xp.clip(-log_density, None, math.log(max_weight)))
    weight = xp.where(inner, weight, xp.zeros_like(weight))
    baseline = p[groups.index]
    return GroupAdvantage((groups.rewards - baseline) * weight[groups.index], low + (high - low) * baseline)


def normaliser(groups: Groups) -> tuple[float, float]:
    """(alpha, beta) = (max(1, 1 + a/3), max(1, 1 + b/3)), with Beta(a, b) fitted to the success rates by moments.

    With mean m and variance v (divisor G - 1) of the groups' means, a = m c and b = (1 - m) c, c = m (1 - m) / v - 1.
    (1, 1) where a batch has no estimate of v: one group, as in the authors' code, or groups of one mean, where it
    divides by 0.
    """
    p = groups.mean()
    m = float(groups.xp.mean(p))
    v = float(groups.xp.sum((p - m) ** 2)) / max(len(p) - 1, 1)
    if v < 1e-24:  # rounding
        return 1.0, 1.0
    c = m * (1 - m) / v - 1
    return max(1.0, 1 + m * c / 3), max(1.0, 1 + (1 - m) * c / 3)
