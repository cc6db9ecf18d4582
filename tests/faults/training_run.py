"""A demo training in a process group of its own, and the ways to break it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from recipes.demo.training_process import SCRIPT

LIMIT_S = 60  # from a fault to the run's end
START_S = 300
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

    def __init__(self, task: Path, out: Path, overrides: list[str], ignore_quit: bool = False):
        out.mkdir(parents=True)
        self.out, self.log, self.began = out, out / "train.log", time.time()
        environment = {**os.environ, "RAY_ADDRESS": "local"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [str(SCRIPT), "v05_sparse", "0", str(task), str(out), *TINY, *overrides]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
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
        found = []
        for process in psutil.process_iter():
            try:
                if process.create_time() >= self.began and re.search(title, " ".join(process.cmdline())):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        assert found, f"no process {title} in the run:\n{self.tail()}"
        return found

    def wait_for_step(self, step: int) -> None:
        until = time.monotonic() + START_S
        while self.steps() < step:
            assert self.process.poll() is None, self.tail()
            assert time.monotonic() < until, self.tail()
            time.sleep(0.05)

    def steps(self) -> int:
        log = self.out / "metrics.jsonl"
        return len(log.read_bytes().splitlines()) if log.exists() else 0

    def frozen_kill(self, title: str) -> int:
        """Kill a process while its requests wait for the engine; returns its pid."""
        scheduler, victim = self.find(SCHEDULER), self.find(title)
        self.wait_for_step(self.steps() + 1)
        scheduler.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        steps = self.steps()
        victim.kill()
        if victim != scheduler:
            scheduler.send_signal(signal.SIGCONT)
        assert steps == self.steps()  # it died in the middle of a step
        return victim.pid

    def ended(self, limit_s: float = LIMIT_S) -> int:
        """The run's exit code, once it has ended within the limit."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit_s:.0f} s:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
