"""What a valid launch would run, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import ActorConfig, CriticConfig

from verl_v05.dry_run import checks
from verl_v05.dry_run.from_verl import Workers
from verl_v05.dry_run.model_sizes import ModelShape
from verl_v05.settings import load_settings

# The authors' release: parameters of Qwen3-Embedding-0.6B, of TabPFN v2.5's 24 layers of 192 with the adapter, and what
# the head takes for 512 queries of 1,008 features at a context of 256, as measured on a CPU.
RELEASED_V0 = "Now-Join-Us/Generalist-Value-Model-V0"
V0_ENCODER, V0_REST, V0_ACTIVATIONS = 595_776_512, 10_718_218 + 268_838, 4.3 * 2**30
ENCODER_DTYPES = {"float32": "fp32"}  # on a GPU the others take two bytes
POOLS = {"reward_pool": "reward model", "teacher_pool": "distillation teacher"}


@dataclass(frozen=True)
class Model:
    """What one role of the launch runs."""

    name: str
    parameters: int | None  # None: its config is not read
    where: str


@dataclass(frozen=True)
class Amount:
    """A number, None where it has no limit, and what it comes from."""

    number: int | None
    source: str


@dataclass(frozen=True)
class Place:
    """One GPU, by verl's order: ranks count bundle by bundle, node by node."""

    node: int
    bundle: int  # Ray's number, which need not be the device's own
    rank: int  # of the actor's shard, and of the reference policy's and critic's
    replica: int  # of the inference engine
    replica_rank: int
    value_model: bool


@dataclass(frozen=True)
class Plan:
    """All that the dry run tells of a valid launch."""

    models: dict[str, Model]  # by role
    step: dict[str, Amount]
    places: tuple[Place, ...]


def make_plan(config: DictConfig, workers: Workers, policy: ModelShape, critic: ModelShape | None) -> Plan:
    """Plan a launch in which :func:`verl_v05.dry_run.checks.check_config` finds no error; ``critic`` if it has one."""
    models = dict(_models(config, workers, policy, critic))
    return Plan(models, step_of(config, workers), tuple(_places(config)))


def step_of(config: DictConfig, workers: Workers) -> dict[str, Amount]:
    """What one training step does; updates are mini-batches, in prompts, x epochs."""
    v05 = load_settings(config) if checks.is_v05(config) else None
    prompts, group = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    group_max = v05.k_max if v05 is not None and v05.schedule != "fixed" else group
    most, source = prompts * group_max, f"{prompts} prompts x {group_max}"
    if v05 is not None and v05.max_rollouts_per_step is not None:
        most, source = min(most, v05.max_rollouts_per_step), f"{source}, capped at {v05.max_rollouts_per_step:,}"
    if workers.refills:
        most, source = None, "groups of equal outcome are replaced by new prompts"
    first = Amount(prompts * group, f"{prompts} prompts x {group}")
    if v05 is not None and v05.k_init == 0:
        first = Amount(most, "divided among the prompts: algorithm.v05.max_rollouts_per_step")
    step = {
        "prompts": Amount(prompts, "data.train_batch_size"),
        "first_rollouts": first,
        "max_rollouts": Amount(most, source),
        "max_tokens": Amount(most and most * checks.longest_sequence(config), "rollouts at most, at full length"),
    }
    for name, part in (("updates", workers.actor), ("critic_updates", workers.critic)):
        if part is not None:
            mini, epochs = part.ppo_mini_batch_size, part.ppo_epochs
            source = f"{prompts} prompts / mini-batches of {mini} x {epochs} epochs"
            step[name] = Amount(prompts // mini * epochs, source)
    return step


def _models(
    config: DictConfig, workers: Workers, policy: ModelShape, critic: ModelShape | None
) -> Iterator[tuple[str, Model]]:
    path, rollout, ranks = config.actor_rollout_ref.model.path, workers.rollout, checks.replica_gpus(config)
    yield "actor", Model(path, policy.parameters, _sharding(workers.actor, policy.parameters, config))
    if workers.reference is not None:
        yield "reference policy", Model(path, policy.parameters, "shards in host memory, layer by layer on the GPU")
    if critic is not None and workers.critic is not None:
        where = _sharding(workers.critic, critic.parameters, config)
        yield "critic", Model(config.critic.model.path, critic.parameters, where)
    weights = policy.parameters * checks.ROLLOUT_DTYPES[rollout.dtype] / rollout.tensor_model_parallel_size
    held = f"{rollout.dtype}{_gib('weights', weights, config)}, static share {rollout.gpu_memory_utilization:g}"
    replicas = f"{checks.trainer_gpus(config) // ranks} replicas of {ranks} rank{'s' * (ranks > 1)} ({held})"
    yield str(rollout.name), Model(path, policy.parameters, replicas)
    if (kwargs := checks.value_model_kwargs(config)) is not None:
        where = f"{kwargs['replicas_per_node']} a node, {kwargs.get('gpu_fraction', 0.1):g} of a GPU booked"
        yield "value model", _value_model(kwargs.get("model"), kwargs.get("dtype", "auto"), where, config)
    for pool, nodes in workers.pools.items():
        if pool in POOLS:
            yield POOLS[pool], Model("", None, f"{len(nodes)} x {nodes[0]} GPUs more")


def _places(config: DictConfig) -> Iterator[Place]:
    """Every GPU of the trainer's nodes."""
    per_node, size = config.trainer.n_gpus_per_node, checks.replica_gpus(config)
    hosts = checks.value_model_bundles(config)
    for rank in range(checks.trainer_gpus(config)):
        node, bundle = divmod(rank, per_node)
        yield Place(node, bundle, rank, *divmod(rank, size), value_model=bundle in hosts)


def _sharding(part: ActorConfig | CriticConfig, parameters: int, config: DictConfig) -> str:
    """How many GPUs share a copy of the training state, and what each of them holds of it."""
    engine: Any = part.engine  # verl's annotation is the base of all engines' configs
    gpus, size = checks.trainer_gpus(config), getattr(engine, "fsdp_size", -1)
    shards = size if 0 < size < gpus else gpus
    if part.strategy not in checks.FSDP:
        return f"{shards} shards ({part.strategy})"
    dtype = engine.model_dtype or "fp32"
    weights = parameters * PrecisionType.to_dtype(dtype).itemsize / shards
    held = _gib("weights", weights, config) + _gib("Adam moments", 2 * weights, config)
    return f"{shards} shards ({part.strategy}, {dtype}{held})"


def _value_model(model: str | None, dtype: str, where: str, config: DictConfig) -> Model:
    """V0's size, where it is the released one; any other's is not known without its files."""
    if model != RELEASED_V0:
        return Model(model or "the package's small one", None, where)
    encoder, rest = V0_ENCODER * PrecisionType.to_dtype(ENCODER_DTYPES.get(dtype, "bf16")).itemsize, V0_REST * 4
    where += _gib("weights", encoder + rest, config) + _gib("up to", V0_ACTIVATIONS, config)
    return Model(model, V0_ENCODER + V0_REST, f"{where} while it answers" if "GiB" in where else where)


def _gib(name: str, size: float, config: DictConfig) -> str:
    """Bytes on one GPU; nothing for a CPU, whose memory is that of all processes together."""
    return "" if config.trainer.device == "cpu" else f", {name} {size / 2**30:.1f} GiB"
