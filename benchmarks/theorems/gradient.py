"""Theorem 3.1 and A.2: what a baseline does to the policy gradient, on a policy whose gradient is exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.exact_policy import (
    AdvantageFunction,
    Moments,
    SoftmaxPolicy,
    average_moments,
    enumerate_groups,
    gradient_moments,
    group_estimates,
    make_policy,
    moments,
)
from benchmarks.png import panels
from benchmarks.theorems.outcomes import (
    Outcomes,
    fixed,
    gradient_scale,
    left_out_advantages,
    own_reward_advantages,
    stopped,
)
from benchmarks.theorems.verdicts import TOLERANCE, Author, Listed, Span, verdict
from verl_v05 import fuse

RATES = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
COST = 0.0039
K_INIT = 4
PRIOR = 0.8  # of every prompt, where one prior is looked at
SIZES = (2, 4, 8)
SEED = 0


def group_mean(rewards: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """r_i minus the mean of the group."""
    return rewards - rewards.mean(axis=1, keepdims=True)


def own_reward(rewards: np.ndarray, responses: np.ndarray, *, prior: float) -> np.ndarray:
    """r_i minus Eq. 9's baseline of the group that it is part of."""
    return rewards - fuse(rewards.mean(axis=1, keepdims=True), rewards.shape[1], prior).baseline


def left_out(rewards: np.ndarray, responses: np.ndarray, *, prior: float) -> np.ndarray:
    """r_i minus Eq. 9's baseline of the other k - 1 rollouts."""
    others = rewards.shape[1] - 1
    mean = np.clip((rewards.sum(axis=1, keepdims=True) - rewards) / others, -1, 1)
    return rewards - fuse(mean, others, prior).baseline


def stopped_moments(policy: SoftmaxPolicy, prompt: int, outcomes: Outcomes, advantage: AdvantageFunction) -> Moments:
    """Exact moments where the group's size is decided by its rewards.

    Args:
        outcomes: of that prompt's success rate alone.
    """
    estimates, probability = [], []
    for k in np.unique(outcomes.k):
        here = outcomes.k == k
        outcome = np.bincount(outcomes.successes[here], weights=outcomes.probability[0, here], minlength=k + 1)
        groups = enumerate_groups(policy, prompt, k, outcome)
        estimates.append(group_estimates(policy, prompt, groups, advantage))
        probability.append(groups.probability)
    return moments(np.concatenate(estimates), policy.gradients[prompt], np.concatenate(probability))


class Bound(NamedTuple):
    """The pieces of Theorem 3.1 for one prompt, with L = 2 |E |s|^2 (r - mu)|, s the score."""

    oracle: float  # E |s|^2 (r - mu)^2, Eq. 15
    gradient_sq: float  # |g|^2; the paper leaves it out of Var_oracle, Eq. 13 subtracts it
    score: float  # Phi
    cross: float  # E |s|^2 (r - mu), signed; L is twice its absolute value

    def variance(self, error: float, bias: float) -> float:
        """The bound on the trace, for one rollout."""
        return self.oracle - self.gradient_sq + self.score * error + 2 * abs(self.cross * bias)


def bound(policy: SoftmaxPolicy, prompt: int) -> Bound:
    """Theorem 3.1's constants."""
    norms = (policy.scores[prompt] ** 2).sum(axis=1)
    deviation = policy.rewards[prompt] - policy.true_mean[prompt]
    oracle, score, cross = ((policy.probabilities[prompt] * norms * x).sum() for x in (deviation**2, 1.0, deviation))
    return Bound(float(oracle), float((policy.gradients[prompt] ** 2).sum()), float(score), float(cross))


def independent_trace(policy: SoftmaxPolicy, prompt: int, baseline: np.ndarray, probability: np.ndarray) -> float:
    """Trace of the covariance of one rollout's s (r - b), b independent of it with that distribution (B,)."""
    estimates = policy.scores[prompt][:, None] * (policy.rewards[prompt][:, None] - baseline)[..., None]
    weight = policy.probabilities[prompt][:, None] * probability
    exact = moments(estimates.reshape(-1, estimates.shape[-1]), policy.gradients[prompt], weight.ravel())
    return exact.trace.value


def identity_residual(policy: SoftmaxPolicy, k: int, prior: float) -> float:
    """Largest |trace - (oracle - |g|^2 + Phi MSE - 2 cross Bias)| over prompts, Eq. 9 from k other rollouts."""
    worst = 0.0
    for prompt, rate in enumerate(policy.success_rate):
        outcomes, pieces, true = fixed(np.array([rate]), k), bound(policy, prompt), policy.true_mean[prompt]
        baseline = fuse(outcomes.mean_reward, k, prior).baseline
        error, bias = (outcomes.expect(x)[0] for x in ((baseline - true) ** 2, baseline - true))
        signed = pieces.oracle - pieces.gradient_sq + pieces.score * error - 2 * pieces.cross * bias
        worst = max(worst, abs(independent_trace(policy, prompt, baseline, outcomes.probability[0]) - signed))
    return worst


def best_constant_gain(policy: SoftmaxPolicy) -> np.ndarray:
    """Share of the trace at b = mu that the best constant, E |s|^2 r / Phi, saves, for each prompt, (P,)."""
    saved = []
    for prompt, true in enumerate(policy.true_mean):
        pieces = bound(policy, prompt)
        at_true, at_best = (
            independent_trace(policy, prompt, np.array([b]), np.ones(1))
            for b in (true, true + pieces.cross / pieces.score)
        )
        saved.append(1 - at_best / at_true)
    return np.array(saved)


class Ratio(NamedTuple):
    """Exact trace over Theorem 3.1's bound with Eq. 9's own baseline."""

    rollout: float  # of one rollout's term
    group: float  # of the group's mean of k terms, over bound / k
    second_moment: float  # the same, with Eq. 15 read as Var_oracle: |g|^2 not subtracted from the bound


def own_reward_ratio(policy: SoftmaxPolicy, prompt: int, k: int, prior: float) -> Ratio:
    """How the theorem's inequality fares when the rollout's reward is part of its baseline."""
    groups, pieces, true = enumerate_groups(policy, prompt, k), bound(policy, prompt), policy.true_mean[prompt]
    advantage = partial(own_reward, prior=prior)
    baseline = groups.rewards - advantage(groups.rewards, groups.responses)
    error, bias = (groups.probability @ x[:, 0] for x in ((baseline - true) ** 2, baseline - true))
    limit = pieces.variance(error, bias)
    group = gradient_moments(policy, prompt, groups, advantage)
    norms = (policy.scores[prompt] ** 2).sum(axis=1)[groups.responses]
    squares = groups.probability @ (norms * (groups.rewards - baseline) ** 2).mean(axis=1)
    return Ratio(
        rollout=(squares - group.mean @ group.mean) / limit,
        group=k * group.trace.value / limit,
        second_moment=k * group.trace.value / (limit + pieces.gradient_sq),
    )


def worst_ratios(k: int, responses: int, seeds: Sequence[int] = (0,)) -> Ratio:
    """Largest ratios over success rates, priors and policies with that many responses, one of them right."""
    rates = np.arange(1, 20) / 20
    found = [
        own_reward_ratio(policy, prompt, k, prior)
        for policy in (make_policy(rates, responses=responses, correct=1, seed=seed) for seed in seeds)
        for prompt in range(len(rates))
        for prior in np.arange(-10, 11) / 10
    ]
    return Ratio(*np.nanmax(np.array(found), axis=0))


def scales(rates: np.ndarray, prior: float, k: int = K_INIT, cost: float = COST) -> dict[str, np.ndarray]:
    """Factor on each prompt's gradient for each kind of baseline, (N,) each; 1 is unbiased."""
    one, adaptive = fixed(rates, k), stopped(rates, prior, cost=cost, k_init=k, k_max=16)
    return {
        "group mean, fixed k": np.full(len(rates), (k - 1) / k),
        "Eq. 9, fixed k": gradient_scale(one, rates, *own_reward_advantages(one, prior)),
        "Eq. 9 left out, fixed k": gradient_scale(one, rates, *left_out_advantages(one, prior)),
        "Eq. 9, OSLA": gradient_scale(adaptive, rates, *own_reward_advantages(adaptive, prior)),
        "Eq. 9 left out, OSLA": gradient_scale(adaptive, rates, *left_out_advantages(adaptive, prior)),
    }


def across_prompts(policy: SoftmaxPolicy, priors: np.ndarray, k: int = K_INIT) -> dict[str, Moments]:
    """Exact moments of the mean over prompts."""
    kinds = {"group mean": None, "Eq. 9": own_reward, "Eq. 9 left out": left_out}
    found: dict[str, Moments] = {}
    for label, advantage in kinds.items():
        bound_to = [group_mean if advantage is None else partial(advantage, prior=v) for v in priors]
        found[label] = average_moments(
            [gradient_moments(policy, p, enumerate_groups(policy, p, k), f) for p, f in enumerate(bound_to)]
        )
        if advantage is not None:
            sizes = [
                stopped(rate[None], v, cost=COST, k_max=16) for rate, v in zip(policy.success_rate, priors, strict=True)
            ]
            found[f"{label}, OSLA"] = average_moments(
                [stopped_moments(policy, p, o, f) for p, (o, f) in enumerate(zip(sizes, bound_to, strict=True))]
            )
    return found


def measure() -> dict[str, object]:
    """Numbers and verdicts of the page's section."""
    policy = make_policy(RATES, seed=SEED)
    return {**_bounds(policy), **_factors(), **_moments(policy)}


def _bounds(policy: SoftmaxPolicy) -> dict[str, object]:
    """Theorem 3.1, for independent baselines and for Eq. 9's own."""
    two, three = ([worst_ratios(k, responses) for k in SIZES] for responses in (2, 3))
    rollout = [max(one.rollout for one in pair) for pair in zip(two, three, strict=True)]
    constants = [2 * abs(pieces.cross) / pieces.score for pieces in (bound(policy, p) for p in range(len(RATES)))]
    residual, gain = identity_residual(policy, K_INIT, PRIOR), best_constant_gain(policy)
    group_bound_holds = max(ratio.group for ratio in (*two, *three)) <= 1 + TOLERANCE
    return {
        "seed": SEED,
        "identity_residual": residual,
        "bias_constants": Span(constants),
        "trace_saved": Listed(100 * gain),
        "rollout_ratios": Listed(rollout),
        "group_ratios_two": Listed(ratio.group for ratio in two),
        "group_ratios_three": Listed(ratio.group for ratio in three),
        "second_moment_ratio": max(ratio.second_moment for ratio in (*two, *three)),
        "verdict_variance_bound": verdict(group_bound_holds, with_condition=residual <= TOLERANCE),
        "verdict_oracle": verdict(gain.max() <= TOLERANCE),
        "verdict_rollout_bound": verdict(max(rollout) <= 1 + TOLERANCE),
        "verdict_group_bound": verdict(group_bound_holds),
    }


def _factors() -> dict[str, object]:
    """Factors on prompts' gradients over a grid of success rates and priors."""
    rates, priors = np.linspace(0.05, 0.95, 19), np.arange(-9, 10) / 10
    found = [scales(rates, prior) for prior in priors]
    own, left_out_fixed, own_osla, left_out_osla = (
        np.concatenate([each[label] for each in found])
        for label in ("Eq. 9, fixed k", "Eq. 9 left out, fixed k", "Eq. 9, OSLA", "Eq. 9 left out, OSLA")
    )

    def smallest(k: int) -> float:
        one = fixed(rates, k)
        return min(gradient_scale(one, rates, *own_reward_advantages(one, prior)).min() for prior in priors)

    def unbiased(factor: np.ndarray) -> bool:
        return np.abs(factor - 1).max() <= TOLERANCE

    return {
        "own_factors": Span(own),
        "own_osla_factors": Span(own_osla),
        "left_out_osla_factors": Span(left_out_osla),
        "left_out_bias": np.abs(left_out_fixed - 1).max(),
        "smallest_factors": Listed(smallest(k) for k in (1, 2, 4, 8)),
        "verdict_own_reward": verdict(unbiased(own)),
        "verdict_left_out": verdict(unbiased(left_out_osla), unbiased(left_out_fixed), Author.OURS),
    }


def _moments(policy: SoftmaxPolicy) -> dict[str, object]:
    """The mean over the policy's prompts."""
    found = across_prompts(policy, np.full(len(RATES), PRIOR))
    rows = [
        f"| {label} | {m.scale.value:.3f} | {m.cosine.value:.4f} | "
        f"{np.linalg.norm(m.bias) / np.linalg.norm(m.gradient):.3f} | {m.trace.value:.3f} | "
        f"{m.relative_noise.value:.2f} |"
        for label, m in found.items()
    ]
    return {"mean_cosine": found["Eq. 9"].cosine.value, "moment_rows": "\n".join(rows)}


def draw_scale() -> Figure:
    """Factor on the gradient against p."""
    figure, axes = panels(2)
    rates = np.linspace(0.02, 0.98, 97)
    for axis, prior in zip(axes, (0.0, 0.8), strict=True):
        for label, values in scales(rates, prior).items():
            axis.plot(rates, values, label=label, linestyle="--" if "left out" in label else "-")
        axis.set(title=f"V = {prior}", xlabel="success rate p", ylabel="length of the expected gradient / true")
    axes[0].legend(fontsize=8)
    return figure


FIGURES = {"gradient_scale": draw_scale}
