"""A benchmark's problems: read, drawn, fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.bench import BenchError
from recipes.data.sources import TESTS
from value_model.files import lfs_pointer_problem
from verl_v05.grading.answer import gold_text

BENCHMARKS = tuple(source.name for source in TESTS)


@dataclass(frozen=True)
class Problem:
    """``chat`` is (role, content) pairs as verl's validation sends them; ``gold`` is the published answer."""

    benchmark: str
    id: str
    chat: tuple[tuple[str, str], ...]
    gold: str
    contaminated: bool


def read_benchmark(folder: Path, name: str) -> list[Problem]:
    """The problems of ``folder/name.parquet``, rows in verl's format.

    Raises:
        BenchError: there is no such file, a column is missing, an id occurs twice, or a gold cannot be graded.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in folder.glob("*.parquet"))) or "none"
        raise BenchError(
            f"benchmark {name!r}: no file {path}; benchmarks there: {found}. "
            "Make the data with `python -m recipes.data`, or pass --data and --benchmarks"
        )
    problems = [_read_row(path, name, number, row) for number, row in enumerate(_records(path))]
    ids = [p.id for p in problems]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise BenchError(f"{path}: extra_info.id={twice!r} occurs twice; ids must be unique in a benchmark")
    return problems


def _records(path: Path) -> list[dict[str, Any]]:
    if problem := lfs_pointer_problem(path):
        raise BenchError(problem)
    try:
        rows = pd.read_parquet(path).to_dict("records")
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise BenchError(f"{path}: no parquet file ({error})") from error
    if not rows:
        raise BenchError(f"{path}: no rows")
    return rows


def _read_row(path: Path, benchmark: str, number: int, row: dict[str, Any]) -> Problem:
    try:
        return _problem(benchmark, row)
    except KeyError as error:
        raise BenchError(
            f"{path}: no {error} in a row ({number}, from 0); rows must be in verl's format with extra_info.id"
        ) from error
    except (TypeError, ValueError) as error:
        raise BenchError(f"{path}, row {number} (from 0): {error}; rows must be in verl's format") from error


def _chat(prompt: Any) -> tuple[tuple[str, str], ...]:
    """(role, content) pairs of a row's prompt.

    Raises:
        TypeError: it is no chat. verl does not take a text for one either.
    """
    turns = () if isinstance(prompt, str) or not isinstance(prompt, Iterable) else tuple(prompt)
    good = all(
        isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in turns
    )
    if not turns or not good:
        raise TypeError(
            f"prompt={str(prompt)[:80]!r} is no chat: a list of turns, each with the texts role and content"
        )
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _problem(benchmark: str, row: dict[str, Any]) -> Problem:
    info = row["extra_info"]
    try:
        gold = gold_text(row["reward_model"]["ground_truth"])
    except ValueError as error:
        raise BenchError(f"{benchmark}, problem {info['id']}: its gold cannot be graded: {error}") from None
    return Problem(
        benchmark=benchmark,
        id=str(info["id"]),
        chat=_chat(row["prompt"]),
        gold=gold,
        contaminated=bool(info.get("contaminated", False)),
    )


def draw(problems: Sequence[Problem], count: int | None, seed: int) -> list[Problem]:
    """``count`` problems at random, all if there are fewer or for None, in their order.

    With the same seed a larger count holds all problems of a smaller one.
    """
    if count is None or count >= len(problems):
        return list(problems)
    chosen = np.random.default_rng(seed).permutation(len(problems))[:count]
    return [problems[i] for i in sorted(chosen)]


def digest(problems: Iterable[Problem]) -> dict[str, str]:
    """Fingerprints of what is asked and of what is right: ``{"prompts": ..., "golds": ...}``."""
    prompts, golds = hashlib.sha256(), hashlib.sha256()
    for problem in problems:
        prompts.update(json.dumps([problem.id, problem.chat]).encode())
        golds.update(json.dumps([problem.id, problem.gold]).encode())
    return {"prompts": prompts.hexdigest()[:16], "golds": golds.hexdigest()[:16]}
