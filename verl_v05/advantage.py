"""Advantage of a rollout against the fused baseline (paper Eq. 10)."""

from __future__ import annotations

from typing import Any, NamedTuple

from verl_v05.fusion import Array, Belief, FusionMethod, ShrinkageFusion, as_float64

GROUP_WEIGHTINGS = ("per_prompt", "per_rollout")
PLAIN, LEAVE_ONE_OUT = BASELINES = ("plain", "leave_one_out")
PAPERS_FUSION = ShrinkageFusion()  # stateless


class Advantages(NamedTuple):
    """Result of :func:`advantages`. R = rollouts, G = groups (one a prompt)."""

    advantage: Array  # (R,) weighted, normalised advantage
    rollout_baseline: Array  # (R,) what each rollout is measured against: its group's baseline, or that without it
    baseline: Array  # (G,) mu-hat*, of all rollouts of the group
    weight: Array  # (G,) fusion weight of the mean reward
    bias_sq: Array  # (G,) squared bias of the prior
    sigma: Array  # (G,) sigma-hat*, floored
    mean_reward: Array  # (G,)
    k: Array  # (G,) rollouts of the group
    scale: Array  # (R,) what a rollout's distance from its baseline was multiplied by: its weights over its sigma


def advantages(
    rewards: Array,
    group: Array,
    belief: Belief | Array,
    *,
    fusion: FusionMethod = PAPERS_FUSION,
    baseline: str = PLAIN,
    shaping: Array | float = 0.0,
    sigma_floor: float = 0.1,
    group_weighting: str = "per_prompt",
    group_weight: Array | float = 1.0,
) -> Advantages:
    """Advantages A_i = (r_i - mu*) / sigma* with the fused baseline of each group (Eq. 9 and 10).

    Args:
        rewards: outcome reward of each rollout, in [-1, 1], shape (R,).
        group: index of each rollout's group, in 0..G-1, every group present, integer, shape (R,).
        belief: prior V of each group, in [-1, 1], NaN where missing, shape (G,); with their strengths a
            :class:`~verl_v05.fusion.Belief`.
        fusion: whose :meth:`~verl_v05.fusion.FusionMethod.fuse` gives the baselines; the default is Eq. 9.
        baseline: ``plain``: mu* and sigma* of the whole group; ``leave_one_out``: of the group without the rollout
            itself (:func:`leave_one_out`), which at a fixed k leaves the gradient's direction unbiased.
        shaping: added to the reward in the advantage only, never to the baseline; scalar or (R,).
        sigma_floor: lower bound of sigma* = sqrt(1 - mu*^2), which vanishes as |mu*| nears 1.
        group_weighting: ``per_prompt`` scales each rollout by (R/G)/K, which makes a mean over rollouts
            the mean over prompts of Eq. 10 (mean weight 1); ``per_rollout`` leaves it out.
        group_weight: a further factor on the advantages of each group; scalar or (G,).

    Raises:
        ValueError: a reward outside [-1, 1] or NaN, a prior or strength out of range, a strength given to a fusion
            that has none, an empty group, or an unknown ``baseline`` or ``group_weighting``.
    """
    if group_weighting not in GROUP_WEIGHTINGS:
        raise ValueError(f"group_weighting must be one of {GROUP_WEIGHTINGS}; got {group_weighting!r}")
    if baseline not in BASELINES:
        raise ValueError(f"baseline must be one of {BASELINES}; got {baseline!r}")
    belief = _checked(belief, fusion)
    xp, (rewards, shaping, group_weight) = as_float64(rewards, shaping, group_weight)
    if not bool(xp.all(xp.abs(rewards) <= 1)):
        raise ValueError(f"outcome rewards must be in [-1, 1] and not NaN; got {rewards[~(xp.abs(rewards) <= 1)]}")
    groups = len(belief.prior)
    k = as_float64(xp.bincount(group, minlength=groups))[1][0]
    if len(k) != groups or not bool(xp.all(k >= 1)):
        raise ValueError(f"every group needs a prior and at least one rollout; got {groups} priors, sizes {k}")

    # Clipped because the rounding of a sum can leave the interval by an ulp, which the fusion would refuse.
    mean_reward = xp.clip(xp.bincount(group, weights=rewards, minlength=groups) / k, -1.0, 1.0)
    fused = fusion.fuse(mean_reward, k, belief)
    reference = fused.baseline[group]
    if baseline == LEAVE_ONE_OUT:
        reference = leave_one_out(rewards, group, belief, fusion)
    own_sigma = _sigma(xp, reference, sigma_floor)
    advantage, scale = (rewards + shaping - reference) / own_sigma, 1 / own_sigma
    if group_weighting == "per_prompt":
        weight = (len(rewards) / len(k) / k)[group]
        advantage, scale = advantage * weight, scale * weight
    group_weight = xp.broadcast_to(group_weight, k.shape)[group]
    advantage, scale = advantage * group_weight, scale * group_weight
    sigma = _sigma(xp, fused.baseline, sigma_floor)
    return Advantages(advantage, reference, *fused, sigma, mean_reward, k, scale)


def leave_one_out(rewards: Array, group: Array, belief: Belief | Array, fusion: FusionMethod = PAPERS_FUSION) -> Array:
    """Fused baseline of each rollout's group without that rollout, shape (R,).

    A rollout that is alone in its group is left with the prior; if that is missing too, with its own reward, so that
    it teaches nothing.

    Args: as in :func:`advantages`.
    """
    belief = _checked(belief, fusion)
    xp, (rewards,) = as_float64(rewards)
    groups = len(belief.prior)
    k = as_float64(xp.bincount(group, minlength=groups))[1][0]
    others = (k - 1)[group]
    total = xp.bincount(group, weights=rewards, minlength=groups)[group] - rewards
    belief = Belief(belief.prior[group], belief.strength[group])
    # One rollout that equals the prior leaves every fusion's baseline at the prior.
    alone = xp.where(xp.isnan(belief.prior), rewards, belief.prior)
    at_least_one = xp.clip(others, 1.0, None)
    mean_reward = xp.where(others > 0, xp.clip(total / at_least_one, -1.0, 1.0), alone)
    return fusion.fuse(mean_reward, at_least_one, belief).baseline


def baseline_mse(
    rewards: Array, group: Array, belief: Belief | Array, fusion: FusionMethod = PAPERS_FUSION
) -> tuple[float, float]:
    """Unbiased estimates of the squared error of (fused baseline, group mean) against the true mean.

    For a reward r_i left out of its group, E[(r_i - b_-i)^2] = Var(r) + MSE(b_-i); subtracting the
    group's unbiased variance leaves the error of a baseline made from K - 1 rollouts. Averaged over
    the rollouts of groups with K >= 2; (nan, nan) if there is none. A single estimate may be negative.

    Unbiased where K is fixed. Where the rewards decide K it is not, and favours a fusion by which groups stop once they
    agree with it: compare it between fusions at the same fixed K only.

    Args: as in :func:`advantages`.
    """
    belief = _checked(belief, fusion)
    xp, (rewards,) = as_float64(rewards)
    groups = len(belief.prior)
    k = as_float64(xp.bincount(group, minlength=groups))[1][0]
    total = xp.bincount(group, weights=rewards, minlength=groups)
    total_sq = xp.bincount(group, weights=rewards**2, minlength=groups)
    kept = k[group] >= 2
    if not bool(xp.any(kept)):
        return float("nan"), float("nan")
    fused = leave_one_out(rewards, group, belief, fusion)[kept]
    rewards, group = rewards[kept], group[kept]
    others = k[group] - 1
    mean = xp.clip((total[group] - rewards) / others, -1.0, 1.0)
    variance = (total_sq[group] - total[group] ** 2 / k[group]) / others
    fused_error, mean_error = (float(xp.mean((rewards - b) ** 2 - variance)) for b in (fused, mean))
    return fused_error, mean_error


def _checked(belief: Belief | Array, fusion: FusionMethod) -> Belief:
    """float64, with the strengths NaN where only priors were given."""
    prior, strength = belief if isinstance(belief, Belief) else (belief, float("nan"))
    xp, (prior, strength) = as_float64(prior, strength)
    strength = xp.broadcast_to(strength, prior.shape)
    if not fusion.has_strength and not bool(xp.all(xp.isnan(strength))):
        # It would be ignored, and the caller surely meant the fusion that the strengths are for.
        raise ValueError(f"strengths were given, but {type(fusion).__name__} has none: pass their fusion")
    return Belief(prior, strength)


def _sigma(xp: Any, baseline: Array, floor: float) -> Array:
    """Standard deviation of a reward of +-1 whose mean is the baseline, floored."""
    return xp.sqrt(xp.clip(1 - baseline**2, floor**2, None))
