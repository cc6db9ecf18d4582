"""The schedules that are compared: settings of ``algorithm.v05`` by name, and the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.schedules.measures import measures
from benchmarks.schedules.simulation import Fleet, Run, at_once, simulate
from benchmarks.schedules.workload import Workload
from verl_v05.settings import V05Settings


@dataclass(frozen=True)
class Line:
    """Settings, and the share of the step's prompts that they get."""

    settings: dict[str, Any] = field(default_factory=dict)
    prompts: float = 1.0

    def of(self, workload: Workload) -> Workload:
        """Its part of a step."""
        return workload.first(max(1, round(self.prompts * len(workload.tokens))))


REFERENCE = "fixed 16"
LINES = {
    "fixed 4": Line({"schedule": "fixed"}),
    "fixed 8": Line({"schedule": "fixed", "k_init": 8}),
    REFERENCE: Line({"schedule": "fixed", "k_init": 16}),
    "fixed 16, a quarter of the prompts": Line({"schedule": "fixed", "k_init": 16}, prompts=0.25),
    "rounds, step 2 (the paper's)": Line(),
    "rounds, to target": Line({"step": "to_target"}),
    "rounds, step 2, no halt": Line({"halt_share": 0.0}),
    "rounds, to target, no halt": Line({"halt_share": 0.0, "step": "to_target"}),
    "streaming, step 2": Line({"schedule": "streaming"}),
    "streaming, to target": Line({"schedule": "streaming", "step": "to_target"}),
    "streaming, to target, posterior": Line(
        {"schedule": "streaming", "step": "to_target", "fusion": "empirical_bayes", "allocation": "posterior"}
    ),
}
SCALED = (
    "fixed 4",
    REFERENCE,
    "rounds, step 2 (the paper's)",
    "rounds, step 2, no halt",
    "rounds, to target, no halt",
    "streaming, step 2",
    "streaming, to target",
)


def compare(
    workload: Workload, past: Workload, fleet: Fleet, names: Iterable[str], seed: int
) -> tuple[pd.DataFrame, dict[str, Run]]:
    """A row of measures for each line, and its run.

    ``makespan_ratio``, ``rollouts_ratio`` and ``tokens_ratio`` are over ``REFERENCE``, which must be among the
    names; ``over_at_once`` is the makespan over that of the very same rollouts, all dispatched at the start.
    """
    rows, runs = [], {}
    for name in names:
        line = LINES[name]
        part = line.of(workload)
        run = runs[name] = simulate(part, V05Settings(**line.settings), fleet, past, seed)
        same = at_once(part, run.rollouts(len(part.tokens)), fleet, seed) if len(run.tokens) > _first(run) else run
        rows.append({"line": name, **measures(run), "over_at_once": run.makespan / same.makespan})
    table = pd.DataFrame(rows).set_index("line")
    for column in ("makespan", "rollouts", "tokens"):
        table[f"{column}_ratio"] = table[column] / table.loc[REFERENCE, column]
    return table, runs


def _first(run: Run) -> int:
    """Rollouts that were dispatched at the start."""
    prompts, counts = np.unique(run.prompt, return_counts=True)
    return len(prompts) * counts.min()
