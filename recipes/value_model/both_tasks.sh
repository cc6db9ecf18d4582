#!/usr/bin/env bash
# A small value model for both tasks of the demo, and its measurement on policies of calculation. It continues the
# package's, which knows arithmetic, with simulated policies of both. About ten minutes on one CPU thread.
#   recipes/value_model/both_tasks.sh OUT [key=value ...]
#   PRIOR=v0 V0_MODEL=OUT/model SETTING=cpu TASK=... recipes/paper/v05.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=${1:?where to put it}
shift
data=recipes/value_model/data

for task in arithmetic calculation; do
  [[ -f $out/$task.parquet ]] || python -m recipes.value_model.simulate --task "$task" --out "$out/$task.parquet"
done
python -m value_model.train --config recipes/value_model/small.yaml out="$out" \
  init.new=null init.from_pretrained=value_model/pretrained/small \
  "data.paths=[$out/arithmetic.parquet,$out/calculation.parquet,$data/policies.parquet]" \
  "data.heldout_models=[$(printf 'simulated_calculation_0_%s,' {0..4})]" \
  optimizer.max_updates=700 optimizer.adapter_lr=1.0e-3 optimizer.backbone_lr=1.0e-3 "$@"

python -m value_model.trajectories $data/calculation_policies.parquet --out "$out/split" --validation 0.2
python -m value_model.evaluate --model "$out/model" --data "$out/split" --out "$out/evaluation" --context-size 64
