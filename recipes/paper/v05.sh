#!/usr/bin/env bash
# V0.5 with extra rollouts where prior and rollouts disagree (OSLA), or with FUSION=empirical_bayes where the posterior
# is widest: 2048 prompts x 4 first, up to 16.
#   SCHEDULE   rounds (the paper's) | streaming (no barrier: each prompt asks when its own group is scored)   [rounds]
#   PRIOR, V0_MODEL, FUSION, BASELINE   see settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$recipes/paper/prior.sh"

SCHEDULE=${SCHEDULE:-rounds}
prompts=$(prompts_of 4)
if [[ $FUSION == empirical_bayes ]]; then
  prior+=(algorithm.v05.allocation=posterior)
fi

launch v05 "v05_$SCHEDULE$suffix" "$prompts" algorithm/v05="$SCHEDULE" "${prior[@]}" "$@"
