"""Calibration of the Beta prior: from all the evidence there is before the rollouts to its mean and strength.

For a prompt with provider's probability p and a, b discounted successes and failures of its own earlier visits,

    logit q = theta . (1, [p missing], logit p, log((a + 1/2) / (b + 1/2)))
    log m   = theta' . (1, [p missing], log(1 + a + b))

and its successes s of k rollouts are beta-binomial(k, m q, m (1 - q)). The intercepts carry the global mean, so without
provider and history this is a global Beta distribution that is learnt. (theta, theta') maximises the batch's
likelihood around the last step's value, with the weight of what earlier steps knew: a Laplace approximation carried
from step to step, old information fading by ``forgetting``. That smooths, and keeps the fit finite where a batch
cannot tell: one class only, one prompt, k = 1 (which carries no information on m).

The likelihood does not depend on why a prompt was stopped, so adaptive allocation does not bias it. Rewards between
the two outcomes count as fractions of a success.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, digamma, expit, logit

from value_model.conversions import value_of_probability
from verl_v05.fusion.base import Belief

# A provider's 0 or 1 is taken for the best it can tell, not for certainty; nor does any evidence make q certain.
LOGIT_LIMIT = 7.0
LOG_STRENGTH_LIMIT = 8.0

MEAN_FEATURES = ("intercept", "missing", "provider", "history")
STRENGTH_FEATURES = ("log_strength", "log_strength_missing", "log_strength_history")
PARAMETERS = MEAN_FEATURES + STRENGTH_FEATURES

# Before any data: the provider is right, history adds to it, and both together are worth a few rollouts.
START = np.array([0.0, 0.0, 1.0, 0.5, np.log(2.0), 0.0, 0.5])
START_PRECISION = np.array([1.0, 1.0, 4.0, 4.0, 1.0, 1.0, 4.0])


@dataclass(frozen=True)
class Evidence:
    """What is known of G prompts before their rollouts."""

    probability: np.ndarray  # (G,) the provider's, in [0, 1], NaN where missing
    successes: np.ndarray  # (G,) discounted successes of earlier visits, >= 0; 0 where there was none
    failures: np.ndarray  # (G,) discounted failures

    def of(self, chosen: np.ndarray) -> Evidence:
        """Of some of the prompts, by a mask or indices."""
        return Evidence(self.probability[chosen], self.successes[chosen], self.failures[chosen])

    def mean_features(self) -> np.ndarray:
        """(G, 4), see the module."""
        missing = np.isnan(self.probability)
        provider = np.clip(logit(np.where(missing, 0.5, self.probability)), -LOGIT_LIMIT, LOGIT_LIMIT)
        history = np.log((self.successes + 0.5) / (self.failures + 0.5))
        return np.stack([np.ones_like(provider), missing.astype(float), provider, history], axis=1)

    def strength_features(self) -> np.ndarray:
        """(G, 3), see the module."""
        missing = np.isnan(self.probability).astype(float)
        return np.stack([np.ones_like(missing), missing, np.log1p(self.successes + self.failures)], axis=1)


@dataclass(frozen=True)
class Calibration:
    """The fitted parameters and how well they are known; immutable, :meth:`fit` returns the next step's."""

    forgetting: float  # factor on old information at each step, in [0, 1]; 1 never forgets
    theta: np.ndarray  # (7,) in the order of PARAMETERS
    precision: np.ndarray  # (7, 7) inverse covariance of theta
    steps: int = 0  # fits so far
    failed_fits: int = 0  # of them, those without a finite likelihood, which kept the old parameters

    @classmethod
    def start(cls, forgetting: float = 0.9) -> Calibration:
        """Before any data."""
        if not 0 <= forgetting <= 1:
            raise ValueError(f"forgetting must be in [0, 1]; got {forgetting}")
        return cls(forgetting, START, np.diag(START_PRECISION))

    def belief(self, evidence: Evidence) -> Belief:
        """Beta prior of each prompt, V = 2 q - 1 in (-1, 1) and m > 0."""
        logit_q, log_m = _limited(self.theta, evidence.mean_features(), evidence.strength_features())
        return Belief(value_of_probability(expit(logit_q)), np.exp(log_m))

    def fit(self, evidence: Evidence, successes: np.ndarray, k: np.ndarray) -> Calibration:
        """The calibration after a step that measured these prompts.

        Args:
            evidence: of the step's prompts, as it was before their rollouts.
            successes: successes among the rollouts of each prompt, in [0, k], shape (G,).
            k: rollouts of each prompt, shape (G,).
        """
        features = evidence.mean_features(), evidence.strength_features()

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            log_likelihood, score = _log_likelihood(theta, *features, successes, k)
            away = theta - self.theta
            return (
                away @ self.precision @ away / 2 - log_likelihood.sum(),
                self.precision @ away - score.sum(axis=0),
            )

        theta = minimize(loss, self.theta, jac=True, method="BFGS").x
        log_likelihood, score = _log_likelihood(theta, *features, successes, k)
        if not np.isfinite(log_likelihood).all():
            return replace(self, steps=self.steps + 1, failed_fits=self.failed_fits + 1)
        # Information of the batch by the outer product of its scores, which unlike the Hessian is never negative.
        known = self.forgetting * (self.precision + score.T @ score) + (1 - self.forgetting) * np.diag(START_PRECISION)
        return replace(self, theta=theta, precision=known, steps=self.steps + 1)

    def metrics(self) -> dict[str, float]:
        """The parameters by name."""
        return dict(zip(PARAMETERS, self.theta.tolist(), strict=True)) | {"failed_fits": float(self.failed_fits)}

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "theta": self.theta.tolist(),
            "precision": self.precision.tolist(),
            "steps": self.steps,
            "failed_fits": self.failed_fits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Calibration:
        """The calibration of :meth:`state_dict`, going on with this one's ``forgetting``."""
        return replace(
            self,
            theta=np.array(state["theta"]),
            precision=np.array(state["precision"]),
            steps=state["steps"],
            failed_fits=state["failed_fits"],
        )


def _limited(theta: np.ndarray, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """logit q and log m of each prompt, (G,)."""
    logit_q, log_m = x @ theta[: x.shape[1]], z @ theta[x.shape[1] :]
    return np.clip(logit_q, -LOGIT_LIMIT, LOGIT_LIMIT), np.clip(log_m, -LOG_STRENGTH_LIMIT, LOG_STRENGTH_LIMIT)


def _log_likelihood(
    theta: np.ndarray, x: np.ndarray, z: np.ndarray, successes: np.ndarray, k: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Beta-binomial log likelihood of each prompt, less its constant, (G,), and its gradient by theta, (G, 7)."""
    logit_q, log_m = _limited(theta, x, z)
    q, m, failures = expit(logit_q), np.exp(log_m), k - successes
    alpha, beta = m * q, m * (1 - q)
    value = betaln(successes + alpha, failures + beta) - betaln(alpha, beta)
    by_alpha = digamma(successes + alpha) - digamma(alpha)
    by_beta = digamma(failures + beta) - digamma(beta)
    by_logit_q = m * q * (1 - q) * (by_alpha - by_beta) * (np.abs(logit_q) < LOGIT_LIMIT)
    by_log_m = m * (q * by_alpha + (1 - q) * by_beta + digamma(m) - digamma(k + m))
    by_log_m *= np.abs(log_m) < LOG_STRENGTH_LIMIT
    return value, np.hstack([by_logit_q[:, None] * x, by_log_m[:, None] * z])
