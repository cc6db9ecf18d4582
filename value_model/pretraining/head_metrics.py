"""Evaluation of a head on held-out synthetic tasks, with baselines fitted to the same context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.table import Table
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from value_model.evaluation.metrics import auc
from value_model.pretraining.synthetic_tasks import Tasks, sample_tasks

Predict = Callable[[Tasks, int], np.ndarray]  # (one task, size of its context) -> success of the other rows (queries,)

CONTEXTS = (32, 64, 128, 256)
# Second part of the held-out tasks' seed; that of training tasks is the step, which is always smaller.
HELD_OUT = 2**32
_EPSILON = 1e-6


def evaluate_head(
    head: Predict, *, features: int, queries: int, tasks: int, seed: int = 0, contexts: Sequence[int] = CONTEXTS
) -> list[dict]:
    """Head, logistic regression, base rate and the truth on ``tasks`` held-out tasks for each size of context.

    Returns:
        One row per context and predictor: ``log_loss`` and ``brier`` against the true probability (the truth's own
        log-loss is its entropy), ``auc`` against hard labels over the tasks whose queries have both classes (None if
        none has).
    """
    return [
        {"context": context, "predictor": name, **_mean_scores(scores)}
        for context in contexts
        for name, scores in _task_scores(head, context, features, queries, tasks, seed).items()
    ]


def metrics_table(measured: list[dict]) -> Table:
    """The rows of :func:`evaluate_head`, as a table for the console."""
    table = Table(*measured[0])
    for row in measured:
        table.add_row(*(str(value) for value in row.values()))
    return table


def _task_scores(
    head: Predict, context: int, features: int, queries: int, tasks: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    rng = np.random.default_rng([seed, HELD_OUT + context])
    scores: dict[str, list[dict[str, float]]] = {}
    for _ in range(tasks):
        task = sample_tasks(rng, 1, context + queries, features)
        for name, predicted in _predictions(head, task, context).items():
            scores.setdefault(name, []).append(
                _scores(predicted, task.probability[0, context:], task.labels[0, context:])
            )
    return scores


def _predictions(head: Predict, task: Tasks, context: int) -> dict[str, np.ndarray]:
    x, labels = task.x[0], task.labels[0, :context]
    return {
        "head": head(task, context),
        "logistic": _logistic(x[:context], labels, x[context:]),
        "base_rate": np.full(len(x) - context, _base_rate(labels)),
        "truth": task.probability[0, context:],
    }


def _base_rate(labels: np.ndarray) -> float:
    return float((labels.sum() + 1) / (len(labels) + 2))


def _logistic(x: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Logistic regression, its penalty chosen by cross-validation; the base rate if a class is too rare for that."""
    folds = int(min(5, labels.sum(), (~labels).sum()))
    if folds < 2:
        return np.full(len(queries), _base_rate(labels))
    regression = LogisticRegressionCV(
        Cs=np.logspace(-4, 1, 6), cv=folds, scoring="neg_log_loss", l1_ratios=(0.0,), use_legacy_attributes=False
    )
    return make_pipeline(StandardScaler(), regression).fit(x, labels).predict_proba(queries)[:, 1]


def _scores(predicted: np.ndarray, probability: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    p = np.clip(predicted.astype(np.float64), _EPSILON, 1 - _EPSILON)
    return {
        "log_loss": float(-(probability * np.log(p) + (1 - probability) * np.log1p(-p)).mean()),
        "brier": float(((p - probability) ** 2).mean()),
        "auc": auc(labels, p),
    }


def _mean_scores(scores: list[dict[str, float]]) -> dict[str, float | None]:
    known = {key: [score[key] for score in scores if not np.isnan(score[key])] for key in scores[0]}
    return {key: round(float(np.mean(values)), 4) if values else None for key, values in known.items()}
