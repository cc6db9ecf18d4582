#!/usr/bin/env bash
# A Ray cluster by hand, then a recipe on it. On the first node:
#   recipes/launch/plain.sh head [options of ray start]              prints its address
# on every other, at once or later:
#   recipes/launch/plain.sh worker ADDRESS [options of ray start]
# then on the first, which waits for the nodes and runs the recipe there:
#   recipes/launch/plain.sh run NODES recipes/paper/v05.sh [hydra overrides]
# and at the end, on all:
#   recipes/launch/plain.sh stop
# Every node needs the same environment and the same paths (data, models, checkpoints: a shared file system). Export
# secrets (WANDB_API_KEY, HF_TOKEN) before head and worker too: only they put them into the environment of Ray.
set -euo pipefail

PORT=${PORT:-6379} WAIT=${WAIT:-600}
# A head demands a token wherever it finds one; workers, drivers and jobs offer theirs in this mode alone.
if [[ -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} || -e ~/.ray/auth_token ]]; then
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
fi

# wait_for HOST:PORT: until something listens there, for WAIT seconds
wait_for() {
  local host=${1%:*}
  until timeout 5 bash -c '< "/dev/tcp/$0/$1"' "${host//[][]/}" "${1##*:}" 2>/dev/null; do
    if (( SECONDS >= WAIT )); then
      echo "no Ray answers at $1 within $WAIT s: is plain.sh head running there?" >&2
      exit 1
    fi
    sleep 0.5
  done
}

case ${1:-} in
  head) exec ray start --head --port "$PORT" --disable-usage-stats "${@:2}" ;;
  worker)
    wait_for "${2:?worker needs the address that head printed}"
    exec ray start --address "$2" --disable-usage-stats "${@:3}" ;;
  stop) exec ray stop ;;
  run)
    nodes=${2:?run needs a number of nodes} recipe=${3:?run needs a recipe}
    # By address: "auto" takes any Ray on this machine, another run's too.
    if [[ ${RAY_ADDRESS:-auto} == auto ]]; then
      RAY_ADDRESS=$(python -c 'import ray; print(ray.util.get_node_ip_address())'):$PORT
    fi
    export RAY_ADDRESS
    wait_for "$RAY_ADDRESS"
    python - "$nodes" "$WAIT" <<'PY'
import os, sys, time
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

wanted, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while not ray.is_initialized():
    try:
        ray.init(log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:  # the head answers before its node is there
        if time.monotonic() > deadline:
            sys.exit(f"the Ray at {os.environ['RAY_ADDRESS']} takes no driver within {sys.argv[2]} s: {error}")
        time.sleep(1)
while len(alive := [node["NodeID"] for node in ray.nodes() if node["Alive"]]) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"only {len(alive)} of {wanted} nodes joined within {sys.argv[2]} s: is plain.sh worker on the rest?")
    time.sleep(1)

if "WANDB_API_KEY" in os.environ and "WANDB_MODE" not in os.environ:
    task = ray.remote(num_cpus=0)(lambda: "WANDB_API_KEY" in os.environ)
    there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in alive]
    asked = [task.options(scheduling_strategy=strategy).remote() for strategy in there]
    if not all(ray.get(asked, timeout=float(sys.argv[2]))):
        sys.exit(
            "WANDB_API_KEY is set here and not in the environment of Ray on some node: export it before plain.sh head "
            "and worker, or set WANDB_MODE (offline; online where `wandb login` was done on the nodes)"
        )
PY
    exec "$recipe" "${@:4}" ;;
  *) sed -n 's/^# \{0,1\}//;2,11p' "$0" >&2; exit 2 ;;
esac
