"""The parts of a run's log: verl's file logger empties its file at every start, a resume's too.

The trainer moves the file aside before (``metrics.jsonl`` becomes ``metrics.1.jsonl``, the next ``metrics.2.jsonl``),
and readers join the parts. A step is logged after its checkpoint is saved: what a run that is killed in between would
have logged is in the checkpoint, see :func:`numbers`, and is logged when the run resumes unless :func:`is_logged`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from verl_v05.compat.packages import loggers

Line = tuple[int, dict[str, Any]]


class LogError(ValueError):
    """A line of the log is no line of verl's file logger; the message names file and line."""


def move_aside(config: DictConfig) -> Path | None:
    """Give the log of an earlier start of the run a name that nobody writes to; None if there is no such log."""
    path = _path_of(config)
    if path is None or not path.exists() or path.stat().st_size == 0:
        return None
    aside = _numbered(path, len(earlier_parts(path)) + 1)
    path.rename(aside)
    return aside


def is_logged(config: DictConfig, step: int) -> bool:
    """Whether the run's file has the training step; a run without such a file, or with a damaged one, has not."""
    path = _path_of(config)
    try:
        found = {} if path is None else read_log(path)
    except LogError:
        return False
    return _is_of_training(found.get(step, {}))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as JSON has them: finite numbers, those of numpy among them."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in metrics.items()}
    return {name: value for name, value in plain.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def _path_of(config: DictConfig) -> Path | None:
    """Where the run's file logger writes; None if it has none."""
    trainer = config.trainer
    return log_path(trainer.project_name, trainer.experiment_name) if "file" in loggers(config) else None


def log_path(project: str, experiment: str) -> Path:
    """Where verl's file logger writes."""
    if "VERL_FILE_LOGGER_PATH" in os.environ:
        return Path(os.environ["VERL_FILE_LOGGER_PATH"])
    return Path(os.environ.get("VERL_FILE_LOGGER_ROOT", ".")).expanduser() / project / f"{experiment}.jsonl"


def earlier_parts(path: Path) -> list[Path]:
    """Parts that were moved aside, oldest first."""
    parts: list[Path] = []
    while (part := _numbered(path, len(parts) + 1)).exists():
        parts.append(part)
    return parts


def read_log(path: Path) -> dict[int, dict[str, Any]]:
    """What was logged, by step, over all starts of the run; where a step was run again, its last run.

    The last line of a part may be torn, if the run is writing it or was killed; it is not read.

    Raises:
        LogError: a line before the last of its part is damaged.
    """
    steps: dict[int, dict[str, Any]] = {}
    for part in [*earlier_parts(path), *([path] if path.exists() else [])]:
        lines = _read_part(part)
        last_kept = _last_kept(lines)
        steps = {step: data for step, data in steps.items() if step <= last_kept}
        for step, data in lines:
            steps.setdefault(step, {}).update(data)
    return steps


def _last_kept(lines: list[Line]) -> float:
    """Last step of the earlier parts that a part with these lines has not run again; negative for none."""
    if lines and lines[0][0] == 0:  # validated before training: a new run
        return -1
    # Validation of a checkpoint is logged under the checkpoint's step, whose training is not run again.
    trained = (step for step, data in lines if _is_of_training(data))
    first = next(trained, None)
    if first is None:
        return math.inf
    return first - 1 if first > 1 else -1


def _is_of_training(data: Mapping[str, Any]) -> bool:
    return not all(name.startswith("val-") for name in data)


def _read_part(path: Path) -> list[Line]:
    texts = path.read_text(errors="replace").splitlines()
    lines: list[Line] = []
    for number, text in enumerate(texts, 1):
        try:
            entry = json.loads(text)
            lines.append((entry["step"], dict(entry["data"])))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if number < len(texts):
                message = f"{path}, line {number} is no line of verl's file logger: {text[:60]!r}"
                raise LogError(message) from error
    return lines


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")
