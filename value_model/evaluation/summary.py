"""Metrics with 95 % intervals: of each predictor, and of its difference to a reference predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from value_model.evaluation import metrics
from value_model.evaluation.baselines import Predictor
from value_model.evaluation.predictions import Predictions, predict_all
from value_model.evaluation.tasks import EvalTask

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]  # of score, n, group, p
METRICS: dict[str, Metric] = {
    "auc": lambda score, n, group, p: metrics.auc(metrics.hard_label(score), p),
    "grouped_auc": lambda score, n, group, p: metrics.grouped_auc(metrics.hard_label(score), p, group),
    "pair_accuracy": lambda score, n, group, p: metrics.pair_accuracy(score, p, group),
    "separated_pairs": lambda score, n, group, p: metrics.separated_pair_accuracy(score, p, group),
    "brier": lambda score, n, group, p: metrics.brier(score, p),
    "ece": lambda score, n, group, p: metrics.ece(score, p),
    "value_mse": lambda score, n, group, p: metrics.value_mse(score, p),
    "value_mse_unbiased": lambda score, n, group, p: metrics.value_mse_unbiased(score, n, p),
}


def evaluate(
    predictors: Sequence[Predictor], tasks: Sequence[EvalTask], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """:func:`~value_model.evaluation.predictions.predict_all`, then :func:`summary`: one row per predictor."""
    predictions = predict_all(predictors, tasks)
    return summary(predictions, bootstrap(predictions, draws, seed))


def metric_values(score: np.ndarray, n: np.ndarray, group: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Every metric of every predictor, shape (predictors, metrics); ``p`` has shape (rows, predictors)."""
    return np.array([[metric(score, n, group, column) for metric in METRICS.values()] for column in p.T])


def bootstrap(predictions: Predictions, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """:func:`metric_values` on resamples of the prompts, shape (draws, predictors, metrics).

    All predictors see the same resamples, so differences between them are paired.
    """
    unit = predictions.queries["prompt_id"].to_numpy()
    return metrics.resample(metric_values, *_arrays(predictions), unit=unit, seed=seed, n=draws)


def summary(predictions: Predictions, draws: np.ndarray) -> pd.DataFrame:
    """One row per predictor: each metric with its 95 % interval (``<metric>_low``, ``_high``), ``seconds_per_query``.

    Args:
        predictions: of :func:`~value_model.evaluation.predictions.predict_all`.
        draws: of :func:`bootstrap`.
    """
    table = _with_intervals(predictions, metric_values(*_arrays(predictions)), draws)
    return table.assign(seconds_per_query=pd.Series(predictions.seconds_per_query))


def differences(predictions: Predictions, draws: np.ndarray, reference: str) -> pd.DataFrame:
    """Each other predictor's metrics minus the reference's, with paired 95 % intervals; columns as in the summary.

    Raises:
        ValueError: there is no predictor of that name.
    """
    names = list(predictions.p)
    if reference not in names:
        raise ValueError(f"reference={reference!r} is none of the predictors {names}")
    at = names.index(reference)
    values = metric_values(*_arrays(predictions))
    table = _with_intervals(predictions, values - values[at], draws - draws[:, [at]])
    return table.drop(index=reference)


def _arrays(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Score, n, group and p, the arguments of :func:`metric_values`."""
    queries = predictions.queries
    group = queries.groupby(["model", "step"]).ngroup().to_numpy()
    return queries["score"].to_numpy(), queries["n"].to_numpy(), group, predictions.p.to_numpy()


def _with_intervals(predictions: Predictions, values: np.ndarray, draws: np.ndarray) -> pd.DataFrame:
    low, high = metrics.interval(draws)
    columns: dict[str, np.ndarray] = {}
    for i, name in enumerate(METRICS):
        columns |= {name: values[:, i], f"{name}_low": low[:, i], f"{name}_high": high[:, i]}
    return pd.DataFrame(columns, index=pd.Index(predictions.p.columns, name="predictor"))
