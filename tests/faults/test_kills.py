"""Real kills in real runs: each process of a run dies with requests in flight, and the run ends in time, by its name.

A frozen kill: the engine's scheduler is stopped right after a step was logged, the target is killed while requests
wait for it, and the scheduler goes on. `make test-faults` runs these; each is a training of a minute.
"""

from __future__ import annotations

import pytest

from tests.faults.conftest import Start
from tests.faults.statement import Limit, fault
from tests.faults.training_run import SCHEDULER
from verl_v05.trainer.watch import LAST_WORDS

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.parametrize(
    "title",
    [
        pytest.param("ray::V05AgentLoopWorker", marks=fault("an agent-loop worker is killed in mid-step")),
        pytest.param("ray::Allocator", marks=fault("the allocator is killed in mid-step")),
        pytest.param("ray::V05RewardLoopWorker", marks=fault("a reward worker is killed in mid-step")),
        pytest.param("ray::WorkerDict", marks=fault("a rank of the policy is killed in mid-step")),
        pytest.param("ray::TransferQueueController", marks=fault("TransferQueue's controller is killed in mid-step")),
        pytest.param("ray::SimpleStorageUnit", marks=fault("a storage unit of TransferQueue is killed in mid-step")),
        pytest.param("ray::SGLangHttpServer", marks=fault("sglang's server is killed in mid-step")),
    ],
)
def test_a_process_that_dies_ends_the_run_by_name(title: str, start: Start, limit: Limit) -> None:
    run = start()
    pid = run.frozen_kill(title)
    with limit:
        assert run.ended() != 0
    for words in ((run.out / "checkpoints" / LAST_WORDS).read_text(), run.tail(60)):
        assert f"process {pid} " in words and "has died" in words


@pytest.mark.parametrize(
    "ignore_quit",
    [
        pytest.param(False, marks=fault("sglang's scheduler is killed in mid-step")),
        pytest.param(True, marks=fault("sglang's scheduler is killed where the launch ignored SIGQUIT, as by `run &`")),
    ],
)
def test_an_engine_without_its_scheduler_ends_the_run(ignore_quit: bool, start: Start, limit: Limit) -> None:
    run = start(ignore_quit=ignore_quit)
    run.frozen_kill(SCHEDULER)
    with limit:
        assert run.ended() != 0
    assert "SGLangHttpServer" in run.tail(80)
