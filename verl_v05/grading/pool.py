"""Grading in worker processes with a hard time limit."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Self

from verl_v05.grading.answer import final_answer, gold_text
from verl_v05.grading.verdict import NO_ANSWER, Verdict, quick_verdict

# Address space of a worker: sympy takes 0.4 GB of it, a power tower would take all there is.
MEMORY_BYTES = 4 << 30


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
        self._workers, self._timeout_s = workers, timeout_s
        self._tasks: queue.SimpleQueue[tuple[str, str, Future[Verdict]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
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
        answer = final_answer(response)
        future: Future[Verdict] = Future()
        if answer is None:
            future.set_result(NO_ANSWER)
            return future
        if (verdict := quick_verdict(answer, ground_truth)) is not None:
            future.set_result(verdict)
            return future
        with self._lock:
            if self._closed:
                raise RuntimeError("the grading pool is closed; make a new one")
            if len(self._threads) < self._workers:
                self._threads.append(threading.Thread(target=self._serve, daemon=True, name="grading"))
                self._threads[-1].start()
            self._tasks.put((answer, gold_text(ground_truth), future))
        return future

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, ground truth) pairs, in their order."""
        return [future.result() for future in [self.submit(*pair) for pair in pairs]]

    def close(self) -> None:
        """Finish what is running, cancel what waits, end the processes. More calls do nothing."""
        with self._lock:
            self._closed = True
        with contextlib.suppress(queue.Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[2].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            worker: Worker | None = None
            while (task := self._tasks.get()) is not None:
                answer, ground_truth, future = task
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    worker = worker or stack.enter_context(Worker(self._timeout_s))
                    verdict = worker.compare(answer, ground_truth)
                except Exception as error:
                    future.set_exception(error)
                    continue
                if not worker.alive:
                    stack.close()
                    worker = None
                future.set_result(verdict)


class Worker:
    """One process of `verl_v05.grading.worker`; not for several threads at once.

    A fresh interpreter rather than a fork: the parent has threads, and perhaps Ray and a GPU.
    """

    def __init__(self, timeout_s: float) -> None:
        self.alive = True
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verl_v05.grading.worker", str(timeout_s), str(MEMORY_BYTES)],
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
            self.__exit__()
            raise RuntimeError(
                f"a grading worker ended with code {self._process.returncode} before it was ready; "
                "its message is above; try `python -m verl_v05.grading.worker 5 4294967296`"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def compare(self, answer: str, ground_truth: str) -> Verdict:
        """The verdict, "timeout" or "error" if the process died of it (it is not `alive` then)."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps([answer, ground_truth]) + "\n")
            self._requests.flush()
        if line := self._verdicts.readline():
            return Verdict(*json.loads(line))
        self.alive = False
        overrun = -self._process.wait() in (signal.SIGPROF, signal.SIGALRM)
        return Verdict(False, answer, "timeout" if overrun else "error")
