#!/usr/bin/env bash
# The paper's training; run on every node, which all see `out`:
#   MASTER_ADDR=HOST NNODES=16 recipes/value_model/paper.sh [key=value ...]
set -euo pipefail
exec torchrun --nnodes "${NNODES:-16}" --nproc-per-node "${GPUS:-8}" --rdzv-backend c10d \
  --rdzv-endpoint "${MASTER_ADDR:?name the first node}:${MASTER_PORT:-29500}" \
  -m value_model.train --config "$(dirname "$0")/paper.yaml" "$@"
