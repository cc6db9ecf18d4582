"""The distribution of a prompt's (rollouts, successes), at fixed k and where Eq. 12 decides, and what follows from it.

Everything is a finite sum over numbers of successes: nothing is sampled. N success rates are handled at once; a group's
outcome is its size k and its number of successes, O of them.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from value_model.conversions import reward_of_success, value_of_probability
from verl_v05 import fuse, rollout_target, squared_bias


class Outcomes(NamedTuple):
    """Every way a group can end."""

    probability: np.ndarray  # (N, O), rows sum to 1
    k: np.ndarray  # rollouts, (O,)
    successes: np.ndarray  # (O,)

    @property
    def mean_reward(self) -> np.ndarray:
        """(O,)."""
        return reward_of_success(self.successes / self.k)

    def expect(self, values: np.ndarray) -> np.ndarray:
        """Expectation of values (O,) or (N, O), for each success rate, (N,)."""
        return (self.probability * values).sum(axis=1)


def fixed(rates: np.ndarray, k: int) -> Outcomes:
    """Outcomes of k rollouts at each success rate, (N,)."""
    successes = np.arange(k + 1)
    return Outcomes(binom.pmf(successes, k, np.asarray(rates)[:, None]), np.full(k + 1, k), successes)


def stopped(
    rates: np.ndarray, prior: float, *, cost: float, k_init: int = 4, step: int = 2, k_max: int = sys.maxsize
) -> Outcomes:
    """Outcomes where a prompt with this prior stops by Eq. 12, which itself ends every group by 1/sqrt(cost)."""
    alive, k, ended = fixed(rates, k_init).probability, k_init, []
    more = fixed(rates, step).probability
    while alive.any():
        successes = np.arange(k + 1)
        asks = (k < rollout_target(squared_bias(reward_of_success(successes / k), k, prior), cost)) & (
            k + step <= k_max
        )
        ended.append((alive[:, ~asks], np.full((~asks).sum(), k), successes[~asks]))
        alive = np.stack([np.convolve(a, b) for a, b in zip(np.where(asks, alive, 0.0), more, strict=True)])
        k += step
    return Outcomes(*(np.concatenate(parts, axis=-1) for parts in zip(*ended, strict=True)))


def squared_error(outcomes: Outcomes, rates: np.ndarray, prior: float) -> np.ndarray:
    """True mean squared error of Eq. 9's baseline at each success rate, (N,)."""
    baseline = fuse(outcomes.mean_reward, outcomes.k, prior).baseline
    return outcomes.expect((baseline - value_of_probability(np.asarray(rates)[:, None])) ** 2)


def gradient_scale(outcomes: Outcomes, rates: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Factor by which (1/k) sum_i A_i grad log pi(o_i) is on average too long, (N,); 1 is unbiased.

    An advantage made of rewards alone leaves the direction of a prompt's gradient as it is: with m the mean score of
    the right responses the gradient is 2 p m, and that of the wrong ones is -m p / (1 - p).

    Args:
        right, wrong: advantage of a rollout with reward +1, -1 in each outcome, (O,); anything finite where the outcome
            has none.
    """
    p, share = np.asarray(rates)[:, None], outcomes.successes / outcomes.k
    return outcomes.expect(share * right / (2 * p) - (1 - share) * wrong / (2 * (1 - p)))


def own_reward_advantages(outcomes: Outcomes, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """(right, wrong) advantages against Eq. 9's baseline, which the rollout's own reward is part of."""
    baseline = fuse(outcomes.mean_reward, outcomes.k, prior).baseline
    return 1 - baseline, -1 - baseline


def left_out_advantages(outcomes: Outcomes, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """(right, wrong) advantages against Eq. 9's baseline from the other k - 1 >= 1 rollouts."""
    others = outcomes.k - 1
    return tuple(
        reward - fuse(np.clip((outcomes.k * outcomes.mean_reward - reward) / others, -1, 1), others, prior).baseline
        for reward in (1, -1)
    )
