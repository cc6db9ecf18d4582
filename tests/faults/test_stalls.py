"""Real runs in which something hangs without dying: the run goes on without it, or ends in time by its name."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Start
from tests.faults.statement import Limit, fault
from tests.faults.training_run import SCHEDULER, TrainingRun
from verl_v05.trainer.watch import LAST_WORDS

pytestmark = [pytest.mark.slow, pytest.mark.faults]

BROKEN = Path(__file__).parent / "broken_reward.py"
START_S = 60  # from a run's first step until its reward function breaks
REWARD_S, ANSWER_S, UPDATE_S = 3, 10, 20


@pytest.fixture
def stopped() -> Iterator[list[psutil.Process]]:
    """Processes that a test stops, which are killed at its end if the run's did not."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def broken_run(start: Start, how: str, folder: Path) -> tuple[TrainingRun, str]:
    """A run whose reward function has just broken, and the ground truth of the prompt that it broke for."""
    mark = folder / "broken"
    reward = "reward.custom_reward_function"
    run = start(
        f"{reward}.path={BROKEN}",
        f"+{reward}.reward_kwargs.fault={how}",
        f"+{reward}.reward_kwargs.mark={mark}",
        "reward.num_workers=1",
        f"algorithm.v05.watch.reward_s={REWARD_S}",
        f"algorithm.v05.watch.answer_s={ANSWER_S}",
    )
    until = time.monotonic() + START_S
    while not mark.exists() or not mark.read_text():
        assert time.monotonic() < until and run.process.poll() is None, run.tail()
        time.sleep(0.05)
    return run, mark.read_text()


def failed_sessions(run: TrainingRun) -> list[float]:
    """Of each step so far."""
    lines = (run.out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["data"]["v05/rollouts/failed"] for line in lines]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        pytest.param(
            "waits",
            f"no reward in {REWARD_S} s (algorithm.v05.watch.reward_s)",
            marks=fault(
                "the reward function hangs for one prompt, waiting for something (`algorithm.v05.watch.reward_s=3`)",
                happens="its sessions have failed, counted, the prompt and its response in the log; the run goes on",
                do="find the prompt in the log",
            ),
        ),
        pytest.param(
            "loops",
            f"no reward in {REWARD_S} s (algorithm.v05.watch.reward_s)",
            marks=fault(
                "the reward function loops for ever for one prompt (`algorithm.v05.watch.reward_s=3`)",
                happens="its sessions have failed, counted, the prompt and its response in the log; the run goes on",
                do="find the prompt in the log",
            ),
        ),
        pytest.param(
            "exits",
            "the reward function raised SystemExit(3)",
            marks=fault(
                "the reward function calls `sys.exit` for one prompt",
                happens="its sessions have failed, counted, the prompt and its response in the log; the run goes on",
                do="find the prompt in the log",
            ),
        ),
    ],
)
def test_a_reward_function_that_breaks_for_a_prompt_costs_its_sessions(
    how: str, says: str, start: Start, limit: Limit, tmp_path: Path
) -> None:
    run, truth = broken_run(start, how, tmp_path)
    with limit:
        run.wait_for_step(run.steps() + 4)
    failed = failed_sessions(run)
    assert failed[0] == 0 and sum(failed) >= 1
    line = next(line for line in run.log.read_text(errors="replace").splitlines() if says in line)
    assert f"ground truth '{truth}'" in line and "response '" in line
    assert run.process.poll() is None


@fault(
    "the reward function keeps the interpreter to itself, as a regular expression that backtracks "
    "(`algorithm.v05.watch.answer_s=10`)",
    happens="the run ends; its last words name the reward worker and the step",
    do="grade in processes with a limit, as `verl_v05.grading` does",
)
def test_a_reward_function_that_keeps_the_interpreter_ends_the_run(start: Start, limit: Limit, tmp_path: Path) -> None:
    run, _ = broken_run(start, "keeps", tmp_path)
    with limit:
        assert run.ended() != 0
    assert_last_words(run, "V05RewardLoopWorker", ANSWER_S)


@pytest.mark.parametrize(
    ("title", "name", "limit_s"),
    [
        pytest.param(
            "ray::Allocator",
            "Allocator",
            ANSWER_S,
            marks=fault("the allocator is stopped, not dead (`algorithm.v05.watch.answer_s=10`)"),
        ),
        pytest.param(
            "ray::V05AgentLoopWorker",
            "agent_loop_worker_0",
            ANSWER_S,
            marks=fault("an agent-loop worker is stopped, not dead (`algorithm.v05.watch.answer_s=10`)"),
        ),
        pytest.param(
            "ray::WorkerDict",
            "WorkerDict",
            UPDATE_S,
            marks=fault("a rank of the policy is stopped, not dead (`algorithm.v05.watch.update_s=20`)"),
        ),
        pytest.param(
            "ray::TransferQueueController",
            "TransferQueueController",
            ANSWER_S,
            marks=fault("TransferQueue's controller is stopped, not dead (`algorithm.v05.watch.answer_s=10`)"),
        ),
        pytest.param(
            "ray::SimpleStorageUnit",
            "SimpleStorageUnit",
            ANSWER_S,
            marks=fault("a storage unit of TransferQueue is stopped, not dead (`algorithm.v05.watch.answer_s=10`)"),
        ),
        pytest.param(
            "ray::SGLangHttpServer",
            "SGLangHttpServer",
            ANSWER_S,
            marks=fault("sglang's server is stopped, not dead (`algorithm.v05.watch.answer_s=10`)"),
        ),
        pytest.param(
            SCHEDULER,
            "the scheduler of SGLangHttpServer",
            ANSWER_S,
            marks=fault("sglang's scheduler is stopped, not dead (`algorithm.v05.watch.answer_s=10`)"),
        ),
    ],
)
def test_a_process_that_is_stopped_ends_the_run_by_name(
    title: str, name: str, limit_s: int, start: Start, limit: Limit, stopped: list[psutil.Process]
) -> None:
    run = start(f"algorithm.v05.watch.answer_s={ANSWER_S}", f"algorithm.v05.watch.update_s={UPDATE_S}")
    stopped.append(run.find(title))
    run.wait_for_step(run.steps() + 1)
    stopped[0].suspend()
    with limit:
        assert run.ended() != 0
    assert_last_words(run, name, limit_s, None if title == SCHEDULER else stopped[0].pid)


def assert_last_words(run: TrainingRun, name: str, limit_s: float, pid: int | None = None) -> None:
    for words in ((run.out / "checkpoints" / LAST_WORDS).read_text(), run.tail(60)):
        assert name in words and f"has not answered for {limit_s} s" in words and "in step " in words
        assert pid is None or f"process {pid} " in words
