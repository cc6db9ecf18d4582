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
# before, or name its activation script in ACTIVATE.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?this is a batch script: sbatch recipes/launch/slurm.sh RECIPE}"
recipe=${1:?sbatch recipes/launch/slurm.sh RECIPE [hydra overrides]}
shift
if [[ -n ${ACTIVATE:-} ]]; then source "$ACTIVATE"; fi

PORT=${PORT:-6379}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}')

# --block keeps Ray in the foreground of its step, so that Slurm ends it with the job.
srun --overlap --nodes=1 --ntasks=1 -w "${nodes[0]}" \
  ray start --head --node-ip-address="$head" --port="$PORT" --disable-usage-stats --block &
sleep "${RAY_HEAD_SECONDS:-15}"
if (( ${#nodes[@]} > 1 )); then
  rest=$(IFS=,; echo "${nodes[*]:1}")
  srun --overlap --nodes=$(( ${#nodes[@]} - 1 )) --ntasks-per-node=1 -w "$rest" \
    ray start --address="$head:$PORT" --disable-usage-stats --block &
fi

code=0
srun --overlap --nodes=1 --ntasks=1 -w "${nodes[0]}" \
  recipes/launch/plain.sh run "${#nodes[@]}" "$recipe" "$@" || code=$?
kill $(jobs -p) 2>/dev/null || true
exit "$code"
