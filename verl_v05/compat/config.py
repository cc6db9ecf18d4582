"""What verl makes of its trainer config: names that it no longer reads, values that it cannot use.

Cheap enough for every launch: nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from verl_v05.compat.packages import LOGGERS, loggers
from verl_v05.registry import SettingsError
from verl_v05.settings import KEY, load_settings

ROLLOUT = "actor_rollout_ref.rollout"

# verl still composes these names (trainer/config/legacy_reward_impl.yaml) but only its fully asynchronous recipe
# translates them; main_ppo reads the new ones alone. Old name, or start of it, to the new one; the first match counts.
MOVED: dict[str, str | None] = {
    "custom_reward_function": "reward.custom_reward_function",
    "sandbox_fusion": "reward.sandbox_fusion",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.reward_loop_source": "reward.reward_manager.source",
    "reward_model.reward_loop_module_path": "reward.reward_manager.module.path",
    # verl's translation writes module.name, but its loader takes the class from reward_manager.name.
    "reward_model.reward_loop_class_name": "reward.reward_manager.name",
    "reward_model.reward_kwargs": "reward.reward_kwargs",
    "reward_model.model.path": "reward.reward_model.model_path",
    "reward_model.model": None,
    "reward_model": "reward.reward_model",
}
# The engines read the optimizer's name. verl's own default of the old one is no request, so it is let through.
SHADOWED = {f"{part}.grad_clip": f"{part}.optim.clip_grad" for part in ("actor_rollout_ref.actor", "critic")}
# Nothing of the V1 trainer reads these, and no other key does what they did.
UNREAD = (
    *(f"trainer.{name}" for name in ("balance_batch", "esi_redundant_time")),
    *(f"data.{name}" for name in ("truncation", "return_raw_input_ids")),
    "actor_rollout_ref.nccl_timeout",
    f"{ROLLOUT}.over_sample_rate",
)
# Numbers that verl's config leaves open, so that no default tells their type.
OPEN_NUMBERS = (
    *(f"trainer.{name}" for name in ("total_training_steps", "max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep")),
    *(f"data.{name}" for name in ("gen_batch_size", "val_batch_size", "seed")),
)
EXPONENT = re.compile(r"\d+(\.\d*)?e[+-]?\d+")  # yaml takes 1e-6 for a text
TRUNCATIONS = ("error", "left", "right", "middle")
RESUME_MODES = ("auto", "disable", "resume_path")
# What they need is not among the fields that verl's V1 trainer hands to an estimator.
NOT_IN_V1 = ("remax", "gdpo", "optimal_token_baseline", "tir_optimal_token_baseline")


def unreadable(config: DictConfig) -> Iterator[str]:
    """Values of a type that verl cannot compute with. Where V0.5's group is at fault, it comes alone."""
    if OmegaConf.select(config, KEY) is not None:
        try:
            load_settings(config)
        except SettingsError as error:
            yield str(error)
            return  # other keys refer to the group
    for key, default in verl_defaults().items():
        value = OmegaConf.select(config, key)
        if value is None:
            continue
        # A text is true, "no" and "off" as well.
        if isinstance(default, bool) and value not in (True, False):
            yield _not_allowed(key, value, "true or false")
        elif (key in OPEN_NUMBERS or _is_number(default)) and not _is_number(value):
            yield _not_allowed(key, value, "a number")


def refused(config: DictConfig) -> Iterator[str]:
    """What a config with readable values asks for and verl would not do: old keys, unknown choices."""
    yield from _old_keys(config)
    if (truncation := OmegaConf.select(config, "data.truncation")) not in TRUNCATIONS:
        yield _not_allowed("data.truncation", truncation, f"one of {', '.join(TRUNCATIONS)}")
    yield from _resume(config)
    for logger in loggers(config):
        if logger not in LOGGERS:
            yield _not_allowed("trainer.logger", logger, f"among {', '.join(LOGGERS)}")
    estimator = OmegaConf.select(config, "algorithm.adv_estimator")
    if estimator in NOT_IN_V1 and OmegaConf.select(config, "trainer.use_v1"):
        yield f"algorithm.adv_estimator={estimator!r} is not allowed: verl's V1 trainer does not compute what it needs"
    prompts, fetched = (OmegaConf.select(config, f"data.{name}_batch_size") for name in ("train", "gen"))
    if fetched is not None and prompts is not None and not (fetched >= 1 and prompts % fetched == 0):
        yield _not_allowed("data.gen_batch_size", fetched, f"null or a divisor of data.train_batch_size={prompts}")


def unread(config: DictConfig) -> Iterator[str]:
    """Keys that are set and have no effect."""
    known = {key.partition(".")[0] for key in verl_defaults()} | {"model_engine"}
    for key in map(str, config):
        if key not in known:
            yield f"{key}: verl has no such key, only code of your own can read it"
    for key in UNREAD:
        if (value := OmegaConf.select(config, key)) not in (None, verl_defaults()[key]):
            yield f"{key}={value} has no effect: verl's V1 trainer does not read it"


def new_name(key: str) -> str | None:
    """What verl now calls a key that starts like one of ``MOVED``; None if it has dropped it."""
    old, new = next((old, new) for old, new in MOVED.items() if key == old or key.startswith(f"{old}."))
    return None if new is None else new + key.removeprefix(old)


@cache
def verl_defaults() -> dict[str, Any]:
    """Every key of verl's trainer config and its default, as verl ships it composed; interpolations as they stand."""
    text = (files("verl.trainer") / "config" / "_generated_ppo_trainer.yaml").read_text()
    # The loader in C takes a tenth of the time, but not every build of yaml has it.
    found = _leaves(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return {key: float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for key, v in found}


def _old_keys(config: DictConfig) -> Iterator[str]:
    for root in dict.fromkeys(old.partition(".")[0] for old in MOVED):
        group = OmegaConf.select(config, root)
        for key, value in _leaves({root: OmegaConf.to_container(group) if OmegaConf.is_config(group) else group}):
            if value is not None:
                new = new_name(key)
                instead = f"set {new}" if new else "it has no new name"
                yield f"{key}={value!r} is not allowed: verl no longer reads it, {instead}"
    for old, new in SHADOWED.items():
        if (value := OmegaConf.select(config, old)) not in (None, verl_defaults()[old], OmegaConf.select(config, new)):
            yield f"{old}={value!r} is not allowed: verl no longer reads it, set {new}"


def _resume(config: DictConfig) -> Iterator[str]:
    mode, path = (OmegaConf.select(config, f"trainer.resume_{name}") for name in ("mode", "from_path"))
    if mode not in RESUME_MODES:
        yield _not_allowed("trainer.resume_mode", mode, f"one of {', '.join(RESUME_MODES)}")
    elif mode == "resume_path" and not re.search(r"global_step_\d+$", str(path)):  # verl reads the step from it
        yield _not_allowed("trainer.resume_from_path", path, "a folder ending in global_step_N, without a slash behind")
    elif mode != "resume_path" and path is not None:
        yield f"trainer.resume_from_path={path!r} is read only with trainer.resume_mode=resume_path, which is {mode}"


def _leaves(node: dict[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of all that is no group."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _not_allowed(key: str, value: object, allowed: str) -> str:
    return f"{key}={value!r} is not allowed: it must be {allowed}"
