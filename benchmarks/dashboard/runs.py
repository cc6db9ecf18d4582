"""Training runs read from their folders: metrics by step, with what they cost so far."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.dashboard.methods import ConfigError, Setup, read_setup
from verl_v05.trainer.cost import DISCARDED
from verl_v05.trainer.log_parts import LogError, read_log

ROLLOUTS, TOKENS, SECONDS = (f"v05/total/{name}" for name in ("rollouts", "response_tokens", "seconds"))
ACCURACY = re.compile(r"^val-core/(?P<source>.+)/(?:acc|reward)/mean@\d+$")
MEAN_SOURCE = "mean of benchmarks"

STEP_SECONDS = "timing_s/step"
CONFIGS = ("hydra/.hydra/config.yaml", ".hydra/config.yaml")
ARGUMENT = re.compile(r"^(?:(?P<label>[^=@]*)(?:@(?P<seed>\d+))?=)?(?P<folder>.+)$")


class RunError(ValueError):
    """A run cannot be compared; the message names its folder, what is wrong and the next step."""


@dataclass(frozen=True)
class Run:
    """One finished or running run.

    Attributes:
        frame: one row a step, indexed by step, verl's metric names as columns; always has the cumulative
            ``v05/total/rollouts``, ``v05/total/response_tokens`` and ``v05/total/seconds``.
    """

    name: str
    method: str
    seed: int
    setup: Setup
    frame: pd.DataFrame

    @cached_property
    def accuracy(self) -> dict[str, pd.Series]:
        """Validation accuracy in [0, 1] by benchmark, at the steps where it was measured.

        With several benchmarks, their plain mean comes first, at the steps where all were measured.
        """
        matches = [(ACCURACY.match(column), column) for column in self.frame]
        columns = {match["source"]: self.frame[column] for match, column in matches if match}
        if len(columns) > 1:
            mean = pd.concat(columns.values(), axis=1).mean(axis=1, skipna=False)
            columns = {MEAN_SOURCE: mean, **columns}
        return {source: series.dropna() for source, series in columns.items()}

    @property
    def steps(self) -> int:
        """Training steps done."""
        return int(self.frame.index.max())

    def metric(self, name: str) -> pd.Series:
        """A metric at the steps that have it; empty where the run does not log it."""
        return self.frame[name].dropna() if name in self.frame else pd.Series(dtype=float)


@dataclass(frozen=True)
class Comparison:
    """The runs that could be read, and why the others could not."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...] = ()

    @property
    def by_method(self) -> dict[str, list[Run]]:
        """Runs of each method, by seed."""
        groups: dict[str, list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            groups.setdefault(run.method, []).append(run)
        return groups

    @property
    def sources(self) -> list[str]:
        """Benchmarks that any run was validated on; their mean first."""
        return list(dict.fromkeys(source for run in self.runs for source in run.accuracy))


def read_runs(arguments: Sequence[str]) -> Comparison:
    """Read every run; one that cannot be read is left out, with the reason.

    Args:
        arguments: ``DIR``, ``LABEL=DIR`` or ``LABEL@SEED=DIR`` each.

    Raises:
        RunError: no run is left, or two runs have the same method and seed.
    """
    runs, left_out = [], []
    for argument in arguments:
        try:
            runs.append(read_argument(argument))
        except (RunError, ConfigError) as error:
            left_out.append(str(error))
    if not runs:
        raise RunError("\n".join(["no run to compare:", *left_out]))
    _check_distinct(runs)
    return Comparison(tuple(runs), tuple(left_out))


def read_argument(argument: str) -> Run:
    """Read the run of one command line argument; a folder of that very name wins over ``LABEL=DIR``."""
    if Path(argument).is_dir():
        return read_run(Path(argument))
    match = ARGUMENT.match(argument)
    seed = match["seed"]
    return read_run(Path(match["folder"]), match["label"] or None, None if seed is None else int(seed))


def read_run(folder: Path, label: str | None = None, seed: int | None = None) -> Run:
    """Read ``metrics.jsonl`` and hydra's config; ``label`` and ``seed`` replace those of the config.

    Raises:
        RunError: a file is missing, unreadable or without a training step.
        ConfigError: the config lacks what the comparison needs.
    """
    config = next((folder / name for name in CONFIGS if (folder / name).exists()), None)
    if config is None:
        raise RunError(f"{folder} has none of {', '.join(CONFIGS)}: give the folder of one training run")
    setup = read_setup(config)
    frame = read_metrics(folder / "metrics.jsonl")
    used_seed = next((s for s in (seed, setup.seed) if s is not None), 0)
    return Run(folder.resolve().name, label or setup.label, used_seed, setup, with_totals(frame, setup))


def read_metrics(path: Path) -> pd.DataFrame:
    """verl's file log, over all starts of the run, as one row a step; a torn last line is not read.

    Raises:
        RunError: the file is missing, has no training step, or a line before the last is not JSON.
    """
    try:
        logged = read_log(path)
    except LogError as error:
        raise RunError(str(error)) from error
    if not logged and not path.exists():
        raise RunError(f"{path} is missing: the run has logged nothing yet, or trainer.logger lacks 'file'")
    rows = {
        step: {name: float(value) for name, value in data.items() if _is_number(value)} for step, data in logged.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    if STEP_SECONDS not in frame and ROLLOUTS not in frame:
        raise RunError(f"{path} has no training step yet ({len(rows)} steps logged): see its train.log")
    return frame


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def with_totals(frame: pd.DataFrame, setup: Setup) -> pd.DataFrame:
    """The frame with the cumulative cost columns; those the run logged itself are kept.

    A log without them costs, a step, the rollouts of its prompts and of those that group filtering threw away (or
    V0.5's own count), and as many times the mean response length; filtered responses are taken to be as long.
    """
    trained = frame[STEP_SECONDS].notna() if STEP_SECONDS in frame else frame[ROLLOUTS].notna()
    discarded = sum(_column(frame, name) for name in DISCARDED)
    fixed = trained * (setup.prompts + discarded) * setup.group
    rollouts = _column(frame, "v05/rollouts/spent") if "v05/rollouts/spent" in frame else fixed
    tokens = rollouts * _column(frame, "response_length/mean")
    per_step = {ROLLOUTS: rollouts, TOKENS: tokens, SECONDS: _column(frame, STEP_SECONDS)}
    logged = {name: frame[name].ffill().fillna(0.0) for name in per_step if name in frame}
    return frame.assign(**{name: series.cumsum() for name, series in per_step.items()} | logged)


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name].fillna(0.0) if name in frame else pd.Series(0.0, frame.index)


def _check_distinct(runs: Iterable[Run]) -> None:
    counts = Counter((run.method, run.seed) for run in runs)
    for (method, seed), count in counts.items():
        if count > 1:
            names = ", ".join(run.name for run in runs if (run.method, run.seed) == (method, seed))
            raise RunError(f"{count} runs of {method!r} with seed {seed}: {names}; tell them apart as LABEL@SEED=DIR")
