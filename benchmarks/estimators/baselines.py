"""Every baseline under test, as a function from a batch's rollouts to the baseline of each rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from value_model.conversions import reward_of_success
from verl_v05.advantage import leave_one_out
from verl_v05.estimators import james_stein, mc_grpo, qae
from verl_v05.fusion import Belief, fuse, fuse_beta
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion

GROUP_MEAN, LEFT_OUT_MEAN = "group mean", "leave-one-out mean"
PRIOR = "prior alone"
SHRINKAGE, LEFT_OUT_SHRINKAGE = "Eq. 9", "Eq. 9, leave-one-out"
EMPIRICAL_BAYES, LEFT_OUT_EMPIRICAL_BAYES = "empirical Bayes", "empirical Bayes, leave-one-out"
LEFT_OUT_JAMES_STEIN, JAMES_STEIN = "James-Stein, leave-one-out", "James-Stein"
MEDIAN, QUANTILE = "median (MC-GRPO)", "quantile (QAE)"
BAYES = "Bayes limit"
BETA_FUSION = EmpiricalBayesFusion()  # for its formula; the calibration it holds is not used


@dataclass(frozen=True)
class ScoredBatch:
    """A batch after its rollouts. n = prompts, R = rollouts.

    Attributes:
        successes, k: of each prompt, (n,).
        prior: V of Eq. 9, (n,).
        belief: calibrated Beta prior.
        posterior_mean: E(theta | everything), (n,).
    """

    successes: np.ndarray
    k: np.ndarray
    prior: np.ndarray
    belief: Belief
    posterior_mean: np.ndarray

    @cached_property
    def group(self) -> np.ndarray:
        """Prompt of each rollout, (R,)."""
        return np.repeat(np.arange(len(self.k)), self.k)

    @cached_property
    def rewards(self) -> np.ndarray:
        """Of each rollout, -1 or +1, the successes of a group first: no estimator here looks at the order, (R,)."""
        nth = np.arange(len(self.group)) - np.repeat(np.cumsum(self.k) - self.k, self.k)
        return np.where(nth < self.successes[self.group], 1.0, -1.0)

    @property
    def mean_reward(self) -> np.ndarray:
        """(n,)."""
        return reward_of_success(self.successes / self.k)


Baseline = Callable[[ScoredBatch], np.ndarray]  # (R,)


def _missing(seen: ScoredBatch) -> np.ndarray:
    return np.full(len(seen.k), np.nan)


BASELINES: dict[str, Baseline] = {
    GROUP_MEAN: lambda seen: seen.mean_reward[seen.group],
    LEFT_OUT_MEAN: lambda seen: leave_one_out(seen.rewards, seen.group, _missing(seen)),
    PRIOR: lambda seen: seen.prior[seen.group],
    SHRINKAGE: lambda seen: fuse(seen.mean_reward, seen.k, seen.prior).baseline[seen.group],
    LEFT_OUT_SHRINKAGE: lambda seen: leave_one_out(seen.rewards, seen.group, seen.prior),
    EMPIRICAL_BAYES: lambda seen: fuse_beta(seen.mean_reward, seen.k, *seen.belief).baseline[seen.group],
    LEFT_OUT_EMPIRICAL_BAYES: lambda seen: leave_one_out(seen.rewards, seen.group, seen.belief, BETA_FUSION),
    LEFT_OUT_JAMES_STEIN: lambda seen: james_stein.advantages(seen.rewards, seen.group).baseline,
    JAMES_STEIN: lambda seen: james_stein.advantages(seen.rewards, seen.group, leave_one_out=False).baseline,
    MEDIAN: lambda seen: mc_grpo.advantages(seen.rewards, seen.group).baseline,
    QUANTILE: lambda seen: qae.advantages(seen.rewards, seen.group).baseline,
    BAYES: lambda seen: seen.posterior_mean[seen.group],
}
NEEDS_TWO = (LEFT_OUT_MEAN, LEFT_OUT_JAMES_STEIN, JAMES_STEIN)  # in every group
