"""Groups that grow: real manager, worker, allocator, Ray, TransferQueue and replay buffer; scripted answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import ray
import transfer_queue as tq
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from transformers import Qwen3Config
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils as tu

from recipes.demo.policy import build_tokenizer
from tests.scripted import ScriptedLLM, ScriptedReward
from verl_v05.prior import Outcome
from verl_v05.rollout.allocator import Allocator
from verl_v05.rollout.manager import V05AgentLoopManager
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import match_rows
from verl_v05.rollout.worker import SessionResult, V05AgentLoopWorker
from verl_v05.settings import PriorSettings, V05Settings, WatchSettings, load_settings
from verl_v05.trainer.recorded import batch_outcomes


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model_path(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tokenizer and config are all that agent-loop workers read of a model."""
    path = str(tmp_path_factory.mktemp("model"))
    tokenizer.save_pretrained(path)
    Qwen3Config(vocab_size=len(tokenizer), architectures=["Qwen3ForCausalLM"]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cluster(small_cluster: None) -> Iterator[None]:
    queue = compose_config("x").transfer_queue
    with open_dict(queue):
        queue.enable = True
    tq.init(queue)
    yield
    tq.close()


def compose_config(model: str, **v05: Any) -> DictConfig:
    with initialize_config_module("verl_v05.config", version_base=None):
        config = compose(
            "v05",
            overrides=[
                "platform=cpu",
                f"actor_rollout_ref.model.path={model}",
                "data.max_prompt_length=8",
                "data.max_response_length=4",
            ],
        )
    with open_dict(config):
        config.algorithm.v05 = OmegaConf.merge(config.algorithm.v05, v05)
        config.pop("hydra", None)
    OmegaConf.resolve(config)
    return config


@pytest.fixture(scope="module")
def manager(cluster: None, model_path: str, tokenizer: Any) -> V05AgentLoopManager:
    """One manager for all tests: its worker imports verl, which takes most of their time."""
    reward = ray.remote(ScriptedReward).remote(tokenizer)
    return V05AgentLoopManager.create(
        config=compose_config(model_path),
        llm_client=ScriptedLLM(SCRIPTS, tokenizer),
        teacher_client=None,
        reward_loop_worker_handles=[reward],
    )


def set_rules(manager: V05AgentLoopManager, table: dict[str, float], **v05: Any) -> None:
    """Give the manager a new allocator with these settings and this prior."""
    prior = {"provider": "tests.scripted.ScriptedPrior", "kwargs": {"table": table}}
    settings = load_settings(compose_config("unused", prior=prior, **v05))
    manager.allocator = ray.remote(Allocator).options(num_cpus=0, max_concurrency=100).remote(settings)
    ray.get([worker.attach.remote(manager.allocator) for worker in manager.agent_loop_workers])


def batch_of(texts: list[str], step: int, validate: bool = False, problem: str | None = None) -> TensorDict:
    """What verl's trainer hands to the manager; ``problem`` is a template for ``extra_info.problem`` of each text."""
    rows = {
        "raw_prompt": np.array([[{"role": "user", "content": t}] for t in texts] + [None], dtype=object)[:-1],
        "data_source": np.array(["scripted"] * len(texts), dtype=object),
        "reward_model": np.array([{"ground_truth": "1"}] * len(texts), dtype=object),
        "index": np.arange(len(texts)),
        "uid": np.array([str(uuid4()) for _ in texts], dtype=object),
    }
    if problem is not None:
        rows["extra_info"] = np.array([{"index": 0, "problem": problem.format(t)} for t in texts], dtype=object)
    batch = tu.get_tensordict(rows)
    tu.assign_non_tensor_data(batch, "global_steps", step)
    if validate:
        tu.assign_non_tensor_data(batch, "validate", True)
    return batch


def replay_buffer() -> ReplayBuffer:
    return ReplayBuffer("sync", {}, None, "drop", {}, poll_interval=0.05)


def run(
    manager: V05AgentLoopManager,
    texts: list[str],
    step: int,
    validate: bool = False,
    use: Callable[[KVBatchMeta], Any] = lambda sampled: None,
    problem: str | None = None,
) -> tuple[Any, TensorDict]:
    """Roll a batch out, take it from the replay buffer and ``use`` it, as a training step does."""
    batch = batch_of(texts, step, validate, problem)
    partition = "val" if validate else "train"
    tags = [{"is_prompt": True, "status": "pending", "global_steps": step}] * len(texts)
    tq.kv_batch_put(keys=list(batch["uid"]), partition_id=partition, tags=tags)
    manager.generate_sequences(batch)
    sampled, _ = replay_buffer().sample(step, partition, len(texts))
    use(sampled)
    tq.kv_clear(keys=sampled.keys, partition_id=partition)
    return sampled, batch


def close(manager: V05AgentLoopManager, step: int) -> StepRecord:
    return ray.get(manager.allocator.close_step.remote(step))


# Prompt -> what its rollouts answer; every test has prompts of its own.
GROUPS = {
    "{}+1=": "1" * 16,  # the prior agrees: stays at 4
    "{}+2=": "0" * 16,  # the prior is badly wrong: grows
    "{}+3=": "1x10" + "1" * 12,  # one failed session, no prior
    "{}+4=": "xxxx" + "1" * 12,  # all sessions fail
}
SCHEDULES = {"streaming": 1, "rounds": 2}
SCRIPTS = {prompt.format(n): script for prompt, script in GROUPS.items() for n in SCHEDULES.values()} | {
    "slow=": "0000" + "s" + "0" * 11,
    "val=": "0" * 16,
    "nan=": "11n" + "1" * 13,
    "two=": "112" + "1" * 13,
    "lost=": "s" * 16,
    "1+0=": "1101",
    "0+0=": "0x00",
    "1+5=": "1" * 12,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_grow_where_prior_and_rollouts_disagree(schedule: str, manager: V05AgentLoopManager) -> None:
    agrees, wrong, partial, failed = (prompt.format(SCHEDULES[schedule]) for prompt in GROUPS)
    table = {agrees: 0.95, wrong: 1.0, failed: 0.5}
    set_rules(manager, table, schedule=schedule, halt_share=0.0, pad_multiple=1)
    sampled, _ = run(manager, [agrees, wrong, partial, failed], step=3)
    record = close(manager, 3)
    # wrong: bias_sq = 4 - 1/k from k = 4 on, so the target is 1/sqrt(c) - 1/3.75 = 15.7: 16 rollouts.
    assert record.column("k").tolist() == [4, 16, 3, 0]
    assert record.column("failed").tolist() == [0, 0, 1, 4]
    assert record.column("dispatches").tolist() == [1, 7, 1, 1]
    assert len(sampled.keys) == 4 + 16 + 3
    rows = match_rows(sampled.keys, [False] * len(sampled.keys), record)
    by_text = {g.query.text: rows.rewards[rows.session_group == i] for i, g in enumerate(rows.groups)}
    assert (by_text[agrees] == 1).all() and (by_text[wrong] == -1).all()
    assert sorted(by_text[partial]) == [-1, 1, 1]
    assert not tq.kv_list("train") or not tq.kv_list("train").get("train")


def test_terminal_status_waits_for_the_slowest_extra_session(manager: V05AgentLoopManager) -> None:
    set_rules(manager, {"slow=": 1.0}, schedule="streaming", step="to_target")
    sampled, _ = run(manager, ["slow="], step=1)
    # The replay buffer takes a prompt once, when its status is terminal: what it took is all there is.
    assert sorted(int(key.split("_")[1]) for key in sampled.keys) == list(range(16))
    assert close(manager, 1).column("dispatches").tolist() == [2]


def test_validation_takes_verls_own_path(manager: V05AgentLoopManager) -> None:
    set_rules(manager, {"val=": 1.0}, schedule="streaming")
    sampled, _ = run(manager, ["val="], step=0, validate=True)
    assert len(sampled.keys) == 1  # rollout.val_kwargs.n
    with pytest.raises(ray.exceptions.RayTaskError, match="KeyError"):
        close(manager, 0)  # the allocator never heard of it


@pytest.mark.parametrize(("prompt", "message"), [("nan=", "acc=nan"), ("two=", r"acc=2\.0 is outside")])
def test_unusable_reward_stops_the_run_naming_prompt_source_and_value(
    prompt: str, message: str, manager: V05AgentLoopManager
) -> None:
    set_rules(manager, {prompt: 0.9}, schedule="streaming")
    _, batch = run(manager, [prompt], step=1)
    with pytest.raises(ValueError, match=rf"{batch['uid'][0]}.*'scripted'.*{message}"):
        close(manager, 1)


def test_outcomes_are_recorded_from_what_any_algorithm_rolls_out(manager: V05AgentLoopManager) -> None:
    set_rules(manager, {}, schedule="fixed")
    recorded: list[Outcome] = []
    run(manager, ["1+0=", "0+0="], step=1, use=lambda sampled: recorded.extend(batch_outcomes(sampled, "problem")))
    close(manager, 1)
    found = {o.query.text: (o.success, o.k, o.query.data_source) for o in recorded}
    assert found == {"1+0=": (0.75, 4, "scripted"), "0+0=": (0.0, 3, "scripted")}


@pytest.mark.parametrize(("text_key", "text"), [("problem", "bare 1+5="), ("absent", "1+5="), (None, "1+5=")])
def test_the_prior_and_the_record_have_one_text_of_a_prompt(
    text_key: str | None, text: str, manager: V05AgentLoopManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rules(manager, {text: 1.0}, schedule="fixed")
    monkeypatch.setattr(manager, "_text_key", text_key)
    recorded: list[Outcome] = []
    run(
        manager,
        ["1+5="],
        step=1,
        use=lambda sampled: recorded.extend(batch_outcomes(sampled, text_key)),
        problem="bare {}",
    )
    asked = close(manager, 1).groups[0]
    assert (asked.query.text, asked.probability) == (text, 1.0)  # the scripted prior knows it by its text
    assert recorded[0].query == asked.query


def test_lost_allocator_ends_groups_instead_of_hanging(manager: V05AgentLoopManager) -> None:
    set_rules(manager, {"lost=": 0.9}, schedule="streaming")
    batch = batch_of(["lost="], 1)
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 1}]
    tq.kv_batch_put(keys=list(batch["uid"]), partition_id="train", tags=tags)
    manager.generate_sequences(batch)
    ray.kill(manager.allocator)
    sampled, _ = replay_buffer().sample(1, "train", 1)
    assert len(sampled.keys) == 4
    tq.kv_clear(keys=sampled.keys, partition_id="train")
    with pytest.raises(ray.exceptions.RayActorError):
        close(manager, 1)


class Queue:
    """TransferQueue's put, of which some calls hang or fail."""

    def __init__(self, bad: list[str], how: str):
        self.bad, self.how, self.told = bad, how, list[str]()

    async def put(self, key: str, partition_id: str, tag: dict[str, str]) -> None:
        if self.bad and self.bad[0] == tag["status"]:
            self.bad.pop(0)
            if self.how == "hangs":
                await asyncio.sleep(1000)
            raise ConnectionError("no storage unit answers")
        self.told.append(f"{partition_id} {tag['status']}")


def run_prompt(monkeypatch: pytest.MonkeyPatch, queue: Queue, settle: Any, validate: bool = False) -> None:
    """One prompt of a worker whose sessions all score."""
    worker: Any = object.__new__(V05AgentLoopWorker)
    quick = WatchSettings(answer_s=0.1, session_s=0.1)
    worker.settings = V05Settings(watch=quick, prior=PriorSettings(timeout_s=0.1))
    worker.allocator = SimpleNamespace(settle=SimpleNamespace(remote=settle))
    worker._run_agent_loop = lambda *_, **__: asyncio.sleep(0, SessionResult(1.0, []))

    async def verls(self: Any, prompt: dict, *_: Any) -> None:
        await tq.async_kv_put(key=prompt["uid"], partition_id="val", tag={"status": "running"})
        await tq.async_kv_put(key=prompt["uid"], partition_id="val", tag={"status": "finished"})

    monkeypatch.setattr(V05AgentLoopWorker.__mro__[1], "_run_prompt", verls)
    monkeypatch.setattr(tq, "async_kv_put", queue.put)
    asyncio.run(worker._run_prompt({"uid": "a"}, {}, {"validate": validate}))


async def complete(*_: Any) -> int:
    return 0


async def silence(*_: Any) -> int:
    await asyncio.sleep(1000)
    return 0


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_prompt_ends_though_transfer_queue_did_not_take_its_beginning(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_prompt(monkeypatch, queue := Queue(["running"], how), complete)
    assert queue.told == ["train failure"]


def test_a_validation_prompt_ends_though_transfer_queue_did_not_take_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_prompt(monkeypatch, queue := Queue(["running"], "fails"), complete, validate=True)
    assert queue.told == ["val failure"]


def test_a_prompt_ends_though_the_allocator_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    run_prompt(monkeypatch, queue := Queue([], ""), silence)
    assert queue.told == ["train running", "train failure"]


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_how_a_prompt_ended_is_told_again_and_then_the_worker_ends(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_prompt(monkeypatch, queue := Queue(["finished"] * 2, how), complete)
    assert queue.told == ["train running", "train finished"]
    ended = list[int]()
    monkeypatch.setattr(os, "_exit", ended.append)
    run_prompt(monkeypatch, queue := Queue(["finished"] * 3, how), complete)
    assert queue.told == ["train running"] and ended == [1]
