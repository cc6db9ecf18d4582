"""Configuration of a value model. Defaults are the released V0's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from value_model.checks import field_check
from value_model.config_loader import config_from_dict

ADAPTERS = ("residual_query", "last_token", "mean")
DIFFICULTY_POOLINGS = ("mean", "last_token")
PADDING_SIDES = ("left", "right")
DTYPES = ("float32", "bfloat16", "float16")
# Far above any use; beyond them building the model alone would take minutes or the memory of the machine.
MOST = {"queries": 4096, "dim": 1024, "heads": 1024, "layers": 64, "bottleneck": 4096}
MOST_FEATURES = 65536
MOST_ESTIMATORS = 1024


class ConfigError(ValueError):
    """A value of a value model's config is unknown or impossible; the message names key, value, what is allowed."""


@dataclass(frozen=True)
class BackboneConfig:
    """The text encoder, which sentence-transformers or transformers can load.

    ``name`` is a hub id, a local path, or a folder relative to the checkpoint (how a trained encoder is saved).
    """

    name: str = "Qwen/Qwen3-Embedding-0.6B"
    revision: str | None = None
    max_length: int = 2048  # tokens; longer prompts are truncated
    padding_side: str = "left"
    dtype: str = "float32"
    batch_tokens: int = 16384  # padded tokens per forward pass

    def __post_init__(self) -> None:
        check = field_check(self, "backbone.", ConfigError)
        check("name", bool(self.name), "a hub id or a path")
        check("max_length", self.max_length >= 1, "at least 1")
        check("padding_side", self.padding_side in PADDING_SIDES, f"one of {', '.join(PADDING_SIDES)}")
        check("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        check("batch_tokens", self.batch_tokens >= 1, "at least 1")


@dataclass(frozen=True)
class AdapterConfig:
    """From token states to the head's features.

    ``residual_query``: ``queries * dim`` features. ``last_token`` and ``mean``: the pooled state, projected to
    ``features`` if that is given. ``dropout`` is applied in training only, before the last projection.
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
        check = field_check(self, "adapter.", ConfigError)
        check("kind", self.kind in ADAPTERS, f"one of {', '.join(ADAPTERS)}")
        for key in ("queries", "dim", "heads", "layers", "bottleneck"):
            check(key, 1 <= getattr(self, key) <= MOST[key], f"at least 1 and at most {MOST[key]}")
        check(
            "queries", self.queries * self.dim <= MOST_FEATURES, f"at most {MOST_FEATURES} / adapter.dim ({self.dim})"
        )
        check("heads", self.dim % self.heads == 0, f"a divisor of adapter.dim ({self.dim})")
        check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        few = self.features is None or 1 <= self.features <= MOST_FEATURES
        check("features", few, f"null or at least 1, and at most {MOST_FEATURES}")


@dataclass(frozen=True)
class HeadConfig:
    """The in-context classifier: an ensemble of ``estimators`` passes of one TabPFN network."""

    estimators: int = 4
    softmax_temperature: float = 0.9  # tabpfn's default
    seed: int = 0
    query_batch: int = 512  # queries per pass
    # tabpfn's extra column, a hash of each row: part of the released model, but rounding differences of the features
    # change the hash and with it the predictions.
    fingerprint: bool = True

    def __post_init__(self) -> None:
        check = field_check(self, "head.", ConfigError)
        check("estimators", 1 <= self.estimators <= MOST_ESTIMATORS, f"at least 1 and at most {MOST_ESTIMATORS}")
        check("softmax_temperature", 0 < self.softmax_temperature < inf, "positive")
        check("query_batch", self.query_batch >= 1, "at least 1")


@dataclass(frozen=True)
class ValueModelConfig:
    """A whole value model; ``cache_prompts`` bounds the number of prompts whose features are cached.

    ``difficulty`` is how :mod:`value_model.difficulty` pools the token states; None is a model without that part, such
    as the released one.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    cache_prompts: int = 65536
    difficulty: str | None = None

    def __post_init__(self) -> None:
        check = field_check(self, "", ConfigError)
        check("cache_prompts", self.cache_prompts >= 1, "at least 1")
        pooled = self.difficulty is None or self.difficulty in DIFFICULTY_POOLINGS
        check("difficulty", pooled, f"null or one of {', '.join(DIFFICULTY_POOLINGS)}")

    def to_json(self) -> str:
        """The config as indented json."""
        values = asdict(self)
        if self.difficulty is None:
            del values["difficulty"]  # the text of a model without it, and so its identity, is that of earlier versions
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ValueModelConfig:
        """Build and check.

        Raises:
            ConfigError: an unknown key, or a value that is not allowed.
        """
        return config_from_dict(cls, values, ConfigError)
