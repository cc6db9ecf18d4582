"""Joint distributions of prompts' success probabilities and what is known of them before any rollout.

Success probabilities live on one grid, so a population *is* a discrete distribution and the posterior of each prompt,
and with it the Bayes risk, is exact: no discretisation error, no model of the evidence that could be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from scipy.stats import beta, betabinom, binom, norm

POINTS = 401
_ANGLE = np.linspace(0, np.pi / 2, POINTS)
# Equal steps of arcsin sqrt(p), in which a binomial's spread is the same everywhere; 0 and 1 are on the grid.
GRID = np.sin(_ANGLE) ** 2
EDGES = np.concatenate([[0.0], np.sin((_ANGLE[1:] + _ANGLE[:-1]) / 2) ** 2, [1.0]])
LOGIT_BOUND = 5.0  # a predictor cannot tell 0.7 % from never
EM_STEPS = 3  # further ones change nothing that shows
LOGITS = np.clip(logit(GRID), -LOGIT_BOUND, LOGIT_BOUND)


@dataclass(frozen=True)
class Batch:
    """Prompts drawn from a population. n = prompts, G = points of the grid.

    Attributes:
        p: true success probability, (n,).
        prior: the probability a method without a history is given, (n,).
        density: P(p | all that is known before the first rollout) on ``GRID``, rows sum to 1, (n, G).
        probability: the value model's, NaN where there is none, (n,).
        successes, failures: of the prompt's own earlier rollouts, (n,).
    """

    p: np.ndarray
    prior: np.ndarray
    density: np.ndarray
    probability: np.ndarray
    successes: np.ndarray
    failures: np.ndarray


class Population(Protocol):
    """A joint distribution of p and the evidence."""

    marginal: np.ndarray  # P(p) on GRID, (G,)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        """``n`` prompts."""


@dataclass(frozen=True)
class Constant:
    """Nothing is known of a prompt but the population: the prior is the mean success rate."""

    marginal: np.ndarray

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        prior = np.full(n, self.marginal @ GRID)
        density = np.broadcast_to(self.marginal, (n, POINTS))
        return _without_history(GRID[rng.choice(POINTS, n, p=self.marginal)], prior, density)


@dataclass(frozen=True)
class NoisyLogit:
    """A prediction logit q = shift + slope * x of x = logit p + sigma * noise.

    Shift and slope change the prediction and not what it tells. ``calibrated`` reports E(p | x) instead.
    """

    marginal: np.ndarray
    sigma: float
    shift: float = 0.0
    slope: float = 1.0
    calibrated: bool = False

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        at = rng.choice(POINTS, n, p=self.marginal)
        x = LOGITS[at] + self.sigma * rng.standard_normal(n)
        density = _normalised(self.marginal * _noise_likelihood(x, self.sigma))
        prior = density @ GRID if self.calibrated else expit(self.shift + self.slope * x)
        return _without_history(GRID[at], prior, density)


@dataclass(frozen=True)
class Predicted:
    """A real predictor: its answers on measured prompts, and the success rates of prompts with answers alike.

    ``shuffled`` hands each prompt another one's prediction: it varies and tells nothing.
    """

    prediction: np.ndarray  # (rows,)
    conditional: np.ndarray  # P(p | prediction) of each row, (rows, G)
    shuffled: bool = False

    @cached_property
    def marginal(self) -> np.ndarray:
        return self.conditional.mean(axis=0)

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        rows = rng.integers(len(self.prediction), size=n)
        shown = rng.integers(len(self.prediction), size=n) if self.shuffled else rows
        density = np.broadcast_to(self.marginal, (n, POINTS)) if self.shuffled else self.conditional[rows]
        return _without_history(GRID[_draw(rng, self.conditional[rows])], self.prediction[shown], density)


@dataclass(frozen=True)
class Visited:
    """Prompts seen once before: ``visit`` rollouts at an earlier p, whose logit has drifted since.

    Attributes:
        earlier: P(p) at the visit, (G,).
        sigma: noise of a prediction of today's p (see :class:`NoisyLogit`); None: the history is all there is.
        use_history: False hides the visit from everyone, which leaves the prediction alone on the same prompts.
        strength: rollouts the global mean is worth in the prior of a method that is given the history only.
    """

    earlier: np.ndarray
    visit: int
    drift: float = 0.3
    drift_sd: float = 0.5
    sigma: float | None = None
    use_history: bool = True
    strength: float = 1.0
    transition: np.ndarray = field(init=False, repr=False)  # P(p today | p then), (G, G)

    def __post_init__(self) -> None:
        if self.sigma is None and not self.use_history:
            raise ValueError("sigma=None with use_history=False leaves no evidence: use Constant")
        bounds = logit(EDGES)
        moved = np.diff(norm.cdf(bounds, (logit(GRID) + self.drift)[1:-1, None], self.drift_sd), axis=1)
        never, always = np.eye(POINTS)[[0, -1]]  # what cannot be solved at all does not drift
        object.__setattr__(self, "transition", np.vstack([never, moved, always]))

    @cached_property
    def marginal(self) -> np.ndarray:
        return self.earlier @ self.transition

    @cached_property
    def _after(self) -> np.ndarray:
        """P(s, p today) for s = 0..visit, (visit + 1, G)."""
        count = binom.pmf(np.arange(self.visit + 1)[:, None], self.visit, GRID)
        return (count * self.earlier) @ self.transition

    def sample(self, rng: np.random.Generator, n: int) -> Batch:
        then = rng.choice(POINTS, n, p=self.earlier)
        successes = rng.binomial(self.visit, GRID[then])
        at = _draw(rng, self.transition[then])
        density = self._after[successes] if self.use_history else np.broadcast_to(self.marginal, (n, POINTS))
        probability = np.full(n, np.nan)
        prior = (successes + self.strength * (self.earlier @ GRID)) / (self.visit + self.strength)
        if self.sigma is not None:
            x = LOGITS[at] + self.sigma * rng.standard_normal(n)
            density = density * _noise_likelihood(x, self.sigma)
            prior = probability = expit(x)
        seen = successes if self.use_history else np.zeros(n)
        failures = self.visit - successes if self.use_history else np.zeros(n)
        return Batch(GRID[at], prior, _normalised(density), probability, seen.astype(float), failures.astype(float))


def beta_rates(a: float, b: float) -> np.ndarray:
    """Beta(a, b) on the grid, (G,)."""
    return np.diff(beta.cdf(EDGES, a, b))


def measured_rates(successes: np.ndarray, n: int) -> np.ndarray:
    """Success probabilities behind measured counts: the mean of their posteriors under a Beta fitted to them, (G,).

    Args:
        successes: of ``n`` rollouts each, (rows,).
    """
    return score_posteriors(successes, n).mean(axis=0)


def score_posteriors(successes: np.ndarray, n: int) -> np.ndarray:
    """P(p | count) of each row, under the Beta of largest beta-binomial likelihood, (rows, G)."""
    found = minimize(lambda ab: -betabinom.logpmf(successes, n, *np.exp(ab)).sum(), np.zeros(2))
    of_count = _normalised(beta_rates(*np.exp(found.x)) * binom.pmf(np.arange(n + 1)[:, None], n, GRID))
    return of_count[successes]


def predicted(prediction: np.ndarray, successes: np.ndarray, n: int, shuffled: bool = False) -> Predicted:
    """The population of a real predictor.

    P(p | prediction) is a mixture of the rows' posteriors, weighted by a Gaussian kernel in the logit of the
    prediction, whose width gives the highest likelihood to each row's count when it is left out. A posterior starts
    from :func:`score_posteriors` and is then taken under the mixture at its own row (EM), without which the
    population would tell less of p by the prediction than the rows do.

    Args:
        prediction: success probabilities, (rows,).
        successes: of ``n`` rollouts each, (rows,).
    """
    x = np.clip(logit(prediction), -LOGIT_BOUND, LOGIT_BOUND)
    posteriors = score_posteriors(successes, n)
    likelihoods = posteriors @ binom.pmf(successes, n, GRID[:, None])  # P(count of i | p as behind row j), (j, i)
    np.fill_diagonal(likelihoods, 0.0)
    widths = np.geomspace(0.02, 2.0, 25) * x.std()
    likelihood = [
        np.log(np.einsum("ij,ji->i", _kernel(x, width, left_out=True), likelihoods)).sum() for width in widths
    ]
    kernel = _kernel(x, widths[np.argmax(likelihood)])
    for _ in range(EM_STEPS):
        posteriors = _normalised((kernel @ posteriors) * binom.pmf(successes[:, None], n, GRID))
    return Predicted(prediction, kernel @ posteriors, shuffled)


def auc(marginal: np.ndarray, sigma: float) -> float:
    """Chance that a prompt solved in one try has the higher prediction than one that was not, of a NoisyLogit."""
    solved, failed = marginal * GRID, marginal * (1 - GRID)
    gap = (LOGITS[:, None] - LOGITS) / (sigma * np.sqrt(2))
    return float((solved / solved.sum()) @ norm.cdf(gap) @ (failed / failed.sum()))


def sigma_of(marginal: np.ndarray, wanted: float) -> float | None:
    """The noise with which :func:`auc` is ``wanted``; None where not even p itself tells outcomes that well apart."""
    least, most = 1e-2, 1e3
    if not auc(marginal, most) < wanted < auc(marginal, least):
        return None
    return float(np.exp(brentq(lambda log: auc(marginal, np.exp(log)) - wanted, np.log(least), np.log(most))))


def _kernel(x: np.ndarray, width: float, left_out: bool = False) -> np.ndarray:
    weights = norm.pdf((x[:, None] - x) / width) + 1e-300
    if left_out:
        np.fill_diagonal(weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _without_history(p: np.ndarray, prior: np.ndarray, density: np.ndarray) -> Batch:
    return Batch(p, prior, density, prior, np.zeros(len(p)), np.zeros(len(p)))


def _noise_likelihood(x: np.ndarray, sigma: float) -> np.ndarray:
    """P(x | p) up to a factor, (n, G)."""
    return np.exp(-0.5 * ((x[:, None] - LOGITS) / sigma) ** 2)


def _normalised(density: np.ndarray) -> np.ndarray:
    return density / density.sum(axis=1, keepdims=True)


def _draw(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """One point of the grid from each row's distribution, (n,)."""
    return (rows.cumsum(axis=1) < rng.random(len(rows))[:, None]).sum(axis=1).clip(max=POINTS - 1)
