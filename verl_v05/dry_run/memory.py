"""Memory of the fullest GPU in each phase of a step: an estimate, by the formulas below.

Symbols: P parameters, L layers, p parameters of the largest layer, R = P - L p parameters of the root unit (embeddings,
head), S GPUs that share a copy, T tokens of a micro-batch on a GPU, m, c, r bytes of ``model_dtype`` (the shards; fp32
by verl's default), ``mixed_precision.param_dtype`` (computing; bf16) and ``.reduce_dtype`` (fp32), s bytes a token that
the backward pass keeps (measured on the meta device), s_l those of the largest layer.

Handing the weights over to the rollout takes less than the rollout itself, as the KV cache is not there yet: no phase.
What has no formula and is assumed: ``PROCESS`` bytes for each process with a context on the GPU. Fragmentation is left
to the margin between "fits" and "tight".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verl_v05.dry_run.launch import Engine, Launch
from verl_v05.dry_run.trace import ModelShape
from verl_v05.dry_run.value_model_shape import ValueModelShape

GIB = 2**30
PROCESS = 1.0 * GIB  # CUDA context, workspaces, NCCL buffers, CUDA graphs
FITS = 0.9  # share of a GPU that may be planned; fragmentation takes some of the rest
BYTES = {
    **dict.fromkeys(("fp32", "float32", "float", "32"), 4),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "half", "16"), 2),
    "auto": 2,  # of the rollout: the checkpoint's own
}
Verdict = Literal["fits", "tight", "exceeds"]


@dataclass(frozen=True)
class Item:
    """Something that takes memory, in bytes."""

    name: str
    size: float


@dataclass(frozen=True)
class Phase:
    """What is on the fullest GPU at the same time."""

    name: str
    items: tuple[Item, ...]
    limit: float  # bytes of the GPU
    failure: str | None = None  # why it cannot work, however large the sum

    @property
    def total(self) -> float:
        return sum(item.size for item in self.items)

    @property
    def verdict(self) -> Verdict:
        if self.failure or self.total > self.limit:
            return "exceeds"
        return "fits" if self.total <= FITS * self.limit else "tight"


@dataclass(frozen=True)
class KvCache:
    """Of one replica of the inference engine."""

    size: float  # bytes, on each of its GPUs
    token_size: float  # bytes a token, on each of its GPUs
    tokens: int  # that fit
    sequences: int  # of the longest allowed length that fit at a time
    max_sequences: int  # that the engine runs at a time, at most
    rollouts: float | None  # a replica's share of a step


@dataclass(frozen=True)
class Memory:
    """The estimate of a launch."""

    phases: tuple[Phase, ...]
    kv: KvCache


@dataclass(frozen=True)
class TrainingState:
    """A GPU's shards of one model, in bytes: P m / S each of parameters and gradients, twice that for Adam."""

    parameters: float
    gradients: float
    optimizer: float


def training_state(engine: Engine, shape: ModelShape) -> TrainingState:
    shard = 0.0 if engine.host_state else shape.parameters * BYTES[engine.model_dtype] / engine.shards
    return TrainingState(parameters=shard, gradients=shard, optimizer=2 * shard)


def resident(engine: Engine, shape: ModelShape) -> float:
    """Bytes that stay on the GPU while others work: the shards that are not offloaded. Gradients are freed."""
    state = training_state(engine, shape)
    return (not engine.param_offload) * state.parameters + (not engine.optimizer_offload) * state.optimizer


def gathered(engine: Engine, shape: ModelShape) -> float:
    """Unsharded parameters, bytes: c (R + 2 p), the layer at work and the one fetched ahead; c P if layers are kept."""
    layers = 2 * shape.layer_parameters if engine.reshard_after_forward else shape.layers * shape.layer_parameters
    return BYTES[engine.param_dtype] * (shape.root_parameters + layers)


def unsharded_gradients(engine: Engine, shape: ModelShape) -> float:
    """Bytes: c R + (c + r) p, the root's until the end and a layer's while it is reduced; r P if reduced only once."""
    compute, reduce = BYTES[engine.param_dtype], BYTES[engine.reduce_dtype]
    if engine.defer_gradient_sync:
        return reduce * shape.parameters
    return compute * shape.root_parameters + (compute + reduce) * shape.layer_parameters


def activations(engine: Engine, shape: ModelShape) -> tuple[float, float]:
    """Bytes that are kept, and that work on top of them at the peak.

    Kept: s T; with gradient checkpointing c hidden L T, the layers' inputs, and what is outside the layers.
    Working: the larger of the logits, copies x c vocab T, and one layer's backward pass: s_l T of gradients, and with
    checkpointing as much again, what it computes anew.
    """
    compute, tokens = BYTES[engine.param_dtype], engine.tokens
    logits = engine.logit_copies * compute * shape.vocab * tokens
    if engine.checkpointing:
        outside = shape.saved - shape.layers * shape.layer_saved
        kept = compute * shape.hidden * shape.layers + max(outside, 0.0)
        return kept * tokens, max(logits, 2 * shape.layer_saved * tokens)
    return shape.saved * tokens, max(logits, shape.layer_saved * tokens)


def kv_token_size(launch: Launch, shape: ModelShape) -> float:
    """Bytes a token on one GPU: 2 (keys, values) x L x heads x head_dim x dtype; heads are split, at least one each."""
    heads = max(1, shape.kv_heads // launch.rollout.tensor_parallel)
    return 2 * shape.layers * heads * shape.head_dim * BYTES[launch.rollout.dtype]


def kv_cache(launch: Launch, shape: ModelShape, held: float, limit: float) -> KvCache:
    """sglang's rule: static = gpu_memory_utilization x (memory that is free when it starts), weights = P x dtype / tp,
    KV cache = static - weights.

    Args:
        held: bytes on the GPU before sglang starts: contexts and the trainer's parameter shards.
    """
    rollout = launch.rollout
    static = rollout.gpu_memory_utilization * (limit - held)
    size, token_size = max(0.0, static - rollout_weights(launch, shape)), kv_token_size(launch, shape)
    tokens = int(size / token_size)
    if rollout.max_total_tokens is not None and rollout.max_total_tokens < tokens:
        tokens, size = rollout.max_total_tokens, rollout.max_total_tokens * token_size
    most = max_rollouts(launch)
    return KvCache(
        size=size,
        token_size=token_size,
        tokens=tokens,
        sequences=tokens // launch.sequence_tokens,
        max_sequences=rollout.max_sequences,
        rollouts=None if most is None else most * rollout.gpus / launch.gpus,
    )


def rollout_weights(launch: Launch, shape: ModelShape) -> float:
    return shape.parameters * BYTES[launch.rollout.dtype] / launch.rollout.tensor_parallel


def rollout_working(launch: Launch, shape: ModelShape) -> float:
    """sglang's buffers beside the static share, bytes: float32 logits and probabilities of all running sequences, and
    what one layer holds of a prefill chunk: 2 x 4 x vocab x max_num_seqs + s_l x chunk / tp."""
    rollout = launch.rollout
    chunk = shape.layer_saved * rollout.prefill_tokens / rollout.tensor_parallel
    return 2 * 4 * shape.vocab * rollout.max_sequences + chunk


def max_rollouts(launch: Launch) -> int | None:
    """Most rollouts of a step; None if groups are replaced until enough of them differ (DAPO)."""
    if launch.refills:
        return None
    most = launch.prompts * launch.group_max
    return most if launch.max_rollouts is None else min(most, launch.max_rollouts)


def estimate(
    launch: Launch,
    policy: ModelShape,
    critic: ModelShape | None,
    value_model: ValueModelShape | None,
    limit: float,
) -> Memory:
    """All phases of a step.

    Args:
        critic: shape of the critic, if the launch has one.
        value_model: of a replica, if the launch has any; the GPU it shares is the fullest.
        limit: bytes of a GPU.
    """
    engines = [(launch.actor, policy)]
    if launch.critic is not None and critic is not None:
        engines.append((launch.critic, critic))
    processes = Item("processes (assumed)", (2 + (value_model is not None)) * PROCESS)
    at_start = processes.size + sum(
        training_state(engine, shape).parameters for engine, shape in engines if not engine.param_offload
    )
    kv = kv_cache(launch, policy, at_start, limit)
    others = [Item(f"{engine.name}: shards left on the GPU", resident(engine, shape)) for engine, shape in engines]
    engine_items = [Item("rollout weights", rollout_weights(launch, policy)), Item("KV cache", kv.size)]
    rollout = [processes, *others, *engine_items, Item("rollout working memory", rollout_working(launch, policy))]
    if value_model is not None:
        rollout.append(Item("value model", value_model.weights + value_model.working))
    short = f"the KV cache holds {kv.tokens} tokens, a sequence has up to {launch.sequence_tokens}"
    phases = [Phase("rollout", _filled(rollout), limit, None if kv.sequences else short)]
    awake = [] if launch.rollout.sleeps else engine_items
    for index, (engine, shape) in enumerate(engines):
        rest = [processes, *awake, *(item for i, item in enumerate(others) if i != index)]
        phases += _training_phases(engine, shape, rest, limit)
    return Memory(tuple(phases), kv)


def _training_phases(engine: Engine, shape: ModelShape, rest: list[Item], limit: float) -> list[Phase]:
    state = training_state(engine, shape)
    shards = [Item("parameter shards", state.parameters), Item("optimizer shards", state.optimizer)]
    kept, working = activations(engine, shape)
    compute, tokens = BYTES[engine.param_dtype], engine.forward_tokens
    forward = max(engine.forward_logit_copies * compute * shape.vocab * tokens, shape.layer_saved * tokens)
    # The optimizer of verl waits on the CPU until the update, if it is offloaded.
    reading = shards[: 1 if engine.optimizer_offload else 2]
    phases = {
        "forward": [*reading, Item("gathered layers", gathered(engine, shape)), Item("logits or a layer", forward)],
        "forward and backward": [
            *shards,
            Item("gradient shards", state.gradients),
            Item("gathered layers", gathered(engine, shape)),
            Item("gradients being reduced", unsharded_gradients(engine, shape)),
            Item("activations", kept),
            Item("logits or a layer's backward pass", working),
        ],
        # Adam's square root of the second moments is computed for all shards at once.
        "optimizer step": [
            *shards,
            Item("gradient shards", state.gradients),
            Item("temporaries", state.optimizer / 2),
        ],
    }
    return [Phase(f"{engine.name}: {name}", _filled([*rest, *items]), limit) for name, items in phases.items()]


def _filled(items: list[Item]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.size > 0)
