"""James-Stein baselines: group means shrunk towards the batch's (Zeng, Zhou, Arora and Zanette, "Shrinking the
Variance: Shrinkage Baselines for Reinforcement Learning with Verifiable Rewards", arXiv 2511.03710).

Source: two independent accounts of the paper that agree; the equation numbers of its section 3.3 are those that one of
them gives for version 1. The paper's groups are of one size; what different sizes need is ours.

G is the number of prompts, not of a prompt's rollouts. The authors' code (github.com/guanning03/JSPO-Official at
3f8539d, ``compute_jspo_outcome_advantage``) takes the same v, s and means, but leaves the factor (G - 1)/G of Eq. 15
out of lambda and adds 1e-6 to its denominator. The factor is kept here: it belongs to the target, the mean of G - 1
other groups, which is itself an estimate. At 512 prompts it is 0.998.
"""

from __future__ import annotations

from verl_v05.estimators.base import GroupAdvantage, estimator
from verl_v05.estimators.groups import Groups, make_groups
from verl_v05.fusion import Array

ROUNDING = 1e-24  # squares below are rounding errors of rewards of order 1


@estimator("james_stein")
def advantages(rewards: Array, group: Array, *, leave_one_out: bool = True) -> GroupAdvantage:
    """A = r - b, b = (1 - lambda) own mean + lambda batch mean, without a normaliser as in the paper.

    Args:
        rewards: of order 1, finite, (R,).
        group: (R,) in 0..G-1, as for :func:`verl_v05.estimators.groups.make_groups`.
        leave_one_out: the paper's baseline, which does not depend on the reward it is subtracted from
            (:func:`two_level_baseline`), or the positive-part James-Stein estimator of the group means
            (:func:`positive_part_baseline`).

    Raises:
        ValueError: as ``make_groups``.
    """
    groups = make_groups(rewards, group)
    baseline = two_level_baseline(groups) if leave_one_out else positive_part_baseline(groups)
    return GroupAdvantage(groups.rewards - baseline, baseline)


def two_level_baseline(groups: Groups) -> Array:
    """b_ij = (1 - lambda_i) mean of group i without rollout j + lambda_i mean of the other groups' means (Eq. 10, 16).

    lambda_i = (G - 1)/G * v / (v + s) (Eq. 15), with v the mean variance of the other groups' means,
    sum (r - mean)^2 / (k (k - 1)) each, and s the variance, divisor G - 1, of those means (Eq. 13, 14).

    Groups of one carry no information on v and are left out of it; their own baseline is the other groups' mean.
    Where v and s are both 0, and where there is one group, lambda is 0; a single rollout is its own baseline.
    """
    xp, k, mean = groups.xp, groups.size, groups.mean()
    count = len(k)
    # Taken from the first group's mean: differences of squares lose less.
    shift = mean - mean[0]
    others = max(count - 1, 1)
    other_mean = (xp.sum(shift) - shift) / others
    s = xp.clip((xp.sum(shift**2) - shift**2) / others - other_mean**2, 0.0, None)
    variance, known = _variance_of_mean(groups)
    v = (xp.sum(variance) - variance) / xp.clip(xp.sum(known) - known, 1.0, None)
    shrinkage = xp.where(v + s > ROUNDING, (count - 1) / count * v / xp.clip(v + s, ROUNDING, None), xp.zeros_like(v))
    if count > 1:
        shrinkage = xp.where(k > 1, shrinkage, xp.ones_like(v))
    own = (groups.total(groups.rewards)[groups.index] - groups.rewards) / xp.clip(k - 1, 1.0, None)[groups.index]
    own = xp.where((k > 1)[groups.index], own, groups.rewards)
    return own + (shrinkage[groups.index] * ((mean[0] + other_mean)[groups.index] - own))


def positive_part_baseline(groups: Groups) -> Array:
    """b_i = (1 - lambda) mean_i + lambda mean of means, lambda = min(1, (G - 3) v / S), S = sum (mean_i - mean)^2.

    The positive-part James-Stein estimator with the grand mean as its target (Efron and Morris, 1975), with the mean
    of the estimated variances of the groups' means for v. lambda is 0 with three groups or fewer, or where S is 0.
    """
    xp, mean = groups.xp, groups.mean()
    centre = xp.mean(mean)
    spread = float(xp.sum((mean - centre) ** 2))
    variance, known = _variance_of_mean(groups)
    v = float(xp.sum(variance)) / max(float(xp.sum(known)), 1.0)
    shrinkage = min(1.0, max(len(mean) - 3, 0) * v / spread) if spread > ROUNDING else 0.0
    return (mean + shrinkage * (centre - mean))[groups.index]


def _variance_of_mean(groups: Groups) -> tuple[Array, Array]:
    """Unbiased estimates of the variance of each group's mean, (G,), 0 where k = 1; and 1.0 where k > 1."""
    xp, k = groups.xp, groups.size
    return groups.squares() / (k * xp.clip(k - 1, 1.0, None)), xp.astype(k > 1, xp.float64)
