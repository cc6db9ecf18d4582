#!/usr/bin/env bash
# A Ray cluster by hand, then a recipe on it. On the first node:
#   recipes/launch/plain.sh head                       prints its address
# on every other:
#   recipes/launch/plain.sh worker ADDRESS
# then on the first, which waits for the nodes and runs the recipe there:
#   recipes/launch/plain.sh run NODES recipes/paper/v05.sh [hydra overrides]
# and at the end, on all:
#   recipes/launch/plain.sh stop
# Every node needs the same environment and the same paths (data, models, checkpoints: a shared file system).
set -euo pipefail

PORT=${PORT:-6379}
case ${1:-} in
  head)   exec ray start --head --port "$PORT" --disable-usage-stats ;;
  worker) exec ray start --address "${2:?worker needs the address that head printed}" --disable-usage-stats ;;
  stop)   exec ray stop ;;
  run)
    nodes=${2:?run needs a number of nodes} recipe=${3:?run needs a recipe}
    python - "$nodes" <<'PY'
import sys, time
import ray

ray.init(address="auto", log_to_driver=False)
wanted, deadline = int(sys.argv[1]), time.monotonic() + 600
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"only {alive} of {wanted} nodes joined within 600 s: start plain.sh worker on the others")
    time.sleep(1)
PY
    export RAY_ADDRESS=auto
    exec "$recipe" "${@:4}" ;;
  *) sed -n 's/^# \{0,1\}//;2,10p' "$0" >&2; exit 2 ;;
esac
