"""A finished or running training run, read from verl's file logger."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from verl_v05.trainer.log_parts import read_log

ACCURACY = re.compile(r"^val-core/.*/acc/mean@\d+$")


@dataclass(frozen=True)
class Run:
    """Metrics by step. ``frame`` is indexed by step and holds verl's metric names as columns."""

    frame: pd.DataFrame

    @property
    def accuracy(self) -> pd.Series:
        """Validation accuracy in [0, 1] at the steps where it was measured; empty before the first."""
        columns = [name for name in self.frame if ACCURACY.match(name)]
        return self.frame[columns[0]].dropna() if columns else pd.Series(dtype=float)

    @property
    def rollouts(self) -> pd.Series:
        """Training rollouts spent up to and including each step."""
        return self._total("rollouts")

    @property
    def tokens(self) -> pd.Series:
        """Response tokens generated for training up to and including each step."""
        return self._total("response_tokens")

    @property
    def prompts(self) -> int:
        """Prompts a V0.5 run has trained on, a prompt counting once a step."""
        counts = self.frame.filter(like="v05/k/prompts_with_").drop(columns="v05/k/prompts_with_0", errors="ignore")
        return int(counts.sum(axis=None))

    @property
    def steps(self) -> int:
        """Training steps done."""
        return int(self.frame.index.max())

    def _total(self, name: str) -> pd.Series:
        return self.frame.get(f"v05/total/{name}", pd.Series(0.0, self.frame.index)).ffill().fillna(0)


def read_run(path: Path) -> Run:
    """Read ``metrics.jsonl``, and what earlier starts of the run logged beside it.

    Raises:
        FileNotFoundError: the run has logged nothing.
    """
    rows = read_log(path)
    if not rows:
        raise FileNotFoundError(f"{path} is empty: the run ended before its first validation; see its train.log")
    return Run(pd.DataFrame.from_dict(rows, orient="index").sort_index())
