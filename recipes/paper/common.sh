# What all lines of the comparison share; sourced by the scripts beside it, which add their algorithm and call `launch`.
# Variables: settings.sh. Arguments are hydra overrides and come last, so they win.
set -euo pipefail

recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SETTING=${SETTING:-cluster} SEED=${SEED:-0} ROOT_DIR=${ROOT_DIR:-$PWD}

# absolute PATHS: separated by commas. Processes on other nodes, and the driver of a Ray job, start in another folder.
absolute() {
  local i paths
  IFS=, read -ra paths <<< "$1"
  for i in "${!paths[@]}"; do
    case ${paths[i]} in /* | *://*) ;; *) paths[i]=$ROOT_DIR/${paths[i]} ;; esac
  done
  local IFS=,
  echo "${paths[*]}"
}

# model NAME: a folder's absolute path, or a hub id as it is
model() { if [[ -d $(absolute "$1") ]]; then absolute "$1"; else echo "$1"; fi; }

case $SETTING in
  cluster) platform=gpu ROLLOUTS=${ROLLOUTS:-8192} ;;
  node)    platform=gpu ROLLOUTS=${ROLLOUTS:-2048} ;;
  gpu1)    platform=gpu ROLLOUTS=${ROLLOUTS:-$([[ -n ${TASK:-} ]] && echo 128 || echo 256)} ;;
  cpu)     platform=cpu ROLLOUTS=${ROLLOUTS:-128} ;;
  *) echo "SETTING=$SETTING is not known: cluster, node, gpu1 or cpu" >&2; exit 2 ;;
esac
# The demo's task and policy: always on a CPU, on one GPU where TASK is set.
demo=0 composed=$SETTING
if [[ $SETTING == cpu ]]; then
  demo=1
elif [[ $SETTING == gpu1 && -n ${TASK:-} ]]; then
  demo=1 composed=gpu1_demo
fi
if (( demo )); then
  STEPS=${STEPS:-40} UPDATES=${UPDATES:-1} task=$(absolute "${TASK:-runs/cpu/task}")
  MODEL=${MODEL:-$task/policy} TRAIN=${TRAIN:-$task/train.parquet} VAL=${VAL:-$task/val.parquet}
  # The demo's reward, and a seed that sglang can take for all requests together only.
  setting=(reward.custom_reward_function.path="$recipes/demo/reward.py"
           +actor_rollout_ref.rollout.engine_kwargs.sglang.random_seed="$SEED")
  if [[ -f $task/overrides.txt ]]; then # what the demo's task asks for
    mapfile -t overrides < "$task/overrides.txt"
    setting+=("${overrides[@]}")
  fi
else
  STEPS=${STEPS:-200} UPDATES=${UPDATES:-4} data=${DATA:-data}
  MODEL=${MODEL:-Qwen/Qwen3-4B-Instruct-2507} TRAIN=${TRAIN:-$data/train/dapo_math_17k.parquet}
  VAL=${VAL:-$data/test/aime24.parquet,$data/test/aime25.parquet,$data/test/amc23.parquet,$data/test/math500.parquet,$data/test/minerva_math.parquet,$data/test/olympiadbench.parquet}
  setting=()
fi
if [[ ${RAY_ADDRESS:-local} != local ]]; then # what a Ray that runs already does not take
  case $SETTING in
    cpu)  setting+=(ray_kwargs.ray_init.{num_cpus,num_gpus,object_store_memory,_system_config}=null) ;;
    gpu1) setting+=(ray_kwargs.ray_init.num_cpus=null) ;;
  esac
fi
MODEL=$(model "$MODEL") TRAIN=$(absolute "$TRAIN") VAL=$(absolute "$VAL")

# prompts_of GROUP: prompts a step with that group size
prompts_of() {
  if (( ROLLOUTS % ($1 * UPDATES) )); then
    echo "ROLLOUTS=$ROLLOUTS must be a multiple of group size ($1) x UPDATES ($UPDATES)" >&2
    return 2
  fi
  echo $(( ROLLOUTS / $1 ))
}

# launch CONFIG METHOD PROMPTS [overrides]
launch() {
  local config=$1 method=$2 prompts=$3
  shift 3
  local out name; out=$(absolute "${OUT:-runs/$SETTING/${method}_$SEED}")
  local arguments=(
    --config-path pkg://verl_v05.config --config-name "$config" platform=$platform setting="$composed"
    actor_rollout_ref.model.path="$MODEL"
    data.train_files="[$TRAIN]" data.val_files="[$VAL]" data.seed="$SEED"
    data.train_batch_size="$prompts" actor_rollout_ref.actor.ppo_mini_batch_size=$(( prompts / UPDATES ))
    trainer.total_training_steps="$STEPS"
    trainer.project_name="v05_$SETTING" trainer.experiment_name="${method}_$SEED"
    trainer.default_local_dir="$out/checkpoints" hydra.run.dir="$out/hydra"
    "${setting[@]}"
  )
  if (( demo )) && [[ ! -e ${TRAIN%%,*} ]]; then
    # The recipes are not an installed package, and the current directory may be any.
    PYTHONPATH=$recipes/..${PYTHONPATH:+:$PYTHONPATH} python -m recipes.demo.make --out "${task:?}"
  fi
  export TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0 VERL_FILE_LOGGER_PATH="$out/metrics.jsonl"
  export WANDB_DIR=$out WANDB_MODE=${WANDB_MODE:-$([[ -n ${WANDB_API_KEY:-} ]] && echo online || echo offline)}
  local forwarded=(TOKENIZERS_PARALLELISM VERL_FILE_LOGGER_PATH) server=()
  if [[ $SETTING == cpu ]]; then
    export HF_HUB_OFFLINE=1 TQ_NUM_THREADS=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the engines share two cores
    forwarded+=(TQ_NUM_THREADS OMP_NUM_THREADS)
    # On two cores most of the start-up is imports; a server does them once for all processes.
    server=(python "$recipes/demo/warm_python.py" run --)
  fi
  # On a Ray cluster that runs already, processes have the environment that their node's Ray was started with, not this
  # one. Secrets are left to that: overrides are printed, saved and sent to wandb.
  for name in "${forwarded[@]}" $(compgen -e HF_) $(compgen -e WANDB_); do
    [[ $name == *_@(KEY|TOKEN) ]] ||
      arguments+=("+ray_kwargs.ray_init.runtime_env.env_vars.$name='${!name//\'/\\\'}'")
  done
  arguments+=("$@")
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    exec python -m verl_v05.dry_run "${arguments[@]}"
  fi
  mkdir -p "$out"
  unset PYTHONDONTWRITEBYTECODE # ten processes would each compile verl and sglang again
  export RAY_OVERRIDE_JOB_RUNTIME_ENV=1 # a Ray job brings some of these variables too, which Ray takes for a conflict
  set -x
  exec "${server[@]}" python -u -m verl.trainer.main_ppo "${arguments[@]}"
}
