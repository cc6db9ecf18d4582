"""How a run ends that cannot go on: the watch, on a real Ray cluster of a few actors, and the run's last words."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from tests.faults.statement import fault
from verl_v05.prior import Query
from verl_v05.rollout.allocator import Allocator
from verl_v05.settings import V05Settings, WatchSettings
from verl_v05.trainer import v05, watch
from verl_v05.trainer.base import MOST_REFILLS, RefillError, SyncTrainer
from verl_v05.trainer.watch import LAST_WORDS, RunLostError, Watch, answered

pytestmark = pytest.mark.usefixtures("small_cluster")

LIMIT_S = 60  # the project's promise: from a death to the run's end


class Worker:
    """An asynchronous actor, as verl's agent-loop workers are."""

    async def pid(self) -> int:
        return os.getpid()

    async def alive(self) -> bool:
        return True

    async def wait(self) -> None:
        time.sleep(1000)  # blocks the event loop, as a reward function that hangs does


class WorkerDict:
    """A blocking actor, as verl's ranks are."""

    def pid(self) -> int:
        return os.getpid()

    def wait(self) -> None:
        time.sleep(1000)


class TokenizerManager:
    """What sglang's server asks its scheduler with; the scheduler may be stopped."""

    def __init__(self) -> None:
        self.event_loop, self.stopped = asyncio.get_running_loop(), False

    async def get_internal_state(self) -> list[dict[str, Any]]:
        await asyncio.sleep(1000 if self.stopped else 0)
        return [{}]


class SGLangHttpServer(Worker):
    """An actor with a scheduler behind it."""

    async def start(self) -> None:
        self.tokenizer_manager = TokenizerManager()

    async def stop_scheduler(self) -> None:
        self.tokenizer_manager.stopped = True


class Runner:
    """Stands for verl's TaskRunner: waits in its main thread while the watch looks on."""

    def run(self, folder: str, how: str, others: list[Any], **limits: float) -> None:
        watch.INTERVAL_S = 0.2
        with Watch(folder, WatchSettings(**limits), lambda: "in step 7"):
            Path(folder, "started").touch()
            if how == "ray.get":
                ray.get(others[-1].wait.remote())
            if how == "answered":
                answered(others[-1].wait.remote(), "the last worker", 1.0)
            for _ in range(600):  # as verl's replay buffer polls
                time.sleep(0.1)


@pytest.fixture
def workers() -> Any:
    made = [ray.remote(Worker).options(num_cpus=0, name=f"worker_{i}_{time.time()}").remote() for i in range(2)]
    yield made
    for handle in made:
        ray.kill(handle)


def start(folder: Path, how: str, others: list[Any], **kwargs: float) -> tuple[Any, Any]:
    """Its handle and its task, once the watch is looking on."""
    folder.mkdir(exist_ok=True)
    runner = ray.remote(Runner).options(num_cpus=0).remote()
    run = runner.run.remote(str(folder), how, others, **kwargs)
    until = time.monotonic() + LIMIT_S
    while not (folder / "started").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    return runner, run


@pytest.mark.parametrize("how", ["polling", "ray.get"])
def test_a_death_ends_the_run_by_name_whatever_it_waits_for(how: str, workers: list[Any], tmp_path: Path) -> None:
    pid = ray.get(workers[0].pid.remote())
    _runner, run = start(tmp_path, how, workers)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunLostError, match=rf"Worker worker_0.*\(process {pid} on .* has died: .*; in step 7"):
        ray.get(run, timeout=LIMIT_S)
    assert f"process {pid}" in (tmp_path / LAST_WORDS).read_text()


@pytest.mark.parametrize("how", ["stopped", "blocked"])
def test_an_actor_that_no_longer_answers_ends_the_run(how: str, workers: list[Any], tmp_path: Path) -> None:
    pid = ray.get(workers[0].pid.remote())
    _runner, run = start(tmp_path, "polling", workers, answer_s=2.0)
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    else:
        workers[0].wait.remote()
    with pytest.raises(RunLostError, match=rf"worker_0.*process {pid} .*has not answered for 2 s"):
        ray.get(run, timeout=LIMIT_S)
    os.kill(pid, signal.SIGCONT)


def test_a_rank_may_be_silent_for_as_long_as_an_update_takes(tmp_path: Path) -> None:
    rank = ray.remote(WorkerDict).options(num_cpus=0, name="rank_0").remote()
    pid = ray.get(rank.pid.remote())
    rank.wait.remote()
    runner, run = start(tmp_path / "patient", "polling", [], answer_s=1.0, update_s=300.0)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(run, timeout=4)
    ray.kill(runner)
    _runner, run = start(tmp_path / "lost", "polling", [], answer_s=300.0, update_s=2.0)
    with pytest.raises(RunLostError, match=rf"WorkerDict rank_0 \(process {pid} .*for 2 s \(.*update_s\)"):
        ray.get(run, timeout=LIMIT_S)
    ray.kill(rank)


def test_an_actor_of_transfer_queues_namespace_is_asked_too(tmp_path: Path) -> None:
    controller = ray.remote(Worker).options(num_cpus=0, name="controller", namespace="transfer_queue").remote()
    os.kill(pid := ray.get(controller.pid.remote()), signal.SIGSTOP)
    _runner, run = start(tmp_path, "polling", [], answer_s=2.0)
    with pytest.raises(RunLostError, match=rf"Worker controller \(process {pid} .*has not answered for 2 s"):
        ray.get(run, timeout=LIMIT_S)
    ray.kill(controller)


def test_an_engine_whose_scheduler_is_stopped_ends_the_run(tmp_path: Path) -> None:
    server = ray.remote(SGLangHttpServer).options(num_cpus=0, name="server").remote()
    ray.get(server.start.remote())
    runner, run = start(tmp_path / "well", "polling", [], answer_s=1.0)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(run, timeout=4)
    ray.kill(runner)
    ray.get(server.stop_scheduler.remote())
    _runner, run = start(tmp_path / "stopped", "polling", [], answer_s=2.0)
    with pytest.raises(RunLostError, match=r"the scheduler of SGLangHttpServer server .*has not answered for 2 s"):
        ray.get(run, timeout=LIMIT_S)
    ray.kill(server)


def test_a_call_of_the_trainer_has_a_limit_and_a_name(workers: list[Any], tmp_path: Path) -> None:
    _runner, run = start(tmp_path, "answered", workers)
    with pytest.raises(RunLostError, match=r"the last worker has not answered for 1 s \(.*update_s\)"):
        ray.get(run, timeout=LIMIT_S)
    assert "the last worker" in (tmp_path / LAST_WORDS).read_text()


def test_an_end_that_was_asked_for_ends_nothing(workers: list[Any], tmp_path: Path) -> None:
    third = ray.remote(Worker).options(num_cpus=0, name="third").remote()
    ray.get(third.pid.remote())
    runner, run = start(tmp_path, "polling", workers)
    ray.kill(third)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(run, timeout=4)
    assert not (tmp_path / LAST_WORDS).exists()
    ray.kill(runner)


def test_the_engines_end_with_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = ray.remote(Worker).options(num_cpus=0).remote()
    pid = ray.get(server.pid.remote())
    monkeypatch.setattr(SyncTrainer, "_train", lambda self, manager: None)
    trainer: Any = refilling_trainer(SyncTrainer, monkeypatch)
    trainer.config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    trainer.llm_server_manager = SimpleNamespace(get_replicas=lambda: [SimpleNamespace(servers=[server])])
    trainer.fit(None)
    until = time.monotonic() + LIMIT_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not (tmp_path / LAST_WORDS).exists()


def refilling_trainer(kind: type[SyncTrainer], monkeypatch: pytest.MonkeyPatch) -> SyncTrainer:
    monkeypatch.setattr(PPOTrainerSync, "_add_prompts_to_generate", lambda self, n: n)
    monkeypatch.setattr(PPOTrainerSync, "on_step_begin", lambda self: None)
    made = object.__new__(kind)
    made.global_steps, made.config = 3, OmegaConf.create({"data": {"train_batch_size": 8}})
    return made


@fault(
    "prompts that fail or are filtered are replaced again and again",
    happens="the run ends after ten batches of them in one step",
    do="see the first failure in the log",
)
def test_a_step_does_not_replace_failed_prompts_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = refilling_trainer(SyncTrainer, monkeypatch)
    for _ in range(2):  # every step anew
        trainer.on_step_begin()
        assert [trainer._add_prompts_to_generate(8) for _ in range(MOST_REFILLS)] == [8] * MOST_REFILLS
        with pytest.raises(RefillError, match=r"step 3 has replaced 80 .*, 10 times data.train_batch_size"):
            trainer._add_prompts_to_generate(1)


@fault(
    "all sessions of a step fail, as when every reward raises",
    happens="the run ends with the first reasons as its last words",
    do="repair what they name",
)
def test_the_first_failed_session_is_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = ray.remote(Allocator).options(num_cpus=0).remote(V05Settings())
    ray.get(allocator.open_batch.remote(3, ["a"], [Query("1+1", "1+1", "math")]))
    lines = [f"session {i} of prompt a (data source 'math'): ValueError: no unit" for i in range(4)]
    assert ray.get(allocator.settle.remote("a", {}, lines)) == 0

    def fit(self: Any, manager: Any) -> None:
        raise RuntimeError("Sync replay buffer selected terminal groups with no materializable trajectories.")

    monkeypatch.setattr(SyncTrainer, "fit", fit)
    trainer: Any = refilling_trainer(v05.V05Trainer, monkeypatch)
    trainer._policy_placement_groups, trainer.settings = list, V05Settings()
    with pytest.raises(
        RunLostError, match=r"(?s)step 3 ended .* failed sessions, the first:.*session 0 of prompt a .*no unit"
    ):
        trainer.fit(type("Manager", (), {"allocator": allocator}))
    ray.kill(allocator)
