"""A run that is killed ten times and resumed leaves behind what an unbroken run does, but for the engine's sampling."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from tests.faults.statement import Limit, fault
from tests.faults.training_run import TrainingRun
from verl_v05.trainer.checkpoint import FILE, TRACKER, load_state, tracked_folder
from verl_v05.trainer.log_parts import earlier_parts, read_log

pytestmark = [pytest.mark.slow, pytest.mark.faults]

STEPS = 23
TO_A_STEP_S = 150
SMALL = [
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "algorithm.v05.max_rollouts_per_step=null",
    "trainer.save_freq=1",
    "trainer.resume_mode=auto",
    f"trainer.total_training_steps={STEPS}",
]
# Of one process: seconds of a phase, and what verl makes of them.
OF_TIME = ("timing_", "perf/")
STARTING, TRAINING, SAVING, SAVED = "starting", "training", "saving", "saved, not logged"


def moments(seed: int) -> list[tuple[str, float]]:
    """Phases of a run to kill it in, and how long after it was seen to be there."""
    draw = random.Random(seed)
    phases = [(STARTING, 20.0), *[(TRAINING, 2.0)] * 3, *[(SAVING, 0.15)] * 4, *[(SAVED, 0.05)] * 2]
    draw.shuffle(phases)
    return [(phase, draw.uniform(0, at_most)) for phase, at_most in phases]


def wait_for(run: TrainingRun, phase: str) -> list[psutil.Process]:
    """Until a run that has resumed has trained a step and is in the phase; its processes."""
    if phase == STARTING:
        return []
    run.wait_for_step(run.steps() + 1)
    processes, step = run.processes(), run.steps() + 1
    checkpoints = run.out / "checkpoints"
    seen: dict[str, Callable[[], bool]] = {
        TRAINING: lambda: True,
        SAVING: (checkpoints / f"global_step_{step}").exists,
        SAVED: lambda: (checkpoints / TRACKER).read_text() == str(step),
    }
    until = time.monotonic() + TO_A_STEP_S
    while not seen[phase]():
        assert run.process.poll() is None and time.monotonic() < until, run.tail()
        time.sleep(0.002)
    return processes


@fault(
    "the run is killed, ten times: at its start, in steps, while saving, between saving and logging",
    happens="it resumes; each step is logged once, prompts, totals, records and trajectories are an unbroken run's",
    do="start it again (`trainer.resume_mode=auto`); the steps since the last checkpoint are run again",
    within_s=150,
)
def test_a_run_killed_ten_times_is_whole(task: Path, tmp_path: Path, limit: Limit) -> None:
    unbroken = TrainingRun(task, tmp_path / "unbroken", SMALL, method="v05")
    try:
        assert unbroken.ended(TO_A_STEP_S) == 0, unbroken.tail()
    finally:
        unbroken.kill()

    found = []  # (phase, the step that was logged last, the one that was saved last)
    out = tmp_path / "killed"
    for phase, seconds in moments(15):
        run = TrainingRun(task, out, SMALL, method="v05")
        processes: list[psutil.Process] = []
        try:
            with limit:  # until a step after the resumption
                processes = wait_for(run, phase)
            time.sleep(seconds)
            assert run.process.poll() is None, run.tail()
        finally:
            run.kill(processes)
        saved = tracked_folder(out / "checkpoints")
        found.append((phase, run.steps(), int(saved.name.rpartition("_")[2]) if saved else 0))
    last = TrainingRun(task, out, SMALL, method="v05")
    try:
        assert last.ended(TO_A_STEP_S) == 0, last.tail()
    finally:
        last.kill()

    # The kills came where they were to: also between the two files that say that a step is over.
    assert any(saved == logged + 1 for phase, logged, saved in found if phase == SAVED), found
    assert any(saved == logged for phase, logged, saved in found if phase == SAVING), found
    check_log(tmp_path / "unbroken", out)
    check_rollouts(tmp_path / "unbroken", out)
    check_checkpoints(tmp_path / "unbroken", out)
    torn = [path for path in out.rglob("*") if path.name.endswith(".partial")]
    assert torn == []


def check_log(unbroken: Path, killed: Path) -> None:
    """Each step once and in order, over all starts, with the metrics of an unbroken run."""
    log = killed / "metrics.jsonl"
    lines = [line for part in [*earlier_parts(log), log] for line in part.read_text().splitlines()]
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    before, after = (read_log(out / "metrics.jsonl") for out in (unbroken, killed))
    for step in range(1, STEPS + 1):
        names = [
            {name for name, value in log[step].items() if value is not None and not name.startswith(OF_TIME)}
            for log in (before, after)
        ]
        assert names[0] == names[1], f"step {step}"
    totals = pd.DataFrame.from_dict(after, orient="index").filter(like="v05/total/")
    assert (totals.diff().iloc[1:] > 0).all(axis=None)


def check_rollouts(unbroken: Path, killed: Path) -> None:
    """The same prompts in each step; records, trajectories and the log say the same of them."""
    log = read_log(killed / "metrics.jsonl")
    spent = 0
    for step in range(1, STEPS + 1):
        before, after = (pd.read_parquet(out / "record" / f"step_{step}.parquet") for out in (unbroken, killed))
        assert sorted(before["prompt_id"]) == sorted(after["prompt_id"])
        spent += after["spent"].sum()
        assert log[step]["v05/total/rollouts"] == spent
        trajectories = pd.read_parquet(killed / "checkpoints" / "trajectories" / f"step_{step}.parquet")
        assert dict(zip(trajectories["prompt_id"], trajectories["n"], strict=True)) == measured(after)
        np.testing.assert_allclose(log[step]["v05/rollouts/spent"], after["spent"].sum())
    for folder in "record", "checkpoints/trajectories":
        assert sorted(path.name for path in (killed / folder).iterdir()) == sorted(
            f"step_{step}.parquet" for step in range(1, STEPS + 1)
        )


def measured(record: pd.DataFrame) -> dict[str, int]:
    return record.groupby("prompt_id")["k"].sum().to_dict()


def check_checkpoints(unbroken: Path, killed: Path) -> None:
    """Each whole, and the last one's state made of all steps."""
    for step in range(1, STEPS + 1):
        folders = [out / "checkpoints" / f"global_step_{step}" for out in (unbroken, killed)]
        files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in folders]
        assert files[0] == files[1] and FILE in files[1]
        for path in folders[1].rglob("*.pt"):
            torch.load(path, weights_only=False)
        load_state(folders[1])
    states = [load_state(out / "checkpoints" / f"global_step_{STEPS}") for out in (unbroken, killed)]
    support = [{entry["prompt_id"] for entry in state["allocator"]["support"]} for state in states]
    assert support[0] == support[1]
    records = pd.concat(pd.read_parquet(path) for path in (killed / "record").iterdir())
    assert states[1]["allocator"]["prior"]["rollouts_seen"] == records["k"].sum()
    assert states[1]["cost"]["rollouts"] == records["spent"].sum()
