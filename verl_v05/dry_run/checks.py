"""Checks of a composed config that need no verl: sizes that must fit, files that should exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_v05.compat.contract import ContractError, check_version
from verl_v05.dry_run.launch import (
    ACTOR,
    CRITIC,
    FSDP,
    REF,
    ROLLOUT,
    Launch,
    has_critic,
    has_reference,
    is_v05,
    lora_rank,
    replica_gpus,
    sequence_parallel,
)
from verl_v05.dry_run.memory import BYTES
from verl_v05.dry_run.problems import Problem, refuse, warn
from verl_v05.dry_run.trace import ModelShape
from verl_v05.launch import check_run
from verl_v05.settings import SettingsError

COUNTS = (
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    f"{ACTOR}.ppo_mini_batch_size",
    f"{ACTOR}.ppo_epochs",
    f"{ROLLOUT}.n",
    f"{ROLLOUT}.tensor_model_parallel_size",
    f"{ROLLOUT}.data_parallel_size",
    f"{ROLLOUT}.pipeline_model_parallel_size",
)
SYNCHRONOUS = ("sync", "sync_recorded", "v05")
GROUPS = ("grpo", "grpo_vectorized", "gdpo", "rloo", "rloo_vectorized", "opo", "reinforce_plus_plus_baseline")


def check_config(config: DictConfig) -> list[Problem]:
    """All that is wrong, not only the first; empty if nothing is."""
    missing = sorted(key for key in OmegaConf.missing_keys(config) if key.startswith(("actor_rollout_ref", "data.")))
    critic = ("critic.ppo_mini_batch_size", "critic.ppo_epochs") if has_critic(config) else ()
    counts = [refuse(config, k, "an integer of at least 1") for k in (*COUNTS, *critic) if not _is_count(config, k)]
    if missing or counts:  # the other checks compute with these
        return [*(Problem("error", f"{key} is not set: the launch needs it") for key in missing), *counts]
    rules = (_cluster, _dtypes, _batches, _tokens, _critic, _v05, _files, _not_planned)
    return [problem for rule in rules for problem in rule(config)]


def check_model(launch: Launch, shape: ModelShape, max_model_len: int | None = None) -> list[Problem]:
    """What must fit the policy's shape; ``max_model_len`` is the rollout's own limit, if set."""
    context = max_model_len or shape.context
    problems = []
    if launch.sequence_tokens > context:
        problems.append(
            f"data.max_prompt_length + data.max_response_length={launch.sequence_tokens} is not allowed: "
            f"it must be at most the context, {context} tokens"
        )
    if max_model_len and max_model_len > shape.context:
        problems.append(
            f"{ROLLOUT}.max_model_len={max_model_len} is not allowed: it must be at most the model's {shape.context}"
        )
    for key, size in (
        (f"{ROLLOUT}.tensor_model_parallel_size", launch.rollout.tensor_parallel),
        (f"{ACTOR}.ulysses_sequence_parallel_size", launch.actor.sequence_parallel),
    ):
        if shape.heads % size:
            problems.append(f"{key}={size} is not allowed: it must divide the model's {shape.heads} attention heads")
    return [Problem("error", message) for message in problems]


def _cluster(config: DictConfig) -> Iterator[Problem]:
    nodes, per_node = config.trainer.nnodes, config.trainer.n_gpus_per_node
    gpus, replica = nodes * per_node, replica_gpus(config)
    tp = f"{ROLLOUT}.tensor_model_parallel_size"
    if gpus % replica:
        others = "" if replica == OmegaConf.select(config, tp) else f" (with data and pipeline parallelism {replica})"
        yield refuse(config, tp, f"such that a replica's GPUs{others} divide nnodes x n_gpus_per_node = {gpus}")
    elif replica % min(per_node, replica) or (replica < per_node and per_node % replica):
        yield refuse(config, tp, f"such that a replica's {replica} GPUs are whole nodes or divide one of {per_node}")
    for engine, state in ((ACTOR, f"{ACTOR}.fsdp_config"), *([(CRITIC, "critic.fsdp")] if has_critic(config) else [])):
        size = OmegaConf.select(config, f"{state}.fsdp_size")
        if size is not None and 0 < size < gpus and gpus % size:
            yield refuse(config, f"{state}.fsdp_size", f"-1 or a divisor of nnodes x n_gpus_per_node = {gpus}")
        if gpus % sequence_parallel(config, engine):
            yield refuse(config, f"{engine}.ulysses_sequence_parallel_size", f"a divisor of the {gpus} GPUs")
    if not 0 < (config.actor_rollout_ref.rollout.gpu_memory_utilization or 0) < 1:
        yield refuse(config, f"{ROLLOUT}.gpu_memory_utilization", "between 0 and 1")
    if config.reward.reward_model.enable_resource_pool:
        for key in ("reward.reward_model.nnodes", "reward.reward_model.n_gpus_per_node"):
            if not _is_count(config, key):
                yield refuse(config, key, "at least 1 with enable_resource_pool")


def _dtypes(config: DictConfig) -> Iterator[Problem]:
    states = [f"{ACTOR}.fsdp_config", *(["critic.fsdp"] if has_critic(config) else [])]
    precisions = [f"{state}.mixed_precision.{name}_dtype" for state in states for name in ("param", "reduce")]
    for key in (f"{ROLLOUT}.dtype", *(f"{state}.model_dtype" for state in states), *precisions):
        value = OmegaConf.select(config, key)
        if value is not None and str(value) not in BYTES:
            yield refuse(config, key, f"one of {', '.join(BYTES)}")


def _batches(config: DictConfig) -> Iterator[Problem]:
    """V0.5 has its own rule for prompts, and splits uneven rows itself."""
    if is_v05(config):
        return
    prompts, group = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    for engine in (ACTOR, *([CRITIC] if has_critic(config) else [])):
        part, key = OmegaConf.select(config, engine), f"{engine}.ppo_mini_batch_size"
        mini, ranks = part.ppo_mini_batch_size, max(1, gpus // sequence_parallel(config, engine))
        if mini > prompts or prompts % mini:
            yield refuse(config, key, f"(in prompts) a divisor of data.train_batch_size={prompts}")
        elif mini * group % ranks:
            yield refuse(config, key, f"such that {mini} x {ROLLOUT}.n={group} rollouts divide over {ranks} GPUs")
        elif not part.use_dynamic_bsz and (rows := part.ppo_micro_batch_size_per_gpu) and mini * group // ranks % rows:
            share = mini * group // ranks
            yield refuse(config, f"{engine}.ppo_micro_batch_size_per_gpu", f"a divisor of a GPU's {share} rollouts")
    if group == 1 and config.algorithm.adv_estimator in GROUPS:
        yield warn(f"{ROLLOUT}.n=1 with {config.algorithm.adv_estimator}: a group of one has nothing to compare with")


def _tokens(config: DictConfig) -> Iterator[Problem]:
    sequence = config.data.max_prompt_length + config.data.max_response_length
    why = f"at least max_prompt_length + max_response_length = {sequence}"
    limit = OmegaConf.select(config, f"{ROLLOUT}.max_model_len")
    if limit is not None and limit < sequence:
        yield refuse(config, f"{ROLLOUT}.max_model_len", why)
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz != config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz:
        wanted = f"{actor.use_dynamic_bsz}, as {ACTOR}.use_dynamic_bsz"
        yield refuse(config, f"{ROLLOUT}.log_prob_use_dynamic_bsz", wanted)
    limits = [
        (ACTOR, f"{ACTOR}.ppo_max_token_len_per_gpu", actor.use_dynamic_bsz),
        (ACTOR, f"{ROLLOUT}.log_prob_max_token_len_per_gpu", actor.use_dynamic_bsz),
        (ACTOR, f"{REF}.log_prob_max_token_len_per_gpu", has_reference(config) and actor.use_dynamic_bsz),
        (CRITIC, "critic.ppo_max_token_len_per_gpu", has_critic(config) and config.critic.use_dynamic_bsz),
        (CRITIC, "critic.forward_max_token_len_per_gpu", has_critic(config) and config.critic.use_dynamic_bsz),
    ]
    for engine, key, used in limits:
        parallel = sequence_parallel(config, engine)
        if used and (not _is_count(config, key) or OmegaConf.select(config, key) * parallel < sequence):
            over = f", over {parallel} GPUs" if parallel > 1 else ""
            yield refuse(config, key, why + over)


def _critic(config: DictConfig) -> Iterator[Problem]:
    if config.algorithm.adv_estimator == "gae" and not has_critic(config):
        yield refuse(config, "critic.enable", "null or true with algorithm.adv_estimator=gae, which needs values")
    if config.algorithm.adv_estimator != "gae" and has_critic(config) and not is_v05(config):
        yield warn(f"critic.enable=True: algorithm.adv_estimator={config.algorithm.adv_estimator} makes no use of it")


def _v05(config: DictConfig) -> Iterator[Problem]:
    if not is_v05(config):
        return
    try:
        check_version()
        settings = check_run(config)
    except (ContractError, SettingsError) as error:
        yield Problem("error", str(error))
        return
    if settings.prior.provider == "v0":
        try:
            value_model_bundles(config.trainer.n_gpus_per_node, settings.prior.kwargs.get("replicas_per_node", 1))
        except ValueError as error:
            yield Problem("error", str(error))


def value_model_bundles(gpus_per_node: int, per_node: int) -> list[int]:
    """Bundles of a node that a replica of the value model shares.

    Raises:
        ValueError: more replicas than GPUs.
    """
    from value_model.serving.placement import replica_options

    node = SimpleNamespace(bundle_count=gpus_per_node, bundle_specs=[{"GPU": 1.0}] * gpus_per_node)
    options = replica_options([node], per_node, gpu_fraction=0.1)
    return [option["scheduling_strategy"].placement_group_bundle_index for option in options]


def _files(config: DictConfig) -> Iterator[Problem]:
    for key in ("data.train_files", "data.val_files", "reward.custom_reward_function.path"):
        value = OmegaConf.select(config, key)
        names = value if isinstance(value, ListConfig) else [value]
        missing = [name for name in names if name and "://" not in name and not Path(name).expanduser().exists()]
        if missing:
            yield warn(f"{key}: not on this machine: {', '.join(missing)}")


def _not_planned(config: DictConfig) -> Iterator[Problem]:
    """What the plan leaves out, so that nobody believes it is in."""
    rollout, mode = config.actor_rollout_ref.rollout, config.trainer.v1.trainer_mode
    strategy = config.actor_rollout_ref.actor.strategy
    if strategy not in FSDP:
        yield warn(f"{ACTOR}.strategy={strategy}: memory is estimated for {' and '.join(FSDP)} only")
    if mode not in SYNCHRONOUS:
        yield warn(f"trainer.v1.trainer_mode={mode}: the plan is that of the synchronous trainers")
    if rollout.name != "sglang":
        yield warn(f"{ROLLOUT}.name={rollout.name}: the rollout's memory is estimated by sglang's rules")
    if replica_gpus(config) != rollout.tensor_model_parallel_size:
        yield warn(f"{ROLLOUT}: data and pipeline parallelism are left out of the memory estimate")
    if lora_rank(config):
        yield warn("LoRA: gradients and optimizer are estimated as for training all parameters, an upper bound")
    if config.reward.reward_model.enable and not config.reward.reward_model.enable_resource_pool:
        yield warn("reward.reward_model.enable=True without a pool of its own: its memory is left out of the estimate")
    if OmegaConf.select(rollout, "quantization"):
        yield warn(f"{ROLLOUT}.quantization={rollout.quantization}: the rollout's weights are estimated unquantised")
    if config.actor_rollout_ref.model.enable_activation_offload:
        yield warn("actor_rollout_ref.model.enable_activation_offload=True is left out of the memory estimate")


def _is_count(config: DictConfig, key: str) -> bool:
    value = OmegaConf.select(config, key)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
