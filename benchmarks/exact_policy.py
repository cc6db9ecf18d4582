"""A small softmax policy whose gradient is known, and the moments of any group estimator of that gradient.

P prompts have M responses each, with fixed rewards in {-1, +1}; prompts share the parameters theta, so that what one
prompt learns moves the others. How to use it:

    policy = make_policy([0.1, 0.5, 0.9], responses=4, correct=2, dim=8, seed=0)

    def group_mean(rewards, responses):            # an advantage function: (draws, k) twice -> (draws, k)
        return rewards - rewards.mean(axis=1, keepdims=True)

    groups = enumerate_groups(policy, prompt=0, k=4)                                   # exact, or
    groups = sample_groups(policy, 0, 4, draws=10_000, rng=np.random.default_rng(0))   # Monte Carlo
    found = gradient_moments(policy, 0, groups, group_mean)     # bias, trace, rms_norm, cosine, scale, relative_noise
    whole = average_moments([...one exact Moments a prompt...]) # of the mean over prompts

A prior is bound to the function (``functools.partial``). Enumeration goes over multisets of responses, so it needs an
advantage that follows its rollouts when they are reordered. Groups whose size is decided by their rewards are
enumerated size by size with ``outcome``; their :func:`group_estimates` and probabilities, concatenated, go to
:func:`moments`. For an advantage that looks at the whole batch, draw :func:`sample_batch`, compute advantages of shape
(draws, P, k), and pass :func:`batch_estimates` to :func:`moments`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, logit, logsumexp, softmax
from scipy.stats import binom

AdvantageFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SoftmaxPolicy:
    """pi(o | x) proportional to exp(features[x, o] . theta + offsets[x, o]).

    Attributes:
        features: (P, M, d).
        rewards: of each response, -1 or +1, (P, M).
        offsets: the part of the logits that theta does not reach, (P, M).
        theta: (d,).
    """

    features: np.ndarray
    rewards: np.ndarray
    offsets: np.ndarray
    theta: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """pi(o | x), (P, M)."""
        return softmax(self.features @ self.theta + self.offsets, axis=1)

    @cached_property
    def true_mean(self) -> np.ndarray:
        """Expected reward of each prompt, mu_true of Eq. 1, (P,)."""
        return (self.probabilities * self.rewards).sum(axis=1)

    @cached_property
    def success_rate(self) -> np.ndarray:
        """Probability of reward +1 of each prompt, (P,)."""
        return (1 + self.true_mean) / 2

    @cached_property
    def scores(self) -> np.ndarray:
        """grad log pi(o | x) with respect to theta, (P, M, d)."""
        return self.features - np.einsum("pm,pmd->pd", self.probabilities, self.features)[:, None]

    @cached_property
    def gradients(self) -> np.ndarray:
        """Gradient of each prompt's expected reward, (P, d)."""
        return np.einsum("pm,pm,pmd->pd", self.probabilities, self.rewards, self.scores)

    @cached_property
    def gradient(self) -> np.ndarray:
        """Gradient of the expected reward, the mean over prompts, (d,)."""
        return self.gradients.mean(axis=0)


def make_policy(
    success_rates: Sequence[float], *, responses: int = 4, correct: int = 2, dim: int = 8, seed: int = 0
) -> SoftmaxPolicy:
    """A policy with Gaussian features and the given success rate of each prompt.

    Args:
        success_rates: in (0, 1), one a prompt.
        responses: M of each prompt, of which the first ``correct`` have reward +1.
        dim: number of parameters, common to all prompts.

    Raises:
        ValueError: a success rate of 0 or 1, or no response of either reward.
    """
    rates = np.asarray(success_rates, dtype=float)
    if not ((rates > 0) & (rates < 1)).all():
        raise ValueError(f"success rates must be in (0, 1), or their gradient is 0; got {success_rates}")
    if not 0 < correct < responses:
        raise ValueError(f"correct must be in 1..{responses - 1}, of {responses} responses; got {correct}")
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(rates), responses, dim))
    theta = rng.normal(size=dim) / np.sqrt(dim)
    right = np.arange(responses) < correct
    logits = features @ theta
    odds = logsumexp(logits[:, right], axis=1) - logsumexp(logits[:, ~right], axis=1)
    offsets = np.where(right, (logit(rates) - odds)[:, None], 0.0)
    return SoftmaxPolicy(features, np.broadcast_to(np.where(right, 1.0, -1.0), offsets.shape), offsets, theta)


class Groups(NamedTuple):
    """Groups of k rollouts of one prompt."""

    responses: np.ndarray  # indices of responses, (draws, k)
    rewards: np.ndarray  # -1 or +1, (draws, k)
    probability: np.ndarray | None  # of each group, (draws,); None: drawn at random, each counts the same


def enumerate_groups(policy: SoftmaxPolicy, prompt: int, k: int, outcome: np.ndarray | None = None) -> Groups:
    """Every multiset of k responses with its probability.

    Args:
        outcome: probability that a sequential rule stops at k rollouts with 0..k successes, (k + 1,); given those, the
            responses are independent, as the rule looks at rewards only. Default: the binomial of fixed k.
    """
    responses = np.array(list(combinations_with_replacement(range(policy.rewards.shape[1]), k)))
    counts = (responses[:, :, None] == np.arange(policy.rewards.shape[1])).sum(axis=1)
    ways = gammaln(k + 1) - gammaln(counts + 1).sum(axis=1)
    probability = np.exp(ways + (counts * np.log(policy.probabilities[prompt])).sum(axis=1))
    rewards = policy.rewards[prompt][responses]
    if outcome is not None:
        relative = np.asarray(outcome) / binom.pmf(np.arange(k + 1), k, policy.success_rate[prompt])
        probability = probability * relative[(rewards > 0).sum(axis=1)]
    return Groups(responses, rewards, probability)


def sample_groups(policy: SoftmaxPolicy, prompt: int, k: int, draws: int, rng: np.random.Generator) -> Groups:
    """Groups of k independent responses."""
    responses = rng.choice(policy.rewards.shape[1], size=(draws, k), p=policy.probabilities[prompt])
    return Groups(responses, policy.rewards[prompt][responses], None)


def sample_batch(policy: SoftmaxPolicy, k: int, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(responses, rewards) of batches that hold a group of every prompt, (draws, P, k) each."""
    groups = [sample_groups(policy, prompt, k, draws, rng) for prompt in range(len(policy.rewards))]
    return np.stack([g.responses for g in groups], axis=1), np.stack([g.rewards for g in groups], axis=1)


def sample_responses(policy: SoftmaxPolicy, prompts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One response of each prompt in the list, which may name one more than once, (n,).

    Args:
        prompts: indices, (n,).
    """
    edges = policy.probabilities.cumsum(axis=1)[prompts, :-1]  # the last is 1 but for rounding
    return (rng.random(len(prompts))[:, None] > edges).sum(axis=1)


def group_estimates(policy: SoftmaxPolicy, prompt: int, groups: Groups, advantage: AdvantageFunction) -> np.ndarray:
    """ghat = (1/k) sum_i A_i grad log pi(o_i | x) of each group, (draws, d)."""
    weights = advantage(groups.rewards, groups.responses)
    return np.einsum("nk,nkd->nd", weights, policy.scores[prompt][groups.responses]) / groups.rewards.shape[1]


def batch_estimates(policy: SoftmaxPolicy, responses: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """ghat of each batch, the mean over prompts of their groups' ghat, (draws, d).

    Args:
        responses, advantages: (draws, P, k).
    """
    _, prompts, k = responses.shape
    scores = policy.scores[np.arange(prompts)[:, None], responses]  # (draws, P, k, d)
    return np.einsum("npk,npkd->nd", advantages, scores) / (prompts * k)


class Estimate(NamedTuple):
    """A number and its standard error, 0 where it is exact."""

    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Moments:
    """What an estimator of a gradient g does.

    ``scale`` is what a change of step size removes, so estimators with normalised advantages compare by
    ``relative_noise``: steps of the same expected progress along g have a noise of that many |g|^2.
    """

    gradient: np.ndarray  # g, (d,)
    mean: np.ndarray  # E ghat, (d,)
    mean_error: np.ndarray  # its standard error, (d,)
    trace: Estimate  # trace of the covariance of ghat
    rms_norm: Estimate  # sqrt(E |ghat|^2)
    cosine: Estimate  # of E ghat with g
    scale: Estimate  # E ghat . g / |g|^2; 1 if unbiased
    relative_noise: Estimate  # trace / (scale |g|)^2

    @property
    def bias(self) -> np.ndarray:
        """E ghat - g, (d,), with the standard error of ``mean``."""
        return self.mean - self.gradient


def moments(estimates: np.ndarray, gradient: np.ndarray, probability: np.ndarray | None = None) -> Moments:
    """Moments of estimates of ``gradient``.

    Args:
        estimates: (draws, d).
        gradient: the true one, (d,).
        probability: of each estimate, (draws,), sums to 1: the moments are exact. None: two or more estimates drawn at
            random; the trace is the unbiased one and every figure has its standard error (delta method).
    """
    draws = len(estimates)
    weight = np.full(draws, 1 / draws) if probability is None else probability
    mean = weight @ estimates
    centred = estimates - mean
    spread = (centred**2).sum(axis=1)
    if probability is None:
        return _moments(gradient, mean, spread.sum() / (draws - 1), centred, spread)
    return _exact_moments(gradient, mean, weight @ spread)


def gradient_moments(policy: SoftmaxPolicy, prompt: int, groups: Groups, advantage: AdvantageFunction) -> Moments:
    """Moments of a prompt's ghat as an estimator of the gradient of that prompt's expected reward."""
    estimates = group_estimates(policy, prompt, groups, advantage)
    return moments(estimates, policy.gradients[prompt], groups.probability)


def average_moments(parts: Sequence[Moments]) -> Moments:
    """Exact moments of the mean over prompts, sampled independently, of their exact moments.

    Raises:
        ValueError: one of them was estimated; draw batches instead.
    """
    if any(part.trace.error for part in parts):
        raise ValueError("average_moments takes exact moments only; use sample_batch and batch_estimates for draws")
    gradient, mean = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("gradient", "mean"))
    return _exact_moments(gradient, mean, sum(part.trace.value for part in parts) / len(parts) ** 2)


def _exact_moments(gradient: np.ndarray, mean: np.ndarray, trace: float) -> Moments:
    return _moments(gradient, mean, trace, np.zeros((1, len(mean))), np.array([trace]))


def _moments(gradient: np.ndarray, mean: np.ndarray, trace: float, centred: np.ndarray, spread: np.ndarray) -> Moments:
    """Figures, and standard errors from each draw's influence on them; an exact result has one draw without any."""

    def error(influence: np.ndarray) -> np.ndarray:
        return np.sqrt((influence**2).mean(axis=0) / len(influence))

    length, size = np.linalg.norm(gradient), np.linalg.norm(mean)
    rms = np.sqrt(trace + size**2)
    with np.errstate(divide="ignore", invalid="ignore"):  # An estimator that is 0 on average has no direction.
        along = mean @ gradient / length
        d_trace, d_along, d_size = spread - trace, centred @ gradient / length, centred @ mean / size
        return Moments(
            gradient=gradient,
            mean=mean,
            mean_error=error(centred),
            trace=Estimate(float(trace), float(error(d_trace))),
            rms_norm=Estimate(float(rms), float(error((d_trace + 2 * centred @ mean) / (2 * rms)))),
            cosine=Estimate(float(along / size), float(error(d_along / size - along * d_size / size**2))),
            scale=Estimate(float(along / length), float(error(d_along / length))),
            relative_noise=Estimate(
                float(trace / along**2), float(error(d_trace / along**2 - 2 * trace * d_along / along**3))
            ),
        )
