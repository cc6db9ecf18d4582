"""verl's own validation, as far as it runs without Ray, an accelerator and weights."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from copy import deepcopy

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_v05.dry_run.problems import Problem, refuse

ROLLOUT = "actor_rollout_ref.rollout"


def check_with_verl(config: DictConfig) -> list[Problem]:
    """What verl refuses at launch, or later in its workers; empty if nothing."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return _check(_without_critic_model(config))


def _check(config: DictConfig) -> list[Problem]:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from verl_v05.estimators.register import check_parameters

    problems = []
    if config.algorithm.adv_estimator not in ADV_ESTIMATOR_REGISTRY:
        known = ", ".join(sorted(ADV_ESTIMATOR_REGISTRY))
        problems.append(refuse(config, "algorithm.adv_estimator", f"one of {known}"))
    calls: list[tuple[str, Callable[[], object]]] = [
        ("trainer.v1.trainer_mode", lambda: get_trainer_cls(config.trainer.v1.trainer_mode)),
        ("verl", lambda: validate_config(config, need_reference_policy(config), need_critic(config))),
        ("algorithm", lambda: check_parameters(config.algorithm)),
        (ROLLOUT, lambda: omega_conf_to_dataclass(OmegaConf.select(config, ROLLOUT))),
    ]
    for where, call in calls:
        try:
            call()
        except Exception as error:  # whatever verl raises is its refusal
            problems.append(Problem("error", f"{where}: {_reason(error)}"))
    return problems


def _without_critic_model(config: DictConfig) -> DictConfig:
    """verl loads the critic's tokenizer and config to validate; the weights need not be here."""
    config = deepcopy(config)
    with open_dict(config):
        config.critic.model = None
    return config


def _reason(error: Exception) -> str:
    """hydra wraps what a dataclass raises."""
    cause = error.__cause__ or error
    return str(cause).strip() or type(cause).__name__
