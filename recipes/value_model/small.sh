#!/usr/bin/env bash
# The small value model of this package: simulated policies, then training, on one CPU thread.
#   recipes/value_model/small.sh [key=value ...], such as init.new.head_weights=FILE
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
trajectories=runs/value_model/trajectories/simulated.parquet
[[ -f $trajectories ]] || python -m recipes.value_model.simulate --out "$trajectories"
exec python -m value_model.train --config "$(dirname "$0")/small.yaml" "data.paths=[$trajectories]" "$@"
