#!/usr/bin/env bash
# A recipe as a job of a running Ray cluster (KubeRay, or one started by plain.sh):
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 recipes/launch/ray_job.sh recipes/paper/v05.sh [hydra overrides]
# This checkout is sent with the job, without data/ and runs/; verl, sglang and verl_v05 are installed on the nodes. The
# settings of the recipe (../paper/settings.sh) are taken from the environment. Data, models and runs are on a file
# system that all nodes share: relative paths start at ROOT_DIR, a folder of it [the current one].
# A token that the cluster requires is read from RAY_AUTH_TOKEN. WANDB_API_KEY and HF_TOKEN are sent where they are set;
# Ray writes a job's variables into its logs on the nodes. Where others can read those, leave them to the environment
# that the nodes' Ray is started with (KubeRay: secretKeyRef), and set WANDB_MODE=online.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../paper/settings.sh"

recipe=${1:?ray_job.sh RECIPE [hydra overrides]}
shift
# A head demands a token wherever it finds one; workers, drivers and jobs offer theirs in this mode alone.
if [[ -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} || -e ~/.ray/auth_token ]]; then
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
fi
export ROOT_DIR=${ROOT_DIR:-$PWD}
# A job does not inherit this shell's environment, unlike what slurm.sh and plain.sh start.
environment() {
  python - "${recipe_settings[@]}" -- "${library_settings[@]}" <<'PY'
import json, os, sys

split = sys.argv.index("--")
names, prefixes = sys.argv[1:split], tuple(sys.argv[split + 1 :])
variables = {name: value for name, value in os.environ.items() if name in names or name.startswith(prefixes)}
print(json.dumps({"env_vars": variables, "excludes": ["/.git", "/.venv", "/runs", "/data"]}))
PY
}
# By a pipe: every user of this machine can read a command line, and some of the variables are secrets.
exec ray job submit --working-dir . --runtime-env <(environment) ${NO_WAIT:+--no-wait} -- "$recipe" "$@"
