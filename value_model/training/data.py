"""The data of a training run: meta-tasks to train on, and held-out ones to validate on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from value_model.training.meta_tasks import MetaTasks, MetaTaskSettings
from value_model.training.settings import DataSettings, SettingsError, TrainSettings, ValidationSettings
from value_model.trajectories import read_trajectories, split_by_prompt


@dataclass(frozen=True)
class TrainingData:
    """Meta-tasks to train on and, unless validation is off, to validate on; ``summary`` is for the model card."""

    train: MetaTasks
    validation: MetaTasks | None
    summary: dict[str, Any]


def load_data(settings: TrainSettings) -> TrainingData:
    """Read the trajectories and hold out the validation data.

    Raises:
        SettingsError: validation is on, but no data are held out for it.
    """
    data = settings.data
    table = read_trajectories(data.paths)
    kept = split_by_prompt(table, _fractions(data), data.split_seed, data.heldout_models)["train"]
    training = MetaTasks(kept, settings.tasks, settings.seed)
    validation = _validation_tasks(table, settings) if settings.validation.every else None
    return TrainingData(training, validation, _summary(kept, training, validation))


def _fractions(data: DataSettings) -> dict[str, float]:
    return {"train": 1 - data.heldout_prompts, "validation": data.heldout_prompts}


def _validation_tasks(table: pd.DataFrame, settings: TrainSettings) -> MetaTasks:
    """Queries are held-out prompts of held-out models, as far as any are held out; contexts may hold any prompt."""
    data = settings.data
    if not data.heldout_models and not data.heldout_prompts:
        raise SettingsError(
            f"validation.every={settings.validation.every} needs held-out data: set data.heldout_prompts or "
            "data.heldout_models, or validation.every=0"
        )
    held_out_prompts = set(split_by_prompt(table, _fractions(data), data.split_seed)["validation"]["prompt"])
    if data.heldout_prompts and not held_out_prompts:
        raise SettingsError(
            f"data.heldout_prompts={data.heldout_prompts:g} with data.split_seed={data.split_seed} holds out none of "
            f"the {table['prompt'].nunique()} prompts: a table that was itself split with this seed needs another one"
        )
    rows = table[table["model"].isin(data.heldout_models)] if data.heldout_models else table
    tasks = _validation_settings(settings.tasks, settings.validation)
    return MetaTasks(rows, tasks, settings.seed, held_out_prompts or None)


def _validation_settings(tasks: MetaTaskSettings, validation: ValidationSettings) -> MetaTaskSettings:
    # In use, queries are not balanced, and the calibration measured here depends on their base rate.
    return replace(tasks, balanced=False, pairs=validation.queries // 2, repeats=1)


def _summary(table: pd.DataFrame, training: MetaTasks, validation: MetaTasks | None) -> dict[str, Any]:
    return {
        "models": int(table["model"].nunique()),
        "prompts": int(table["prompt"].nunique()),
        "pairs": len(table),
        "sources": sorted(table["data_source"].unique().tolist()),
        "tasks": len(training),
        "skipped": training.skipped,
        "validation_tasks": len(validation) if validation else 0,
    }
