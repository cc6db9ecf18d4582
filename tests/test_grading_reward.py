"""verl's reward function."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_v05.grading.reward import compute_score

KEYS = {"score", "acc", "grading_failed", "answered"}


def score(response: object, gold: object, **kwargs: object) -> dict[str, float]:
    return asyncio.run(compute_score("dapo_math_17k", response, gold, {"index": 0}, **kwargs))


@pytest.mark.parametrize(
    ("response", "gold", "values"),
    [
        (r"\boxed{34}", "34", (1, 1, 0, 1)),
        (r"\boxed{35}", "34", (0, 0, 0, 1)),
        ("34", "34", (0, 0, 0, 0)),
        (r"\boxed{\frac{2}{\sqrt{2}}}", r"\sqrt2", (1, 1, 0, 1)),
        (r"\boxed{9^{9^{9^9}}}", r"\sqrt2", (0, 0, 1, 1)),
        (None, "34", (0, 0, 0, 0)),
        (r"\boxed{34}", None, (0, 0, 0, 1)),
        (r"\boxed{34}", float("nan"), (0, 0, 0, 1)),
    ],
)
def test_the_keys_are_always_the_same_and_the_values_numbers(
    response: object, gold: object, values: tuple[float, ...]
) -> None:
    result = score(response, gold, workers=1, timeout_s=2.0)
    assert set(result) == KEYS
    assert all(type(value) is float for value in result.values())
    assert (result["score"], result["acc"], result["grading_failed"], result["answered"]) == values


def test_verl_awaits_it_and_may_pass_more_than_it_knows() -> None:
    assert inspect.iscoroutinefunction(compute_score)
    assert score(r"\boxed{34}", "34", reward_router_address=None, reward_model_tokenizer=None)["score"] == 1


def test_slow_answers_do_not_hold_up_the_event_loop() -> None:
    async def both() -> list[dict[str, float]]:
        slow = asyncio.create_task(compute_score("s", r"\boxed{9^{9^{9^9}}}", r"\sqrt2", workers=1, timeout_s=2.0))
        await asyncio.sleep(0)
        quick = await compute_score("s", r"\boxed{34}", "34", workers=1, timeout_s=2.0)
        assert not slow.done()
        return [quick, await slow]

    assert [result["score"] for result in asyncio.run(both())] == [1.0, 0.0]


def test_the_process_ends_by_itself_with_an_answer_still_being_compared() -> None:
    script = r"""
import asyncio
from verl_v05.grading.reward import compute_score
async def leave():
    asyncio.create_task(compute_score("s", r"\boxed{9^{9^{9^9}}}", r"\sqrt2", timeout_s=2.0))
    await asyncio.sleep(1)
asyncio.run(leave())
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    """The paper's setting with a policy whose tokens are bytes."""
    vocabulary = {sign: index for index, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!", pad_token="!").save_pretrained(tmp_path)
    from verl_v05 import plugin

    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        overrides = ["platform=gpu", "setting=cluster", f"actor_rollout_ref.model.path={tmp_path}"]
        return compose("grpo", overrides=overrides)


@pytest.mark.slow
def test_the_papers_setting_grades_in_verls_reward_worker(small_cluster: None, config: DictConfig) -> None:
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    def scored(response: str, gold: str) -> dict[str, float]:
        ids = torch.tensor([tokenizer.encode(response)])
        data = DataProto.from_dict(
            tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
            non_tensors={
                "data_source": np.array(["math500"], dtype=object),
                "reward_model": np.array([{"ground_truth": gold, "style": "rule"}], dtype=object),
                "extra_info": np.array([{"id": "x"}], dtype=object),
            },
        )
        return ray.get(worker.compute_score.remote(data))

    tokenizer = PreTrainedTokenizerFast.from_pretrained(config.actor_rollout_ref.model.path)
    worker = ray.remote(RewardLoopWorker).remote(config)
    right = scored(r"So it is $\boxed{\frac{2}{\sqrt{2}}}$.", r"\sqrt2")
    assert right["reward_score"] == 1.0 and right["reward_extra_info"]["acc"] == 1.0
    wrong = scored("I do not know", "34")
    assert wrong["reward_score"] == 0.0 and wrong["reward_extra_info"]["answered"] == 0.0
    assert set(right["reward_extra_info"]) == set(wrong["reward_extra_info"]) == KEYS
