"""What is relied on in verl 0.9.1: signatures where our override calls verl's method, sources where it replaces it."""

_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_WORKER = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class"
_MANAGER = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ"

SIGNATURES = {
    f"{_TRAINER}.fit": "(self, agent_loop_manager)",
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
