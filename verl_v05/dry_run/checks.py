"""Checks of a composed config: what verl refuses, sizes that must fit, files that should exist.

Rules that verl asserts deep inside its workers are written down here; their sources are pinned in
:mod:`verl_v05.compat`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic
from verl.utils.torch_dtypes import BFLOAT_LIST, FLOAT_LIST, HALF_LIST
from verl.workers.config import ActorConfig, CriticConfig

from value_model.serving.placement import replica_options
from verl_v05.compat.config import refused, unread, unreadable
from verl_v05.compat.contract import ContractError, check_version
from verl_v05.dry_run import Problem, error, failed, refuse, warn
from verl_v05.dry_run.from_verl import Workers, check_with_verl, read_workers
from verl_v05.dry_run.inputs import check_data, check_packages, check_reward
from verl_v05.dry_run.model_sizes import ModelShape
from verl_v05.launch import check_run
from verl_v05.settings import KEY, load_settings

REF, ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{name}" for name in ("ref", "actor", "rollout", "model"))
CRITIC, TENSOR_PARALLEL = "critic", f"{ROLLOUT}.tensor_model_parallel_size"
COUNTS = (
    *(f"trainer.{name}" for name in ("nnodes", "n_gpus_per_node")),
    *(f"data.{name}" for name in ("train_batch_size", "max_prompt_length", "max_response_length")),
    *(f"{ACTOR}.{name}" for name in ("ppo_mini_batch_size", "ppo_epochs")),
    *(f"{ROLLOUT}.{name}" for name in ("n", "data_parallel_size", "pipeline_model_parallel_size")),
    TENSOR_PARALLEL,
)
POOLS = {"reward.reward_model": "enable_resource_pool", "distillation": "enabled"}
FSDP = ("fsdp", "fsdp2")
SYNCHRONOUS = ("sync", "sync_recorded", "v05")
GROUPS = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "reinforce_plus_plus_baseline")
TRAINING_DTYPES = [d for d in (*FLOAT_LIST, *HALF_LIST, *BFLOAT_LIST) if not isinstance(d, torch.dtype)]
# Bytes of a parameter, by the names that the inference engine takes; "auto" is the checkpoint's own.
ROLLOUT_DTYPES = {"auto": 2, "half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}


def check_config(config: DictConfig) -> list[Problem]:
    """All that is wrong, not only the first; empty if nothing is."""
    unusable = [*map(error, unreadable(config))] or [*_unset(config)]
    if unusable:  # verl and the other checks compute with these
        return unusable
    problems = [*map(error, refused(config)), *check_with_verl(config)]
    if not failed(problems):
        workers = read_workers(config)
        problems += [problem for rule in (_engines, _batches, _tokens) for problem in rule(config, workers)]
    rules = (_rollout, _critic, _v05, check_data, check_reward, check_packages, _not_planned)
    return [*problems, *(problem for rule in rules for problem in rule(config)), *map(warn, unread(config))]


def check_model(config: DictConfig, workers: Workers, policy: ModelShape) -> list[Problem]:
    """What must fit the policy's shape."""
    sequence, limit, problems = longest_sequence(config), workers.rollout.max_model_len, []
    if limit is not None and limit > policy.context:
        problems.append(refuse(f"{ROLLOUT}.max_model_len", limit, f"at most the model's {policy.context}"))
    elif limit is None and sequence > policy.context:
        allowed = f"at most the context, {policy.context} tokens"
        problems.append(refuse("data.max_prompt_length + data.max_response_length", sequence, allowed))
    sizes = {TENSOR_PARALLEL: workers.rollout.tensor_model_parallel_size}
    sizes[f"{ACTOR}.ulysses_sequence_parallel_size"] = sequence_parallel(workers.actor)
    for key, size in sizes.items():
        if policy.heads % size:
            message = f"{key}={size} is not allowed: it must divide the model's {policy.heads} attention heads"
            problems.append(error(message))
    return problems


def is_v05(config: DictConfig) -> bool:
    return config.algorithm.adv_estimator == "v05" or OmegaConf.select(config, KEY) is not None


def trainer_gpus(config: DictConfig) -> int:
    return config.trainer.nnodes * config.trainer.n_gpus_per_node


def replica_gpus(config: DictConfig) -> int:
    """GPUs of one replica of the inference engine."""
    rollout = config.actor_rollout_ref.rollout
    return rollout.tensor_model_parallel_size * rollout.data_parallel_size * rollout.pipeline_model_parallel_size


def longest_sequence(config: DictConfig) -> int:
    return config.data.max_prompt_length + config.data.max_response_length


def sequence_parallel(part: ActorConfig | CriticConfig) -> int:
    """GPUs that share a sequence."""
    return getattr(part.engine, "ulysses_sequence_parallel_size", 1)  # FSDP's name for it, which others lack


def value_model_kwargs(config: DictConfig) -> dict[str, Any] | None:
    """Arguments of V0.5's value model, if its prior is the one on replicas beside the policy."""
    prior = load_settings(config).prior if is_v05(config) else None
    return {"replicas_per_node": 1, **prior.kwargs} if prior is not None and prior.provider == "v0" else None


def value_model_bundles(config: DictConfig) -> list[int]:
    """Bundles of a node that a replica of the value model shares; ValueError: more replicas than GPUs."""
    gpus, kwargs = config.trainer.n_gpus_per_node, value_model_kwargs(config)
    if kwargs is None:
        return []
    node: Any = SimpleNamespace(bundle_count=gpus, bundle_specs=[{"GPU": 1.0}] * gpus)  # a placement group
    options = replica_options([node], kwargs["replicas_per_node"], gpu_fraction=0.1)
    return [option["scheduling_strategy"].placement_group_bundle_index for option in options]


def _unset(config: DictConfig) -> Iterator[Problem]:
    for key in sorted(OmegaConf.missing_keys(config)):
        if key.startswith(("actor_rollout_ref", "data.")):
            yield error(f"{key} is not set: the launch needs it")
    critic = ("critic.ppo_mini_batch_size", "critic.ppo_epochs") if need_critic(config) else ()
    allowed = dict.fromkeys((*COUNTS, *critic), "an integer of at least 1")
    for pool, switch in POOLS.items():
        if OmegaConf.select(config, f"{pool}.{switch}"):
            allowed |= dict.fromkeys((f"{pool}.nnodes", f"{pool}.n_gpus_per_node"), f"at least 1 with {switch}")
    # 0 where the schedule decides on the first rollouts: the launch's own check has compared it with k_init.
    if is_v05(config) and config.actor_rollout_ref.rollout.n == 0:
        del allowed[f"{ROLLOUT}.n"]
    for key, why in allowed.items():
        if not _is_count(value := OmegaConf.select(config, key)):
            yield refuse(key, value, why)


def _rollout(config: DictConfig) -> Iterator[Problem]:
    rollout, per_node, gpus = config.actor_rollout_ref.rollout, config.trainer.n_gpus_per_node, trainer_gpus(config)
    size, replica = rollout.tensor_model_parallel_size, replica_gpus(config)
    if gpus % replica:
        others = "" if replica == size else f" (with data and pipeline parallelism {replica})"
        allowed = f"such that a replica's GPUs{others} divide nnodes x n_gpus_per_node = {gpus}"
        yield refuse(TENSOR_PARALLEL, size, allowed)
    # verl cuts replicas out of the ranks in order: one that neither fills nor divides a node would lie on two.
    elif max(replica, per_node) % min(replica, per_node):
        allowed = f"such that a replica's {replica} GPUs are whole nodes or divide one of {per_node}"
        yield refuse(TENSOR_PARALLEL, size, allowed)
    if not 0 < (rollout.gpu_memory_utilization or 0) < 1:
        yield refuse(f"{ROLLOUT}.gpu_memory_utilization", rollout.gpu_memory_utilization, "between 0 and 1")
    if rollout.dtype not in ROLLOUT_DTYPES:
        yield refuse(f"{ROLLOUT}.dtype", rollout.dtype, f"one of {', '.join(ROLLOUT_DTYPES)}")


def _critic(config: DictConfig) -> Iterator[Problem]:
    estimator, critic = config.algorithm.adv_estimator, need_critic(config)
    if estimator == "gae" and not critic:
        allowed = "null or true with algorithm.adv_estimator=gae, which needs values"
        yield refuse("critic.enable", config.critic.enable, allowed)
    if estimator != "gae" and critic and not is_v05(config):
        yield warn(f"critic.enable=True: algorithm.adv_estimator={estimator} makes no use of it")


def _v05(config: DictConfig) -> Iterator[Problem]:
    if not is_v05(config):
        return
    try:
        check_version()
        check_run(config)
        value_model_bundles(config)
    except (ContractError, ValueError) as refusal:
        yield error(str(refusal))


def _not_planned(config: DictConfig) -> Iterator[Problem]:
    """What the plan leaves out, so that nobody believes it is in."""
    strategy, mode = config.actor_rollout_ref.actor.strategy, config.trainer.v1.trainer_mode
    if strategy not in FSDP:
        yield warn(f"{ACTOR}.strategy={strategy}: memory is estimated for {' and '.join(FSDP)} only")
    if mode not in SYNCHRONOUS:
        yield warn(f"trainer.v1.trainer_mode={mode}: the plan is that of the synchronous trainers")
    if any(OmegaConf.select(config, f"{MODEL}.{key}") for key in ("lora_rank", "lora.rank", "lora_adapter_path")):
        yield warn("LoRA: gradients and optimizer are estimated as for training all parameters, an upper bound")


def _engines(config: DictConfig, workers: Workers) -> Iterator[Problem]:
    gpus = trainer_gpus(config)
    for key, part in _trained(workers):
        state = f"{key}.fsdp" if key == CRITIC else f"{key}.fsdp_config"
        size, parallel = getattr(part.engine, "fsdp_size", -1), sequence_parallel(part)
        if 0 < size < gpus and gpus % size:
            yield refuse(f"{state}.fsdp_size", size, f"-1 or a divisor of nnodes x n_gpus_per_node = {gpus}")
        if gpus % parallel:
            where = state if key == CRITIC else key  # verl reads the critic's from there only
            yield refuse(f"{where}.ulysses_sequence_parallel_size", parallel, f"a divisor of the {gpus} GPUs")
        for name in ("model_dtype", "mixed_precision.param_dtype", "mixed_precision.reduce_dtype"):
            dtype = OmegaConf.select(config, f"{state}.{name}")
            if dtype is not None and dtype not in TRAINING_DTYPES:
                yield refuse(f"{state}.{name}", dtype, f"one of {', '.join(map(str, TRAINING_DTYPES))}")


def _batches(config: DictConfig, workers: Workers) -> Iterator[Problem]:
    """V0.5 has its own rule for prompts, and splits uneven rows itself."""
    if is_v05(config):
        return
    prompts, group = config.data.train_batch_size, config.actor_rollout_ref.rollout.n
    for key, part in _trained(workers):
        mini, ranks = part.ppo_mini_batch_size, max(1, trainer_gpus(config) // sequence_parallel(part))
        share, rows = mini * group // ranks, part.ppo_micro_batch_size_per_gpu
        if mini > prompts or prompts % mini:
            allowed = f"(in prompts) a divisor of data.train_batch_size={prompts}"
            yield refuse(f"{key}.ppo_mini_batch_size", mini, allowed)
        elif mini * group % ranks:
            allowed = f"such that {mini} x {ROLLOUT}.n={group} rollouts divide over {ranks} GPUs"
            yield refuse(f"{key}.ppo_mini_batch_size", mini, allowed)
        # verl makes the critic's micro-batches by tokens, whatever critic.use_dynamic_bsz says.
        elif key == ACTOR and not part.use_dynamic_bsz and rows and share % rows:
            yield refuse(f"{key}.ppo_micro_batch_size_per_gpu", rows, f"a divisor of a GPU's {share} rollouts")
    if group == 1 and config.algorithm.adv_estimator in GROUPS:
        yield warn(f"{ROLLOUT}.n=1 with {config.algorithm.adv_estimator}: a group of one has nothing to compare with")


def _tokens(config: DictConfig, workers: Workers) -> Iterator[Problem]:
    """Each micro-batch, and the inference engine, must have room for the longest sequence."""
    sequence, actor, rollout = longest_sequence(config), workers.actor, workers.rollout
    why = f"at least max_prompt_length + max_response_length = {sequence}"
    if rollout.max_model_len is not None and rollout.max_model_len < sequence:
        yield refuse(f"{ROLLOUT}.max_model_len", rollout.max_model_len, why)
    if actor.use_dynamic_bsz != rollout.log_prob_use_dynamic_bsz:
        allowed = f"{actor.use_dynamic_bsz}, as {ACTOR}.use_dynamic_bsz"
        yield refuse(f"{ROLLOUT}.log_prob_use_dynamic_bsz", rollout.log_prob_use_dynamic_bsz, allowed)
    limits: list[tuple[str, object, ActorConfig | CriticConfig]] = []
    if actor.use_dynamic_bsz:
        limits.append((f"{ACTOR}.ppo_max_token_len_per_gpu", actor.ppo_max_token_len_per_gpu, actor))
        limits.append((f"{ROLLOUT}.log_prob_max_token_len_per_gpu", rollout.log_prob_max_token_len_per_gpu, actor))
    if (ref := workers.reference) is not None and ref.use_dynamic_bsz:
        limits.append((f"{REF}.log_prob_max_token_len_per_gpu", ref.ppo_max_token_len_per_gpu, ref))
    if (critic := workers.critic) is not None:
        ignored, read = critic.ppo_max_token_len_per_gpu, critic.ppo_infer_max_token_len_per_gpu
        limits.append(("critic.ppo_infer_max_token_len_per_gpu", read, critic))
        if ignored not in (read, CriticConfig.ppo_max_token_len_per_gpu):  # somebody has set it
            instead = f"verl's V1 trainer reads critic.ppo_infer_max_token_len_per_gpu={read} instead"
            yield warn(f"critic.ppo_max_token_len_per_gpu={ignored} has no effect: {instead}")
    for key, tokens, part in limits:
        parallel = sequence_parallel(part)
        if not (isinstance(tokens, int) and _is_count(tokens) and tokens * parallel >= sequence):
            yield refuse(key, tokens, why + (f", over {parallel} GPUs" if parallel > 1 else ""))


def _trained(workers: Workers) -> list[tuple[str, ActorConfig | CriticConfig]]:
    parts = [(ACTOR, workers.actor), (CRITIC, workers.critic)]
    return [(key, part) for key, part in parts if part is not None]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
