"""What a value model is made of. Defaults are the released V0's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from typing import Any, get_type_hints

ADAPTERS = ("residual_query", "last_token", "mean")
PADDING_SIDES = ("left", "right")
DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(ValueError):
    """A value of a value model's config is unknown or impossible; the message names key, value, what is allowed."""


@dataclass(frozen=True)
class BackboneConfig:
    """The text encoder: anything sentence-transformers or transformers loads.

    ``name`` is a hub id, a local path, or a folder relative to the checkpoint (how a trained encoder is saved).
    """

    name: str = "Qwen/Qwen3-Embedding-0.6B"
    revision: str | None = None
    max_length: int = 2048  # tokens; longer prompts are cut
    padding_side: str = "left"
    dtype: str = "float32"
    batch_tokens: int = 16384  # padded tokens a forward pass

    def __post_init__(self) -> None:
        _types(self, "backbone.")
        _require("backbone.name", self.name, bool(self.name), "a hub id or a path")
        _require("backbone.max_length", self.max_length, self.max_length >= 1, "at least 1")
        _choice("backbone.padding_side", self.padding_side, PADDING_SIDES)
        _choice("backbone.dtype", self.dtype, DTYPES)
        _require("backbone.batch_tokens", self.batch_tokens, self.batch_tokens >= 1, "at least 1")


@dataclass(frozen=True)
class AdapterConfig:
    """From token states to the head's features.

    ``residual_query``: ``queries * dim`` features. ``last_token`` and ``mean``: the pooled state, projected to
    ``features`` if that is given. ``dropout`` is that of training, before the last projection.
    """

    kind: str = "residual_query"
    queries: int = 168
    dim: int = 6
    heads: int = 3
    layers: int = 1
    bottleneck: int = 128
    dropout: float = 0.2
    features: int | None = None

    def __post_init__(self) -> None:
        _types(self, "adapter.")
        _choice("adapter.kind", self.kind, ADAPTERS)
        for key in ("queries", "dim", "heads", "layers", "bottleneck"):
            _require(f"adapter.{key}", getattr(self, key), getattr(self, key) >= 1, "at least 1")
        _require("adapter.heads", self.heads, self.dim % self.heads == 0, f"a divisor of adapter.dim ({self.dim})")
        _require("adapter.dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")
        _require("adapter.features", self.features, self.features is None or self.features >= 1, "null or at least 1")


@dataclass(frozen=True)
class HeadConfig:
    """The in-context classifier: an ensemble of ``estimators`` passes of one TabPFN network."""

    estimators: int = 4
    softmax_temperature: float = 0.9  # tabpfn's default
    seed: int = 0
    query_batch: int = 512  # queries a pass
    # tabpfn's extra column, a hash of each row: part of the released model, but it turns rounding noise of the
    # features into visible noise of the answers.
    fingerprint: bool = True

    def __post_init__(self) -> None:
        _types(self, "head.")
        _require("head.estimators", self.estimators, self.estimators >= 1, "at least 1")
        _require("head.softmax_temperature", self.softmax_temperature, 0 < self.softmax_temperature < inf, "positive")
        _require("head.query_batch", self.query_batch, self.query_batch >= 1, "at least 1")


@dataclass(frozen=True)
class ValueModelConfig:
    """A whole value model; ``cache_prompts`` bounds how many prompts' features are kept."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    cache_prompts: int = 65536

    def __post_init__(self) -> None:
        _types(self, "")
        _require("cache_prompts", self.cache_prompts, self.cache_prompts >= 1, "at least 1")

    def to_json(self) -> str:
        """The config as indented json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ValueModelConfig:
        """Build and check.

        Raises:
            ConfigError: an unknown key, or a value that is not allowed.
        """
        _require("config", values, isinstance(values, Mapping), "a mapping")
        parts = {"backbone": BackboneConfig, "adapter": AdapterConfig, "head": HeadConfig}
        built = {key: _build(part, values.get(key, {}), f"{key}.") for key, part in parts.items()}
        return _build(cls, {**values, **built}, "")


def _build(part: type, values: Mapping[str, Any], prefix: str) -> Any:
    _require(prefix.rstrip("."), values, isinstance(values, Mapping), "a mapping")
    known = [f.name for f in fields(part)]
    for key in values:
        _require(f"{prefix}{key}", values[key], key in known, f"absent (known keys: {', '.join(known)})")
    return part(**values)


def _types(part: object, prefix: str) -> None:
    for key, kind in get_type_hints(type(part)).items():
        value = getattr(part, key)
        allowed = int | float if kind is float else kind
        # True would pass as the integer 1.
        ok = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
        _require(f"{prefix}{key}", value, ok, f"of type {getattr(kind, '__name__', kind)}")


def _choice(key: str, value: object, allowed: tuple[str, ...]) -> None:
    _require(key, value, value in allowed, f"one of {', '.join(allowed)}")


def _require(key: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"value model config: {key}={value!r} is not allowed: it must be {allowed}")
