#!/usr/bin/env bash
# A recipe as a job of a running Ray cluster (KubeRay, or one started by plain.sh):
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 recipes/launch/ray_job.sh recipes/paper/v05.sh [hydra overrides]
# This checkout travels with the job; verl, sglang and verl_v05 are installed on the nodes. Settings of the recipe
# (SETTING, SEED, GROUP ...) are taken from the environment. A cluster that asks for a token finds it in RAY_AUTH_TOKEN.
set -euo pipefail

recipe=${1:?ray_job.sh RECIPE [hydra overrides]}
shift
settings=(SETTING SEED STEPS ROLLOUTS UPDATES MODEL TRAIN VAL DATA TASK OUT DRY_RUN
          GROUP KL SCHEDULE K PRIOR V0_MODEL WANDB_API_KEY WANDB_MODE HF_HOME HF_TOKEN)
environment=$(python - "${settings[@]}" <<'PY'
import json, os, sys

print(json.dumps({"env_vars": {name: os.environ[name] for name in sys.argv[1:] if name in os.environ},
                  "excludes": [".git", ".venv", "runs", "data"]}))
PY
)
exec ray job submit --working-dir . --runtime-env-json "$environment" ${NO_WAIT:+--no-wait} -- "$recipe" "$@"
