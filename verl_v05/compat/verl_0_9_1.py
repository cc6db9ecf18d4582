"""What is relied on in verl 0.9.1: signatures where our override calls verl's method, sources where it replaces it."""

_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_WORKER = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class"
_MANAGER = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ"

SIGNATURES = {
    f"{_TRAINER}.fit": "(self, agent_loop_manager)",
    f"{_TRAINER}.step": "(self, metrics, timing_raw)",
    f"{_TRAINER}.on_train_begin": "(self)",
    f"{_TRAINER}._add_prompts_to_generate": "(self, num_prompts)",
    f"{_TRAINER}._load_checkpoint": "(self)",
    f"{_TRAINER}._save_checkpoint": "(self)",
    f"{_TRAINER}._compute_advantage": "(self, batch, metrics)",
    f"{_TRAINER}._compute_metrics": "(self, batch, metrics, timing_raw, global_steps, epoch)",
    f"{_TRAINER}._get_required_batch_multiple": "(self, dp_size)",
    f"{_WORKER}._run_agent_loop": "(self, sampling_params, trajectory, *, agent_name, trace, **kwargs)",
    f"{_WORKER}._agent_loop_postprocess": "(self, output, validate, **kwargs)",
    f"{_MANAGER}._init_agent_loop_workers": "(self)",
    f"{_MANAGER}.generate_sequences": "(self, prompts)",
    "verl.single_controller.ray.base:RayResourcePool.get_placement_groups": "(self, strategy, name, device_name)",
    "verl.single_controller.ray.base:ResourcePoolManager.get_resource_pool": "(self, role)",
    "verl.trainer.ppo.core_algos:register_adv_est": "(name_or_enum)",
    "verl.trainer.ppo.v1.trainer_base:register_trainer": "(name)",
}

SOURCES = {
    f"{_TRAINER}._update_actor": "d7009bd8a69d40b9",
    f"{_TRAINER}.__init__": "6f938d77859b66ae",
    f"{_WORKER}._run_prompt": "3d9bca6b0ea5fe25",
    "verl.experimental.reward_loop.reward_loop:RewardLoopManager.__init__": "063123b99c6667c4",  # the workers' class
    "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories": "d973cc8aec79bc3d",
    "verl.trainer.ppo.ray_trainer:compute_advantage": "314695381c755264",
}

_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead"

# Checked where the CPU engines are registered, since not every process imports verl's.
CPU_ENGINE_SIGNATURES = {
    f"{_ENGINE}._build_fsdp_module": "(self, module)",
    f"{_ENGINE}._build_module": "(self)",
    f"{_ENGINE}.get_per_tensor_param": "(self, layered_summon, base_sync_done, **kwargs)",
    "verl.utils.model:load_valuehead_model": "(local_path, torch_dtype, model_config, trust_remote_code)",
}

_WORKERS = "verl.workers.engine_workers"
_FSDP_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"
_REPLICA = "verl.workers.rollout.replica:RolloutReplica"

# Rules that the dry run repeats, or calls without the object they belong to. A launch does not need them: they are
# compared by the tests and by `python -m verl_v05.compat.contract`.
DRY_RUN_SOURCES = {
    f"{_TRAINER}._init_resource_pool_mgr": "9eaa3bab711e4deb",  # roles and pools; called
    f"{_TRAINER}._resolve_filter_groups_metric": "865586d748fd66fb",  # whether groups are replaced; called
    f"{_TRAINER}._setup": "248aee497276b816",  # what the critic's engine reads
    f"{_TRAINER}._load_checkpoint": "bb446d77c48ac6cc",  # which folders it resumes from
    f"{_TRAINER}._compute_advantage": "2a4a2aa4a475b228",  # what estimators get
    f"{_TRAINER}._update_critic": "1b2879bec14681ba",  # mini-batches are prompts x rollouts
    f"{_WORKERS}:TrainingWorker.train_mini_batch": "02b50b03fe7d8d29",  # and divide over the ranks
    f"{_WORKERS}:ActorRolloutRefWorker.init_model": "d1598903d82449f2",  # token limits, the reference's names
    "verl.workers.engine.utils:prepare_micro_batches": "e3083217530fed22",  # micro-batches by rows or tokens
    "verl.utils.seqlen_balancing:rearrange_micro_batches": "2e384e734df9f191",  # which hold the longest sequence
    "verl.workers.engine.fsdp.utils:create_device_mesh": "c88642ef6e66ea25",  # fsdp_size
    f"{_FSDP_ENGINE}._init_device_mesh": "b001793f7feded10",  # sequence parallelism
    f"{_FSDP_ENGINE}._build_module": "3935df3e22bb9ad0",  # model_dtype
    "verl.experimental.reward_loop:migrate_legacy_reward_impl": "90b968d370ac6176",  # new names of old keys
    f"{_REPLICA}.__init__": "2fabbc138e468d1f",  # GPUs of a replica
    "verl.utils.model:load_valuehead_model": "2371ca280654b53b",  # flash_attention_2 for every critic
    "verl.utils.torch_functional:logprobs_from_logits": "dffd21fe40eb806b",  # flash-attn's cross entropy if it is there
    "verl.utils.torch_functional:logprobs_from_logits_v2": "1074be97faf338ae",  # else row by row, rounded to bfloat16
    f"{_REPLICA}.init_hybrid": "73c87e25af9a9c00",  # which of the trainer's they are
}
