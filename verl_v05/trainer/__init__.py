"""Trainers for verl's ``trainer.v1.trainer_mode``, and what they log and keep.

Importing the package imports none of them: they need verl's trainer, and metrics, recorder and cost do not.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "V05Trainer":  # its path in version 0.1; goes in 0.3
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from verl_v05.trainer.v05 import V05Trainer

    return V05Trainer
