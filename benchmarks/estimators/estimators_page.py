"""The page of everything that was measured: ``README.md``, figures, and the numbers as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

import pandas as pd

from benchmarks.estimators import error_figures, error_tables
from benchmarks.estimators.advantage_gradients import GOOD, NOT_NORMALISED, UNUSED
from benchmarks.estimators.allocations import COST, K_INIT, K_MAX, STEP
from benchmarks.estimators.baselines import BAYES, EMPIRICAL_BAYES, LEFT_OUT_EMPIRICAL_BAYES, SHRINKAGE
from benchmarks.estimators.catalogue import AUCS, CONSTANT, HELD_OUT, MIDDLE, PUBLIC, SHUFFLED
from benchmarks.estimators.error_tables import DYNAMIC, DYNAMIC_SHRINKAGE, FOUR, of_case
from benchmarks.estimators.populations import LOGIT_BOUND, POINTS
from benchmarks.estimators.summary import CASE, CELL
from value_model.evaluation.predictions import VALUE_MODEL
from value_model.files import write_text

TEMPLATE = Path(__file__).parent / "page.md"
BATCHES_SHOWN = (0, 1, 2, 4, 9)
KEPT = [*CELL, "rollouts", "mse", "mse_low", "mse_high", "bias", "bayes"]  # in cells.csv


@dataclass(frozen=True)
class Measurements:
    """All measured numbers.

    Attributes:
        graded, real, visited: cells of :func:`benchmarks.estimators.summary.cells`, by kind of population.
        real_means: of :func:`benchmarks.estimators.summary.sequence_means`.
        learning: of :func:`benchmarks.estimators.summary.learning`.
        gradients: of :func:`benchmarks.estimators.advantage_gradients.run`.
        quality: AUC against one outcome of the real priors, of the measured rows and of the population made of them.
        conditions: how much was simulated, with which seed: a sentence.
    """

    graded: pd.DataFrame
    real: pd.DataFrame
    visited: pd.DataFrame
    real_means: pd.DataFrame
    learning: pd.DataFrame
    gradients: pd.DataFrame
    quality: pd.DataFrame
    conditions: str

    @property
    def cells(self) -> pd.DataFrame:
        """All of them."""
        return pd.concat([self.graded, self.real, self.visited], ignore_index=True)


def write(out: Path, found: Measurements) -> None:
    """Write the page into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    learning = found.learning[found.learning["estimator"].isin([EMPIRICAL_BAYES, SHRINKAGE])]
    for name, table in {"cells": found.cells[KEPT], "learning": learning, "gradients": found.gradients}.items():
        write_text(out / f"{name}.csv", table.to_csv(index=False, float_format="%.4g"))
    error_figures.by_rollouts(found.cells, _panels(found.cells), out / "by_rollouts.png")
    error_figures.to_bayes(found.graded, list(dict.fromkeys(found.graded["distribution"])), out / "to_bayes.png")
    error_figures.learning_curves(found.learning, out / "learning.png")
    write_text(out / "README.md", page(found))


def page(found: Measurements) -> str:
    """The page's text; every number in it is one of ``found``'s."""
    tables = {name: error_tables.markdown(table) for name, table in _tables(found).items()}
    tables["quality"] = indent(tables["quality"], "  ")  # it belongs to an item of a list
    return TEMPLATE.read_text().format(
        conditions=found.conditions,
        populations=found.cells.groupby(CASE).ngroups,
        points=POINTS,
        logit_bound=LOGIT_BOUND,
        middle=MIDDLE,
        k_init=K_INIT,
        k_max=K_MAX,
        step=STEP,
        cost=COST,
        real_prior=VALUE_MODEL,
        useless_prior=SHUFFLED,
        **tables,
        **_of_real_prior(found.real),
        **_of_learning(found.learning),
        **_of_normaliser(found.gradients),
        histories=_histories(found.visited),
    )


def _tables(found: Measurements) -> dict[str, pd.DataFrame]:
    learnt = [batch for batch in BATCHES_SHOWN if batch in set(found.learning["batch"])]
    return {
        "targets": error_tables.targets(found.real_means),
        "worst": error_tables.worst(found.cells),
        "quality": found.quality.map(lambda x: x if isinstance(x, str) else f"{x:.3f}"),
        "real_methods": error_tables.methods(found.real, HELD_OUT, VALUE_MODEL),
        "real_fixed": error_tables.fixed(found.real, HELD_OUT, VALUE_MODEL),
        "useless_methods": error_tables.methods(found.real, HELD_OUT, SHUFFLED),
        "qualities": error_tables.qualities(found.cells, [HELD_OUT, PUBLIC]),
        "ranges": error_tables.ranges(found.graded),
        "visited": error_tables.qualities(found.visited, list(dict.fromkeys(found.visited["distribution"]))),
        "learning": error_tables.learning_table(found.learning, learnt),
        "gradients": error_tables.gradients(found.gradients, K_INIT),
    }


def _of_real_prior(cells: pd.DataFrame) -> dict[str, object]:
    """Cells that the page's sentences are about, on the real prior."""
    with_prior, without = (
        of_case(cells, HELD_OUT, prior).set_index(["allocation", "estimator"]) for prior in (VALUE_MODEL, CONSTANT)
    )
    plain, left_out = (with_prior.loc[(FOUR, name)] for name in (EMPIRICAL_BAYES, LEFT_OUT_EMPIRICAL_BAYES))
    return {
        "eq9": with_prior.loc[tuple(DYNAMIC_SHRINKAGE)],
        "eq9_rollouts": with_prior.loc[(DYNAMIC_SHRINKAGE.allocation, EMPIRICAL_BAYES)],
        "posterior": with_prior.loc[tuple(DYNAMIC)],
        "best_with_prior": with_prior.loc[(FOUR, BAYES)],
        "best_without_prior": without.loc[(FOUR, BAYES)],
        "left_out": left_out,
        "left_out_ratio": left_out["mse"] / plain["mse"],
    }


def _of_learning(curve: pd.DataFrame) -> dict[str, object]:
    """How long a sharp prior takes to be believed, by batch size."""
    sharpest = curve["prior"].iloc[-1]
    at = (curve["prior"] == sharpest) & (curve["allocation"] == FOUR) & (curve["estimator"] == EMPIRICAL_BAYES)
    learnt = [
        f"{line['to_bayes'].iloc[0]:.2f} to {line['to_bayes'].iloc[-1]:.2f} with {prompts}"
        for prompts, line in curve[at].groupby("prompts", sort=False)
    ]
    return {"sharpest": sharpest, "last_batch": curve.loc[at, "batch"].max() + 1, "learnt": ", ".join(learnt)}


def _of_normaliser(gradients: pd.DataFrame) -> dict[str, object]:
    """Relative noise with and without the normaliser of Eq. 10, by fusion; without a prior, of the group mean."""
    here = gradients[(gradients["k"] == K_INIT) & gradients["prior"].isin([GOOD, UNUSED])]
    noise = here.set_index("method")["relative_noise"].to_dict()
    bare = {name.removesuffix(NOT_NORMALISED): value for name, value in noise.items() if name.endswith(NOT_NORMALISED)}
    return {"noise": noise, "bare_noise": bare}


def _histories(cells: pd.DataFrame) -> str:
    """What a prediction and the prompt's history are worth, alone and together."""
    table = cells[(cells["allocation"] == FOUR) & (cells["estimator"] == EMPIRICAL_BAYES)]
    return "; ".join(
        f"{distribution}: " + ", ".join(f"{row.mse:.3f} ({row.prior})" for row in here.itertuples())
        for distribution, here in table.groupby("distribution", sort=False)
    )


def _panels(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """The populations to draw: the real prior, the useless ones, and some grades on the public success rates."""
    known = set(cells[["distribution", "prior"]].itertuples(index=False, name=None))
    wanted = [
        *((HELD_OUT, prior) for prior in (VALUE_MODEL, SHUFFLED, CONSTANT)),
        *((PUBLIC, f"AUC {auc:.2f}") for auc in AUCS[::2]),
    ]
    return [case for case in wanted if case in known]
