"""What verl itself makes of a config: its config objects, its roles and resource pools, and what it refuses.

All of it is called as verl's trainer and workers call it, without Ray, an accelerator or weights. Two methods of the
trainer read nothing but its config, so they are called on an object that has nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
from verl.trainer.ppo.utils import Role, need_critic, need_reference_policy
from verl.trainer.ppo.v1 import PPOTrainer, get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.config import ActorConfig, CriticConfig, RolloutConfig

from verl_v05.dry_run import Problem, refuse
from verl_v05.estimators.register import check_parameters


@dataclass(frozen=True)
class Workers:
    """verl's objects for one launch; ``engine`` of the first three is the part that the training backend reads."""

    actor: ActorConfig
    reference: ActorConfig | None  # None: no KL penalty, or LoRA, where the reference is the actor without its adapter
    critic: CriticConfig | None
    rollout: RolloutConfig
    pools: dict[str, list[int]]  # resource pool to the GPUs of each of its nodes; the trainer's is "global_pool"
    refills: bool  # groups of equal outcome are replaced (DAPO)


def read_workers(config: DictConfig) -> Workers:
    """Read a config in which :func:`check_with_verl` finds no error."""
    config = _own_copy(config)
    trainer = _with_roles(config)
    return Workers(
        actor=omega_conf_to_dataclass(config.actor_rollout_ref.actor),
        reference=_reference(trainer),
        critic=omega_conf_to_dataclass(config.critic) if Role.Critic in trainer.role_worker_mapping else None,
        rollout=omega_conf_to_dataclass(config.actor_rollout_ref.rollout),
        pools=trainer.resource_pool_manager.resource_pool_spec,
        refills=PPOTrainer._resolve_filter_groups_metric(trainer) is not None,
    )


def check_with_verl(config: DictConfig) -> list[Problem]:
    """What verl refuses at launch, or later in its workers; the counts of nodes, GPUs and prompts must be set."""
    config, problems = _own_copy(config), []
    if config.algorithm.adv_estimator not in ADV_ESTIMATOR_REGISTRY:
        known = ", ".join(sorted(ADV_ESTIMATOR_REGISTRY))
        problems.append(refuse("algorithm.adv_estimator", config.algorithm.adv_estimator, f"one of {known}"))
    calls: dict[str, Callable[[], object]] = {
        "trainer.v1.trainer_mode": lambda: get_trainer_cls(config.trainer.v1.trainer_mode),
        "verl": lambda: validate_config(config, need_reference_policy(config), need_critic(config)),
        "algorithm": lambda: check_parameters(config.algorithm),
        "algorithm.filter_groups": lambda: PPOTrainer._resolve_filter_groups_metric(_with_roles(config)),
        "actor_rollout_ref.rollout": lambda: omega_conf_to_dataclass(config.actor_rollout_ref.rollout),
        "actor_rollout_ref.ref": lambda: _reference(_with_roles(config)),
    }
    for where, call in calls.items():
        try:
            call()
        except Exception as error:  # whatever verl raises is its refusal
            problems.append(Problem("error", f"{where}: {reason(error)}"))
    return problems


def _own_copy(config: DictConfig) -> DictConfig:
    """A copy for verl to write to. The critic's model is left out, as verl would load its tokenizer to validate."""
    config = deepcopy(config)
    with open_dict(config):
        config.critic.model = None
    return config


def _with_roles(config: DictConfig) -> Any:
    """A trainer as far as its roles and pools; verl's own cannot be constructed without Ray."""
    trainer: Any = SimpleNamespace(config=config)
    PPOTrainer._init_resource_pool_mgr(trainer)
    return trainer


def _reference(trainer: Any) -> ActorConfig | None:
    """The reference policy's config under the names that verl's worker gives it before it reads it."""
    if Role.ActorRolloutRef not in trainer.role_worker_mapping:
        return None
    actor, reference = trainer.config.actor_rollout_ref.actor, trainer.config.actor_rollout_ref.ref
    with open_dict(reference):
        reference.ppo_mini_batch_size = actor.ppo_mini_batch_size
        reference.use_dynamic_bsz = reference.pop("log_prob_use_dynamic_bsz", False)
        for name in ("micro_batch_size", "micro_batch_size_per_gpu", "max_token_len_per_gpu"):
            reference[f"ppo_{name}"] = reference.pop(f"log_prob_{name}", None)
    return omega_conf_to_dataclass(reference)


def reason(error: BaseException) -> str:
    """hydra wraps what a dataclass raises, verl what a module raises at its import."""
    cause = error.__cause__ or error
    return str(cause).strip() or type(cause).__name__
