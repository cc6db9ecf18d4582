"""Advantage of a rollout against the fused baseline (paper Eq. 10)."""

from __future__ import annotations

from typing import NamedTuple

from verl_v05.fusion import Array, as_float64, fuse

GROUP_WEIGHTINGS = ("per_prompt", "per_rollout")


class Advantages(NamedTuple):
    """Result of :func:`advantages`. R = rollouts, G = groups (one a prompt)."""

    advantage: Array  # (R,) weighted, normalised advantage
    baseline: Array  # (G,) mu-hat*
    weight: Array  # (G,) fusion weight of the mean reward
    bias_sq: Array  # (G,) squared bias of the prior
    sigma: Array  # (G,) sigma-hat*, floored
    mean_reward: Array  # (G,)
    k: Array  # (G,) rollouts of the group


def advantages(
    rewards: Array,
    group: Array,
    prior: Array,
    *,
    shaping: Array | float = 0.0,
    sigma_floor: float = 0.1,
    group_weighting: str = "per_prompt",
) -> Advantages:
    """Advantages A_i = (r_i - mu*) / sigma* with the fused baseline of each group (Eq. 9 and 10).

    Args:
        rewards: outcome reward of each rollout, in [-1, 1], shape (R,).
        group: index of each rollout's group, in 0..G-1, every group present, integer, shape (R,).
        prior: prior V of each group, in [-1, 1], NaN where missing, shape (G,).
        shaping: added to the reward in the advantage only, never to the baseline; scalar or (R,).
        sigma_floor: lower bound of sigma* = sqrt(1 - mu*^2), which vanishes as |mu*| nears 1.
        group_weighting: ``per_prompt`` scales each rollout by (R/G)/K, which makes a mean over rollouts
            the mean over prompts of Eq. 10 (mean weight 1); ``per_rollout`` leaves it out.

    Raises:
        ValueError: a reward outside [-1, 1] or NaN, a prior out of range, an empty group, or an
            unknown ``group_weighting``.
    """
    if group_weighting not in GROUP_WEIGHTINGS:
        raise ValueError(f"group_weighting must be one of {GROUP_WEIGHTINGS}; got {group_weighting!r}")
    xp, (rewards, prior, shaping) = as_float64(rewards, prior, shaping)
    if not bool(xp.all(xp.abs(rewards) <= 1)):
        raise ValueError(f"outcome rewards must be in [-1, 1] and not NaN; got {rewards[~(xp.abs(rewards) <= 1)]}")
    k = as_float64(xp.bincount(group, minlength=len(prior)))[1][0]
    if len(k) != len(prior) or not bool(xp.all(k >= 1)):
        raise ValueError(f"every group needs a prior and at least one rollout; got {len(prior)} priors, sizes {k}")

    mean_reward = xp.clip(xp.bincount(group, weights=rewards, minlength=len(prior)) / k, -1.0, 1.0)
    fusion = fuse(mean_reward, k, prior)
    sigma = xp.sqrt(xp.clip(1 - fusion.baseline**2, sigma_floor**2, None))
    advantage = (rewards + shaping - fusion.baseline[group]) / sigma[group]
    if group_weighting == "per_prompt":
        advantage = advantage * (len(rewards) / len(k) / k)[group]
    return Advantages(advantage, fusion.baseline, fusion.weight, fusion.bias_sq, sigma, mean_reward, k)


def baseline_mse(rewards: Array, group: Array, prior: Array) -> tuple[float, float]:
    """Unbiased estimates of the squared error of (fused baseline, group mean) against the true mean.

    For a reward r_i left out of its group, E[(r_i - b_-i)^2] = Var(r) + MSE(b_-i); subtracting the
    group's unbiased variance leaves the error of a baseline made from K - 1 rollouts. Averaged over
    the rollouts of groups with K >= 2; (nan, nan) if there is none. A single estimate may be negative.

    Args: as in :func:`advantages`.
    """
    xp, (rewards, prior) = as_float64(rewards, prior)
    k = as_float64(xp.bincount(group, minlength=len(prior)))[1][0]
    total = xp.bincount(group, weights=rewards, minlength=len(prior))
    total_sq = xp.bincount(group, weights=rewards**2, minlength=len(prior))
    kept = k[group] >= 2
    if not bool(xp.any(kept)):
        return float("nan"), float("nan")
    rewards, group = rewards[kept], group[kept]
    left_out_k = k[group] - 1
    left_out_mean = xp.clip((total[group] - rewards) / left_out_k, -1.0, 1.0)
    variance = (total_sq[group] - total[group] ** 2 / k[group]) / left_out_k
    fused = fuse(left_out_mean, left_out_k, prior[group]).baseline
    return tuple(float(xp.mean((rewards - b) ** 2 - variance)) for b in (fused, left_out_mean))
