#!/usr/bin/env bash
# One training on FrozenLake, a session of turns a rollout; the task's folder is made if there is none.
#   recipes/agent/run.sh METHOD SEED TASK_DIR RUN_DIR [hydra overrides]
# METHOD: as of recipes/demo/run.sh. Turn credit: any v05 method with algorithm.v05.credit=turn.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # the workers import the environment by its class path
[[ -f $3/task.json ]] || python -m recipes.agent.make --out "$3"
exec "$root/recipes/demo/run.sh" "$@"
