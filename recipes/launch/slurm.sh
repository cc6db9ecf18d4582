#!/usr/bin/env bash
#SBATCH --job-name=v05
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --output=slurm-%j.log
# A Ray cluster over the nodes of a Slurm job, then a recipe on it:
#   sbatch [--nodes 1] recipes/launch/slurm.sh recipes/paper/v05.sh [hydra overrides]
# Settings of the recipe (../paper/settings.sh) are taken from the environment. Activate the environment of verl
# before, or name its activation script in ACTIVATE. HEAD_ADDRESS names the first node's address, where it has several.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch recipes/launch/slurm.sh RECIPE}"
recipe=${1:?sbatch recipes/launch/slurm.sh RECIPE [hydra overrides]}
shift
if [[ -n ${ACTIVATE:-} ]]; then source "$ACTIVATE"; fi

# reachable ADDRESSES: the first that other nodes can reach, IPv4 before IPv6
reachable() {
  local address last=
  for address; do
    case $address in
      127.* | 169.254.* | ::1 | fe[89ab]?:*) ;;
      *:*) last=${last:-$address} ;;
      *.*) last=$address; break ;;
    esac
  done
  [[ -n $last ]] && echo "$last"
}

PORT=${PORT:-6379}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
on_head=(srun --overlap --nodes=1 --ntasks=1 -w "${nodes[0]}")
# What the node's name stands for, then what its interfaces have.
ask='hostname --ip-address; hostname --all-ip-addresses'
found=${HEAD_ADDRESS:-$("${on_head[@]}" bash -c "$ask" 2>/dev/null || true)}
head=$(reachable $found) || {
  echo "slurm.sh: no address of ${nodes[0]} can be reached from other nodes (${found//$'\n'/ }): set HEAD_ADDRESS" >&2
  exit 1
}
address=$head:$PORT
if [[ $head == *:* ]]; then address=[$head]:$PORT; fi

# --block keeps Ray in the foreground of its step, so that Slurm ends it with the job.
"${on_head[@]}" recipes/launch/plain.sh head --node-ip-address="$head" --block &
ray=$!
if (( ${#nodes[@]} > 1 )); then
  rest=$(IFS=,; echo "${nodes[*]:1}")
  srun --overlap --nodes=$(( ${#nodes[@]} - 1 )) --ntasks-per-node=1 -w "$rest" \
    recipes/launch/plain.sh worker "$address" --block &
fi

RAY_ADDRESS=$address "${on_head[@]}" recipes/launch/plain.sh run "${#nodes[@]}" "$recipe" "$@" &
run=$! code=0
wait -n "$ray" "$run" || code=$?
if kill -0 "$run" 2>/dev/null; then
  echo "slurm.sh: Ray on ${nodes[0]} has ended with code $code before the recipe" >&2
  code=1
fi
kill $(jobs -p) 2>/dev/null || true
exit "$code"
