"""Runs one stage as a child process, with a time limit, a log file, and the GPU memory it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "VERL_V05_CHECK_GPU"  # in the environment of a stage's processes, so that detached ones are found too
TAIL_LINES = 12
POLL_S = 1.0
ERROR = re.compile(r"Error\b|error:|Exception\b|verl-v05:")


@dataclass
class Outcome:
    """How a child process ended."""

    code: int | None  # None: it ran into its limit
    seconds: float
    first_errors: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)
    memory_mib: dict[str, int] = field(default_factory=dict)  # peak on the GPU, by the name of the process


def run_child(command: Sequence[str], environment: Mapping[str, str], limit_s: float, log: Path) -> Outcome:
    """Run a command with its output in ``log``, and kill it with all its descendants at the end or the limit.

    Args:
        command: program and arguments.
        environment: added to this process's.
        limit_s: seconds until it is killed.
        log: file, overwritten.
    """
    mark = uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    started, peaks = time.monotonic(), dict[str, int]()
    with log.open("wb") as out:
        env = {**os.environ, **environment, MARK: mark}
        child = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = _wait(child, started + limit_s, peaks)
        finally:
            _kill_marked(mark)
            child.wait()
    lines = log.read_text(errors="replace").splitlines()
    outcome = Outcome(code, time.monotonic() - started, memory_mib=peaks)
    if code != 0:
        # Ray repeats an error many times: the first ones tell more than the last.
        outcome.first_errors = [line[:300] for line in lines if ERROR.search(line)][:3]
        outcome.last_lines = [line[:300] for line in lines[-TAIL_LINES:]]
    return outcome


def gpu_memory() -> dict[str, int]:
    """MiB that processes hold on all GPUs, by their names; empty without nvidia-smi."""
    found: dict[str, int] = {}
    for pid, mib in _query("compute-apps", "pid,used_memory"):
        if not (pid.isdigit() and mib.isdigit()):
            continue
        try:
            # Ray and sglang put their role into the first word of the command line.
            words = psutil.Process(int(pid)).cmdline()
        except psutil.Error:
            words = []
        name = Path(words[0]).name[:40] if words else "another process"
        found[name] = found.get(name, 0) + int(mib)
    if total := sum(int(mib) for (mib,) in _query("gpu", "memory.used") if mib.isdigit()):
        found["all"] = total
    return found


def gpus() -> list[str]:
    """Name, memory and driver of each GPU; empty without a driver."""
    return [", ".join(row) for row in _query("gpu", "name,memory.total,driver_version")]


def _wait(child: subprocess.Popen, deadline: float, peaks: dict[str, int]) -> int | None:
    while (code := child.poll()) is None:
        if time.monotonic() > deadline:
            return None
        for name, mib in gpu_memory().items():
            peaks[name] = max(mib, peaks.get(name, 0))
        try:
            child.wait(min(POLL_S, max(deadline - time.monotonic(), 0.01)))
        except subprocess.TimeoutExpired:
            continue
    return code


def _kill_marked(mark: str) -> None:
    """Kill the stage's processes, those of Ray and sglang included, which leave its session."""
    for _ in range(3):  # a process may start another while the list is read
        marked = [process for process in psutil.process_iter() if _has_mark(process, mark)]
        if not marked:
            return
        for process in marked:
            try:
                process.kill()
            except psutil.Error:
                pass
        psutil.wait_procs(marked, timeout=10)


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _query(kind: str, columns: str) -> list[tuple[str, ...]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-{kind}={columns}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [tuple(cell.strip() for cell in line.split(",")) for line in done.stdout.splitlines()] * (
        not done.returncode
    )
