"""Moments of a step's gradient at equal rollouts for selection x allocation x fusion, on an exact policy.

They are those of an estimator of the plain objective's gradient, the mean over prompts of grad J_i, and of the
gradient of what the step ascends. :mod:`benchmarks.estimators.selection_page` makes a page of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.progress import track

from benchmarks.estimators.advantage_gradients import LEFT_OUT, Knowledge, knowledge
from benchmarks.estimators.baselines import (
    BETA_FUSION,
    EMPIRICAL_BAYES,
    GROUP_MEAN,
    LEFT_OUT_EMPIRICAL_BAYES,
    SHRINKAGE,
)
from benchmarks.estimators.populations import NoisyLogit, beta_rates, sigma_of
from benchmarks.exact_policy import SoftmaxPolicy, make_policy, moments, sample_responses
from verl_v05.advantage import LEAVE_ONE_OUT, PLAIN, advantages
from verl_v05.allocation import ALLOCATIONS
from verl_v05.fusion import ShrinkageFusion
from verl_v05.selection import draw_counts, expected_counts

BUDGET = 64  # rollouts of a step
POOL = 2 * BUDGET  # prompts that a selection looks at
K_MAX = 4  # of algorithm/v05=sparse
PROMPTS = 512  # of the policy; each step's are drawn from them
FIT_ROLLOUTS = 4  # of each prompt, in the steps behind the calibration
V0_AUC = 0.68  # of the real value model against one outcome (README.md)
COMMON = 0.5  # size of what prompts teach in common, beside Gaussian features of size 1
SHAPES = {"spread": (0.8, 1.2), "extreme": (0.1, 0.2)}  # Beta distributions of success rates
RATE_LIMIT = 0.002  # rates are kept off 0 and 1, where there is no gradient
MOST_EARLIER = 8  # rollouts of a prompt that its own history holds; the numbers are uniform from 0 on
EXACT, NOISY, HISTORY, CONSTANT, NONE = "exact", "noisy", "history", "constant", "none"


@dataclass(frozen=True)
class Line:
    """One combination.

    Attributes:
        k: rollouts of each prompt, without a selection; None: drawn from the pool by the belief.
        utility, explore, weights: of the selection; weights are importance weights.
        sigma_floor: 1 switches the normaliser off.
    """

    k: int | None = None
    utility: str = "outcome_variance"
    explore: float = 0.2
    weights: bool = False
    baseline: str = LEFT_OUT_EMPIRICAL_BAYES
    prior: str = NOISY
    sigma_floor: float = 0.1


SPARSE, ALONE = Line(), Line(k=1)  # all of sparse V0.5, and its one rollout a prompt without the selection
GRPO = Line(k=16, baseline=GROUP_MEAN, prior=NONE)
LINES = [
    *(replace(GRPO, k=k) for k in (16, 4, 2)),
    *(replace(GRPO, k=k, sigma_floor=1.0) for k in (16, 4)),
    *(Line(k=4, baseline=name) for name in (SHRINKAGE, EMPIRICAL_BAYES, LEFT_OUT_EMPIRICAL_BAYES)),
    *(replace(ALONE, baseline=name) for name in (SHRINKAGE, EMPIRICAL_BAYES)),
    *(replace(ALONE, prior=name) for name in (EXACT, NOISY, HISTORY, CONSTANT)),
    *(replace(ALONE, prior=name, sigma_floor=1.0) for name in (EXACT, NOISY)),
    *(replace(SPARSE, prior=name) for name in (EXACT, NOISY, HISTORY, CONSTANT, NONE)),
    *(replace(SPARSE, explore=share) for share in (0.05, 1.0)),
    replace(SPARSE, explore=0.05, prior=EXACT),
    # All strengths are equal without a history, and then ``posterior`` divides as ``outcome_variance`` does.
    *(replace(SPARSE, utility=name, prior=HISTORY) for name in ("posterior", "product")),
    replace(SPARSE, utility="product"),
    *(replace(SPARSE, utility="headroom", prior=name) for name in (EXACT, NOISY, HISTORY)),
    *(replace(SPARSE, baseline=name) for name in (SHRINKAGE, EMPIRICAL_BAYES)),
    *(replace(SPARSE, weights=True, explore=share) for share in (0.2, 0.05)),
    *(replace(SPARSE, prior=name, sigma_floor=1.0) for name in (EXACT, NOISY)),
    *(replace(SPARSE, weights=True, prior=name, sigma_floor=1.0) for name in (EXACT, NOISY)),
]


class Setting(NamedTuple):
    """A policy and what each prior knows of its prompts."""

    policy: SoftmaxPolicy
    known: Mapping[str, Knowledge]


class Draws(NamedTuple):
    """Gradient estimates of one line. N = steps."""

    estimates: np.ndarray  # (N, d)
    own: np.ndarray  # gradient of what the step ascends: of each rollout's J / sigma, weighed as the rollout is, (N, d)


def make_setting(name: str, seed: int) -> Setting:
    """A policy whose success rates follow ``SHAPES[name]``.

    What prompts teach in common turns by a right angle from the undecided ones to the certain ones, so that an
    objective that prefers undecided prompts has another direction.
    """
    rng, marginal = np.random.default_rng([seed, 0]), beta_rates(*SHAPES[name])
    sigma = sigma_of(marginal, V0_AUC)
    assert sigma is not None, "the shapes' own outcomes are told apart better than that"
    batch = NoisyLogit(marginal, sigma, calibrated=True).sample(rng, PROMPTS)
    rates = batch.p.clip(RATE_LIMIT, 1 - RATE_LIMIT)
    policy = make_policy(rates, seed=seed)
    # Orthogonal to theta, so that adding them to the features leaves the logits, and the success rates, as they are.
    basis = np.linalg.qr(np.column_stack([policy.theta, rng.normal(size=(len(policy.theta), 2))]))[0][:, 1:]
    angle = np.pi / 2 * np.abs(policy.true_mean)
    common = np.column_stack([np.cos(angle), np.sin(angle)]) @ basis.T
    policy = replace(policy, features=policy.features + COMMON * policy.rewards[..., None] * common[:, None])
    missing, visits = np.full(PROMPTS, np.nan), rng.integers(MOST_EARLIER + 1, size=PROMPTS)
    solved = rng.binomial(visits, rates)
    predicted = {EXACT: rates, NOISY: batch.prior, CONSTANT: np.full(PROMPTS, rates.mean()), NONE: missing}
    known = {name: knowledge(policy, p, FIT_ROLLOUTS, seed) for name, p in predicted.items()}
    history = knowledge(policy, missing, FIT_ROLLOUTS, seed, np.stack([solved, visits - solved]).astype(float))
    return Setting(policy, {**known, HISTORY: history})


def draw(setting: Setting, line: Line, steps: int, seed: int) -> Draws:
    """Steps of one line, ``BUDGET`` rollouts each, of prompts drawn from the policy's with replacement."""
    rng, policy = np.random.default_rng([seed, 1]), setting.policy
    known = setting.known[line.prior]
    prompts, counts, expected = selected(line, known, steps, rng)
    kept = counts > 0
    of_group = prompts[kept]
    group = np.repeat(np.arange(len(of_group)), counts[kept])
    prompt = of_group[group]
    responses = sample_responses(policy, prompt, rng)
    rewards, here = policy.rewards[prompt, responses], known.of(of_group)
    found = advantages(
        rewards,
        group,
        {GROUP_MEAN: np.full(len(of_group), np.nan), SHRINKAGE: here.prior}.get(line.baseline, here.belief),
        fusion=ShrinkageFusion() if line.baseline in (GROUP_MEAN, SHRINKAGE) else BETA_FUSION,
        baseline=LEAVE_ONE_OUT if line.baseline.endswith(LEFT_OUT) else PLAIN,
        sigma_floor=line.sigma_floor,
        group_weighting="per_rollout",
        group_weight=(expected.mean(axis=1, keepdims=True) / expected)[kept] if line.weights else 1.0,
    )
    gap = rewards - found.rollout_baseline
    factor = np.divide(found.advantage, gap, out=np.zeros_like(gap), where=gap != 0)
    each = (found.advantage[:, None] * policy.scores[prompt, responses], factor[:, None] * policy.gradients[prompt])
    return Draws(*(values.reshape(steps, BUDGET, -1).mean(axis=1) for values in each))


def selected(line: Line, known: Knowledge, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """(prompts, rollouts of each, expected rollouts of each), (steps, pool) each."""
    belief = known.belief
    prompts = rng.integers(len(belief.prior), size=(steps, BUDGET // line.k if line.k else POOL))
    if line.k:
        counts = np.full(prompts.shape, line.k)
        return prompts, counts, counts.astype(float)
    zeros = np.zeros(len(belief.prior))
    demand = ALLOCATIONS.resolve(line.utility)(0.0).demand(zeros, zeros, belief, BETA_FUSION)
    utility = demand.gain(np.arange(len(zeros)), zeros)
    # As schedule=sparse does: neighbours in the order of belief exclude each other.
    prompts = np.take_along_axis(prompts, belief.prior[prompts].argsort(axis=1, kind="stable"), axis=1)
    expected = np.stack([expected_counts(u, BUDGET, explore=line.explore, most=K_MAX) for u in utility[prompts]])
    return prompts, np.stack([draw_counts(row, rng) for row in expected]), expected


def figures(found: Draws, gradient: np.ndarray) -> dict[str, float]:
    """Of one line: see the page for what they are; ``bias_sq`` is unbiased, and negative by chance where it is 0."""
    plain, own = moments(found.estimates, gradient), moments(found.estimates, found.own.mean(axis=0))
    return {
        "trace": plain.trace.value,
        "noise": plain.relative_noise.value,
        "cosine": plain.cosine.value,
        "bias_sq": bias_sq(found.estimates, gradient),
        "progress": plain.scale.value * float(np.linalg.norm(gradient)) / plain.rms_norm.value,
        "own_noise": own.relative_noise.value,
        "own_bias_sq": bias_sq(found.estimates, found.own),
    }


def bias_sq(estimates: np.ndarray, reference: np.ndarray) -> float:
    """Squared length of the mean's part across the reference's over that along it, less what chance adds to it.

    Args:
        estimates: (N, d).
        reference: a gradient, (d,), or one of each step, (N, d), whose chance the estimates share.
    """
    unit = reference.reshape(-1, reference.shape[-1]).mean(axis=0)
    unit /= np.linalg.norm(unit)
    gap = estimates - reference
    across = gap - (gap @ unit)[:, None] * unit
    by_chance = across.var(axis=0, ddof=1).sum() / len(across)
    return float(((across.mean(axis=0) ** 2).sum() - by_chance) / (estimates.mean(axis=0) @ unit) ** 2)


def run(
    lines: Sequence[Line] = LINES, *, names: Sequence[str] = tuple(SHAPES), steps: int, seeds: Sequence[int]
) -> pd.DataFrame:
    """``population``, ``seed``, the fields of the line and its :func:`figures`, one row each; a seed has its policy."""
    rows = []
    for name, seed in track([(name, seed) for name in names for seed in seeds], "policies"):
        setting = make_setting(name, seed)
        for line in lines:
            found = figures(draw(setting, line, steps, seed), setting.policy.gradient)
            rows.append({"population": name, "seed": seed, **asdict(line), **found})
    return pd.DataFrame(rows)
