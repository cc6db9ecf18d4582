"""Allocation of rollouts: who gets more, and how many.

One-step look-ahead (OSLA; paper section 3.4, Eq. 11-12 and 36) weighs the squared bias of the prior, ``bias_sq`` of
:func:`verl_v05.fusion.fuse`; it is 0 both where the prior was accepted and where it is missing, so neither asks for
more rollouts. The posterior rule weighs ``variance``, that of
:func:`verl_v05.fusion.posterior_variance`, which one more Bernoulli outcome lowers by the factor
n / (n + 1) in expectation, n = k + m; NaN, a prior that is not known yet, asks for nothing.

Both have a *target*, the k to stop at for a cost a rollout, and a *gain*, the drop in squared error that the next
rollout is expected to bring. Formulas take numpy, torch or plain numbers and return arrays of the same namespace.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from value_model.conversions import success_of_reward
from verl_v05.fusion import Array, Belief, FusionMethod, as_float64, posterior_variance, squared_bias
from verl_v05.registry import Registry, SettingsError

if TYPE_CHECKING:
    from verl_v05.settings import V05Settings

ALLOCATIONS = Registry(
    key="algorithm.v05.allocation",
    base="verl_v05.allocation.AllocationRule",
    names={
        "osla": "verl_v05.allocation.OslaAllocation",
        "posterior": "verl_v05.allocation.PosteriorAllocation",
        "outcome_variance": "verl_v05.allocation.OutcomeVarianceAllocation",
        "product": "verl_v05.allocation.ProductAllocation",
        "headroom": "verl_v05.allocation.HeadroomAllocation",
    },
)
TRIES = 32  # of `headroom`: a prompt that is solved less often than once in as many counts for less and less
Gain = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (indices of prompts, rollouts before it) -> worth of one more


def empirical_mse(bias_sq: Array, k: Array) -> Array:
    """Estimated mean squared error of the fused baseline after ``k`` rollouts (Eq. 11)."""
    _, (bias_sq, k) = as_float64(bias_sq, k)
    return bias_sq / (k * bias_sq + 1)


def marginal_return(bias_sq: Array, k: Array) -> Array:
    """Expected drop of :func:`empirical_mse` from one more rollout, g(k) (Eq. 36)."""
    _, (bias_sq, k) = as_float64(bias_sq, k)
    return bias_sq**2 / ((k * bias_sq + 1) * ((k + 1) * bias_sq + 1))


def rollout_target(bias_sq: Array, cost: float) -> Array:
    """Number of rollouts at which a prompt should stop (Eq. 12): 1/sqrt(cost) - 1/bias_sq.

    Minus infinity where ``bias_sq`` is 0. ``cost`` is the price of one rollout in units of squared error, > 0.
    """
    if not cost > 0:
        raise ValueError(f"cost must be positive; got {cost}")
    xp, (bias_sq,) = as_float64(bias_sq)
    biased = bias_sq > 0
    safe = xp.where(biased, bias_sq, xp.ones_like(bias_sq))
    return xp.where(biased, 1 / math.sqrt(cost) - 1 / safe, xp.full_like(bias_sq, -math.inf))


def posterior_gain(variance: Array, n: Array, nth: Array) -> Array:
    """Expected drop of the posterior variance v by the ``nth`` further rollout: v n / ((n + nth) (n + nth + 1)).

    Args:
        variance: posterior variance now.
        n: k + m, rollouts and the strength of the prior.
        nth: rollouts before it, 0 for the next.
    """
    _, (variance, n, nth) = as_float64(variance, n, nth)
    return variance * n / ((n + nth) * (n + nth + 1))


def posterior_target(variance: Array, n: Array, k: Array, cost: float) -> Array:
    """Number of rollouts at which the next one's :func:`posterior_gain` falls below ``cost``; infinite at cost 0."""
    if not cost >= 0:
        raise ValueError(f"cost must not be negative; got {cost}")
    xp, (variance, n, k) = as_float64(variance, n, k)
    if cost == 0:
        return xp.where(variance > 0, xp.full_like(k, math.inf), k)
    # The largest j with v n / ((n + j - 1)(n + j)) >= c.
    return k + xp.floor(xp.clip(0.5 - n + xp.sqrt(0.25 + variance * n / cost), 0, None))


def extra_rollouts(k: np.ndarray, spent: np.ndarray, target: np.ndarray, *, k_max: int, step: int | None) -> np.ndarray:
    """Rollouts each prompt asks for next (section 4.1.3, step 4).

    Args:
        k: scored rollouts of each prompt, shape (prompts,).
        spent: rollouts already dispatched for it, failed ones included; >= k. ``k_max`` bounds this one.
        target: :func:`rollout_target` or :func:`posterior_target`; NaN asks for nothing.
        k_max: largest number of rollouts of a prompt.
        step: rollouts asked for at a time; None asks at once for all that is missing to the target.

    Returns:
        int64 counts, shape (prompts,); 0 where k has reached its target or fewer than ``step`` are left.
    """
    wants = k < target
    if step is None:
        gap = np.where(wants, np.ceil(np.where(wants, target, 0.0)) - k, 0)
        return np.minimum(gap, k_max - np.asarray(spent)).astype(np.int64)
    return np.where(wants & (np.asarray(spent) + step <= k_max), step, 0).astype(np.int64)


def hand_out(rollouts: int, room: np.ndarray, gain: Gain, at_least: float = 0.0) -> np.ndarray:
    """Hand rollouts out one by one, each to the prompt it is expected to gain most for (ties: the earlier prompt).

    Args:
        rollouts: how many there are.
        room: largest number each prompt may get, shape (prompts,).
        gain: (indices of prompts, how many each got before) -> gain of one more; it must fall with the second.
        at_least: none is handed out for a gain below this, or for NaN.

    Returns:
        int64 counts, shape (prompts,); their sum is smaller than ``rollouts`` where room or gain run out.
    """
    prompt = np.repeat(np.arange(len(room)), room)
    # The n-th of a prompt comes after the n-1 before it: the gain falls, so choosing among all candidates at once hands
    # them out exactly as one-by-one picking would.
    nth = np.arange(len(prompt)) - np.repeat(np.cumsum(room) - room, room)
    gains = gain(prompt, nth)
    enough = gains >= at_least
    chosen = prompt[enough][_largest(gains[enough], rollouts)]
    return np.bincount(chosen, minlength=len(room)).astype(np.int64)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` largest values, the earlier of equal ones first; cheaper than sorting them."""
    if not 0 < count < len(values):
        return np.full(len(values), count > 0)
    least = np.partition(values, -count)[-count]
    chosen = values > least
    chosen[np.flatnonzero(values == least)[: count - chosen.sum()]] = True
    return chosen


class Demand(NamedTuple):
    """What further rollouts of G prompts are worth."""

    target: np.ndarray  # (G,) k to stop at; below k, or NaN, where nothing more is wanted
    gain: Gain  # falls with the rollouts before it


class AllocationRule(ABC):
    """One value of ``algorithm.v05.allocation``: what the next rollout of each prompt is worth."""

    needs_strength: ClassVar[bool] = False  # goes with fusions that have a posterior only
    plans_budget: ClassVar[bool] = False  # its gains are comparable between prompts, so a cap can be divided by them

    def __init__(self, cost: float):
        self.cost = cost

    @classmethod
    def from_settings(cls, settings: V05Settings, fusion: FusionMethod) -> Self:
        """The rule of a run.

        Raises:
            SettingsError: it needs a posterior, and the fusion has none.
        """
        if cls.needs_strength and not fusion.has_strength:
            raise SettingsError(
                f"algorithm.v05.allocation={settings.allocation!r} is not allowed: it must be osla with "
                f"fusion={settings.fusion}, which has no posterior"
            )
        return cls(settings.cost)

    @abstractmethod
    def demand(self, mean_reward: np.ndarray, k: np.ndarray, belief: Belief, fusion: FusionMethod) -> Demand:
        """Of prompts with k >= 0 scored rollouts.

        Args:
            mean_reward: (G,), in [-1, 1]; 0 where k is 0.
            k: (G,)
            belief: from before the rollouts, NaN where there is none.
        """


class OslaAllocation(AllocationRule):
    """``osla``: Eq. 12, up to the k at which Eq. 36 falls below the cost."""

    def demand(self, mean_reward: np.ndarray, k: np.ndarray, belief: Belief, fusion: FusionMethod) -> Demand:
        # A prompt with nothing scored has mean 0 and counts as k = 1, which no prior in [-1, 1] contradicts.
        bias_sq = squared_bias(mean_reward, np.maximum(k, 1), belief.prior)
        return Demand(
            rollout_target(bias_sq, self.cost),
            lambda prompt, before: marginal_return(bias_sq[prompt], k[prompt] + before),
        )


class Posterior(NamedTuple):
    """What is believed of G prompts' mean rewards after k >= 0 rollouts; NaN where nothing is."""

    mean: np.ndarray  # (G,), in [-1, 1]
    variance: np.ndarray  # (G,)
    n: np.ndarray  # (G,), k and the strength of the prior
    k: np.ndarray  # (G,)


class PosteriorRule(AllocationRule):
    """A rule that goes by the posterior of each prompt's mean reward."""

    needs_strength = True
    plans_budget = True

    def demand(self, mean_reward: np.ndarray, k: np.ndarray, belief: Belief, fusion: FusionMethod) -> Demand:
        known, mean, variance = ~np.isnan(belief.prior), np.full(len(k), np.nan), np.full(len(k), np.nan)
        # With nothing scored the posterior is the prior, whatever the mean: one rollout that agrees with it leaves it.
        seen = np.where(k > 0, mean_reward, belief.prior)
        of_known = Belief(belief.prior[known], belief.strength[known])
        mean[known] = fusion.fuse(seen[known], np.maximum(k, 1)[known], of_known).baseline
        variance[known] = posterior_variance(mean[known], k[known], of_known.strength)
        return self.worth(Posterior(mean, variance, k + belief.strength, k))

    @abstractmethod
    def worth(self, posterior: Posterior) -> Demand:
        """What further rollouts are worth."""


class PosteriorAllocation(PosteriorRule):
    """``posterior``: as long as the next rollout is expected to lower the posterior variance by the cost."""

    def worth(self, posterior: Posterior) -> Demand:
        _, variance, n, k = posterior
        return Demand(
            posterior_target(variance, n, k, self.cost),
            lambda prompt, before: posterior_gain(variance[prompt], n[prompt], before),
        )


class OutcomeVarianceAllocation(PosteriorRule):
    """``outcome_variance``: the expected variance of an outcome, E[1 - v^2], shared among the prompt's rollouts.

    It is the part of a rollout's squared advantage that no baseline removes, so what the rollout can teach; the j-th
    rollout of the same prompt counts for 1/j of it.
    """

    def worth(self, posterior: Posterior) -> Demand:
        return _shared(posterior.variance * posterior.n, posterior.k, self.cost)


class ProductAllocation(PosteriorRule):
    """``product``: of ``outcome_variance`` and the drop in posterior variance: a rollout teaches the belief as well."""

    def worth(self, posterior: Posterior) -> Demand:
        _, variance, n, k = posterior
        return _shared(variance * n * variance / (n + 1), k, self.cost)


class HeadroomAllocation(PosteriorRule):
    """``headroom``: the success still to be won, of what a few tries would find, shared among the prompt's rollouts.

    Hard prompts count for more than those that are solved half the time: what is solved has nothing left to win, and
    what is hopeless nothing to learn from.
    """

    def worth(self, posterior: Posterior) -> Demand:
        return _shared(headroom(posterior.mean), posterior.k, self.cost)


def headroom(mean: np.ndarray, tries: int = TRIES) -> np.ndarray:
    """(1 - q) (1 - (1 - q)^tries), in [0, 1], of the believed mean rewards 2 q - 1; NaN where those are."""
    failure = 1 - success_of_reward(mean)
    return failure * (1 - failure**tries)


def _shared(worth: np.ndarray, k: np.ndarray, cost: float) -> Demand:
    """Demand of prompts whose j-th rollout is worth a j-th of ``worth``."""
    target = np.floor(worth / cost) if cost > 0 else np.where(worth > 0, np.inf, k)
    return Demand(target, lambda prompt, before: worth[prompt] / (k[prompt] + before + 1))
