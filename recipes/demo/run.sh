#!/usr/bin/env bash
# One training run of the demo: a method of the paper's comparison (recipes/paper) and a seed, at SETTING [cpu] or gpu1.
#   recipes/demo/run.sh METHOD SEED TASK_DIR RUN_DIR [hydra overrides]
# METHOD: v05 (streaming) | v05_rounds | v05_fixed_k1 _k2 _k4 _k8 (no extra rollouts), these with a _v0 (value model) or
# _none (no prior) behind them, or without (the prompts' history), then with an _eb (empirical-Bayes fusion), then
# with a _loo (leave-one-out baseline) | v05_sparse (POOL prompts looked at), with _v0 or _none | grpo16 | grpo8 | grpo4 | dapo | ppo.
# Every method starts a step with 128 rollouts.
set -euo pipefail

method=$1 seed=$2 task=$3 out=$4
shift 4
paper=$(cd "$(dirname "$0")/../paper" && pwd)
export SETTING=${SETTING:-cpu} SEED=$seed TASK=$task OUT=$out

bare=$method record=()
if [[ $bare == v05*_loo ]]; then export BASELINE=leave_one_out bare=${bare%_loo}; fi
if [[ $bare == v05*_eb ]]; then export FUSION=empirical_bayes bare=${bare%_eb}; fi
case $bare in
  v05*_v0)   export PRIOR=v0 bare=${bare%_v0} ;;
  v05*_none) export PRIOR=none bare=${bare%_none} ;;
esac
case $bare in
  v05)          export SCHEDULE=streaming script=v05 ;;
  v05_rounds)   export SCHEDULE=rounds script=v05 ;;
  v05_sparse)   export script=v05_sparse ;;
  v05_fixed_k*) export K=${bare#v05_fixed_k} script=v05_fixed_k ;;
  grpo*)        export GROUP=${bare#grpo} script=grpo ;;
  dapo | ppo)   script=$bare ;;
  *) sed -n 's/^# METHOD/METHOD/p' "$0" >&2; echo "unknown method '$method'" >&2; exit 2 ;;
esac
if [[ $method == v05* ]]; then
  record=(algorithm.v05.record_dir="$out/record")
fi
exec "$paper/$script.sh" "${record[@]}" trainer.logger='[console,file]' \
  trainer.project_name=v05_demo trainer.experiment_name="${method}_$seed" "$@"
