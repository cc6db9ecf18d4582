"""MC-GRPO: the group's median as the baseline (Kim, "MC-GRPO: Median-Centered Group Relative Policy Optimization for
Small-Rollout Reinforcement Learning", arXiv 2601.22582).

Source: the paper's abstract and its authors' code, github.com/lotusroot-kim/MC-GRPO at ``src/open_r1/
grpo_trainer_gsm.py``, from which the constant of the normaliser and the rescaling are; the paper's equations were not
at hand, so none is numbered here.
"""

from __future__ import annotations

from verl_v05.estimators.base import GroupAdvantage, estimator
from verl_v05.estimators.groups import check, make_groups
from verl_v05.fusion import Array


@estimator("mc_grpo")
def advantages(rewards: Array, group: Array, *, eps: float = 1e-3, rescale: bool = True) -> GroupAdvantage:
    """A = (r - median) / (MAD + eps) of the rollout's group, MAD = median(|r - median|).

    The paper generates G + 1 rollouts for a budget of G, so that groups are odd and one rollout is the median: it has
    advantage 0 and is left out of the backward pass. Here it stays, with advantage 0 and so no policy gradient: ask
    for G + 1 rollouts. In a group of even size the median is the lower of the two middle rewards, as in the code.

    Where more than half of a group has one reward MAD is 0; with binary rewards that is every group. Then 1 / eps is a
    constant factor of the advantages, 1000 by default, which gradient clipping and Adam take out again;
    ``eps=1`` gives r - median.

    Args:
        rewards: any scale, finite, (R,).
        group: (R,) in 0..G-1, as for :func:`verl_v05.estimators.groups.make_groups`.
        eps: added to MAD, on the scale of the rewards, > 0.
        rescale: multiply a group's advantages by k / (number of them that are not 0), as the code does in training.

    Returns:
        All 0 for a group of one and for a group of equal rewards.

    Raises:
        ValueError: as ``make_groups``, or ``eps`` is not positive.
    """
    check(eps > 0, f"eps must be positive; got {eps}")
    groups = make_groups(rewards, group)
    xp, index = groups.xp, groups.index
    baseline = groups.quantile(groups.rewards, 0.5)[index]
    centred = groups.rewards - baseline
    scale = 1 / (groups.quantile(xp.abs(centred), 0.5) + eps)
    if rescale:
        counted = groups.total(xp.astype(centred != 0, xp.float64))
        scale = scale * groups.size / xp.clip(counted, 1.0, None)
    return GroupAdvantage(centred * scale[index], baseline)
