#!/usr/bin/env bash
# Makes the small value model of this package, and measures it on policies and prompts it has not seen. One CPU thread.
# First on the demo's arithmetic alone, then on both of its tasks.
#   recipes/value_model/small.sh OUT [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=${1:?where to put it}
shift
data=recipes/value_model/data first=$out/arithmetic

head=$out/head/head.v2.5.safetensors
[[ -f $out/head/head.json ]] || python -m value_model.pretrain_head --out "$out/head"
[[ -f $out/simulated.parquet ]] || python -m recipes.value_model.simulate --out "$out/simulated.parquet"
[[ -f $out/calculation.parquet ]] ||
  python -m recipes.value_model.simulate --task calculation --out "$out/calculation.parquet"
python -m value_model.train --config recipes/value_model/small.yaml out="$first" \
  init.new.head_weights="$head" "data.paths=[$out/simulated.parquet,$data/policies.parquet]" "$@"
python -m value_model.train --config recipes/value_model/small.yaml out="$out" \
  init.new=null init.from_pretrained="$first/model" \
  "data.paths=[$out/simulated.parquet,$out/calculation.parquet,$data/policies.parquet]" \
  "data.heldout_models=[$(printf 'simulated_calculation_0_%s,' {0..4})]" \
  optimizer.max_updates=700 optimizer.adapter_lr=1.0e-3 optimizer.backbone_lr=1.0e-3 "$@"

python -m value_model.trajectories $data/{,heldout_}policies.parquet --out "$out/split" --validation 0.2 \
  --holdout-model verl_v05_demo/policy_101 --holdout-model verl_v05_demo/policy_102
python -m value_model.trajectories $data/calculation_policies.parquet --out "$out/calculation_split" --validation 0.2
for split in split calculation_split; do
  python -m value_model.evaluate --model "$out/model" --data "$out/$split" --out "$out/evaluation_$split" --context-size 64
done
