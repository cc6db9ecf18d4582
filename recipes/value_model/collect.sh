#!/usr/bin/env bash
# Where data/*.parquet come from: short runs of differently skilled policies of the demo, whose trajectories verl_v05
# records. About 3 minutes a policy on two quiet cores; finished runs are kept.
#   recipes/value_model/collect.sh OUT [arithmetic | calculation]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?where to put the runs} task=${2:-arithmetic} project=verl_v05_demo

collect() { # SEED PROMPTS ROLLOUTS STEPS [options of recipes.demo.make]
  local run=$out/policy_$1
  [[ -f $run/done ]] && return
  python -m recipes.demo.make --task "$task" --out "$run/task" --seed "$1" "${@:5}"
  recipes/demo/run.sh v05_fixed_k4_none "$1" "$run/task" "$run" \
    data.train_batch_size="$2" actor_rollout_ref.actor.ppo_mini_batch_size="$2" algorithm.v05.k_init="$3" \
    trainer.total_training_steps="$4" trainer.val_before_train=false trainer.test_freq=-1 \
    trainer.project_name="$project" trainer.experiment_name="policy_$1" > "$run/train.log" 2>&1
  touch "$run/done"
}

if [[ $task == arithmetic ]]; then
  for seed in {1..10}; do collect "$seed" 32 4 24; done
  for seed in 101 102; do collect "$seed" 32 16 16; done # held out: never trained on, measured more precisely
  split=(--holdout-model "$project/policy_101" --holdout-model "$project/policy_102")
else
  project+=_$task split=() # these only measure the value model, so none is held out from the others
  # Knowing how to calculate takes most of the warm-up and is the same for all.
  python -m recipes.demo.make --task "$task" --out "$out/first"
  for seed in {1..3}; do collect "$seed" 64 4 12 --train-size 1024 --start "$out/first/policy"; done
fi
python -m value_model.trajectories "$out" --out "$out/split" --validation 0.2 "${split[@]}"
