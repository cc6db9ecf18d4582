"""The CPU platform's replay buffer samples as the config says, as verl's own would."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_v05 import plugin


def replay_buffer(config_name: str, *overrides: str) -> ReplayBuffer:
    """Built by verl's trainer from one of our configs."""
    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        config = compose(config_name, overrides=["platform=cpu", "data.train_batch_size=8", *overrides])
    trainer = SimpleNamespace(config=config, trainer_mode="sync", _add_prompts_to_generate=lambda prompts: prompts)
    return PPOTrainer._build_replay_buffer(trainer)


def test_dynamic_sampling_is_not_lost_on_the_cpu() -> None:
    buffer = replay_buffer("dapo", "algorithm.filter_groups.max_inflight_gen_batches=2")
    assert (buffer.filter_groups_metric, buffer.max_inflight_gen_batches) == ("acc", 2)
    assert (buffer.train_batch_size, buffer.gen_batch_size) == (8, 1)


@pytest.mark.parametrize("config_name", ["grpo", "ppo", "v05"])
def test_no_group_is_filtered_where_none_shall_be(config_name: str) -> None:
    assert replay_buffer(config_name).filter_groups_metric is None


def test_failed_groups_are_replaced_where_asked() -> None:
    assert not replay_buffer("grpo").sync_refill_failed_groups
    assert replay_buffer("grpo", "trainer.v1.sampler.sync_refill_failed_groups=true").sync_refill_failed_groups
