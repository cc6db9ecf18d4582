#!/usr/bin/env bash
# A value model trained and measured on the authors' public query-performance data, against baselines, on one CPU
# thread: [VARIANTS=1] benchmarks/value_model/train_public.sh DATA_FOLDER ENCODER HEAD OUT [key=value ...]
#   DATA_FOLDER  `data/` of a clone of Now-Join-Us/V0    ENCODER  folder or hub id of all-MiniLM-L6-v2
#   HEAD         of `python -m value_model.pretrain_head` OUT      folder for tables, model and figures
#   VARIANTS     cross-validate what else was tried, instead of the main table
set -euo pipefail
data=${1:?DATA_FOLDER} encoder=${2:?ENCODER} head=${3:?HEAD} out=${4:?OUT}
shift 4
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
config=$(dirname "$0")/../../recipes/value_model/laptop.yaml

python -m benchmarks.value_model.v0_public "$data" "$out/trajectories.parquet" --parts context
python -m value_model.trajectories "$out/trajectories.parquet" --out "$out/split" --validation 0.2 --seed 0

# Only the adapter trains. The trainer holds out a fifth of its own prompts to choose the update to keep; its seed must
# be another than the split's, which would hold out no prompt.
settings=(device=cpu
  init.new.head_weights="$head" init.new.head.softmax_temperature=1.0 init.new.backbone.name="$encoder"
  init.new.adapter.kind=mean init.new.adapter.features=48 init.new.adapter.dropout=0.3
  data.split_seed=1
  tasks.window=0 tasks.own_step=true tasks.context_min=128 tasks.pairs=48 tasks.repeats=16
  optimizer.adapter_lr=1.0e-2 optimizer.tasks_per_update=2 optimizer.max_updates=60
  validation.every=10 validation.queries=128 "$@")

if [[ -n ${VARIANTS:-} ]]; then
  exec python -m benchmarks.value_model.variants --config "$config" "$out/split/train.parquet" "$out/variants" \
    "${settings[@]}" validation.every=20
fi
python -m value_model.train --config "$config" out="$out/run" data.paths="[$out/split/train.parquet]" "${settings[@]}"
python -m value_model.evaluate --model "$out/run/model" --data "$out/split" --encoder "$encoder" --out "$out"
python -m benchmarks.value_model.training_curve "$out/run/metrics.jsonl" "$out/loss.png"
