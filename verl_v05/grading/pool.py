"""Grading in worker processes with a hard time limit."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from verl_v05.grading.verdict import Verdict, quick_verdict


class GradingPool:
    """Grades responses in any thread, each comparison within `timeout_s` of CPU time.

    Plain numbers and answers spelt as the gold are graded by the caller itself; the rest goes to processes, which the
    first of them starts. A process that hangs or dies costs its own answer only and is replaced.

    Args:
        workers: number of processes.
        timeout_s: seconds of CPU time for one comparison, and ten times as many by the clock.

    Raises:
        ValueError: not at least one worker, or no positive time.
    """

    def __init__(self, workers: int = 2, timeout_s: float = 5.0) -> None:
        if workers < 1 or not timeout_s > 0:
            raise ValueError(f"workers={workers}, timeout_s={timeout_s}: needs workers >= 1 and timeout_s > 0")
        self._timeout_s = timeout_s
        # A thread waits for each process; the executor has the queue.
        self._executor = ThreadPoolExecutor(workers, "grading")
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)  # a process that the first answer to need it starts
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, response: str, ground_truth: str) -> "Future[Verdict]":
        """Grade one response.

        Raises:
            RuntimeError: the pool is closed.
        """
        found = quick_verdict(response, ground_truth)
        if not isinstance(found, Verdict):
            if self._closed:
                raise RuntimeError("the grading pool is closed; make a new one")
            return self._executor.submit(self._compare, *found)
        future: Future[Verdict] = Future()
        future.set_result(found)
        return future

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, ground truth) pairs, in their order."""
        return [future.result() for future in [self.submit(*pair) for pair in pairs]]

    def close(self) -> None:
        """Finish what is running, cancel what waits, end the processes. More calls do nothing."""
        self._closed = True
        self._executor.shutdown(cancel_futures=True)
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.kill()

    def _compare(self, answer: str, gold: str) -> Verdict:
        worker = self._idle.get()
        try:
            worker = worker or Worker(self._timeout_s)
            return worker.compare(answer, gold)
        finally:
            self._idle.put(worker if worker and worker.alive else None)


class Worker:
    """One process of `verl_v05.grading.worker`; not for several threads at once.

    A fresh interpreter rather than a fork: the parent has threads, and perhaps Ray and a GPU.

    Raises:
        RuntimeError: the process ended before it was ready.
    """

    def __init__(self, timeout_s: float) -> None:
        self.alive = True
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verl_v05.grading.worker", str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A keyboard interrupt is the parent's business.
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin and self._process.stdout  # both were asked for
        self._requests, self._verdicts = self._process.stdin, self._process.stdout
        if self._verdicts.readline() != "ready\n":
            self.kill()
            raise RuntimeError(
                f"a grading worker ended with code {self._process.returncode} before it was ready; "
                "its message is above; try `python -m verl_v05.grading.worker 5`"
            )

    def compare(self, answer: str, gold: str) -> Verdict:
        """The verdict, "timeout" or "error" if the process died of it (it is not `alive` then)."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps([answer, gold]) + "\n")
            self._requests.flush()
        if line := self._verdicts.readline():
            return Verdict(*json.loads(line))
        self.alive = False
        overrun = -self._process.wait() in (signal.SIGPROF, signal.SIGALRM)
        self.kill()
        return Verdict(False, answer, "timeout" if overrun else "error")

    def kill(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        self._process.communicate()
