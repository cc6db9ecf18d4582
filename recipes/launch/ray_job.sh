#!/usr/bin/env bash
# A recipe as a job of a running Ray cluster (KubeRay, or one started by plain.sh):
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 recipes/launch/ray_job.sh recipes/paper/v05.sh [hydra overrides]
# This checkout is sent with the job; verl, sglang and verl_v05 are installed on the nodes. The settings of the recipe
# (../paper/settings.sh) are taken from the environment. A token that the cluster requires is read from RAY_AUTH_TOKEN.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../paper/settings.sh"

recipe=${1:?ray_job.sh RECIPE [hydra overrides]}
shift
# A job does not inherit this shell's environment, unlike what slurm.sh and plain.sh start.
environment=$(python - "${recipe_settings[@]}" "${library_settings[@]}" <<'PY'
import json, os, sys

print(json.dumps({"env_vars": {name: os.environ[name] for name in sys.argv[1:] if name in os.environ},
                  "excludes": [".git", ".venv", "runs", "data"]}))
PY
)
exec ray job submit --working-dir . --runtime-env-json "$environment" ${NO_WAIT:+--no-wait} -- "$recipe" "$@"
