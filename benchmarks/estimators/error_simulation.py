"""Simulated sequences of batches from one population, under every allocation, with every baseline."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pandas as pd

from benchmarks.estimators.allocations import OSLA, DrawnBatch, allocate_all, draw
from benchmarks.estimators.baselines import BASELINES, NEEDS_TWO, ScoredBatch
from benchmarks.estimators.populations import Population
from value_model.conversions import value_of_probability
from verl_v05.calibration import Calibration, Evidence
from verl_v05.fusion import Belief


def run(
    population: Population,
    name: str,
    allocations: Sequence[str],
    *,
    prompts: int = 512,
    batches: int = 4,
    sequences: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Error of every baseline in every batch of several independent sequences.

    Each allocation has a calibration of its own, fitted after each batch to what that batch measured, as in training.
    A squared error is the one expected given all that was seen, (baseline - posterior mean)^2 + posterior variance:
    the same mean as against the true rate, without its noise.

    Args:
        name: seeds the draws, together with ``seed``: populations in a table do not share them.
        allocations: names of :mod:`benchmarks.estimators.allocations`.

    Returns:
        sequence, batch, allocation, estimator; means over the batch's prompts of ``mse`` and ``bias`` (of rewards of
        -1 and +1), ``rollouts``, ``bayes`` (the posterior variance), and ``spread`` (E 4p(1 - p), the group mean's
        squared error times k).
    """
    rows = []
    for sequence in range(sequences):
        rng = np.random.default_rng([seed, sequence, crc32(name.encode())])
        calibrations = dict.fromkeys(allocations, Calibration.start())
        for batch in range(batches):
            cells = _step(draw(rng, population.sample(rng, prompts)), calibrations)
            rows += [{"sequence": sequence, "batch": batch, **cell} for cell in cells]
    return pd.DataFrame(rows)


def _step(found: DrawnBatch, calibrations: dict[str, Calibration]) -> list[dict[str, float | str]]:
    """One batch under every allocation, whose calibration is then replaced by the next one."""
    evidence = Evidence(found.batch.probability, found.batch.successes, found.batch.failures)
    wanted = frozenset({*calibrations, OSLA})
    chosen = allocate_all(found, lambda rule: calibrations[rule].belief(evidence), wanted)
    rows = []
    for allocation, calibration in calibrations.items():
        seen = after_rollouts(found, chosen[allocation], calibration.belief(evidence))
        rows += [{"allocation": allocation, **cell} for cell in _errors(found, seen)]
        calibrations[allocation] = calibration.fit(evidence, seen.successes.astype(float), seen.k)
    return rows


def after_rollouts(found: DrawnBatch, k: np.ndarray, belief: Belief) -> ScoredBatch:
    """The batch after ``k`` rollouts of each prompt."""
    successes = found.counts[np.arange(len(k)), k]
    mean = found.posterior.mean[np.arange(len(k)), k, successes]
    return ScoredBatch(successes, k, value_of_probability(found.batch.prior), belief, mean)


def _errors(found: DrawnBatch, seen: ScoredBatch) -> list[dict[str, float | str]]:
    prompts, group = np.arange(len(seen.k)), seen.group
    variance = found.posterior.variance[prompts, seen.k, seen.successes].mean()
    weight = 1 / (seen.k[group] * len(seen.k))  # every prompt counts the same
    common = {"rollouts": seen.k.mean(), "bayes": variance, "spread": _spread(found)}
    cells = []
    for name, baseline in BASELINES.items():
        if name in NEEDS_TWO and seen.k.min() < 2:
            continue
        away = baseline(seen) - seen.posterior_mean[group]
        cells.append({"estimator": name, "mse": weight @ away**2 + variance, "bias": weight @ away, **common})
    return cells


def _spread(found: DrawnBatch) -> float:
    """E 4p(1 - p) given what was known before the rollouts."""
    mean, variance = found.posterior.mean[:, 0, 0], found.posterior.variance[:, 0, 0]
    return float((1 - mean**2 - variance).mean())
