"""A demo training in a process group of its own, and the ways to break it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

from recipes.demo.training_process import SCRIPT
from verl_v05.trainer.log_parts import read_log

LIMIT_S = 60  # from a fault to the run's end
START_S = 300
TITLE_S = 5  # Ray writes a new title for each task, and one that is being written reads as none
GONE_S = 15  # from a kill of the launch to the end of its other processes
SCHEDULER, SERVER = "the engine's scheduler", r"warm_python\.py serve"
TINY = [
    "data.train_batch_size=32",
    "algorithm.v05.max_rollouts_per_step=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.total_training_steps=200",
]


class TrainingRun:
    """A demo training in a process group of its own."""

    def __init__(
        self,
        task: Path,
        out: Path,
        overrides: Sequence[str],
        method: str = "v05_sparse",
        ignore_quit: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.log, self.began = out, out / "train.log", time.time()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = [str(SCRIPT), method, "0", str(task), str(out), *TINY, *overrides]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RAY_ADDRESS": "local", "PATH": path, **environment},
                start_new_session=True,
                preexec_fn=(lambda: signal.signal(signal.SIGQUIT, signal.SIG_IGN)) if ignore_quit else None,
            )

    def find(self, title: str) -> psutil.Process:
        """A process of the run by its title. Ray's are no children of the launch."""
        if title == SCHEDULER:
            # Forks of the demo's start-up server have its title. Of the engine's two this is the one with the model.
            forks = [p for p in self._titled(SERVER) if re.search(SERVER, " ".join(p.parent().cmdline()))]
            return max(forks, key=lambda fork: fork.memory_info().rss)
        return self._titled(title)[0]

    def _titled(self, title: str) -> list[psutil.Process]:
        until = time.monotonic() + TITLE_S
        while not (found := [process for process in psutil.process_iter() if self._has_title(process, title)]):
            assert time.monotonic() < until, f"no process {title} in the run:\n{self.tail()}"
        return found

    def _has_title(self, process: psutil.Process, title: str) -> bool:
        try:
            return process.create_time() >= self.began and bool(re.search(title, " ".join(process.cmdline())))
        except psutil.NoSuchProcess:
            return False

    def wait_for_step(self, step: int) -> None:
        until = time.monotonic() + START_S
        while self.steps() < step:
            assert self.process.poll() is None, self.tail()
            assert time.monotonic() < until, self.tail()
            time.sleep(0.05)

    def steps(self) -> int:
        """The last step that was logged, by this start of the run or an earlier one."""
        return max(read_log(self.out / "metrics.jsonl"), default=0)

    def frozen_kill(self, title: str) -> int:
        """Kill a process while its requests wait for the engine; returns its pid."""
        victim = self.find(title)
        with self.frozen():
            victim.kill()
        return victim.pid

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The block runs in the middle of a step, whose requests wait for the engine."""
        scheduler = self.find(SCHEDULER)
        self.wait_for_step(self.steps() + 1)
        scheduler.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        steps = self.steps()
        yield
        if scheduler.is_running():
            scheduler.send_signal(signal.SIGCONT)
        assert steps == self.steps()

    def ended(self, limit_s: float = LIMIT_S) -> int:
        """The run's exit code, once it has ended within the limit."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit_s:.0f} s:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def processes(self) -> list[psutil.Process]:
        """All that there are while the launch is."""
        launch = psutil.Process(self.process.pid)
        return [launch, *launch.children(recursive=True)]

    def kill(self, processes: Sequence[psutil.Process] = ()) -> None:
        """Kill the process group of the run at once, and all these; its other processes end with it, or are killed."""
        if self.process.poll() is not None:
            return
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        processes = processes or self.processes()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for process in psutil.wait_procs(processes, timeout=GONE_S)[1]:
            process.kill()
