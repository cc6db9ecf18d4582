#!/usr/bin/env bash
# Makes the small value model of this package, and measures it on policies and prompts it has not seen. One CPU thread.
#   recipes/value_model/small.sh OUT [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=${1:?where to put it}
shift
data=recipes/value_model/data

head=$out/head/head.v2.5.safetensors
[[ -f $out/head/head.json ]] || python -m value_model.pretrain_head --out "$out/head"
[[ -f $out/simulated.parquet ]] || python -m recipes.value_model.simulate --out "$out/simulated.parquet"
python -m value_model.train --config recipes/value_model/small.yaml out="$out" \
  init.new.head_weights="$head" "data.paths=[$out/simulated.parquet,$data/policies.parquet]" "$@"

python -m value_model.trajectories $data/{,heldout_}policies.parquet --out "$out/split" --validation 0.2 \
  --holdout-model verl_v05_demo/policy_101 --holdout-model verl_v05_demo/policy_102
python -m value_model.evaluate --model "$out/model" --data "$out/split" --out "$out/evaluation" --context-size 64
