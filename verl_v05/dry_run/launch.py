"""What the dry run reads from a composed config, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_v05.settings import KEY, load_settings

REF, ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{name}" for name in ("ref", "actor", "rollout", "model"))
CRITIC = "critic"
FSDP = ("fsdp", "fsdp2")


@dataclass(frozen=True)
class Engine:
    """A model that verl trains. ``tokens`` count what one GPU holds of a micro-batch."""

    name: str
    model: str  # folder or hub id
    strategy: str
    shards: int  # GPUs that share one copy of the training state
    sequence_parallel: int
    tokens: int  # forward and backward
    forward_tokens: int  # forward only: log-probs, values
    logit_copies: int  # of (tokens, vocab) at the peak of forward and backward; 0 for a critic
    forward_logit_copies: int
    model_dtype: str  # of the shards: parameters, gradients, optimizer
    param_dtype: str  # of what is gathered and computed with
    reduce_dtype: str  # of gradients on their way
    param_offload: bool
    optimizer_offload: bool
    host_state: bool  # FSDP2's offload_policy: the shards never leave host memory
    reshard_after_forward: bool
    defer_gradient_sync: bool
    checkpointing: bool


@dataclass(frozen=True)
class Rollout:
    """The inference engine; one replica spans ``gpus``."""

    name: str
    gpus: int
    tensor_parallel: int
    dtype: str
    gpu_memory_utilization: float
    sleeps: bool  # gives its memory back while the trainer works
    max_sequences: int
    max_total_tokens: int | None  # cap on the KV cache
    prefill_tokens: int


@dataclass(frozen=True)
class ValueModelReplicas:
    """Of ``prior.provider=v0``."""

    model: str | None  # None: the small one of the package
    backbone: str | None
    per_node: int
    gpu_fraction: float


@dataclass(frozen=True)
class Launch:
    """Everything else."""

    nodes: int
    gpus_per_node: int
    device: str
    adv_estimator: str
    trainer_mode: str
    prompts: int  # a step
    group: int  # first rollouts of a prompt
    group_max: int
    max_rollouts: int | None  # cap on a step
    refills: bool  # groups of equal outcome are replaced (DAPO)
    mini_batch: int  # prompts
    epochs: int
    critic_mini_batch: int
    critic_epochs: int
    prompt_tokens: int
    response_tokens: int
    actor: Engine
    critic: Engine | None
    reference: bool
    rollout: Rollout
    value_model: ValueModelReplicas | None
    pools: tuple[tuple[str, int, int], ...]  # other machines: what for, nodes, GPUs of each

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def sequence_tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens


def is_v05(config: DictConfig) -> bool:
    return config.algorithm.adv_estimator == "v05" or OmegaConf.select(config, KEY) is not None


def has_critic(config: DictConfig) -> bool:
    """verl's rule: as ``critic.enable`` says, else for generalised advantage estimation."""
    enable = config.critic.enable
    return config.algorithm.adv_estimator == "gae" if enable is None else bool(enable)


def has_reference(config: DictConfig) -> bool:
    """verl's rule: the reference policy serves a KL penalty only; with LoRA it is the actor without its adapter."""
    wanted = config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss
    return bool(wanted) and not lora_rank(config)


def lora_rank(config: DictConfig) -> int:
    model = config.actor_rollout_ref.model
    return max(OmegaConf.select(model, "lora.rank") or 0, model.get("lora_rank") or 0)


def read_launch(config: DictConfig) -> Launch:
    """Read a config that :func:`verl_v05.dry_run.checks.check_config` finds no error in."""
    actor, data, trainer = config.actor_rollout_ref.actor, config.data, config.trainer
    v05 = load_settings(config) if is_v05(config) else None
    group = config.actor_rollout_ref.rollout.n
    return Launch(
        nodes=trainer.nnodes,
        gpus_per_node=trainer.n_gpus_per_node,
        device=trainer.device,
        adv_estimator=config.algorithm.adv_estimator,
        trainer_mode=trainer.v1.trainer_mode,
        prompts=data.train_batch_size,
        group=group,
        group_max=v05.k_max if v05 and v05.schedule != "fixed" else group,
        max_rollouts=v05.max_rollouts_per_step if v05 else None,
        refills=bool(config.algorithm.filter_groups.enable),
        mini_batch=actor.ppo_mini_batch_size,
        epochs=actor.ppo_epochs,
        critic_mini_batch=config.critic.ppo_mini_batch_size,
        critic_epochs=config.critic.ppo_epochs,
        prompt_tokens=data.max_prompt_length,
        response_tokens=data.max_response_length,
        actor=_actor(config),
        critic=_critic(config) if has_critic(config) else None,
        reference=has_reference(config),
        rollout=_rollout(config),
        value_model=_value_model(v05.prior.kwargs) if v05 and v05.prior.provider == "v0" else None,
        pools=tuple(_pools(config)),
    )


def sequence_parallel(config: DictConfig, engine: str) -> int:
    """GPUs that share a sequence; verl reads it from two places."""
    part = OmegaConf.select(config, engine)
    state = part.fsdp if engine == CRITIC else part.fsdp_config
    return max(part.get("ulysses_sequence_parallel_size") or 1, state.get("ulysses_sequence_parallel_size") or 1)


def _actor(config: DictConfig) -> Engine:
    actor, rollout, model = (OmegaConf.select(config, key) for key in (ACTOR, ROLLOUT, MODEL))
    entropy = actor.calculate_entropy or actor.entropy_coeff != 0
    eager = not model.use_remove_padding
    # verl divides the logits by the temperature unless it is 1; without remove_padding it packs a second copy of them.
    copies = 1 + (rollout.temperature != 1) + eager
    fused = model.use_fused_kernels
    return _engine(
        config,
        ACTOR,
        actor.fsdp_config,
        model,
        forward=(rollout.log_prob_max_token_len_per_gpu, rollout.log_prob_micro_batch_size_per_gpu),
        # flash-attn writes the logits' gradient over them, unless the entropy keeps its softmax beside them.
        logit_copies=0 if fused else copies + 2 * bool(entropy),
        # Log-probs always come with the entropy; compiled, it needs no softmax in memory.
        forward_logit_copies=0 if fused else copies + (not actor.fsdp_config.use_torch_compile),
    )


def _critic(config: DictConfig) -> Engine:
    critic = config.critic
    forward = (critic.forward_max_token_len_per_gpu, critic.forward_micro_batch_size_per_gpu)
    return _engine(config, CRITIC, critic.fsdp, critic.model, forward, logit_copies=0, forward_logit_copies=0)


def _engine(
    config: DictConfig,
    key: str,
    state: DictConfig,
    model: DictConfig,
    forward: tuple[int | None, int | None],
    logit_copies: int,
    forward_logit_copies: int,
) -> Engine:
    part = OmegaConf.select(config, key)
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    parallel = sequence_parallel(config, key)
    sequence = config.data.max_prompt_length + config.data.max_response_length

    def tokens(limit: int | None, rows: int | None) -> int:
        return limit if part.use_dynamic_bsz else math.ceil((rows or 1) * sequence / parallel)

    precision = OmegaConf.select(state, "mixed_precision") or {}
    return Engine(
        name=key.rpartition(".")[2],
        model=model.path,
        strategy=part.strategy,
        shards=state.fsdp_size if 0 < state.fsdp_size < gpus else gpus,
        sequence_parallel=parallel,
        tokens=tokens(part.ppo_max_token_len_per_gpu, part.ppo_micro_batch_size_per_gpu),
        forward_tokens=tokens(*forward),
        logit_copies=logit_copies,
        forward_logit_copies=forward_logit_copies,
        model_dtype=state.model_dtype or "fp32",
        param_dtype=precision.get("param_dtype", "bf16"),
        reduce_dtype=precision.get("reduce_dtype", "fp32"),
        param_offload=state.param_offload,
        optimizer_offload=state.optimizer_offload,
        host_state=part.strategy == "fsdp2" and state.offload_policy,
        reshard_after_forward=state.reshard_after_forward,
        defer_gradient_sync=state.use_no_sync_for_gradient_accumulation,
        checkpointing=model.enable_gradient_checkpointing,
    )


def _rollout(config: DictConfig) -> Rollout:
    rollout = config.actor_rollout_ref.rollout
    extra: dict[str, Any] = OmegaConf.select(rollout, f"engine_kwargs.{rollout.name}") or {}
    return Rollout(
        name=rollout.name,
        gpus=replica_gpus(config),
        tensor_parallel=rollout.tensor_model_parallel_size,
        dtype=rollout.dtype,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        sleeps=rollout.free_cache_engine,
        max_sequences=rollout.max_num_seqs,
        max_total_tokens=extra.get("max_total_tokens"),
        prefill_tokens=extra.get("chunked_prefill_size") or rollout.max_num_batched_tokens,
    )


def replica_gpus(config: DictConfig) -> int:
    """GPUs of one replica of the inference engine."""
    rollout = config.actor_rollout_ref.rollout
    return rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size


def _value_model(kwargs: dict[str, Any]) -> ValueModelReplicas:
    return ValueModelReplicas(
        model=kwargs.get("model"),
        backbone=kwargs.get("backbone"),
        per_node=kwargs.get("replicas_per_node", 1),
        gpu_fraction=kwargs.get("gpu_fraction", 0.1),
    )


def _pools(config: DictConfig) -> list[tuple[str, int, int]]:
    reward, teacher = config.reward.reward_model, config.distillation
    pools = []
    if reward.enable and reward.enable_resource_pool:
        pools.append(("reward model", reward.nnodes, reward.n_gpus_per_node))
    if teacher.enabled:
        pools.append(("distillation teacher", teacher.nnodes, teacher.n_gpus_per_node))
    return pools
