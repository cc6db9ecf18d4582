"""The trainings that faults are put into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.training_run import TrainingRun

Start = Callable[..., TrainingRun]


@pytest.fixture
def start(task: Path, tmp_path: Path) -> Iterator[Start]:
    """A function that starts a training with hydra overrides and returns it after its first step."""
    runs: list[TrainingRun] = []

    def started(*overrides: str, **options: Any) -> TrainingRun:
        runs.append(TrainingRun(task, tmp_path / "run", overrides, **options))
        runs[-1].wait_for_step(1)
        return runs[-1]

    yield started
    for run in runs:
        run.kill()
