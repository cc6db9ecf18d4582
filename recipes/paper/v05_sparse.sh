#!/usr/bin/env bash
# V0.5, beyond the paper: ROLLOUTS rollouts a step, divided among a pool of prompts by what each is expected to teach, from
# none up (schedule=sparse, empirical-Bayes fusion, leave-one-out baselines).
#   POOL, PRIOR, V0_MODEL   see settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
FUSION=empirical_bayes BASELINE=leave_one_out
source "$recipes/paper/prior.sh"

POOL=${POOL:-$( (( demo )) && echo 256 || echo "$ROLLOUTS")}
suffix=$([[ $PRIOR == "$usual" ]] || echo "_$PRIOR")

launch v05 "v05_sparse$suffix" "$POOL" algorithm/v05=sparse algorithm.v05.max_rollouts_per_step="$ROLLOUTS" \
  algorithm.v05.sparse.seed="$SEED" "${prior[@]}" "$@"
