# Settings of the recipes: environment variables, with their [defaults]. This is their only list: the launchers that do
# not inherit the environment pass these on, and a test compares the list with what the scripts read.
recipe_settings=(
  # Every method (common.sh).
  SETTING   # cluster (4 nodes x 8 GPUs, the paper's) | node (8 GPUs) | gpu1 (one) | cpu (the demo's policy)   [cluster]
  SEED      # order of the data, and of sampling where the engine can be seeded                                      [0]
  STEPS     # training steps                                                                              [200; demo 40]
  ROLLOUTS  # first rollouts a step = prompts x group size, the same for all       [8192, node 2048, gpu1 256; demo 128]
  UPDATES   # mini-batches a step                                                                            [4; demo 1]
  MODEL     # policy, a folder or hub id                                     [Qwen/Qwen3-4B-Instruct-2507; demo its own]
  DATA      # folder with TRAIN and VAL, as `make data` writes it                                       [data; not demo]
  TASK      # folder of the demo's task and policy, made if there is none: trains the demo       [on cpu runs/cpu/task]
  TRAIN     # parquet file                                                        [DAPO-Math-17k in DATA; demo: in TASK]
  VAL       # parquet files, separated by commas                             [the six benchmarks in DATA; demo: in TASK]
  OUT       # folder of the run: metrics, log, checkpoints                                    [runs/SETTING/METHOD_SEED]
  ROOT_DIR  # folder that relative paths start at, the same on every node                        [the current directory]
  DRY_RUN   # 1: only compose and check the config, print what would run where                                         [0]

  # One method each: its script says more.
  GROUP     # rollouts a prompt: grpo.sh, dapo.sh, ppo.sh                                                    [16, 16, 4]
  KL        # coefficient of the KL loss: grpo.sh                                            [0.001 at GROUP=16, else 0]
  K         # rollouts a prompt: v05_fixed_k.sh                                                                      [4]
  POOL      # prompts that a step looks at: v05_sparse.sh                                  [as many as rollouts; demo 256]
  SCHEDULE  # rounds (the paper's) | streaming: v05.sh                                                          [rounds]

  # The V0.5 scripts (prior.sh); v05_sparse.sh sets FUSION and BASELINE itself.
  PRIOR     # v0 (a value model; the paper's) | history (the prompts' own outcomes) | none            [v0; demo history]
  V0_MODEL  # folder or hub id of the value model                  [the authors' release; demo: the package's small one]
  FUSION    # shrinkage (the paper's) | empirical_bayes (a Beta prior fitted online)                         [shrinkage]
  BASELINE  # plain (the paper's) | leave_one_out                                                                [plain]
)
# Prefixes of the variables of the libraries that the recipes use.
library_settings=(WANDB_ HF_)
