"""Sources in verl of the rules that the dry run repeats, or calls without the object they belong to."""

_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_WORKERS = "verl.workers.engine_workers"
_FSDP = "verl.workers.engine.fsdp.transformer_impl:FSDPEngine"
_REPLICA = "verl.workers.rollout.replica:RolloutReplica"

# Digests as of verl_v05.compat.contract.source_of.
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
    f"{_FSDP}._init_device_mesh": "b001793f7feded10",  # sequence parallelism
    f"{_FSDP}._build_module": "3935df3e22bb9ad0",  # model_dtype
    "verl.experimental.reward_loop:migrate_legacy_reward_impl": "90b968d370ac6176",  # new names of old keys
    f"{_REPLICA}.__init__": "2fabbc138e468d1f",  # GPUs of a replica
    f"{_REPLICA}.init_hybrid": "73c87e25af9a9c00",  # which of the trainer's they are
}
