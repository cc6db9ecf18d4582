"""Checks of a run as a whole, before Ray starts anything.

verl's signatures are checked where its trainer and workers are imported anyway: here that would cost seconds.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_v05.compat.config import refused, unreadable
from verl_v05.compat.contract import ContractError, check_version
from verl_v05.compat.packages import attention_chosen, attention_costs, lacking
from verl_v05.method import Method
from verl_v05.plugin import is_for_this_machine
from verl_v05.prior import make_prior
from verl_v05.registry import SettingsError
from verl_v05.run_folder import check_run_folder, claim_run_folder, warn_of_dropped_state
from verl_v05.settings import STATE_PRIOR, TURN, V05Settings, load_settings

MANAGER = "verl_v05.rollout.manager.V05AgentLoopManager"


class CheckConfig(Callback):
    """Stops the launch with one readable message, where verl would do something else than asked, or fail later.

    hydra turns exceptions of callbacks into warnings, hence SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_version()
            self.check(config)
            check_run_folder(config)
            claim_run_folder(config)
            warn_of_dropped_state(config)
        except (ContractError, SettingsError) as error:
            raise SystemExit(f"verl-v05: {error}") from None
        if config.trainer.device != "cpu":
            for message in (attention_chosen(config), *attention_costs(config)):
                print(f"verl-v05: {message}", flush=True)

    def check(self, config: DictConfig) -> None:
        """Raise SettingsError with all that is wrong."""
        # Packages last: the run would notice an absent one only after its engines are up.
        if faults := [*unreadable(config)] or [*refused(config)] or [*lacking(config, is_for_this_machine(config))]:
            raise SettingsError("\n".join(faults))


class CheckLaunch(CheckConfig):
    """:class:`CheckConfig`, and the rules of V0.5."""

    def check(self, config: DictConfig) -> None:
        super().check(config)
        check_run(config)


def check_run(config: DictConfig) -> V05Settings:
    """Validate a composed config; needs neither Ray nor an accelerator.

    Raises:
        SettingsError: naming the key, its value and what is allowed.
    """
    settings = load_settings(config)
    Method.from_settings(settings)
    make_prior(settings.prior)
    if settings.credit == TURN:
        make_prior(settings.state_prior, STATE_PRIOR)
    _must_be(config, "algorithm.adv_estimator", "v05")
    _must_be(config, "trainer.v1.trainer_mode", "v05")
    _must_be(config, "trainer.use_v1", True)
    _must_be(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class", MANAGER)
    _must_be(config, "actor_rollout_ref.rollout.n", settings.k_init, "algorithm.v05.k_init")
    _must_be(config, "algorithm.use_kl_in_reward", False, "V0.5 rewards are outcomes; use actor.use_kl_loss")
    _must_be(config, "algorithm.filter_groups.enable", False, "groups of equal rewards carry signal against the prior")
    _must_be(config, "distillation.enabled", False, "not supported with V0.5")
    _must_be(config, "actor_rollout_ref.actor.use_dynamic_bsz", True, "rows vary; micro-batches are made by tokens")
    if OmegaConf.select(config, "critic.enable"):
        _must_be(config, "critic.enable", False, "the prior takes its place")
    if OmegaConf.select(config, "reward.reward_model.enable"):
        _must_be(config, "reward.reward_model.enable_resource_pool", True, "rewards are needed while rollouts generate")
    if settings.max_rollouts_per_step is not None:
        _must_be(config, "trainer.v1.sampler.sync_refill_failed_groups", False, "refills would exceed the step's cap")
    _check_batches(config, settings)
    return settings


def _check_batches(config: DictConfig, settings: V05Settings) -> None:
    prompts = config.data.train_batch_size
    mini = config.actor_rollout_ref.actor.ppo_mini_batch_size
    if not 1 <= mini <= prompts or prompts % mini:
        raise SettingsError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} (in prompts) must divide "
            f"data.train_batch_size={prompts}"
        )
    cap, first = settings.max_rollouts_per_step, prompts * settings.k_init
    if settings.k_init == 0:
        _check_pool(config, prompts, settings)
    if cap is not None and cap < first:
        raise SettingsError(
            f"algorithm.v05.max_rollouts_per_step={cap} must be at least train_batch_size x k_init = {first}"
        )


def _check_pool(config: DictConfig, prompts: int, settings: V05Settings) -> None:
    """A budget is divided among the prompts that are dispatched together."""
    together, cap, most = config.data.get("gen_batch_size"), settings.max_rollouts_per_step, prompts * settings.k_max
    if together not in (None, prompts):
        raise SettingsError(
            f"data.gen_batch_size={together} is not allowed: with schedule={settings.schedule} it must be null or "
            f"data.train_batch_size ({prompts}), the pool that the step's rollouts are divided among"
        )
    updates = prompts // config.actor_rollout_ref.actor.ppo_mini_batch_size
    if cap is not None and cap < updates:
        raise SettingsError(
            f"algorithm.v05.max_rollouts_per_step={cap} must be at least train_batch_size / ppo_mini_batch_size = "
            f"{updates}, a rollout for each mini-batch"
        )
    if cap is not None and cap > most:
        raise SettingsError(
            f"algorithm.v05.max_rollouts_per_step={cap} must be at most train_batch_size x k_max = {most}"
        )


def _must_be(config: DictConfig, key: str, allowed: object, why: str = "") -> None:
    value = OmegaConf.select(config, key)
    if value != allowed:
        raise SettingsError(f"{key}={value!r} is not allowed: with V0.5 it must be {allowed!r}{why and f' ({why})'}")
