"""The pool: what hangs or dies costs its own answer only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.faults.statement import fault
from verl_v05.grading import GradingPool, Verdict, grade

HANGS = (r"\boxed{9^{9^{9^9}}}", r"\sqrt2")
NEEDS_SYMPY = (r"\boxed{\frac{2}{\sqrt{2}}}", r"\sqrt2")


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "serve(" in child.cmdline()[-1]]


def test_verdicts_come_in_the_order_of_the_pairs() -> None:
    pairs = [(rf"\boxed{{\sqrt{{{i * i}}}}}", str(i + i % 2)) for i in range(12)]
    with GradingPool(workers=2) as pool:
        assert [verdict.correct for verdict in pool.grade_many(pairs)] == [True, False] * 6


@fault(
    "grading an answer hangs",
    happens="it counts as wrong (`grading_failed`), the others are graded",
    do="nothing",
)
def test_a_hanging_answer_times_out_and_the_others_are_graded() -> None:
    with GradingPool(workers=1, timeout_s=1.0) as pool:
        verdicts = pool.grade_many([NEEDS_SYMPY, HANGS, NEEDS_SYMPY, (r"\boxed{34}", "34")])
    assert [verdict.correct for verdict in verdicts] == [True, False, True, True]
    assert [verdict.failure for verdict in verdicts] == [None, "timeout", None, None]
    assert verdicts[1].answer == "9^{9^{9^9}}"


@fault(
    "a process that grades answers dies",
    happens="one answer counts as wrong, the process is replaced",
    do="nothing",
)
def test_a_worker_that_dies_costs_one_answer_and_is_replaced() -> None:
    with GradingPool(workers=1, timeout_s=30.0) as pool:
        pool.grade_many([NEEDS_SYMPY])
        [worker] = workers()
        hanging, waiting = pool.submit(*HANGS), pool.submit(*NEEDS_SYMPY)
        worker.send_signal(signal.SIGKILL)
        assert hanging.result(timeout=30) == Verdict(False, "9^{9^{9^9}}", "error")
        assert waiting.result(timeout=30).correct
        assert workers() and workers()[0].pid != worker.pid


def test_numbers_and_equal_spellings_start_no_process() -> None:
    with GradingPool() as pool:
        verdicts = pool.grade_many([(r"\boxed{34}", "34"), (r"\boxed{0.5}", r"\frac12"), (r"\boxed{x+1}", "x + 1")])
        assert all(verdict.correct for verdict in verdicts)
        assert workers() == []


def test_closing_ends_the_processes_and_refuses_more() -> None:
    pool = GradingPool(workers=2)
    pool.grade_many([NEEDS_SYMPY] * 4)
    pool.close()
    pool.close()
    assert workers() == []
    with pytest.raises(RuntimeError, match="the grading pool is closed"):
        pool.submit(*NEEDS_SYMPY)


def test_it_grades_from_any_thread_as_grade_does() -> None:
    found: list[Verdict] = []
    with GradingPool(workers=1) as pool:
        thread = threading.Thread(target=lambda: found.extend(pool.grade_many([NEEDS_SYMPY, (r"\boxed{x}", "y")])))
        thread.start()
        thread.join()
    assert (
        found
        == [grade(*NEEDS_SYMPY), grade(r"\boxed{x}", "y")]
        == [
            Verdict(True, r"\frac{2}{\sqrt{2}}"),
            Verdict(False, "x"),
        ]
    )


def test_a_worker_outlives_neither_its_parent_nor_its_time(tmp_path: Path) -> None:
    script = f"""
import os, psutil, time
from verl_v05.grading import GradingPool
pool = GradingPool(workers=1, timeout_s=2.0)
pool.submit(*{HANGS!r})
while not (children := psutil.Process().children()):
    time.sleep(0.05)
time.sleep(2)
open({str(tmp_path / "pid")!r}, "w").write(str(children[0].pid))
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(timeout=10)
        raise psutil.NoSuchProcess(pid)


def test_a_worker_that_cannot_start_is_an_error_that_says_how_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with GradingPool(workers=1) as pool, pytest.raises(RuntimeError, match="ended with code 1 before it was ready"):
        pool.grade_many([NEEDS_SYMPY])


def test_importing_the_pool_loads_neither_sympy_nor_torch_nor_verl() -> None:
    script = "import sys, verl_v05.grading; print(sorted({'sympy', 'torch', 'verl', 'ray'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(("count", "time_s"), [(0, 5.0), (2, 0.0), (2, float("nan"))])
def test_impossible_pools_are_refused_by_value(count: int, time_s: float) -> None:
    with pytest.raises(ValueError, match=f"workers={count}, timeout_s={time_s}"):
        GradingPool(count, time_s)
