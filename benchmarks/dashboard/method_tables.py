"""Numbers over seeds: accuracy before, after and at equal cost, what it cost, and paired differences to a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.dashboard.methods import styles
from benchmarks.dashboard.runs import ROLLOUTS, STEP_SECONDS, TOKENS, Comparison, Run

CONFIDENCE = 0.95
SEEDS_FOR_INTERVAL = 3
BEFORE, AFTER = "before training", "after training"
ABSENT = "-"


@dataclass(frozen=True)
class Measure:
    """A number of a run; NaN where the run has none. ``source`` is "" for what is no accuracy."""

    name: str
    source: str
    digits: int
    value: Callable[[Run], float]


def measures(comparison: Comparison) -> list[Measure]:
    """Accuracy of every benchmark at four points, then the costs."""
    found = []
    for source in comparison.sources:
        found += [
            Measure(BEFORE, source, 3, lambda run, s=source: _before(run, s)),
            Measure(AFTER, source, 3, lambda run, s=source: _last(run.accuracy.get(s))),
        ]
    for metric, unit in ((ROLLOUTS, "rollouts"), (TOKENS, "response tokens")):
        budget = common_budget(comparison.runs, metric)
        found += [
            Measure(f"at {budget:,.0f} {unit}", s, 3, lambda run, s=s, m=metric, b=budget: accuracy_at(run, s, m, b))
            for s in comparison.sources
        ]
    return [
        *found,
        Measure("steps", "", 0, lambda run: run.steps),
        Measure("rollouts", "", 0, lambda run: _last(run.frame[ROLLOUTS])),
        Measure("response tokens", "", 0, lambda run: _last(run.frame[TOKENS])),
        Measure("seconds a step (median)", "", 1, lambda run: run.metric(STEP_SECONDS).median()),
        Measure("gradient norm, mean over steps", "", 3, lambda run: run.metric("actor/grad_norm").mean()),
        Measure("gradient norm, sd over steps", "", 3, lambda run: run.metric("actor/grad_norm").std()),
        Measure("entropy at the end", "", 3, lambda run: _last(run.metric("actor/entropy"))),
    ]


def common_budget(runs: Sequence[Run], metric: str) -> float:
    """The largest cost by which every run has been validated, on every benchmark it has; NaN without any."""
    spent = [run.frame.loc[series.index[-1], metric] for run in runs for series in run.accuracy.values() if len(series)]
    return float(min(spent, default=math.nan))


def accuracy_at(run: Run, source: str, metric: str, budget: float) -> float:
    """Accuracy once ``budget`` of the cumulative ``metric`` is spent, linear between validations; NaN if unmeasured."""
    accuracy = run.accuracy.get(source)
    if accuracy is None or accuracy.empty:
        return math.nan
    return float(np.interp(budget, run.frame.loc[accuracy.index, metric], accuracy, left=math.nan))


def summary(comparison: Comparison, reference: str | None) -> pd.DataFrame:
    """One row a method, source and measure.

    Columns: ``method, source, measure, digits, seeds, mean, sd`` over seeds (``sd`` NaN for one), and, paired by seed
    with ``reference``, ``difference`` with the bounds ``low, high`` of its t-interval; NaN where there is none.
    """
    groups = comparison.by_method
    by_seed = {run.seed: run for run in groups.get(reference, [])}
    return pd.DataFrame(
        _row(measure, method, groups[method], {} if method == reference else by_seed)
        for measure in measures(comparison)
        for method in styles(groups)
    )


def _row(measure: Measure, method: str, runs: Sequence[Run], reference: Mapping[int, Run]) -> dict[str, object]:
    values = pd.Series([measure.value(run) for run in runs], dtype=float).dropna()
    pairs = [(run, reference[run.seed]) for run in runs if run.seed in reference]
    difference, low, high = interval([measure.value(run) - measure.value(other) for run, other in pairs])
    return {
        "method": method,
        "source": measure.source,
        "measure": measure.name,
        "digits": measure.digits,
        "seeds": len(values),
        "mean": values.mean(),
        "sd": values.std(),
        "difference": difference,
        "low": low,
        "high": high,
    }


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences and its t-interval, whose bounds are NaN for fewer than three pairs."""
    found = np.array([d for d in differences if not math.isnan(d)])
    if not len(found):
        return math.nan, math.nan, math.nan
    if len(found) < SEEDS_FOR_INTERVAL:
        return found.mean(), math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return found.mean(), found.mean() - half, found.mean() + half


def headline_tables(comparison: Comparison, reference: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Titled tables of formatted cells, a row a method: accuracy on the first source, which is the mean, and cost."""
    rows = summary(comparison, reference)
    for source in comparison.sources[:1]:
        part = rows[rows["source"] == source]
        yield f"Validation accuracy: {source}", _wide(part, "measure", _spread)
        if reference:
            yield f"Difference to {reference}: {source}", _differences(part, "measure", reference)
    cost = _wide(rows[rows["source"] == ""], "measure", _spread)
    cost.insert(1, "seeds", [len(comparison.by_method[method]) for method in cost["method"]])
    yield "Cost and stability", cost


def benchmark_tables(comparison: Comparison, reference: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """The same with a column a benchmark and a table a measure; none for a single benchmark."""
    if len(comparison.sources) < 2:
        return
    rows = summary(comparison, reference)
    for measure, part in rows[rows["source"] != ""].groupby("measure", sort=False):
        yield f"Validation accuracy {measure}", _wide(part, "source", _spread)
        if reference and measure != BEFORE:
            yield f"Difference to {reference}, {measure}", _differences(part, "source", reference)


def _differences(rows: pd.DataFrame, columns: str, reference: str) -> pd.DataFrame:
    return _wide(rows[(rows["method"] != reference) & (rows["measure"] != BEFORE)], columns, _difference)


def _wide(rows: pd.DataFrame, columns: str, cell: Callable[[pd.Series], str]) -> pd.DataFrame:
    """Cells by method and ``columns``, both in the order of the rows."""
    cells = rows.assign(cell=[cell(row) for _, row in rows.iterrows()])
    wide = cells.pivot(index="method", columns=columns, values="cell")
    return wide.loc[rows["method"].unique(), rows[columns].unique()].rename_axis(columns=None).reset_index()


def _spread(row: pd.Series) -> str:
    if not row["seeds"]:
        return ABSENT
    mean = f"{row['mean']:,.{row['digits']}f}"
    return mean if math.isnan(row["sd"]) else f"{mean} ± {row['sd']:,.{row['digits']}f}"


def _difference(row: pd.Series) -> str:
    if math.isnan(row["difference"]):
        return ABSENT
    digits = row["digits"]
    mean = f"{row['difference']:+.{digits}f}"
    return mean if math.isnan(row["low"]) else f"{mean} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


def _before(run: Run, source: str) -> float:
    return float(run.accuracy[source].get(0, math.nan)) if source in run.accuracy else math.nan


def _last(series: pd.Series | None) -> float:
    return float(series.iloc[-1]) if series is not None and len(series) else math.nan
