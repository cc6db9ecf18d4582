"""Packages that a launch needs, and what verl does about attention and log-probabilities with those there are.

Cheap enough for every launch: nothing here imports torch, or a package that it looks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_v05.settings import KEY

ROLLOUT, MODEL, ACTOR = (f"actor_rollout_ref.{name}" for name in ("rollout", "model", "actor"))
ATTENTION_KEY = f"{MODEL}.override_config.attn_implementation"

# Modules that a choice imports, in the processes of the run.
PRIORS = {"v0": ("sentence_transformers", "tabpfn"), "http": ("httpx",)}
LOGGERS: dict[str, tuple[str, ...]] = {  # verl.utils.tracking's backends
    "console": (),
    "file": (),
    "wandb": ("wandb",),
    "tracking": ("wandb",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "swanlab": ("swanlab",),
    "vemlp_wandb": ("volcengine_ml_platform",),
    "clearml": ("clearml",),
    "trackio": ("trackio",),
    "rl_insight": ("rl_insight",),
}
# flash-attn 4, which sglang brings, is a package of the same name without what flash_attention_2 calls.
FLASH_ATTENTION = "flash_attn.bert_padding"
ATTENTION = {"flash_attention_2": (FLASH_ATTENTION,), "flash_attention_3": ("flash_attn_interface",)}
ENGINES = {"sglang": ("sglang",), "vllm": ("vllm",)}
STRATEGIES = {"megatron": ("megatron.core",), "veomni": ("veomni",)}
# Extras of this package that bring a choice's modules.
EXTRAS = {
    **{name: name for name in ("v0", "http", "wandb", "sglang")},
    "tracking": "wandb",
    "flash_attention_2": "flash-attn",
}


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it or a package around it."""
    root, *parts = module.split(".")
    spec = find_spec(root)
    if spec is None or not parts:
        return spec is not None
    # As files: importlib would import the package to look into it, and flash_attn's takes a second.
    found = [Path(place).joinpath(*parts) for place in spec.submodule_search_locations or ()]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in found)


def lacking(config: DictConfig, of_machine: bool) -> Iterator[str]:
    """Packages that the launch needs and that are not installed, by the key that asks for them.

    Args:
        config: composed.
        of_machine: also those that depend on the accelerator.
    """
    key = f"{KEY}.prior.provider"
    yield from _lacking(key, OmegaConf.select(config, key), PRIORS)
    for logger in loggers(config):
        yield from _lacking("trainer.logger", logger, LOGGERS)
    if not of_machine:
        return
    yield from _lacking(ATTENTION_KEY, attention_of(config), ATTENTION)
    yield from _lacking(f"{ROLLOUT}.name", OmegaConf.select(config, f"{ROLLOUT}.name"), ENGINES)
    yield from _lacking(f"{ACTOR}.strategy", OmegaConf.select(config, f"{ACTOR}.strategy"), STRATEGIES)
    if OmegaConf.select(config, f"{MODEL}.use_liger"):
        yield from _lacking(f"{MODEL}.use_liger", True, {True: ("liger_kernel",)})
    critic = OmegaConf.select(config, "critic.enable")
    needed = OmegaConf.select(config, "algorithm.adv_estimator") == "gae" if critic is None else critic
    if needed and not _on_cpu(config):
        # verl's loader of value heads asks for it by name, whatever the config says.
        for message in _lacking("critic", "flash_attention_2", ATTENTION):
            yield f"{message} (verl loads every critic with it)"


def attention_of(config: DictConfig) -> str:
    """``attn_implementation`` of the policy, verl's default if it is not set."""
    return OmegaConf.select(config, ATTENTION_KEY) or "flash_attention_2"


def attention_chosen(config: DictConfig) -> str:
    """How this launch computes attention, in a line for the log."""
    there = "installed" if is_installed(FLASH_ATTENTION) else "not installed"
    return f"{ATTENTION_KEY}={attention_of(config)} (flash-attn is {there})"


def attention_costs(config: DictConfig) -> Iterator[str]:
    """What a policy on GPUs computes slowly or inexactly without flash-attn; nothing on a CPU."""
    if _on_cpu(config):
        return
    fused = OmegaConf.select(config, f"{MODEL}.use_fused_kernels")
    if not is_installed(FLASH_ATTENTION) and not fused:
        yield (
            f"{MODEL}.use_fused_kernels=False: without flash-attn verl computes log-probabilities token by token, and "
            f"rounds them to bfloat16 (steps of 0.008 at -1 to -2); set it to true for float32"
        )
    key = f"{ACTOR}.ppo_max_token_len_per_gpu"
    tokens, longest = OmegaConf.select(config, key), _longest_sequence(config)
    packed = OmegaConf.select(config, f"{MODEL}.use_remove_padding")
    if packed and attention_of(config) in ("sdpa", "eager") and tokens and longest and tokens >= 2 * longest:
        yield (
            f"{key}={tokens}: with {attention_of(config)}, packed sequences take a mask of {tokens} x {tokens} "
            f"({tokens**2 / 2**30:.1f} GiB) and attention over all of it; the longest sequence needs {longest}"
        )


def loggers(config: DictConfig) -> list[Any]:
    """``trainer.logger``, which verl takes as one name too."""
    value = OmegaConf.select(config, "trainer.logger")
    return list(value) if isinstance(value, ListConfig) else [value]


def _lacking(key: str, choice: Any, modules: Mapping[Any, tuple[str, ...]]) -> Iterator[str]:
    absent = [module.partition(".")[0] for module in modules.get(choice, ()) if not is_installed(module)]
    if absent:
        extra = EXTRAS.get(choice)
        how = f": pip install {'--no-build-isolation ' * (extra == 'flash-attn')}'verl-v05[{extra}]'" if extra else ""
        yield f"{key}={choice} needs {', '.join(absent)}, not installed here{how}"


def _on_cpu(config: DictConfig) -> bool:
    return OmegaConf.select(config, "trainer.device") == "cpu"


def _longest_sequence(config: DictConfig) -> int:
    lengths = [OmegaConf.select(config, f"data.max_{part}_length") for part in ("prompt", "response")]
    return sum(length for length in lengths if isinstance(length, int))
