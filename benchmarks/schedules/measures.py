"""Measures of a run, as pure functions of its times."""

from __future__ import annotations

import numpy as np

from benchmarks.schedules.simulation import Run

NEARLY_IDLE = 0.1  # of the slots busy
NEARLY_DONE = 0.95  # of the rollouts


def busy(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(times, requests running from each of them to the next), the last time being the makespan."""
    # At equal times a finish comes before an admission: the slot is free before the next request takes it.
    times = np.concatenate([[0.0], run.finished, run.admitted, [run.makespan]])
    change = np.repeat([0, -1, 1, 0], [1, len(run.finished), len(run.admitted), 1])
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(change[order])


def measures(run: Run) -> dict[str, float]:
    """Seconds, counts and shares in [0, 1].

    slots: mean share of the slots that are busy; rate: tokens, as a share of what full slots would have made;
    idle: share of the makespan with fewer than a tenth of the slots busy; tail: from 95 % of the rollouts done to
    the end, as a share of the makespan.
    """
    speed, engines = run.fleet.speed, run.fleet.engines
    times, running = busy(run)
    idle = np.diff(times)[running[:-1] < NEARLY_IDLE * speed.slots * engines].sum()
    return {
        "makespan": run.makespan,
        "rollouts": len(run.tokens),
        "tokens": int(run.tokens.sum()),
        "slots": float((run.finished - run.admitted).sum() / (run.makespan * speed.slots * engines)),
        "rate": float(run.tokens.sum() / (run.makespan * speed.peak * engines)),
        "idle": float(idle / run.makespan),
        "tail": float(1 - np.quantile(run.finished, NEARLY_DONE) / run.makespan),
    }
