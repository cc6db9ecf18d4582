"""A composed config is checked as a whole before anything starts."""

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from verl_v05 import plugin
from verl_v05.launch import CheckLaunch, check_run
from verl_v05.settings import SettingsError


def config(*overrides: str, platform: str = "cpu") -> DictConfig:
    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        return compose("v05", overrides=[f"platform={platform}", *overrides])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("schedule", ["rounds", "streaming", "fixed"])
def test_presets_pass_on_every_platform(schedule: str, platform: str) -> None:
    settings = check_run(config(f"algorithm/v05={schedule}", platform=platform))
    assert (settings.schedule, settings.k_init) == (schedule, 4)


def test_group_size_follows_k_init() -> None:
    composed = config("algorithm/v05=fixed", "algorithm.v05.k_init=1")
    assert composed.actor_rollout_ref.rollout.n == 1
    check_run(composed)


def test_platform_is_chosen_by_what_the_machine_has() -> None:
    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        chosen = compose("v05")
    expected = {"cpu": "cpu", "gpu": "cuda"}[plugin.platform()]
    assert chosen.trainer.device == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.adv_estimator=grpo", "algorithm.adv_estimator='grpo' is not allowed: .* must be 'v05'"),
        ("trainer.v1.trainer_mode=sync", "trainer.v1.trainer_mode='sync'"),
        ("actor_rollout_ref.rollout.n=8", r"rollout.n=8 .* must be 4 \(algorithm.v05.k_init\)"),
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=null", "agent_loop_manager_class=None"),
        ("algorithm.use_kl_in_reward=true", "use actor.use_kl_loss"),
        ("algorithm.filter_groups.enable=true", "filter_groups.enable=True"),
        ("actor_rollout_ref.actor.use_dynamic_bsz=false", "use_dynamic_bsz=False"),
        ("critic.enable=true", "critic.enable=True"),
        ("reward.reward_model.enable=true", "enable_resource_pool=False .* must be True"),
        ("data.train_batch_size=100", "ppo_mini_batch_size=256 .* must divide data.train_batch_size=100"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=300", "must divide"),
        (
            "algorithm.v05.prior.provider=nobody",
            "prior.provider='nobody' is not allowed: .* history, none",
        ),
        ("+algorithm.v05.prior.kwargs.strength=-1", "kwargs.strength=-1 is not allowed: it must be positive"),
        ("+algorithm.v05.prior.kwargs.color=red", "prior.kwargs=.*color"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_run(config(override))


def test_cap_must_cover_the_first_rollouts_and_forbids_refills() -> None:
    streaming = ("algorithm/v05=streaming", "data.train_batch_size=256", "algorithm.v05.max_rollouts_per_step=1024")
    check_run(config(*streaming))
    with pytest.raises(SettingsError, match=r"max_rollouts_per_step=1000 must be at least .* = 1024"):
        check_run(config(*streaming, "algorithm.v05.max_rollouts_per_step=1000"))
    with pytest.raises(SettingsError, match="sync_refill_failed_groups=True"):
        check_run(config(*streaming, "trainer.v1.sampler.sync_refill_failed_groups=true"))


def test_launch_stops_with_the_message_alone() -> None:
    with pytest.raises(SystemExit, match=r"verl-v05: algorithm\.adv_estimator='grpo'"):
        CheckLaunch().on_run_start(config("algorithm.adv_estimator=grpo"))
    CheckLaunch().on_run_start(config())
