"""Moments of the policy gradient with each estimator's whole advantage, normaliser included, on an exact policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from benchmarks.estimators.baselines import (
    BETA_FUSION,
    EMPIRICAL_BAYES,
    GROUP_MEAN,
    LEFT_OUT_JAMES_STEIN,
    MEDIAN,
    QUANTILE,
    SHRINKAGE,
)
from benchmarks.exact_policy import (
    Moments,
    SoftmaxPolicy,
    average_moments,
    batch_estimates,
    enumerate_groups,
    gradient_moments,
    make_policy,
    moments,
    sample_batch,
)
from value_model.conversions import value_of_probability
from verl_v05.advantage import advantages
from verl_v05.calibration import Calibration, Evidence
from verl_v05.estimators import bnpo, ha_dw, james_stein, mc_grpo, qae
from verl_v05.fusion import Belief, FusionMethod, ShrinkageFusion

LEFT_OUT, NOT_NORMALISED = ", leave-one-out", ", not normalised"
TRUE_MEAN = "true mean"
GOOD, USELESS, UNUSED = "good", "useless", "not used"
FIT_BATCHES, FIT_PROMPTS = 8, 512


class Knowledge(NamedTuple):
    """Inputs of an advantage besides rewards, for each of G groups."""

    prior: np.ndarray  # V of Eq. 9
    belief: Belief  # of the empirical-Bayes fusion
    greedy: np.ndarray  # reward of the likeliest response
    true_mean: np.ndarray
    rate: float  # success rate of the policy over all prompts

    def of(self, prompts: np.ndarray) -> Knowledge:
        """The same for groups of these prompts."""
        belief = Belief(self.belief.prior[prompts], self.belief.strength[prompts])
        return Knowledge(self.prior[prompts], belief, self.greedy[prompts], self.true_mean[prompts], self.rate)


Advantage = Callable[[np.ndarray, np.ndarray, Knowledge], np.ndarray]  # rewards (R,), group (R,), known -> (R,)


@dataclass(frozen=True)
class Method:
    """An advantage; ``batch_wide`` if a group's depends on the other groups of its batch."""

    advantage: Advantage
    batch_wide: bool = False
    uses_prior: bool = False


def _fused(name: str, fusion: FusionMethod, belief: Callable[[Knowledge], Belief | np.ndarray]) -> dict[str, Method]:
    """The project's own advantage with a fusion, plain and leave-one-out, with and without its normaliser."""

    def method(baseline: str, normalised: bool) -> Method:
        def advantage(rewards: np.ndarray, group: np.ndarray, known: Knowledge) -> np.ndarray:
            found = advantages(rewards, group, belief(known), fusion=fusion, baseline=baseline)
            return found.advantage if normalised else rewards - found.rollout_baseline

        return Method(advantage, uses_prior=True)

    return {
        f"{name}{left_out}{bare}": method("leave_one_out" if left_out else "plain", not bare)
        for left_out in ("", LEFT_OUT)
        for bare in ("", NOT_NORMALISED)
    }


METHODS: dict[str, Method] = {
    TRUE_MEAN: Method(lambda r, g, known: r - known.true_mean[g]),
    GROUP_MEAN + NOT_NORMALISED: Method(lambda r, g, known: r - (np.bincount(g, r) / np.bincount(g))[g]),
    MEDIAN: Method(lambda r, g, known: mc_grpo.advantages(r, g).advantage),
    QUANTILE: Method(lambda r, g, known: qae.advantages(r, g).advantage),
    LEFT_OUT_JAMES_STEIN: Method(lambda r, g, known: james_stein.advantages(r, g).advantage, batch_wide=True),
    "BNPO": Method(lambda r, g, known: bnpo.advantages(r, g, low=-1.0).advantage, batch_wide=True),
    "HA-DW": Method(lambda r, g, known: ha_dw.step(ha_dw.Anchor(known.rate), r, g, low=-1.0)[1].advantage),
    **_fused(SHRINKAGE, ShrinkageFusion(), lambda known: known.prior),
    **_fused(EMPIRICAL_BAYES, BETA_FUSION, lambda known: known.belief),
}


def run(
    rates: Sequence[float],
    methods: Mapping[str, Method],
    *,
    sizes: Sequence[int] = (2, 4, 8),
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Moments of every method's gradient of the mean reward of a batch with one group of each prompt.

    Exact where a group's advantages depend on that group alone; otherwise from ``draws`` batches.

    Args:
        rates: success rate of each prompt, in (0, 1).

    Returns:
        prior, k, method; ``scale`` (E ghat along g over |g|; 1 if unbiased), ``cosine`` (of E ghat with g),
        ``relative_noise`` (trace of the covariance over the squared expected progress along g), ``norm``
        (sqrt E|ghat|^2), each with its standard error (``<name>_error``), 0 where exact.
    """
    policy = make_policy(rates, seed=seed)
    rows = []
    for k in sizes:
        for prior, predicted in _predictions(policy, seed).items():
            known = knowledge(policy, predicted, k, seed)
            for name, method in methods.items():
                if method.uses_prior or prior == GOOD:  # without a prior once is enough
                    prior_name = prior if method.uses_prior else UNUSED
                    found = _measure(policy, method, known, k, draws, seed)
                    rows.append({"prior": prior_name, "k": k, "method": name, **_figures(found)})
    return pd.DataFrame(rows)


def _predictions(policy: SoftmaxPolicy, seed: int) -> dict[str, np.ndarray]:
    """Predicted success probabilities: close to the truth, and the mean for everyone."""
    noise = np.random.default_rng(seed).normal(scale=0.5, size=len(policy.success_rate))
    rate = policy.success_rate
    return {GOOD: expit(logit(rate) + noise), USELESS: np.full_like(rate, rate.mean())}


def knowledge(
    policy: SoftmaxPolicy, predicted: np.ndarray, k: int, seed: int, earlier: np.ndarray | None = None
) -> Knowledge:
    """Of each prompt of the policy; the calibration is fitted to steps of ``k`` rollouts of this policy.

    Args:
        predicted: success probabilities, NaN where missing, (P,).
        earlier: successes and failures of rollouts before these steps, (2, P); default: there were none.
    """
    rng, sizes = np.random.default_rng([seed, 1]), np.full(FIT_PROMPTS, k)
    evidence = Evidence(predicted, *(np.zeros((2, len(predicted))) if earlier is None else earlier))
    calibration = Calibration.start()
    for _ in range(FIT_BATCHES):
        prompts = rng.integers(len(predicted), size=FIT_PROMPTS)
        successes = rng.binomial(k, policy.success_rate[prompts]).astype(float)
        calibration = calibration.fit(evidence.of(prompts), successes, sizes)
    greedy = policy.rewards[np.arange(len(predicted)), policy.probabilities.argmax(axis=1)]
    belief = calibration.belief(evidence)
    return Knowledge(
        value_of_probability(predicted), belief, greedy, policy.true_mean, float(policy.success_rate.mean())
    )


def _measure(policy: SoftmaxPolicy, method: Method, known: Knowledge, k: int, draws: int, seed: int) -> Moments:
    if method.batch_wide:
        return _sampled(policy, method, known, k, draws, seed)
    return _exact(policy, method, known, k)


def _exact(policy: SoftmaxPolicy, method: Method, known: Knowledge, k: int) -> Moments:
    parts = []
    for prompt in range(len(policy.success_rate)):
        groups = enumerate_groups(policy, prompt, k)
        here = known.of(np.full(len(groups.rewards), prompt))
        parts.append(gradient_moments(policy, prompt, groups, partial(_of_groups, method.advantage, here)))
    return average_moments(parts)


def _sampled(policy: SoftmaxPolicy, method: Method, known: Knowledge, k: int, draws: int, seed: int) -> Moments:
    responses, rewards = sample_batch(policy, k, draws, np.random.default_rng([seed, k]))  # the same for every method
    found = np.stack([_of_groups(method.advantage, known, batch, None) for batch in rewards])
    return moments(batch_estimates(policy, responses, found), policy.gradient)


def _of_groups(advantage: Advantage, known: Knowledge, rewards: np.ndarray, responses: np.ndarray | None) -> np.ndarray:
    """Advantages of (groups, k) rewards, one batch."""
    groups, k = rewards.shape
    return advantage(rewards.ravel(), np.repeat(np.arange(groups), k), known).reshape(groups, k)


def _figures(found: Moments) -> dict[str, float]:
    named = {
        "scale": found.scale,
        "cosine": found.cosine,
        "relative_noise": found.relative_noise,
        "norm": found.rms_norm,
    }
    return {name: figure.value for name, figure in named.items()} | {
        f"{name}_error": figure.error for name, figure in named.items()
    }
