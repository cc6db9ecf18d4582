"""``python -m benchmarks.estimators``: every baseline on every population, and one page of what was found.

Five minutes of one core, four more the first time, when the priors are asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.estimators import advantage_gradients, catalogue, error_simulation, error_tables, priors, summary
from benchmarks.estimators import allocations as rules
from benchmarks.estimators.catalogue import Case
from benchmarks.estimators.estimators_page import Measurements, write
from benchmarks.estimators.populations import GRID, measured_rates
from benchmarks.value_model.v0_public import ROLLOUTS, load

ALLOCATIONS = [
    *(f"k = {k}" for k in rules.FIXED),
    rules.OSLA_ROUNDS,
    rules.OSLA,
    rules.OSLA_TO_TARGET,
    rules.POSTERIOR,
    rules.POSTERIOR_EQUAL,
    rules.BAYES,
    rules.BAYES_EQUAL,
]
GRADIENT_PROMPTS = 12


@dataclass(frozen=True)
class Size:
    """Amount of simulation."""

    prompts: int = 512  # of a batch
    warm_up: int = 3  # batches of each sequence that are left out
    batches: int = 1  # that are kept, of the populations of the wide tables
    sequences: int = 4
    real_batches: int = 2  # of those of the headline
    real_sequences: int = 10
    learning_batches: int = 12
    learning: tuple[tuple[int, int], ...] = ((32, 16), (512, 5), (2048, 3))  # (prompts, sequences)
    draws: int = 600  # batches behind each gradient that is not exact
    gradient_sizes: tuple[int, ...] = (2, 4, 8)


def measure(
    rows: pd.DataFrame, predictions: pd.DataFrame, methods: dict[str, advantage_gradients.Method], size: Size, seed: int
) -> Measurements:
    """All numbers of the page.

    Args:
        rows: trajectories of the public data.
        predictions: of :func:`benchmarks.estimators.priors.predictions`.
        methods: advantages to measure the gradient of.
    """
    wide = size.warm_up + size.batches, size.sequences
    real, graded = list(catalogue.real(predictions)), list(catalogue.graded(rows))
    real_means = _means(real, size, size.warm_up + size.real_batches, size.real_sequences, seed)
    marginal = measured_rates(catalogue.counts(rows), ROLLOUTS)
    sharpest = [case for case in graded if case.distribution == catalogue.PUBLIC][:1]
    return Measurements(
        graded=summary.cells(_means(graded, size, *wide, seed)),
        real=summary.cells(real_means),
        visited=summary.cells(_means(list(catalogue.visited(rows)), size, *wide, seed)),
        real_means=real_means,
        learning=_learning(real[:1] + sharpest, size, seed),
        gradients=advantage_gradients.run(
            quantiles(marginal, GRADIENT_PROMPTS), methods, sizes=size.gradient_sizes, draws=size.draws, seed=seed
        ),
        quality=catalogue.fidelity(predictions),
        conditions=(
            f"Seed {seed}, batches of {size.prompts} prompts: {size.real_sequences} sequences of {size.real_batches} "
            f"for the real prior, {size.sequences} of {size.batches} elsewhere, each after {size.warm_up} of warm-up."
        ),
    )


def quantiles(marginal: np.ndarray, count: int) -> np.ndarray:
    """Success rates at the middles of ``count`` equal shares, kept off 0 and 1, where there is no gradient."""
    return np.interp((np.arange(count) + 0.5) / count, marginal.cumsum(), GRID).clip(0.02, 0.98)


def _means(cases: Sequence[Case], size: Size, batches: int, sequences: int, seed: int) -> pd.DataFrame:
    found = []
    for case in track(cases, f"{cases[0].distribution} and {len(cases) - 1} more"):
        batch = error_simulation.run(
            case.population,
            case.name,
            ALLOCATIONS,
            prompts=size.prompts,
            batches=batches,
            sequences=sequences,
            seed=seed,
        )
        found.append(batch.assign(distribution=case.distribution, prior=case.prior))
    return summary.sequence_means(pd.concat(found), size.warm_up)


def _learning(cases: Sequence[Case], size: Size, seed: int) -> pd.DataFrame:
    found = []
    runs = [(case, *each) for case in cases for each in size.learning]
    for case, prompts, sequences in track(runs, "learning curves"):
        batch = error_simulation.run(
            case.population,
            f"{case.name}, learning",
            [error_tables.FOUR, rules.POSTERIOR],
            prompts=prompts,
            batches=size.learning_batches,
            sequences=sequences,
            seed=seed,
        )
        found.append(batch.assign(prompts=prompts, distribution=case.distribution, prior=case.prior))
    return summary.learning(pd.concat(found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__.splitlines()[0])
    parser.add_argument("--public", required=True, type=Path, help="`data/` of a clone of Now-Join-Us/V0")
    parser.add_argument("--prior-model", required=True, help="value model of benchmarks/value_model/train_public.sh")
    parser.add_argument("--encoder", required=True, help="folder or hub id of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/estimators"))
    parser.add_argument(
        "--predictions",
        type=Path,
        default=Path("runs/estimators/predictions.parquet"),
        help="where the priors' answers are kept; delete it to ask another model",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    rows = load(args.public, ["context"])
    predictions = priors.predictions(args.public, args.prior_model, args.encoder, args.predictions)
    from benchmarks.estimators.verl_advantages import (
        VERL_METHODS,  # imports verl, for many seconds: after all that may fail
    )

    found = measure(rows, predictions, {**advantage_gradients.METHODS, **VERL_METHODS}, Size(), args.seed)
    write(args.out, found)
    Console().print(error_tables.markdown(error_tables.targets(found.real_means)), f"\n{args.out}/README.md written")


if __name__ == "__main__":
    main()
