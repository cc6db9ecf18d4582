"""All that the dry run says of a valid launch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from verl_v05.dry_run.launch import CRITIC, FSDP, MODEL, Engine, Launch
from verl_v05.dry_run.memory import BYTES, Memory, estimate, max_rollouts
from verl_v05.dry_run.placement import Place, place
from verl_v05.dry_run.shapes import find_config
from verl_v05.dry_run.trace import Kind, ModelShape, measure
from verl_v05.dry_run.value_model_shape import ValueModelShape, value_model_shape

DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Step:
    """What one training step does."""

    prompts: int
    first_rollouts: int
    max_rollouts: int | None  # None: groups of equal outcome are replaced without limit
    max_tokens: int | None  # prompts and responses of all rollouts at full length
    updates: int  # optimizer steps of the actor
    critic_updates: int


@dataclass(frozen=True)
class Shapes:
    """Of the launch's models."""

    policy: ModelShape
    critic: ModelShape | None
    value_model: ValueModelShape | None


@dataclass(frozen=True)
class Plan:
    """``memory`` is None where it cannot be estimated: on a CPU, or with another engine than FSDP."""

    launch: Launch
    shapes: Shapes
    step: Step
    places: tuple[Place, ...]
    memory: Memory | None


def step_of(launch: Launch) -> Step:
    """Updates are mini-batches x epochs; what is left of the prompts by mini-batches is filled up with padding."""
    most = max_rollouts(launch)
    critic = 0
    if launch.critic is not None:
        critic = math.ceil(launch.prompts / launch.critic_mini_batch) * launch.critic_epochs
    return Step(
        prompts=launch.prompts,
        first_rollouts=launch.prompts * launch.group,
        max_rollouts=most,
        max_tokens=None if most is None else most * launch.sequence_tokens,
        updates=math.ceil(launch.prompts / launch.mini_batch) * launch.epochs,
        critic_updates=critic,
    )


def shapes_of(launch: Launch, given: Mapping[str, Path]) -> Shapes:
    """Raises:
    ShapeError: a model's config cannot be found.
    """

    def shape(engine: Engine, kind: Kind, key: str) -> ModelShape:
        config = find_config(f"{key}.path", engine.model, given)
        return measure(config, kind, DTYPES[BYTES[engine.param_dtype]])

    return Shapes(
        policy=shape(launch.actor, "policy", MODEL),
        critic=None if launch.critic is None else shape(launch.critic, "critic", f"{CRITIC}.model"),
        value_model=None if launch.value_model is None else value_model_shape(launch.value_model, given),
    )


def make_plan(launch: Launch, shapes: Shapes, gpu_memory: float) -> Plan:
    """Args:
    gpu_memory: bytes of a GPU.
    """
    memory = None
    if launch.device != "cpu" and launch.actor.strategy in FSDP:
        memory = estimate(launch, shapes.policy, shapes.critic, shapes.value_model, gpu_memory)
    return Plan(launch, shapes, step_of(launch), place(launch), memory)
