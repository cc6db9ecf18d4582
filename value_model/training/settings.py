"""Settings of a training run: typed, checked, read from yaml and the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from value_model.checks import field_check, require
from value_model.config import DIFFICULTY_POOLINGS
from value_model.config_loader import config_from_yaml
from value_model.training.meta_tasks import MetaTaskSettings
from value_model.training.tiny_encoder import TinyEncoderSettings

PARTS = ("backbone", "adapter", "head")
METRICS = {"loss": min, "cross_entropy": min, "auc": max, "brier": min, "value_mse": min}  # name -> which is better
TINY = "tiny"


class SettingsError(ValueError):
    """A setting is unknown or impossible; the message names key, value and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A model with a new adapter; ``backbone``, ``adapter`` and ``head`` are as in a checkpoint's config.json."""

    head_weights: str  # a tabpfn checkpoint, .safetensors or .ckpt
    backbone: dict[str, Any] = field(default_factory=dict)  # the name "tiny" makes a new encoder
    adapter: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    tiny: TinyEncoderSettings = field(default_factory=TinyEncoderSettings)  # the new encoder's size

    def __post_init__(self) -> None:
        field_check(self, "init.new.", SettingsError)


@dataclass(frozen=True)
class InitSettings:
    """Which model is trained: exactly one of the two."""

    from_pretrained: str | None = None  # a value model's folder or hub id
    new: NewModel | None = None

    def __post_init__(self) -> None:
        field_check(self, "init.", SettingsError)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Trajectory tables, and the data held out from training."""

    paths: list[str]  # parquet or jsonl files, or folders of runs
    heldout_models: list[str] = field(default_factory=list)  # if any, validation queries are of these models only
    heldout_prompts: float = 0.2  # share of the prompts, which only validation uses as queries
    split_seed: int = 0

    def __post_init__(self) -> None:
        check = field_check(self, "data.", SettingsError)
        check("heldout_prompts", 0 <= self.heldout_prompts < 1, "in [0, 1)")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with warm-up and cosine; a part with learning rate 0 is frozen. The defaults are the paper's."""

    adapter_lr: float = 2e-4
    backbone_lr: float = 0.0  # the paper's, if trained: 1e-5
    head_lr: float = 0.0
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    clip_norm: float = 1.0
    tasks_per_update: int = 2  # over all processes; each process accumulates its share
    epochs: int = 50
    max_updates: int | None = None  # stops before ``epochs`` are complete

    def __post_init__(self) -> None:
        check = field_check(self, "optimizer.", SettingsError)
        for key in ("adapter_lr", "backbone_lr", "head_lr", "weight_decay"):
            check(key, getattr(self, key) >= 0, "at least 0")
        rates = [self.adapter_lr, self.backbone_lr, self.head_lr]
        allowed = "a positive learning rate of the adapter, the backbone or the head"
        require("optimizer", rates, any(rates), allowed, SettingsError)
        check("warmup_share", 0 <= self.warmup_share < 1, "in [0, 1)")
        check("clip_norm", self.clip_norm > 0, "positive")
        check("tasks_per_update", self.tasks_per_update >= 1, "at least 1")
        check("epochs", self.epochs >= 1, "at least 1")
        check("max_updates", self.max_updates is None or self.max_updates >= 1, "null or at least 1")


@dataclass(frozen=True)
class ValidationSettings:
    """Tasks of held-out prompts (and models), drawn once; their queries are not balanced."""

    every: int = 200  # updates; 0 turns validation off
    tasks: int = 64
    queries: int = 32  # per task, at most
    metric: str = "cross_entropy"  # the model with its best value is kept

    def __post_init__(self) -> None:
        check = field_check(self, "validation.", SettingsError)
        check("every", self.every >= 0, "at least 0")
        check("tasks", self.tasks >= 1, "at least 1")
        check("queries", self.queries >= 2, "at least 2")
        check("metric", self.metric in METRICS, f"one of {', '.join(METRICS)}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A training run; all its output is written to ``out``."""

    out: str
    init: InitSettings = field(default_factory=InitSettings)
    data: DataSettings
    tasks: MetaTaskSettings = field(default_factory=MetaTaskSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    pairwise_weight: float = 0.25  # the rest of the loss is cross-entropy
    difficulty: str | None = None  # pooling of the states it is fitted to, see value_model.difficulty; null is none
    train_estimators: int | None = None  # the head's ensemble while training; null is that of the model
    states_cache_prompts: int = 0  # token states of a frozen encoder kept in memory
    seed: int = 0
    device: str | None = None  # null is the GPU, if there is one
    checkpoint_every: int = 200  # updates
    wandb_project: str | None = None  # needs the package wandb

    def __post_init__(self) -> None:
        check = field_check(self, "", SettingsError)
        one_of_both = (self.init.from_pretrained is None) != (self.init.new is None)
        check("init", one_of_both, "either init.from_pretrained or init.new")
        check("pairwise_weight", 0 <= self.pairwise_weight <= 1, "in [0, 1]")
        pooled = self.difficulty is None or self.difficulty in DIFFICULTY_POOLINGS
        check("difficulty", pooled, f"null or one of {', '.join(DIFFICULTY_POOLINGS)}")
        # Its weight against the head's can only be measured on prompts that neither was fitted to.
        unseen = self.difficulty is None or bool(self.validation.every and self.data.heldout_prompts)
        check("difficulty", unseen, "null without validation.every and data.heldout_prompts")
        check("train_estimators", self.train_estimators is None or self.train_estimators >= 1, "null or at least 1")
        check("states_cache_prompts", self.states_cache_prompts >= 0, "at least 0")
        # The states of an encoder that is trained change with every update.
        frozen = not self.optimizer.backbone_lr or not self.states_cache_prompts
        check("states_cache_prompts", frozen, "0 where the backbone is trained")
        check("checkpoint_every", self.checkpoint_every >= 1, "at least 1")


def load_settings(config: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read ``config`` (yaml), then ``overrides`` such as ``optimizer.epochs=3``.

    Raises:
        SettingsError: a key or value is unknown, mistyped, missing or impossible.
    """
    return config_from_yaml(TrainSettings, config, overrides, SettingsError)
