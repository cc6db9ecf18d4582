"""How a run ends that cannot go on: the watch, on a real Ray cluster of a few actors, and the run's last words."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_v05.prior import Query
from verl_v05.rollout.allocator import Allocator
from verl_v05.settings import V05Settings
from verl_v05.trainer import v05, watch
from verl_v05.trainer.base import MOST_REFILLS, RefillError, SyncTrainer
from verl_v05.trainer.watch import LAST_WORDS, RunLostError, Watch

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


class Runner:
    """Stands for verl's TaskRunner: waits in its main thread while the watch looks on."""

    def run(self, folder: str, how: str, others: list[Any], answer_s: float = 300.0) -> None:
        watch.INTERVAL_S = 0.2
        with Watch(folder, answer_s, lambda: "in step 7"):
            Path(folder, "started").touch()
            if how == "ray.get":
                ray.get(others[-1].wait.remote())
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


def test_an_end_that_was_asked_for_ends_nothing(workers: list[Any], tmp_path: Path) -> None:
    third = ray.remote(Worker).options(num_cpus=0, name="third").remote()
    ray.get(third.pid.remote())
    runner, run = start(tmp_path, "polling", workers)
    ray.kill(third)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(run, timeout=4)
    assert not (tmp_path / LAST_WORDS).exists()
    ray.kill(runner)


def refilling_trainer(kind: type[SyncTrainer], monkeypatch: pytest.MonkeyPatch) -> SyncTrainer:
    monkeypatch.setattr(PPOTrainerSync, "_add_prompts_to_generate", lambda self, n: n)
    monkeypatch.setattr(PPOTrainerSync, "on_step_begin", lambda self: None)
    made = object.__new__(kind)
    made.global_steps, made.config = 3, OmegaConf.create({"data": {"train_batch_size": 8}})
    return made


def test_a_step_does_not_replace_failed_prompts_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = refilling_trainer(SyncTrainer, monkeypatch)
    for _ in range(2):  # every step anew
        trainer.on_step_begin()
        assert [trainer._add_prompts_to_generate(8) for _ in range(MOST_REFILLS)] == [8] * MOST_REFILLS
        with pytest.raises(RefillError, match=r"step 3 has replaced 80 .*, 10 times data.train_batch_size"):
            trainer._add_prompts_to_generate(1)


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
