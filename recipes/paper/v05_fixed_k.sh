#!/usr/bin/env bash
# V0.5 without extra rollouts (Figure 5).   K=1 | 2 | 4 | 8: 8192, 4096, 2048 or 1024 prompts a step.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$recipes/paper/prior.sh"

K=${K:-4}
prompts=$(prompts_of "$K")

launch v05 "v05_fixed_k$K$suffix" "$prompts" algorithm/v05=fixed algorithm.v05.k_init="$K" "${prior[@]}" "$@"
