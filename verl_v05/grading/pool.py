"""Verdicts on responses, in this process or in worker processes with a hard time limit.

A worker reads one JSON request a line and writes one verdict a line. The kernel's timers kill it when a comparison
overruns, whatever sympy is doing and even if its parent is gone.
"""

import contextlib
import json
import os
import queue
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

from verl_v05.grading.answer import final_answer, gold_text
from verl_v05.grading.latex import UnparsedError
from verl_v05.grading.number import quickly

# Not `-m`: this module is loaded by its package, and would be loaded a second time.
COMMAND = "from verl_v05.grading.pool import serve; serve({})"
# Address space: sympy takes 0.4 GB of it, a power tower would take all there is.
MEMORY_BYTES = 4 << 30
# By CPU time, which does not depend on how busy the machine is, and ten times as long by the clock.
LIMITS = {signal.SIGPROF: (signal.ITIMER_PROF, 1), signal.SIGALRM: (signal.ITIMER_REAL, 10)}


class Verdict(NamedTuple):
    """Whether a response is right, its answer as written, and why no comparison could be made, if none was."""

    correct: bool
    answer: str | None
    failure: Literal["no_answer", "unparsed", "timeout", "error"] | None = None


def grade(response: str, ground_truth: str) -> Verdict:
    """Grade a response against a gold as published, in this process and without a time limit. It never raises."""
    found = _quickly_graded(response, ground_truth)
    return found if isinstance(found, Verdict) else _compare(*found)


def _quickly_graded(response: object, ground_truth: object) -> Verdict | tuple[str, str]:
    """The verdict where it costs microseconds (no answer or gold, one spelling, two numbers), else (answer, gold)."""
    if (answer := final_answer(response)) is None:
        return Verdict(False, None, "no_answer")
    try:
        gold = gold_text(ground_truth)
    except ValueError:
        return Verdict(False, answer, "unparsed")
    correct = quickly(answer, gold)
    return (answer, gold) if correct is None else Verdict(correct, answer)


def _compare(answer: str, gold: str) -> Verdict:
    from verl_v05.grading.equivalence import equivalent  # Here, so that training on integers never loads sympy.

    try:
        return Verdict(equivalent(answer, gold), answer)
    except UnparsedError:
        return Verdict(False, answer, "unparsed")
    except Exception:
        # sympy raises every class of exception on odd input, and a grade must not stop a training run.
        return Verdict(False, answer, "error")


class GradingPool(contextlib.AbstractContextManager):
    """Grades responses in any thread, each comparison in limited time.

    Plain numbers and answers spelt as the gold are graded by the caller itself; the rest goes to processes, which the
    first of them starts. A process that hangs or dies costs its own answer only and is replaced.

    `workers` is the number of processes; a comparison gets `timeout_s` of CPU time, and ten times as much by the clock.
    """

    def __init__(self, workers: int = 2, timeout_s: float = 5.0) -> None:
        if workers < 1 or not timeout_s > 0:
            raise ValueError(f"workers={workers}, timeout_s={timeout_s}: needs workers >= 1 and timeout_s > 0")
        self._timeout_s = timeout_s
        # A thread waits for each process; the executor has the queue.
        self._executor = ThreadPoolExecutor(workers, "grading")
        self._idle: queue.LifoQueue[subprocess.Popen[str] | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)  # a process that the first answer to need it starts
        self._closed = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, response: str, ground_truth: str) -> "Future[Verdict]":
        """Grade one response; RuntimeError once the pool is closed."""
        found = _quickly_graded(response, ground_truth)
        if not isinstance(found, Verdict):
            if self._closed:
                raise RuntimeError("the grading pool is closed; make a new one")
            return self._executor.submit(self._ask, *found)
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
                worker.communicate()

    def _ask(self, answer: str, gold: str) -> Verdict:
        """The verdict of a process: "timeout" or "error" if it died of it."""
        worker = self._idle.get()
        try:
            worker = worker or _start(self._timeout_s)
            if reply := _ask(worker, json.dumps([answer, gold])):
                return Verdict(*json.loads(reply))
            overrun = -worker.wait() in LIMITS
            worker.communicate()  # closes its pipes
            worker = None
            return Verdict(False, answer, "timeout" if overrun else "error")
        finally:
            self._idle.put(worker)


def _start(timeout_s: float) -> "subprocess.Popen[str]":
    # A fresh interpreter rather than a fork: the parent has threads, and perhaps Ray and a GPU.
    worker = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(timeout_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a keyboard interrupt is the parent's business
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    if not _ask(worker, '["x", "x"]'):
        raise RuntimeError(
            f"a grading worker ended with code {worker.wait()} before it was ready; its message is above; "
            f'try `python -c "{COMMAND.format(5)}"`'
        )
    return worker


def _ask(worker: "subprocess.Popen[str]", request: str) -> str:
    assert worker.stdin and worker.stdout  # both were asked for
    with contextlib.suppress(BrokenPipeError):
        print(request, file=worker.stdin, flush=True)
    return worker.stdout.readline()


def serve(timeout_s: float) -> None:
    """Compare what stdin asks for, until it ends; one that overruns ends the process by the signals of `LIMITS`."""
    from verl_v05.grading import equivalence  # noqa: F401  Before the first request, so that no answer pays for it.

    for number in LIMITS:
        # The parent may have ignored or blocked them, which a child inherits.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LIMITS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # What a library prints must not be taken for a verdict.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        for timer, factor in LIMITS.values():
            signal.setitimer(timer, factor * timeout_s)
        verdict = _compare(*json.loads(line))
        for timer, _ in LIMITS.values():
            signal.setitimer(timer, 0)
        print(json.dumps(verdict), file=replies, flush=True)
