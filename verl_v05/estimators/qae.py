"""QAE: a quantile of the group as the baseline (Wu et al., "Quantile Advantage Estimation: Stabilizing RLVR for LLM
Reasoning", arXiv 2509.22611).

Equation numbers are the paper's; of the authors' code (github.com/junkangwu/QAE) the README was at hand.
"""

from __future__ import annotations

from verl_v05.estimators.base import GroupAdvantage, estimator
from verl_v05.estimators.groups import check, make_groups
from verl_v05.fusion import Array


@estimator("qae")
def advantages(
    rewards: Array, group: Array, *, k: float = 0.4, interpolate: bool = False, eps: float = 1e-6
) -> GroupAdvantage:
    """A = (r - b) / (std + eps) with b = inf{x : F(x) >= k}, F the distribution of the group's rewards (Eq. 3).

    With binary rewards this is a gate on the success rate p (Eq. 4). Where p <= 1 - k, b is the reward of a failure:
    only the rare successes have an advantage, a positive one. Where p > 1 - k, b is that of a success: only the
    remaining failures have one, negative.

    Args:
        rewards: any scale, finite, (R,).
        group: (R,) in 0..G-1, as for :func:`verl_v05.estimators.groups.make_groups`.
        k: the paper's K, in (0, 1); larger reinforces fewer rollouts and keeps entropy higher.
        interpolate: the authors' code instead of the paper's definition: ``torch.quantile``, linear between two
            rewards, so that a group whose success rate is near 1 - k trains on its successes and its failures.
        eps: added to the standard deviation (divisor k - 1), > 0. The divisor and the default are those of verl's
            GRPO, which the authors' code changes; the paper names neither.

    Returns:
        All 0 for a group of one and for a group of equal rewards.

    Raises:
        ValueError: as ``make_groups``, or ``k`` or ``eps`` is out of range.
    """
    check(0 < k < 1, f"k must be in (0, 1); got {k}")
    check(eps > 0, f"eps must be positive; got {eps}")
    groups = make_groups(rewards, group)
    baseline = groups.quantile(groups.rewards, k, interpolate=interpolate)[groups.index]
    return GroupAdvantage((groups.rewards - baseline) / (groups.std() + eps)[groups.index], baseline)
