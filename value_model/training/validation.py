"""Validation of a training run: predictions on held-out tasks, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from value_model.evaluation import metrics
from value_model.training.losses import Loss, success_logit
from value_model.training.meta_tasks import MetaTask


@dataclass(frozen=True)
class TaskPrediction:
    """Predictions for one task's queries, with its losses; arrays of shape (Q,)."""

    loss: float
    cross_entropy: float
    p: np.ndarray  # success probabilities
    scores: np.ndarray  # measured, in [-1, 1]
    counts: np.ndarray  # rollouts behind each score

    @classmethod
    def from_logits(cls, task: MetaTask, loss: Loss, logits_q2: Tensor) -> TaskPrediction:
        """Move what the metrics need to the CPU."""
        p = success_logit(logits_q2).double().sigmoid().cpu().numpy()
        return cls(loss.total.item(), loss.cross_entropy.item(), p, task.scores, task.counts)


def validation_metrics(predictions: Sequence[TaskPrediction]) -> dict[str, float]:
    """Losses averaged over the tasks, metrics over all queries; the group of a grouped metric is the task."""
    p, score, n = (np.concatenate([getattr(x, key) for x in predictions]) for key in ("p", "scores", "counts"))
    group = np.repeat(np.arange(len(predictions)), [len(x.p) for x in predictions])
    label = metrics.hard_label(score)
    return {
        "loss": float(np.mean([x.loss for x in predictions])),
        "cross_entropy": float(np.mean([x.cross_entropy for x in predictions])),
        "auc": metrics.auc(label, p),
        "grouped_auc": metrics.grouped_auc(label, p, group),
        "brier": metrics.brier(score, p),
        "value_mse": metrics.value_mse(score, p),
        "value_mse_unbiased": metrics.value_mse_unbiased(score, n, p),
    }
