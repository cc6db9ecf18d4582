"""The populations of the bench: success-rate distributions, and what is known of a prompt before its rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.estimators.populations import (
    GRID,
    Constant,
    NoisyLogit,
    Population,
    Visited,
    beta_rates,
    measured_rates,
    predicted,
    sigma_of,
)
from benchmarks.estimators.priors import PRIORS
from benchmarks.value_model.v0_public import ROLLOUTS
from value_model.conversions import reward_of_success
from value_model.evaluation import metrics
from value_model.evaluation.predictions import VALUE_MODEL
from value_model.trajectories import success

BETAS = ((0.3, 0.3), (1.0, 1.0), (2.0, 2.0), (0.5, 2.0), (4.0, 1.0))
AUCS = (0.92, 0.89, 0.85, 0.80, 0.71)
MIDDLE = 0.80
PUBLIC = "public"
HELD_OUT = "public, held out"
CONSTANT, SHUFFLED = "constant", f"{VALUE_MODEL}, shuffled"
CALIBRATED, SHIFTED = f"AUC {MIDDLE:.2f}, calibrated", f"AUC {MIDDLE:.2f}, logit 1 + 2x"
VISITS = (4, 8)


@dataclass(frozen=True)
class Case:
    """One population of a table."""

    distribution: str
    prior: str
    population: Population

    @property
    def name(self) -> str:
        """Unique in the bench."""
        return f"{self.distribution} / {self.prior}"


def graded(rows: pd.DataFrame) -> Iterator[Case]:
    """Synthetic priors of graded quality on Betas and on the public success rates, all together and by (model, step).

    Args:
        rows: trajectories of ``ROLLOUTS`` rollouts.
    """
    for a, b in BETAS:
        yield from _qualities(f"Beta({a:g}, {b:g})", beta_rates(a, b))
    pooled = measured_rates(counts(rows), ROLLOUTS)
    yield from _qualities(PUBLIC, pooled)
    sigma = sigma_of(pooled, MIDDLE)
    if sigma is not None:
        yield Case(PUBLIC, CALIBRATED, NoisyLogit(pooled, sigma, calibrated=True))
        yield Case(PUBLIC, SHIFTED, NoisyLogit(pooled, sigma, shift=1.0, slope=2.0))
    for (model, step), group in rows.groupby(["model", "step"]):
        yield from _qualities(f"{model}, step {step}", measured_rates(counts(group), ROLLOUTS))


def real(predictions: pd.DataFrame) -> Iterator[Case]:
    """Real priors on held-out prompts, and two useless ones on the same prompts.

    Args:
        predictions: of :func:`benchmarks.estimators.priors.predictions`.
    """
    held_out = counts(predictions)
    for prior in PRIORS:
        yield Case(HELD_OUT, prior, predicted(predictions[prior].to_numpy(), held_out, ROLLOUTS))
    prediction = predictions[VALUE_MODEL].to_numpy()
    yield Case(HELD_OUT, CONSTANT, Constant(predicted(prediction, held_out, ROLLOUTS).marginal))
    yield Case(HELD_OUT, SHUFFLED, predicted(prediction, held_out, ROLLOUTS, shuffled=True))


def visited(rows: pd.DataFrame) -> Iterator[Case]:
    """The prompt's own earlier outcomes and a prediction, alone and together, on the same prompts."""
    earlier = measured_rates(counts(rows), ROLLOUTS)
    for visit in VISITS:
        alone = Visited(earlier, visit)
        sigma = sigma_of(alone.marginal, MIDDLE)
        yield Case(f"visited, {visit} rollouts", "history", alone)
        if sigma is not None:
            distribution, prediction = f"visited, {visit} rollouts", f"AUC {MIDDLE:.2f}"
            yield Case(distribution, prediction, Visited(earlier, visit, sigma=sigma, use_history=False))
            yield Case(distribution, f"{prediction} and history", Visited(earlier, visit, sigma=sigma))


def counts(rows: pd.DataFrame) -> np.ndarray:
    """Successes of each row's ``ROLLOUTS`` rollouts."""
    return np.rint(success(rows) * ROLLOUTS).astype(int).to_numpy()


def _qualities(distribution: str, marginal: np.ndarray) -> Iterator[Case]:
    """Leaves out what no predictor can reach: where success rates are nearly equal, so are predictions."""
    for auc in AUCS:
        sigma = sigma_of(marginal, auc)
        if sigma is not None:
            yield Case(distribution, f"AUC {auc:.2f}", NoisyLogit(marginal, sigma))
    yield Case(distribution, CONSTANT, Constant(marginal))


def fidelity(predictions: pd.DataFrame) -> pd.DataFrame:
    """What is lost between the measured rows of a real prior and the population made of them, one row a prior.

    AUC against the label of all rollouts (value >= 1/2, rows only) and against one outcome; squared error of V.
    """
    rows = []
    rate = success(predictions).to_numpy()
    for prior in PRIORS:
        prediction = predictions[prior].to_numpy()
        conditional = predicted(prediction, counts(predictions), ROLLOUTS).conditional
        mean = conditional @ GRID
        squared_error = (conditional @ GRID**2 - 2 * mean * prediction + prediction**2).mean()
        tries = np.full(len(rate), ROLLOUTS)
        rows.append(
            {
                "prior": prior,
                "AUC, hardened label": metrics.auc(rate >= 0.5, prediction),
                "AUC, one outcome, rows": one_outcome_auc(rate, prediction),
                "AUC, one outcome, population": one_outcome_auc(mean, prediction),
                "squared error of V, rows": metrics.value_mse_unbiased(reward_of_success(rate), tries, prediction),
                "squared error of V, population": 4 * float(squared_error),  # V = 2 p - 1
            }
        )
    return pd.DataFrame(rows)


def one_outcome_auc(rate: np.ndarray, prediction: np.ndarray) -> float:
    """Chance that a prompt solved in one try has the higher prediction than one that was not, ties counting half."""
    order = np.sign(prediction[:, None] - prediction)
    return float(0.5 + 0.5 * (rate / rate.sum()) @ order @ ((1 - rate) / (1 - rate).sum()))
