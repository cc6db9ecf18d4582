"""What a machine does to a run: no memory, no disk, another time of day, an end of the driver alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Start
from tests.faults.statement import Limit, fault
from tests.faults.training_run import GONE_S, TrainingRun
from tests.mounts import tmpfs
from verl_v05.trainer.checkpoint import FILE, load_state
from verl_v05.trainer.log_parts import read_log
from verl_v05.trainer.watch import LAST_WORDS

pytestmark = [pytest.mark.slow, pytest.mark.faults]

MEMORY = Path("/sys/fs/cgroup/memory")

# Read by every Python of a run when it starts: seconds that its clock is to be wrong by, and who has noticed.
JUMPING_CLOCK = """
import os, time

folder, clock, known = os.environ["JUMPING_CLOCK"], time.time, [0.0]

def jumping():
    with open(f"{folder}/seconds") as file:
        seconds = float(file.read())
    if seconds != known[0]:
        known[0] = seconds
        with open(f"{folder}/noticed", "a") as file:
            file.write(f"{os.getpid()} {seconds}\\n")
    return clock() + seconds

time.time = jumping
"""


@contextmanager
def no_more_memory(pid: int, mebibytes: int) -> Iterator[Path]:
    """A control group that a process may allocate this much more in."""
    if not (MEMORY / "memory.limit_in_bytes").exists() or not os.access(MEMORY, os.W_OK):
        pytest.skip("needs to make a control group of version 1 for memory")
    group = MEMORY / f"v05_fault_{pid}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(mebibytes * 2**20))
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (MEMORY / "cgroup.procs").write_text(left)
        group.rmdir()


@fault("the kernel kills a rank of the policy that is out of memory", do="give it more memory, or less to hold")
def test_a_process_out_of_memory_ends_the_run_by_name(start: Start, limit: Limit) -> None:
    run = start()
    rank = run.find("ray::WorkerDict")
    with no_more_memory(rank.pid, 2) as group:
        rank.wait(60)
        with limit:
            assert run.ended() != 0
        assert "oom_kill 1" in (group / "memory.oom_control").read_text()
    words = (run.out / "checkpoints" / LAST_WORDS).read_text()
    assert f"process {rank.pid} " in words and "has died" in words


@fault(
    "the clock jumps, a day ahead and then two back",
    happens="the run goes on, and measures its steps' seconds as before",
    do="nothing",
)
def test_a_jump_of_the_clock_changes_nothing(start: Start, tmp_path: Path, limit: Limit) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    (tmp_path / "seconds").write_text("0")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = start(environment={"PYTHONPATH": path, "JUMPING_CLOCK": str(tmp_path)})
    trainer = run.find("ray::TaskRunner").pid
    for day in (1, -1):
        (tmp_path / "next").write_text(str(day * 86400.0))
        (tmp_path / "next").replace(tmp_path / "seconds")
        with limit:
            run.wait_for_step(run.steps() + 3)
    noticed = (tmp_path / "noticed").read_text().split("\n")
    assert {f"{trainer} 86400.0", f"{trainer} -86400.0"} <= set(noticed)
    log = read_log(run.out / "metrics.jsonl")
    seconds = [log[step]["timing_s/step"] for step in sorted(log)]
    assert len(seconds) >= 6 and all(0 < s < 60 for s in seconds)


@fault(
    "the disk is full while a checkpoint is saved",
    happens="the run ends and says so; the torn folder is removed, earlier ones are whole",
    do="free some space and start it again: it resumes from the last whole checkpoint",
)
def test_a_full_disk_ends_the_run_and_leaves_whole_checkpoints(task: Path, tmp_path: Path, limit: Limit) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    saving = ["trainer.save_freq=1", "trainer.resume_mode=auto", "trainer.total_training_steps=3"]
    with tmpfs(checkpoints, "size=6m") as problem:  # a checkpoint has 3.7
        if problem:
            pytest.skip(problem)
        run = TrainingRun(task, tmp_path / "run", saving)
        try:
            run.wait_for_step(1)
            with limit:
                assert run.ended() != 0
            assert "the disk is full" in run.tail() and "global_step_2" in run.tail()
            assert sorted(path.name for path in checkpoints.glob("global_step_*")) == ["global_step_1"]
            assert load_state(checkpoints / "global_step_1").keys() >= {"allocator", "cost"}

            subprocess.run(["mount", "-o", "remount,size=64m", str(checkpoints)], check=True)
            run = TrainingRun(task, tmp_path / "run", saving)
            assert run.ended(300) == 0, run.tail()
        finally:
            run.kill()
        assert (checkpoints / "global_step_3" / FILE).exists()
        assert sorted(read_log(run.out / "metrics.jsonl")) == [1, 2, 3]


@fault(
    "the launch alone is killed (SIGKILL of one process)",
    happens="its processes end, two agents of Ray's after a minute; `/tmp/ray/session_*_PID` (the launch's) and "
    "`/dev/shm/sglang_loads_*` stay",
    do="start it again, at once if you like; `rm -r /tmp/ray/session_*_PID /dev/shm/sglang_loads_*` cleans up",
    within_s=90,
)
def test_a_killed_launch_takes_its_processes_along(task: Path, tmp_path: Path, start: Start, limit: Limit) -> None:
    saving = ["trainer.save_freq=1", "trainer.resume_mode=auto"]
    run = start(*saving)
    processes, loads = run.processes(), set(Path("/dev/shm").glob("sglang_loads_*"))
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    with limit:
        soon = psutil.wait_procs(processes, timeout=GONE_S)[1]
        later = psutil.wait_procs(soon, timeout=limit.within_s)[1]
    assert later == [] and len(soon) <= 2 < len(processes)
    assert all(path.exists() for path in loads) and list(Path("/tmp/ray").glob(f"session_*_{run.process.pid}"))
    steps = run.steps()
    again = TrainingRun(task, run.out, saving)
    try:
        again.wait_for_step(steps + 1)
    finally:
        again.kill()
