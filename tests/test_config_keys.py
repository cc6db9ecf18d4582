"""Every key of our configs is one that verl knows and reads: a key that nothing reads is ignored without a word."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from verl_v05.dry_run.compose import compose_launch

CONFIG = Path(str(files("verl_v05.config")))
# Of these only the dataclasses or other engines would read a key.
NOT_READERS = (
    "workers/config/",
    "main_ppo_v0",
    "ppo/ray_trainer",
    "sft_trainer",
    "megatron",
    "veomni",
    "torchtitan",
    "automodel",
    "experimental/vla",
    "experimental/fully_async",
    "experimental/one_step",
    "vllm_rollout",
    "trtllm",
)
ENGINES = {"engine_config", "optimizer_config"}  # objects that verl reads an engine's and an optimizer's keys from
OPTIMIZERS = {"optimizer_config", "optim_config", "config"}
# What verl hands on to others; each has to be a word of their sources.
HANDED_ON = {
    "actor_rollout_ref.rollout.engine_kwargs.sglang": ("sglang", "srt/server_args.py"),
    "actor_rollout_ref.model.override_config": ("transformers", "modeling_utils.py"),
    "ray_kwargs.ray_init": ("ray", "_private/worker.py"),
    "trainer.v1.sampler.sampler_kwargs": ("verl_v05", "platform/replay_buffer.py"),
    "transfer_queue.backend.SimpleStorage": ("transfer_queue", "config.yaml"),
}


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def our_keys() -> list[tuple[str, str]]:
    """(file, key) of all configs but those of ``algorithm.v05``, which its own settings check."""
    found = []
    for path in sorted(CONFIG.rglob("*.yaml")):
        if "algorithm" not in path.parts:
            content = yaml.safe_load(path.read_text()) or {}
            ours = {name: value for name, value in content.items() if name not in ("defaults", "hydra")}
            found += [(str(path.relative_to(CONFIG)), key) for key in leaves(ours)]
    return found


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@cache
def verl_defaults() -> DictConfig:
    return compose_launch(f"{package('verl')}/trainer/config", "ppo_trainer", [])


@cache
def readers() -> tuple[dict[str, set[str]], set[str], dict[str, set[str]]]:
    """In verl's sources: the objects that each name is an attribute of, quoted names, the former for the optimizers."""
    paths = [p for p in package("verl").rglob("*.py") if not any(part in str(p) for part in NOT_READERS)]
    text = "\n".join(path.read_text(errors="replace") for path in paths)
    optimizers = (package("verl") / "workers/config/optimizer.py").read_text()
    return owners(text), set(re.findall(r"[\"'](\w+)[\"']", text)), owners(text + optimizers)


def owners(text: str) -> dict[str, set[str]]:
    found = defaultdict(set)
    for match in re.finditer(r"(\w+)\.(?=(\w+))", text):
        found[match[2]].add(match[1])
    return found


def is_known(key: str) -> bool:
    """Whether verl's defaults have the key, or the dataclass that they are made into."""
    node: Any = verl_defaults()
    for name in key.split("."):
        if not isinstance(node, DictConfig):
            return False
        if name not in OmegaConf.to_container(node, resolve=False):
            target = node.get("_target_")
            return target is not None and name in {field.name for field in fields(get_class(target))}
        node = node._get_node(name)
        node = node if isinstance(node, DictConfig) else None
    return True


def is_read(key: str) -> bool:
    *_, parent, name = key.split(".")
    attributes, quoted, of_optimizers = readers()
    match parent:
        case "fsdp" | "fsdp_config":
            return "engine_config" in attributes[name]
        case "optim":
            return bool(OPTIMIZERS & of_optimizers[name])
    return bool(attributes[name] - ENGINES) or name in quoted


def problem(key: str) -> str | None:
    """What is wrong with a key; None if nothing is."""
    for prefix, (name, file) in HANDED_ON.items():
        if key.startswith(prefix + "."):
            word = key.removeprefix(prefix + ".").split(".")[0]
            known = re.search(rf"\b{word}\b", (package(name) / file).read_text())
            return None if known else f"{name} does not know it"
    if not is_known(key):
        return "verl does not know it"
    return None if is_read(key) else "verl does not read it"


def test_every_key_of_our_configs_is_read() -> None:
    found = {f"{file}: {key}": problem(key) for file, key in our_keys()}
    assert len(found) > 100
    assert {key: what for key, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("actor_rollout_ref.actor.grad_clip", "verl does not read it"),
        ("actor_rollout_ref.actor.use_torch_compile", "verl does not read it"),
        ("actor_rollout_ref.actor.clip_gradient", "verl does not know it"),
        ("actor_rollout_ref.rollout.engine_kwargs.sglang.sleep_on_idel", "sglang does not know it"),
        ("actor_rollout_ref.actor.optim.clip_grad", None),
        ("critic.fsdp.mixed_precision.param_dtype", None),
    ],
)
def test_dead_keys_are_found(key: str, what: str | None) -> None:
    assert problem(key) == what
