#!/usr/bin/env bash
# Where data/*.parquet come from: short runs of differently skilled policies of the demo, whose trajectories verl_v05
# records. On two quiet cores about 3 minutes a policy, of calculation 6; finished runs are kept.
#   recipes/value_model/collect.sh OUT [arithmetic | calculation]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?where to put the runs} task=${2:-arithmetic}
project=verl_v05_demo trained=10
if [[ $task != arithmetic ]]; then
  project+=_$task trained=4 # its warm-up takes minutes, and most of what V0 learns from is simulated
fi

collect() { # SEED ROLLOUTS STEPS
  local run=$out/policy_$1
  [[ -f $run/done ]] && return
  python -m recipes.demo.make --task "$task" --out "$run/task" --seed "$1"
  recipes/demo/run.sh v05_fixed_k4_none "$1" "$run/task" "$run" \
    data.train_batch_size=32 actor_rollout_ref.actor.ppo_mini_batch_size=32 algorithm.v05.k_init="$2" \
    trainer.total_training_steps="$3" trainer.val_before_train=false trainer.test_freq=-1 \
    trainer.project_name="$project" trainer.experiment_name="policy_$1" > "$run/train.log" 2>&1
  touch "$run/done"
}

for seed in $(seq "$trained"); do collect "$seed" 4 24; done
for seed in 101 102; do collect "$seed" 16 16; done # held out: never trained on, measured more precisely
python -m value_model.trajectories "$out" --out "$out/split" --validation 0.2 \
  --holdout-model "$project/policy_101" --holdout-model "$project/policy_102"
