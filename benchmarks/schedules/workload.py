"""Prompts of one step: outcome and length of every possible rollout, and the prior's prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import betabinom
from sklearn.metrics import roc_auc_score

from benchmarks.schedules.lengths import Lengths
from benchmarks.value_model.v0_public import ROLLOUTS, load
from value_model.trajectories import success

# Fitted by `fit_rates` to the 3,072 scores of the V0 authors' public data, part "context".
PUBLIC_RATES = (0.463, 0.366)


@dataclass(frozen=True)
class Workload:
    """Of P prompts, K rollouts each, drawn once so that every schedule meets the same ones."""

    probability: np.ndarray  # (P,) the prior's, in (0, 1)
    correct: np.ndarray  # (P, K) bool
    tokens: np.ndarray  # (P, K) response length

    def first(self, prompts: int) -> Workload:
        """The first prompts alone."""
        return Workload(self.probability[:prompts], self.correct[:prompts], self.tokens[:prompts])

    @property
    def prior_auc(self) -> tuple[float, float]:
        """AUC of the prior against one outcome, and against whether half of a prompt's outcomes are right."""
        one, hard = self.correct[:, 0], self.correct.mean(axis=1) >= 0.5
        return float(roc_auc_score(one, self.probability)), float(roc_auc_score(hard, self.probability))


@dataclass(frozen=True)
class Rates:
    """Success rates of prompts: Beta(``alpha``, ``beta``), given a measured prompt's outcomes where there are any."""

    alpha: float
    beta: float
    successes: np.ndarray | None = None  # of ROLLOUTS, of the measured prompts

    def draw(self, prompts: int, rng: np.random.Generator) -> np.ndarray:
        """(prompts,) in (0, 1)."""
        right = np.zeros(prompts) if self.successes is None else rng.choice(self.successes, prompts)
        wrong = 0 if self.successes is None else ROLLOUTS - right
        return np.clip(rng.beta(self.alpha + right, self.beta + wrong), 1e-9, 1 - 1e-9)


def public_rates(folder: Path | None) -> Rates:
    """Success rates in the V0 authors' public data; without a ``folder`` that holds them, the Beta fitted to them.

    With the data each draw takes a measured prompt at random and its rate from the posterior.
    """
    if folder is None:
        return Rates(*PUBLIC_RATES)
    successes = np.rint(success(load(folder, ["context"])).to_numpy() * ROLLOUTS).astype(int)
    return Rates(*fit_rates(successes), successes)


def fit_rates(successes: np.ndarray) -> tuple[float, float]:
    """Beta parameters by maximum likelihood of beta-binomial counts of ROLLOUTS."""
    fit = minimize(
        lambda x: -betabinom.logpmf(successes, ROLLOUTS, *np.exp(x)).sum(), np.zeros(2), method="Nelder-Mead"
    )
    alpha, beta = np.exp(fit.x)
    return float(alpha), float(beta)


def draw_workload(
    prompts: int, rollouts: int, rates: Rates, lengths: Lengths, prior_noise: float, seed: int
) -> Workload:
    """Prompts with a prior that misses the success rate by normal noise of ``prior_noise`` in log odds."""
    rng = np.random.default_rng([seed, prompts])
    rate = rates.draw(prompts, rng)
    probability = expit(logit(rate) + prior_noise * rng.standard_normal(prompts))
    correct = rng.random((prompts, rollouts)) < rate[:, None]
    return Workload(probability, correct, lengths.draw(correct, rng))
