"""The model card that a training run writes next to its model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import yaml

from value_model.training.settings import TrainSettings

TEMPLATE = Path(__file__).with_name("model_card.md")


def model_card(settings: TrainSettings, data: dict[str, Any], best: dict[str, float]) -> str:
    """Markdown text of the card.

    Args:
        settings: of the training run.
        data: counts of the training data: pairs, prompts, models, sources, tasks, skipped.
        best: validation metrics of the model, and the update they were measured at; empty without validation.
    """
    # Settings of the local machine, which do not describe the model.
    left_out = ("out", "device", "wandb_project")
    kept = {key: value for key, value in asdict(settings).items() if key not in left_out}
    return Template(TEMPLATE.read_text()).substitute(
        {**data, "sources": ", ".join(data["sources"])},
        heldout=_held_out_line(settings),
        validation=_validation_table(settings, best),
        settings=yaml.safe_dump(kept, sort_keys=False).rstrip(),
    )


def _held_out_line(settings: TrainSettings) -> str:
    models = settings.data.heldout_models
    policies = f" and the policies {', '.join(models)}" if models else ""
    return f"Never trained on: {settings.data.heldout_prompts:.0%} of the prompts{policies}."


def _validation_table(settings: TrainSettings, best: dict[str, float]) -> str:
    if not best:
        return "None."
    table = "\n".join(f"| {key} | {value:.4f} |" for key, value in best.items() if key != "step")
    return (
        f"On held-out queries, after update {best['step']:.0f}, the best by {settings.validation.metric}:\n\n"
        f"| metric | value |\n|---|---|\n{table}"
    )
