#!/usr/bin/env bash
# DAPO: 512 prompts x 16, groups of equal outcomes replaced (up to 3 batches of prompts in flight), clip-higher,
# token-mean loss: config/dapo.yaml. What is generated and thrown away is counted in v05/total/*.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

GROUP=${GROUP:-16}
prompts=$(prompts_of "$GROUP")

launch dapo dapo "$prompts" actor_rollout_ref.rollout.n="$GROUP" "$@"
