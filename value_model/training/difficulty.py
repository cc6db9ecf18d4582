"""Fitting a model's difficulty: the kernel regression to training prompts, the combination to held-out ones.

Shape suffixes: M prompts, D width of the encoder, N held-out queries, 4 the terms of the combination.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from value_model.conversions import success_of_reward
from value_model.difficulty import HEAD_ALONE, Difficulty, combination_terms, kernel
from value_model.model import ValueModel
from value_model.training.embedder import Embedder
from value_model.training.meta_tasks import MetaTask
from value_model.trajectories import success

CENTRES = 4096  # prompts at most: the fit takes memory in the square of it and time in the cube
WIDTHS = (1.0, 2.0, 4.0)  # gamma times the median squared distance of two prompts
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
# Weight of the head alone, in held-out queries: keeps the combination finite where they cannot tell.
PRIOR_QUERIES = 1.0


def fit_difficulty(
    model: ValueModel, embed: Embedder, pooling: str, table: pd.DataFrame, held_out: Sequence[MetaTask]
) -> Difficulty:
    """The difficulty of a trained model.

    Args:
        model: in eval mode; a difficulty that it already has is not used.
        embed: of the model.
        pooling: a key of :data:`value_model.difficulty.POOLINGS`.
        table: trajectories of the training prompts.
        held_out: tasks whose queries are of no prompt in ``table``: on training prompts, which the adapter and the
            kernel regression both know, the combination would overrate them.
    """
    empty = torch.zeros(0)
    unfitted = Difficulty(
        pooling,
        centres=torch.zeros(0, model.backbone.width),
        weights=empty,
        gamma=torch.tensor(0.0),
        combination=torch.tensor(HEAD_ALONE),
    )
    with torch.no_grad():
        target = excess_success(table)
        pooled_md = embed.rows(target.index.tolist(), unfitted.pool).cpu()
        weights_m, gamma = fit_kernel(pooled_md, target["excess"].to_numpy(), target["rows"].to_numpy(dtype=np.float64))
        tensors = {"centres": pooled_md, "weights": weights_m, "gamma": torch.tensor(gamma)}
        fitted = Difficulty(pooling, **tensors, combination=unfitted.combination).to(model.device)
        terms, rates = zip(*(_terms(model, embed, fitted, task) for task in held_out), strict=True)
    combination = fit_combination(np.concatenate(terms), np.concatenate(rates))
    return Difficulty(pooling, **tensors, combination=torch.tensor(combination, dtype=torch.float32)).to(model.device)


def excess_success(table: pd.DataFrame, most: int = CENTRES) -> pd.DataFrame:
    """Mean of each prompt's success rates above those of their (model, step), by prompt: columns excess and rows.

    Without the subtraction, a prompt that only a strong policy was measured on would pass for an easy one. Of more than
    ``most`` prompts, a random choice that depends on nothing else.
    """
    rates = success(table)
    excess = rates - rates.groupby([table["model"], table["step"]]).transform("mean")
    found = excess.groupby(table["prompt"], sort=False).agg(["mean", "size"]).set_axis(["excess", "rows"], axis=1)
    chosen = np.sort(np.random.default_rng(0).permutation(len(found))[:most])
    return found.iloc[chosen]


def fit_kernel(pooled_md: Tensor, target_m: np.ndarray, rows_m: np.ndarray) -> tuple[Tensor, float]:
    """Weights (M,) and gamma of the kernel ridge regression with the smallest leave-one-out squared error.

    Args:
        pooled_md: of unit length.
        target_m: what is regressed.
        rows_m: weight of each prompt.
    """
    points = pooled_md.double()
    target, rows = torch.tensor(target_m), torch.tensor(rows_m)
    distances = 2 - 2 * points @ points.T
    scale = max(float(distances.median()), 1e-6)
    best: tuple[float, Tensor, float] | None = None
    for width in WIDTHS:
        gamma = width / scale
        gram = kernel(points, points, torch.tensor(gamma, dtype=torch.float64))
        for ridge in RIDGES:
            inverse = torch.linalg.inv(gram + torch.diag(ridge / rows))
            weights = inverse @ target
            left_out = weights / inverse.diagonal()  # residual of a prompt, predicted without it
            error = float((rows * left_out.square()).sum() / rows.sum())
            if best is None or error < best[0]:
                best = (error, weights, gamma)
    assert best is not None
    return best[1].float(), best[2]


def fit_combination(terms_n4: np.ndarray, rate_n: np.ndarray) -> np.ndarray:
    """Weights (4,) of the terms with the smallest cross-entropy against success rates; all but the intercept >= 0.

    A negative weight could only be noise: every term is evidence for success.
    """
    start = np.array(HEAD_ALONE)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds, away = terms_n4 @ weights, weights - start
        value = np.logaddexp(0, log_odds).sum() - rate_n @ log_odds + PRIOR_QUERIES * away @ away / 2
        return value, terms_n4.T @ (expit(log_odds) - rate_n) + PRIOR_QUERIES * away

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None), *[(0, None)] * 3]).x


def _terms(model: ValueModel, embed: Embedder, difficulty: Difficulty, task: MetaTask) -> tuple[np.ndarray, np.ndarray]:
    """Terms of a task's queries, (Q, 4), and their success rates, (Q,)."""
    texts, size = [*task.context_prompts, *task.prompts], len(task.context_prompts)
    features, hardness = embed(texts), embed.rows(texts, difficulty)
    labels = torch.from_numpy(task.labels).to(features.device)
    logits = model.head(features[:size], labels, features[size:])
    terms = combination_terms(logits, labels, hardness[:size], hardness[size:])
    return terms.double().cpu().numpy(), success_of_reward(task.scores)
