#!/usr/bin/env bash
# PPO: critic of the policy's size, GAE with gamma = lambda = 1. The paper names it and does not run it, so the group
# size is ours: 4 responses a prompt, V0.5's number of prompts.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

GROUP=${GROUP:-4}
prompts=$(prompts_of "$GROUP")

launch ppo ppo "$prompts" actor_rollout_ref.rollout.n="$GROUP" "$@"
