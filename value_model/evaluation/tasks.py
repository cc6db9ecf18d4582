"""Evaluation tasks: contexts of training prompts, and held-out prompts whose outcome is to be predicted."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from value_model.conversions import hard_label
from value_model.files import read_json
from value_model.trajectories import HELDOUT_MODELS, read_trajectories, split_by_prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalTask:
    """One (model, step): measured outcomes of some prompts, and other prompts whose outcome is to be predicted."""

    model: str
    step: int
    context: pd.DataFrame
    queries: pd.DataFrame


def read_tasks(data: Path, context_size: int, seed: int) -> dict[str, list[EvalTask]]:
    """Tasks of the held-out prompts, and of the held-out models if ``data`` has any.

    Args:
        data: folder that ``python -m value_model.trajectories`` wrote.
        context_size: see :func:`tasks_from`.
        seed: see :func:`tasks_from`.
    """
    train, validation = (read_trajectories([data / f"{name}.parquet"]) for name in ("train", "validation"))
    sets = {"held-out prompts": tasks_from(train, validation, context_size, seed)}
    if (data / f"{HELDOUT_MODELS}.parquet").exists():
        settings = _split_settings(data / "splits.json")
        rows = read_trajectories([data / f"{HELDOUT_MODELS}.parquet"])
        # Split as the other models' rows, so that no query's prompt was in training with another model.
        parts = split_by_prompt(rows, settings["fractions"], settings["seed"])
        sets["held-out models"] = tasks_from(parts["train"], parts["validation"], context_size, seed)
    return sets


def _split_settings(path: Path) -> dict[str, Any]:
    try:
        settings = read_json(path)["settings"]
        return {key: settings[key] for key in ("fractions", "seed")}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): split the trajectories again") from error


def tasks_from(train: pd.DataFrame, held_out: pd.DataFrame, context_size: int, seed: int) -> list[EvalTask]:
    """One task for each (model, step) of ``held_out``.

    The context is a sample without replacement of ``context_size`` of the group's own rows in ``train``, with both
    classes. A step with fewer rows is filled up from the same model's newest earlier steps, each prompt once, like the
    support buffer of a run; a context that is still smaller is used as it is. The sample depends on the
    seed and the group's name and rows, not on the other groups.

    Groups whose context would be empty or of one class are left out with a warning: in-context learning needs both.

    Args:
        train: trajectories to draw contexts from.
        held_out: trajectories to predict, of prompts that are not in ``train``.
        context_size: prompts in a context, at least 2.
        seed: of the samples.

    Raises:
        ValueError: the two share a prompt, or no group has a usable context.
    """
    shared = set(train["prompt"]) & set(held_out["prompt"])
    if shared:
        raise ValueError(f"{len(shared)} prompts are in train and in held_out, such as {sorted(shared)[0][:60]!r}")
    tasks, left_out = [], []
    for (model, step), queries in held_out.groupby(["model", "step"]):
        context = _sample_context(train[train["model"] == model], step, context_size, seed)
        label = hard_label(context["score"])
        if label.any() and not label.all():
            tasks.append(EvalTask(model, int(step), context, queries.reset_index(drop=True)))
        else:
            left_out.append((model, int(step)))
    if left_out:
        logger.warning("%d groups have no context with both classes and are left out: %s", len(left_out), left_out[:5])
    if not tasks:
        raise ValueError("no (model, step) of held_out has training prompts of both classes to be a context")
    return tasks


def _sample_context(rows: pd.DataFrame, step: int, size: int, seed: int) -> pd.DataFrame:
    """Sample of one model's rows up to a step, see :func:`tasks_from`."""
    past = rows[rows["step"] <= step].sort_values("step", ascending=False, kind="stable").drop_duplicates("prompt_id")
    pool = past.head(max(size, int((past["step"] == step).sum()))).reset_index(drop=True)
    if len(pool) <= size:
        return pool
    # Not Python's hash(), which differs between processes.
    name = hashlib.sha256(f"{pool['model'].iloc[0]}\n{step}".encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(name[:8], "big")])
    chosen = rng.choice(len(pool), size, replace=False)
    label = hard_label(pool["score"])
    others = np.flatnonzero(label != label[chosen[0]])
    if len(others) and (label[chosen] == label[chosen[0]]).all():
        chosen[-1] = rng.choice(others)  # the head needs both classes
    return pool.iloc[chosen].reset_index(drop=True)
