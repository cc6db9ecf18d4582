"""Tables of the estimators' page, from cells to Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from benchmarks.estimators import allocations as rules
from benchmarks.estimators import baselines
from benchmarks.estimators.advantage_gradients import UNUSED
from benchmarks.estimators.baselines import EMPIRICAL_BAYES, GROUP_MEAN, SHRINKAGE
from benchmarks.estimators.catalogue import CONSTANT, HELD_OUT, SHUFFLED
from benchmarks.estimators.priors import LOGISTIC
from benchmarks.estimators.summary import Interval, Method, ratio
from value_model.evaluation.predictions import VALUE_MODEL

FOUR = "k = 4"
# Combinations in use: every baseline at k = 4, then each method with its own allocations.
USUAL = [
    *(Method(FOUR, name) for name in baselines.BASELINES),
    *(Method(f"k = {k}", GROUP_MEAN) for k in (8, 16)),
    *(Method(rule, SHRINKAGE) for rule in ("k = 8", rules.OSLA_ROUNDS, rules.OSLA, rules.OSLA_TO_TARGET)),
    *(Method(rule, EMPIRICAL_BAYES) for rule in ("k = 8", rules.OSLA, rules.POSTERIOR_EQUAL, rules.POSTERIOR)),
    Method(rules.POSTERIOR_EQUAL, baselines.LEFT_OUT_EMPIRICAL_BAYES),
    *(Method(rule, baselines.BAYES) for rule in (rules.BAYES_EQUAL, rules.BAYES)),
]
DYNAMIC_SHRINKAGE = Method(rules.OSLA, SHRINKAGE)
DYNAMIC = Method(rules.POSTERIOR_EQUAL, EMPIRICAL_BAYES)
DYNAMIC_BEST = Method(rules.BAYES_EQUAL, baselines.BAYES)


class Target(NamedTuple):
    """A ratio of squared errors that is to be at most ``bound``."""

    what: str
    prior: str
    above: Method
    below: Method
    bound: float


FIXED = Method(FOUR, EMPIRICAL_BAYES)
AGAINST_SHRINKAGE = [("k = 4", FIXED, Method(FOUR, SHRINKAGE)), ("OSLA's rollouts", DYNAMIC, DYNAMIC_SHRINKAGE)]
AGAINST_BAYES = [
    ("the Bayes limit, k = 4", FIXED, Method(FOUR, baselines.BAYES)),
    ("the Bayes limit of fusion and allocation, OSLA's rollouts", DYNAMIC, DYNAMIC_BEST),
]
TARGETS = [
    *(
        Target(f"Eq. 9, {where}", prior, *methods, 0.8)
        for prior in (VALUE_MODEL, LOGISTIC)
        for where, *methods in AGAINST_SHRINKAGE
    ),
    *(Target("group mean, k = 4", prior, FIXED, Method(FOUR, GROUP_MEAN), 1.0) for prior in (CONSTANT, SHUFFLED)),
    *(
        Target(what, prior, *methods, 1.15)
        for prior in (VALUE_MODEL, LOGISTIC, CONSTANT)
        for what, *methods in AGAINST_BAYES
    ),
]


def targets(means: pd.DataFrame) -> pd.DataFrame:
    """The headline: each target's ratio on held-out public prompts, with its interval, and whether that is met."""
    rows = []
    for target in TARGETS:
        found = ratio(means, HELD_OUT, target.prior, target.above, target.below)
        met = "yes" if found.high <= target.bound else "no" if found.low > target.bound else "within chance"
        rows.append(
            {
                "squared error of empirical Bayes over that of": target.what,
                "prior": target.prior,
                "ratio": bracket(found),
                "target": f"≤ {target.bound:g}",
                "met": met,
            }
        )
    return pd.DataFrame(rows)


def methods(cells: pd.DataFrame, distribution: str, prior: str) -> pd.DataFrame:
    """``USUAL`` on one population, the best saving first."""
    table = of_case(cells, distribution, prior).set_index(["allocation", "estimator"]).loc[list(map(tuple, USUAL))]
    table = table.reset_index().sort_values("saving", ascending=False, kind="stable")
    return pd.DataFrame(
        {
            "rank": range(1, len(table) + 1),
            "baseline": table["estimator"].to_list(),
            "allocation": table["allocation"].to_list(),
            "rollouts": table["rollouts"].map("{:.2f}".format).to_list(),
            "squared error": [
                bracket(Interval(*row), 4) for row in table[["mse", "mse_low", "mse_high"]].itertuples(index=False)
            ],
            "bias": table["bias"].map("{:+.3f}".format).to_list(),
            "as good as a group mean of": table["worth"].map("{:.1f}".format).to_list(),
            "rollouts saved": table["saving"].map("{:.2f}x".format).to_list(),
            "to Bayes": table["to_bayes"].map("{:.3f}".format).to_list(),
            "error + c k": table["cost"].map("{:.4f}".format).to_list(),
        }
    )


def fixed(cells: pd.DataFrame, distribution: str, prior: str) -> pd.DataFrame:
    """Squared error of every baseline at every fixed k."""
    table = of_case(cells, distribution, prior)
    table = table[table["allocation"].str.startswith("k = ")]
    wide = table.pivot(index="estimator", columns="allocation", values="mse")
    wide = wide.loc[list(baselines.BASELINES), list(dict.fromkeys(table["allocation"]))]
    return wide.map(lambda x: "" if pd.isna(x) else f"{x:.4f}").rename_axis("baseline").reset_index()


def qualities(cells: pd.DataFrame, distributions: Sequence[str]) -> pd.DataFrame:
    """By prior: fixed k = 4, and the dynamic budget."""
    rows = []
    for (distribution, prior), case in _cases(cells):
        if distribution not in distributions:
            continue
        row = {"distribution": distribution} if len(distributions) > 1 else {}
        row |= {"prior": prior}
        for name in (GROUP_MEAN, SHRINKAGE, EMPIRICAL_BAYES, baselines.BAYES):
            row[f"{name}, k = 4"] = f"{case.loc[(FOUR, name), 'mse']:.4f}"
        row["rollouts of OSLA"] = f"{case.loc[DYNAMIC_SHRINKAGE, 'rollouts']:.1f}"
        for name, method in (("Eq. 9 + OSLA", DYNAMIC_SHRINKAGE), ("empirical Bayes + posterior", DYNAMIC)):
            row[name] = f"{case.loc[method, 'mse']:.4f}"
        rows.append(row | {"Bayes limit": f"{case.loc[DYNAMIC_BEST, 'mse']:.4f}"})
    return pd.DataFrame(rows)


def ranges(cells: pd.DataFrame) -> pd.DataFrame:
    """Ratios over the priors of each distribution, lowest to highest, and the prior of the highest."""
    rows = {}
    for (distribution, prior), case in _cases(cells):
        for what, above, below in _comparisons():
            value = case.loc[above, "mse"] / case.loc[below, "mse"]
            rows.setdefault((distribution, what), []).append((value, prior))
    table = pd.Series({key: _range(values) for key, values in rows.items()}).unstack(sort=False)
    return table.rename_axis("distribution").reset_index()


def worst(cells: pd.DataFrame) -> pd.DataFrame:
    """Median and highest of each ratio over all populations, and where it is highest."""
    rows = []
    for what, above, below in _comparisons():
        values = [(case.loc[above, "mse"] / case.loc[below, "mse"], " / ".join(key)) for key, case in _cases(cells)]
        value, where = max(values)
        row = {"empirical Bayes over": what, "populations": len(values)}
        row |= {"median": f"{pd.Series([v for v, _ in values]).median():.3f}", "highest": f"{value:.3f}"}
        rows.append(row | {"highest at": where})
    return pd.DataFrame(rows)


def learning_table(learning: pd.DataFrame, batches: Sequence[int]) -> pd.DataFrame:
    """Excess over the Bayes risk by batch, one row a prior, batch size and allocation."""
    kept = learning[(learning["estimator"] == EMPIRICAL_BAYES) & learning["batch"].isin(batches)]
    table = kept.assign(
        found=[bracket(Interval(*row)) for row in kept[["to_bayes", "low", "high"]].itertuples(index=False)],
        batch=[f"batch {batch + 1}" for batch in kept["batch"]],
    )
    index = ["prior", "prompts", "allocation"]
    wide = table.pivot(index=index, columns="batch", values="found").reindex(
        pd.MultiIndex.from_frame(table[index].drop_duplicates())
    )
    return wide[[f"batch {batch + 1}" for batch in batches]].reset_index()


def gradients(found: pd.DataFrame, k: int) -> pd.DataFrame:
    """Moments at one k: no prior, then by prior, the least noise first."""
    table = found[found["k"] == k]
    table = table.assign(at=(table["prior"] != UNUSED) + (table["prior"] == "useless").astype(int))
    table = table.sort_values(["at", "relative_noise"], kind="stable")
    columns = {
        "relative noise": "relative_noise",
        "scale": "scale",
        "cosine with the gradient": "cosine",
        "norm": "norm",
    }
    figures = {
        title: [_with_error(value, error) for value, error in zip(table[name], table[f"{name}_error"], strict=True)]
        for title, name in columns.items()
    }
    return pd.DataFrame({"prior": table["prior"].to_list(), "advantage": table["method"].to_list(), **figures})


def markdown(table: pd.DataFrame) -> str:
    """The table as text, numbers as they are."""
    return table.to_markdown(index=False, disable_numparse=True)


def bracket(found: Interval, digits: int = 3) -> str:
    """value [low, high]."""
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def of_case(cells: pd.DataFrame, distribution: str, prior: str) -> pd.DataFrame:
    """The cells of one population."""
    return cells[(cells["distribution"] == distribution) & (cells["prior"] == prior)]


def _cases(cells: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Each population's name and its cells by (allocation, estimator)."""
    for key, case in cells.groupby(["distribution", "prior"], sort=False):
        yield key, case.set_index(["allocation", "estimator"])


def _comparisons() -> list[tuple[str, Method, Method]]:
    return [
        ("group mean, k = 4", FIXED, Method(FOUR, GROUP_MEAN)),
        *((f"Eq. 9, {where}", above, below) for where, above, below in AGAINST_SHRINKAGE),
        *AGAINST_BAYES,
    ]


def _range(values: list[tuple[float, str]]) -> str:
    (low, _), (high, where) = min(values), max(values)
    return f"{low:.2f} to {high:.2f} ({where})" if len(values) > 1 else f"{high:.2f}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3g}" if error == 0 else f"{value:.3g} ± {error:.2g}"
