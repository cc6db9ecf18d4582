"""Logging of a training run: a line of JSON per update, Weights & Biases, a progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from value_model.files import naming_full_disk, nan_as_none, write_text
from value_model.training.settings import TrainSettings

LOG = "metrics.jsonl"

WriteRecord = Callable[[dict[str, Any]], None]


@contextmanager
def metrics_log(settings: TrainSettings, update: int) -> Iterator[WriteRecord]:
    """Yield a function that appends a record to ``out/metrics.jsonl`` and, with ``wandb_project``, logs it to W&B.

    Args:
        settings: of the run.
        update: number of updates made; lines of later updates, which a resumed run repeats, are dropped.
    """
    path = Path(settings.out) / LOG
    lines = path.read_text().splitlines() if path.exists() else []
    # An interrupted run may end with an incomplete line.
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= update]
    write_text(path, "".join(f"{line}\n" for line in kept))
    with naming_full_disk(path), path.open("a", buffering=1) as file, _wandb_log(settings) as send:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(nan_as_none(record)) + "\n")
            send(record)

        yield write


def training_progress(console: Console | None = None, disable: bool = False) -> Progress:
    """A progress bar with times; a task's ``state`` field is the text at its end."""
    state = TextColumn("{task.fields[state]}")
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), state, *times)
    return Progress(*columns, console=console, disable=disable)


@contextmanager
def _wandb_log(settings: TrainSettings) -> Iterator[WriteRecord]:
    if settings.wandb_project is None:
        yield lambda record: None
        return
    import wandb  # an optional dependency

    with wandb.init(project=settings.wandb_project, dir=settings.out, config=asdict(settings)) as run:
        yield lambda record: run.log(record, step=record["step"])
