#!/usr/bin/env bash
# GRPO.   GROUP=16 (the paper's: 512 prompts a step, KL 0.001) | 8 | 4
# Groups of 4 and 8 are the control that the paper does not show: V0.5's number of prompts, and like V0.5 no KL, so that
# only the baseline differs. KL=... overrides.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

GROUP=${GROUP:-16}
KL=${KL:-$([[ $GROUP == 16 ]] && echo 0.001 || echo 0)}
prompts=$(prompts_of "$GROUP")
kl=(actor_rollout_ref.actor.use_kl_loss=false)
if [[ $KL != 0 ]]; then
  kl=(actor_rollout_ref.actor.use_kl_loss=true
      actor_rollout_ref.actor.kl_loss_coef="$KL"
      actor_rollout_ref.actor.kl_loss_type=low_var_kl)
fi

launch grpo "grpo$GROUP" "$prompts" actor_rollout_ref.rollout.n="$GROUP" "${kl[@]}" "$@"
