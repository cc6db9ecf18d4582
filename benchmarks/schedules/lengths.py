"""Lengths of responses: measured ones, separately for right and wrong answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtr

from benchmarks.schedules import ScheduleError

PUBLISHED = Path(__file__).parent / "lengths.json"
LEVELS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Lengths:
    """Quantiles of response lengths in tokens, at equally spaced levels from 0 to 1.

    ``within_prompt`` is the correlation of the lengths of one prompt's responses, as normal scores.
    """

    source: str
    correct: np.ndarray
    wrong: np.ndarray
    longest: int
    within_prompt: float

    def draw(self, correct: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Tokens, in [1, longest], of responses that are ``correct``, (prompts, rollouts)."""
        common = np.sqrt(self.within_prompt) * rng.standard_normal((len(correct), 1))
        level = ndtr(common + np.sqrt(1 - self.within_prompt) * rng.standard_normal(correct.shape))
        tokens = np.where(correct, _at(level, self.correct), _at(level, self.wrong))
        return np.clip(np.rint(tokens), 1, self.longest).astype(int)


def _at(level: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    return np.interp(level, np.linspace(0, 1, len(quantiles)), quantiles)


def published() -> list[str]:
    """Names of the shipped length data."""
    return list(json.loads(PUBLISHED.read_text()))


def load_lengths(name: str, longest: int, within_prompt: float) -> Lengths:
    """Lengths by name, or from a table of responses.

    Args:
        name: one of :func:`published`, or a CSV or parquet file with columns ``tokens`` and, if known, ``correct``.

    Raises:
        ScheduleError: there is neither, or the table lacks what is needed.
    """
    known = json.loads(PUBLISHED.read_text())
    if name in known:
        entry = known[name]
        tables = np.array(entry["correct"], float), np.array(entry["wrong"], float)
        return Lengths(entry["source"], *tables, longest=longest, within_prompt=within_prompt)
    path = Path(name)
    if not path.is_file():
        raise ScheduleError(f"--lengths={name}: no such file, nor one of {', '.join(known)}")
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if "tokens" not in table or table.empty:
        raise ScheduleError(f"--lengths={name}: needs rows with a column 'tokens', has {list(table)}")
    right = table[table.correct.astype(bool)] if "correct" in table else table
    wrong = table[~table.correct.astype(bool)] if "correct" in table else table
    if right.empty or wrong.empty:
        raise ScheduleError(
            f"--lengths={name}: 'correct' needs both kinds of responses; leave the column out otherwise"
        )
    quantiles = (np.quantile(part.tokens, LEVELS) for part in (right, wrong))
    return Lengths(f"{path.name}, {len(table)} responses", *quantiles, longest=longest, within_prompt=within_prompt)
