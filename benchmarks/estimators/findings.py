"""What the tables say, in sentences whose numbers are the tables'."""

from __future__ import annotations

import pandas as pd

from benchmarks.estimators.allocations import K_INIT
from benchmarks.estimators.catalogue import CONSTANT, HELD_OUT
from benchmarks.estimators.estimators import BAYES, EMPIRICAL_BAYES, GROUP_MEAN, LEFT_OUT_EMPIRICAL_BAYES, SHRINKAGE
from benchmarks.estimators.gradient import GOOD, NOT_NORMALISED
from benchmarks.estimators.tables import DYNAMIC, DYNAMIC_SHRINKAGE, FOUR, of_case
from value_model.evaluation.predictions import VALUE_MODEL


def allocation(cells: pd.DataFrame) -> str:
    """What the rollouts of a dynamic budget buy on the real prior."""
    table = _table(cells, VALUE_MODEL)
    eq9, ours = table.loc[tuple(DYNAMIC_SHRINKAGE)], table.loc[tuple(DYNAMIC)]
    same = table.loc[(DYNAMIC_SHRINKAGE.allocation, EMPIRICAL_BAYES)]
    return (
        f"On the real prior Eq. 9 with one-step look-ahead takes {eq9['rollouts']:.1f} rollouts a prompt for the error "
        f"of a group mean of {eq9['worth']:.1f}. Empirical Bayes on the same rollouts is worth {same['worth']:.1f}, "
        f"and with the posterior allocation of as many {ours['worth']:.1f}. One-step look-ahead gives nothing to a "
        "prompt whose prior it accepts, right or wrong."
    )


def prior(cells: pd.DataFrame) -> str:
    """What knowing the real prior is worth."""
    with_it, without = (_table(cells, name).loc[(FOUR, BAYES)] for name in (VALUE_MODEL, CONSTANT))
    return (
        f"The best use of the real prior makes {K_INIT} rollouts worth {with_it['worth']:.2f}; knowing only how "
        f"success rates are distributed, {without['worth']:.2f}."
    )


def leave_one_out(cells: pd.DataFrame) -> str:
    """What leaving one out costs."""
    table = _table(cells, VALUE_MODEL)
    plain, left_out = (table.loc[(FOUR, name)] for name in (EMPIRICAL_BAYES, LEFT_OUT_EMPIRICAL_BAYES))
    return (
        f"Leave-one-out empirical Bayes at k = {K_INIT} has {left_out['mse'] / plain['mse']:.2f} times the error of "
        f"the plain one: it is worth a group mean of {left_out['worth']:.1f} rollouts with nothing left out."
    )


def learning(curve: pd.DataFrame) -> str:
    """How long a sharp prior takes to be believed."""
    last = curve["prior"].iloc[-1]
    here = curve[(curve["prior"] == last) & (curve["allocation"] == FOUR) & (curve["estimator"] == EMPIRICAL_BAYES)]
    parts = []
    for prompts, line in here.groupby("prompts", sort=False):
        first, end = line.iloc[0], line.iloc[-1]
        parts.append(f"{first['to_bayes']:.2f} to {end['to_bayes']:.2f} with {prompts}")
    return (
        f"A nearly perfect prior ({last}) is believed only step by step, as the calibration starts with little trust: "
        f"from the first batch to batch {int(here['batch'].max()) + 1} the error over the Bayes risk goes from "
        f"{', '.join(parts)} prompts a batch."
    )


def normaliser(gradients: pd.DataFrame) -> str:
    """What the normaliser of Eq. 10 does to the gradient."""
    noise = gradients[gradients["k"] == K_INIT].set_index(["prior", "method"])["relative_noise"]
    plain = noise.xs(GROUP_MEAN + NOT_NORMALISED, level="method").iloc[0]
    pairs = ", ".join(
        f"{noise[(GOOD, name)]:.1f} with it and {noise[(GOOD, name + NOT_NORMALISED)]:.1f} without ({name})"
        for name in (SHRINKAGE, EMPIRICAL_BAYES)
    )
    return (
        "V0.5's normaliser gives every prompt's advantages the same size, also where the outcome is nearly certain and "
        f"there is little to learn. With a good prior the relative noise of the gradient is {pairs}; with a plain "
        f"group mean {plain:.1f}."
    )


def history(cells: pd.DataFrame) -> str:
    """What combining a prediction with the prompt's history is worth."""
    table = cells[(cells["allocation"] == FOUR) & (cells["estimator"] == EMPIRICAL_BAYES)]
    parts = []
    for distribution, here in table.groupby("distribution", sort=False):
        each = ", ".join(f"{row.mse:.3f} ({row.prior})" for row in here.itertuples())
        parts.append(f"{distribution}: {each}")
    return f"Empirical Bayes at k = {K_INIT} by what it is told of a prompt seen before. {'; '.join(parts)}."


def _table(cells: pd.DataFrame, name: str) -> pd.DataFrame:
    return of_case(cells, HELD_OUT, name).set_index(["allocation", "estimator"])
