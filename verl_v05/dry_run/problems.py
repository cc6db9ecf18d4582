"""What is wrong with a launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Problem:
    """An ``error`` stops the launch, a ``warning`` does not."""

    level: Literal["error", "warning"]
    message: str


def refuse(config: DictConfig, key: str, allowed: str) -> Problem:
    """An error that names ``key``, its value and what is allowed."""
    return Problem("error", f"{key}={OmegaConf.select(config, key)!r} is not allowed: it must be {allowed}")


def warn(message: str) -> Problem:
    return Problem("warning", message)
