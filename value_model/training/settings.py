"""Settings of a training run: typed, checked, read from yaml and the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from value_model.training.meta_tasks import MetaTaskSettings
from value_model.training.tiny_encoder import TinyEncoderSettings

PARTS = ("backbone", "adapter", "head")
METRICS = {"loss": min, "cross_entropy": min, "auc": max, "brier": min, "value_mse": min}  # name -> which is better
TINY = "tiny"


class SettingsError(ValueError):
    """A setting is unknown or impossible; the message names key, value and what is allowed."""


@dataclass
class NewModel:
    """A model with a new adapter; ``backbone``, ``adapter`` and ``head`` are as in a checkpoint's config.json."""

    head_weights: str = MISSING  # a tabpfn checkpoint, .safetensors or .ckpt
    backbone: dict[str, Any] = field(default_factory=dict)  # the name "tiny" makes a new encoder
    adapter: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    tiny: TinyEncoderSettings = field(default_factory=TinyEncoderSettings)  # the new encoder's size


@dataclass
class InitSettings:
    """Which model is trained: exactly one of the two."""

    from_pretrained: str | None = None  # a value model's folder or hub id
    new: NewModel | None = None


@dataclass
class DataSettings:
    """Trajectory tables, and what training must not see."""

    paths: list[str] = MISSING  # parquet or jsonl files, or folders of runs
    heldout_models: list[str] = field(default_factory=list)  # validation asks about these, if any
    heldout_prompts: float = 0.2  # share of the prompts that only validation asks for
    split_seed: int = 0

    def __post_init__(self) -> None:
        share = self.heldout_prompts
        _require("data.heldout_prompts", share, 0 <= share < 1, "in [0, 1)")


@dataclass
class OptimizerSettings:
    """AdamW with warm-up and cosine; a part with learning rate 0 is frozen. The defaults are the paper's."""

    adapter_lr: float = 2e-4
    backbone_lr: float = 0.0  # the paper's, if trained: 1e-5
    head_lr: float = 0.0
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    clip_norm: float = 1.0
    tasks_per_update: int = 2  # of all processes together; each process accumulates its share
    epochs: int = 50
    max_updates: int | None = None  # ends earlier than the epochs

    def __post_init__(self) -> None:
        for key in ("adapter_lr", "backbone_lr", "head_lr", "weight_decay"):
            _require(f"optimizer.{key}", getattr(self, key), getattr(self, key) >= 0, "at least 0")
        rates = [self.adapter_lr, self.backbone_lr, self.head_lr]
        _require("optimizer", rates, any(rates), "a positive learning rate of the adapter, the backbone or the head")
        _require("optimizer.warmup_share", self.warmup_share, 0 <= self.warmup_share < 1, "in [0, 1)")
        _require("optimizer.clip_norm", self.clip_norm, self.clip_norm > 0, "positive")
        _require("optimizer.tasks_per_update", self.tasks_per_update, self.tasks_per_update >= 1, "at least 1")
        _require("optimizer.epochs", self.epochs, self.epochs >= 1, "at least 1")
        most = self.max_updates
        _require("optimizer.max_updates", most, most is None or most >= 1, "null or at least 1")


@dataclass
class ValidationSettings:
    """Tasks of held-out prompts (and models), drawn once; their queries come as they are, not balanced."""

    every: int = 200  # updates; 0 is never
    tasks: int = 64
    queries: int = 32  # at most, of a task
    metric: str = "cross_entropy"  # the model that is best by it is kept

    def __post_init__(self) -> None:
        _require("validation.every", self.every, self.every >= 0, "at least 0")
        _require("validation.tasks", self.tasks, self.tasks >= 1, "at least 1")
        _require("validation.queries", self.queries, self.queries >= 2, "at least 2")
        _require("validation.metric", self.metric, self.metric in METRICS, f"one of {', '.join(METRICS)}")


@dataclass
class TrainSettings:
    """A whole training run; what it writes lies in ``out``."""

    out: str = MISSING
    init: InitSettings = field(default_factory=InitSettings)
    data: DataSettings = field(default_factory=DataSettings)
    tasks: MetaTaskSettings = field(default_factory=MetaTaskSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    pairwise_weight: float = 0.25  # the rest of the loss is cross-entropy
    train_estimators: int | None = None  # the head's ensemble while training; null is the model's own
    states_cache_prompts: int = 0  # token states of a frozen encoder kept in memory
    seed: int = 0
    device: str | None = None  # null is the GPU, if there is one
    checkpoint_every: int = 200  # updates
    wandb_project: str | None = None  # needs the package wandb

    def __post_init__(self) -> None:
        one = (self.init.from_pretrained is None) != (self.init.new is None)
        _require("init", self.init, one, "either init.from_pretrained or init.new")
        weight, size = self.pairwise_weight, self.train_estimators
        _require("pairwise_weight", weight, 0 <= weight <= 1, "in [0, 1]")
        _require("train_estimators", size, size is None or size >= 1, "null or at least 1")
        _require("states_cache_prompts", self.states_cache_prompts, self.states_cache_prompts >= 0, "at least 0")
        frozen = not self.optimizer.backbone_lr or not self.states_cache_prompts
        _require("states_cache_prompts", self.states_cache_prompts, frozen, "0 where the backbone is trained")
        _require("checkpoint_every", self.checkpoint_every, self.checkpoint_every >= 1, "at least 1")


def load_settings(config: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read ``config`` (yaml), then ``overrides`` such as ``optimizer.epochs=3``.

    Raises:
        SettingsError: a key or value is unknown, mistyped, missing or impossible.
    """
    try:
        read = OmegaConf.load(config)
    except (OSError, YAMLError) as error:
        raise SettingsError(f"{config} cannot be read as yaml: {error}") from error
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainSettings), read, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise SettingsError(_explain(error)) from error
    except ValueError as error:  # of a part that another module owns
        raise error if isinstance(error, SettingsError) else SettingsError(str(error)) from error


def changed_keys(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that differ between two nested dictionaries."""
    found: list[str] = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _explain(error: OmegaConfBaseException) -> str:
    names = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
    known = f" (known keys: {', '.join(names)})" if names and error.key not in names else ""
    return f"{error.full_key or 'settings'}: {str(error.msg).splitlines()[0]}{known}"


def _require(key: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise SettingsError(f"{key}={value!r} is not allowed: it must be {allowed}")
