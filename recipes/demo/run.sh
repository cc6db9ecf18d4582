#!/usr/bin/env bash
# One training run of the demo: verl's stock entry point, a method, a seed.
#   recipes/demo/run.sh METHOD SEED TASK_DIR RUN_DIR [hydra overrides]
# METHOD: v05 (streaming) | v05_rounds | v05_fixed (no extra rollouts), these with a _v0 (value model) or _none (no prior)
# behind them, or without (the prompts' history) | grpo16 | grpo4. Every method starts a step with 128 rollouts.
set -euo pipefail

method=$1 seed=$2 task=$3 out=$4
shift 4
ROLLOUTS=128
here=$(cd "$(dirname "$0")" && pwd)

# The value model's context: a sample of the last 96 prompts, three steps of V0.5.
v0=(algorithm.v05.prior.provider=v0 algorithm.v05.support.capacity=96 algorithm.v05.support.sample=64)
case $method in
  v05*_v0)    prior=("${v0[@]}") ;;
  v05*_none)  prior=(algorithm.v05.prior.provider=none) ;;
  *)          prior=() ;;
esac
bare=${method%_v0} bare=${bare%_none}
case $bare in
  v05)        config=v05  group=4  algorithm=(algorithm/v05=streaming) ;;
  v05_rounds) config=v05  group=4  algorithm=(algorithm/v05=rounds) ;;
  v05_fixed)  config=v05  group=4  algorithm=(algorithm/v05=fixed) ;;
  grpo16)     config=grpo group=16 algorithm=(actor_rollout_ref.rollout.n=16) ;;
  grpo4)      config=grpo group=4  algorithm=(actor_rollout_ref.rollout.n=4) ;;
  *) echo "unknown method '$method': v05[_rounds|_fixed][_v0|_none], grpo16 or grpo4" >&2; exit 2 ;;
esac
if [[ $config == v05 ]]; then
  algorithm+=(algorithm.v05.record_dir="$out/record")
fi
prompts=$((ROLLOUTS / group))

mkdir -p "$out"
unset PYTHONDONTWRITEBYTECODE # ten processes would each compile verl and sglang again
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0 VERL_FILE_LOGGER_PATH="$out/metrics.jsonl"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the engines share two cores
export TQ_NUM_THREADS=1

# Without an accelerator, a server imports torch, sglang and verl once for all processes; elsewhere it is just exec.
exec python -m verl_v05.platform.warm_python run -- python -u -m verl.trainer.main_ppo \
  --config-path pkg://verl_v05.config --config-name $config \
  "${algorithm[@]}" "${prior[@]}" \
  data.train_files="$task/train.parquet" \
  data.val_files="$task/val.parquet" \
  data.train_batch_size=$prompts \
  data.max_prompt_length=12 \
  data.max_response_length=6 \
  data.seed=$seed \
  reward.custom_reward_function.path="$here/reward.py" \
  actor_rollout_ref.model.path="$task/policy" \
  actor_rollout_ref.actor.optim.lr=3e-4 \
  actor_rollout_ref.actor.ppo_mini_batch_size=$prompts \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192 \
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=8192 \
  actor_rollout_ref.rollout.val_kwargs.n=2 \
  actor_rollout_ref.rollout.val_kwargs.do_sample=true \
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
  +actor_rollout_ref.rollout.engine_kwargs.sglang.random_seed=$seed \
  trainer.total_epochs=1000 \
  trainer.total_training_steps=40 \
  trainer.test_freq=10 \
  trainer.save_freq=-1 \
  trainer.resume_mode=disable \
  trainer.project_name=v05_demo \
  trainer.experiment_name="${method}_$seed" \
  trainer.default_local_dir="$out/checkpoints" \
  hydra.run.dir="$out/hydra" \
  "$@"
