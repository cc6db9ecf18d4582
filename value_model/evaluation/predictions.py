"""Predictions of several predictors, the value model among them, for the queries of evaluation tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from value_model.evaluation.baselines import Predictor
from value_model.evaluation.tasks import EvalTask

VALUE_MODEL = "value model"


class ValueModelLike(Protocol):
    """The part of a value model's interface that :class:`ValueModelPredictor` uses."""

    def predict(
        self, context_prompts: Sequence[str], context_scores: Sequence[float], prompts: Sequence[str]
    ) -> np.ndarray: ...


class ValueModelPredictor(Predictor):
    """A value model as a predictor."""

    def __init__(self, model: ValueModelLike, name: str = VALUE_MODEL):
        self.model = model
        self.name = name

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        return self.model.predict(context["prompt"].to_list(), context["score"].to_numpy(), queries["prompt"].to_list())


@dataclass(frozen=True)
class Predictions:
    """Every predictor's probability for every query of a set of tasks."""

    queries: pd.DataFrame  # trajectories, one row per query
    p: pd.DataFrame  # success probabilities, one column per predictor, rows as in queries
    seconds_per_query: Mapping[str, float]


def predict_all(
    predictors: Sequence[Predictor], tasks: Sequence[EvalTask], advance: Callable[[], Any] = lambda: None
) -> Predictions:
    """Run every predictor on every task; ``advance`` is called after each pair, such as to move a progress bar.

    Raises:
        ValueError: two predictors have one name, or a prediction is not one probability per query.
    """
    names = [predictor.name for predictor in predictors]
    if len(set(names)) < len(names):
        raise ValueError(f"predictors need names of their own, got {names}")
    queries = pd.concat([task.queries for task in tasks], ignore_index=True)
    p, seconds = {}, {}
    for predictor in predictors:
        started = time.perf_counter()
        answers = []
        for task in tasks:
            answers.append(_checked_answer(predictor, task))
            advance()
        p[predictor.name] = np.concatenate(answers)
        seconds[predictor.name] = (time.perf_counter() - started) / len(queries)
    return Predictions(queries, pd.DataFrame(p), seconds)


def _checked_answer(predictor: Predictor, task: EvalTask) -> np.ndarray:
    p = np.asarray(predictor.predict(task.context, task.queries), dtype=np.float64)
    if p.shape != (len(task.queries),):
        raise ValueError(f"{predictor.name} answered shape {p.shape} to {len(task.queries)} queries")
    wrong = ~((p >= 0) & (p <= 1))  # negated, so that NaN is rejected too
    if wrong.any():
        raise ValueError(f"{predictor.name} answered {p[wrong][0]} in {task.model}, step {task.step}: no probability")
    return p
