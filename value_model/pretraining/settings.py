"""Settings of a head's pre-training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from value_model.checks import field_check
from value_model.head import CLASSES
from value_model.pretraining.initialisation import MIN_BLOCKS, MIN_WIDTH

MAY_BE_ZERO = ("seed", "warmup", "weight_decay")


class PretrainError(ValueError):
    """Invalid settings, or a checkpoint of another training run."""


@dataclass(frozen=True)
class PretrainSettings:
    """One training run; two runs of equal settings on one CPU thread give the same weights."""

    steps: int = 1500
    seed: int = 0
    # Tasks
    features: int = 48  # number of features of the tasks that the trained head is evaluated on
    min_features: int = 24
    max_features: int = 60
    wide_features: int = 144  # upper limit in one step of ten
    min_context: int = 32
    max_context: int = 256
    queries: int = 64
    cells: int = 3000  # rows x columns of the network in one step: bounds its time and memory
    # Network
    width: int = 64
    layers: int = 3
    heads: int = 2
    features_per_group: int = 6
    thinking_rows: int = 8
    # Optimizer
    learning_rate: float = 2e-3
    warmup: int = 50  # steps
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    # Bookkeeping
    save_every: int = 50  # steps
    measured_tasks: int = 64  # held-out tasks per size of context

    def __post_init__(self) -> None:
        check = field_check(self, "", PretrainError)
        for key in (field.name for field in fields(self)):
            value = getattr(self, key)
            if key in MAY_BE_ZERO:
                check(key, value >= 0, "at least 0")
            else:
                check(key, value > 0, "positive")
        for low, high in (
            ("min_features", "max_features"),
            ("max_features", "wide_features"),
            ("min_context", "max_context"),
        ):
            check(low, getattr(self, low) <= getattr(self, high), f"at most {high} ({getattr(self, high)})")
        check("width", self.width >= MIN_WIDTH, f"at least {MIN_WIDTH}, which the initial weights take up")
        check("layers", self.layers >= MIN_BLOCKS, f"at least {MIN_BLOCKS}, which the initial weights take up")
        # tabpfn draws column embeddings of a quarter of the width.
        check("width", self.width % 4 == 0, "a multiple of 4")
        check("width", self.width % self.heads == 0, f"a multiple of heads ({self.heads})")

    def architecture(self) -> dict[str, Any]:
        """The values that tabpfn builds the network from."""
        return {
            "max_num_classes": CLASSES,
            "num_buckets": 1,
            "emsize": self.width,
            "nlayers": self.layers,
            "nhead": self.heads,
            "features_per_group": self.features_per_group,
            "num_thinking_rows": self.thinking_rows,
        }
