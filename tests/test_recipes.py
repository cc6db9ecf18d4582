"""Each line of the paper's comparison launches what it says, at every setting, without a GPU to try it on."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from omegaconf import DictConfig
from pyarrow.parquet import write_table

from recipes.demo.policy import build_model, build_tokenizer
from verl_v05.dry_run.__main__ import VALID, main
from verl_v05.dry_run.compose import compose_launch

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "recipes" / "paper"
ROLLOUTS = {"cluster": 8192, "node": 2048, "gpu1": 256, "gpu1 demo": 128, "cpu": 128}
DEMO = ("gpu1 demo", "cpu")
METHODS = {  # script, variables, group size
    "v05 rounds": ("v05", {}, 4),
    "v05 streaming": ("v05", {"SCHEDULE": "streaming"}, 4),
    **{f"v05 fixed k = {k}": ("v05_fixed_k", {"K": str(k)}, k) for k in (1, 2, 4, 8)},
    "v05 empirical Bayes": ("v05", {"FUSION": "empirical_bayes"}, 4),
    "v05 fixed empirical Bayes": ("v05_fixed_k", {"FUSION": "empirical_bayes", "BASELINE": "leave_one_out"}, 4),
    **{f"grpo {g}": ("grpo", {"GROUP": str(g)}, g) for g in (16, 8, 4)},
    "dapo": ("dapo", {}, 16),
    "ppo": ("ppo", {}, 4),
}
# In the place of python: writes with which arguments it was started, and the first of its import paths.
ECHO = """#!/usr/bin/env bash
printf "%s\\n" "$@" > "$ARGUMENTS"
if [[ $2 == recipes.demo.make ]]; then echo "${PYTHONPATH%%:*}" > "$ARGUMENTS.path"; fi
"""
# As the recipes read it, of the largest batch.
ROW = {
    "prompt": [{"role": "user", "content": "1 + 1 = ?"}],
    "data_source": "arithmetic",
    "reward_model": {"style": "rule", "ground_truth": "2"},
}
PROMPTS = 8192
# Capitals that the scripts read and that are no setting of a run: bash's own, and one that belongs to the machine.
NOT_SETTINGS = {"BASH_SOURCE", "PWD", "PYTHONPATH", "OMP_NUM_THREADS", "RAY_ADDRESS"}


class Recipes:
    """Runs the scripts with a python that only writes down its arguments."""

    def __init__(self, folder: Path):
        self._folder = folder
        python = folder / "python"
        python.write_text(ECHO)
        python.chmod(0o755)
        self.train = folder / "train.parquet"
        write_table(pa.Table.from_pylist([ROW] * PROMPTS), self.train)

    def command(self, script: str, *overrides: str, cwd: Path = ROOT, **variables: str) -> list[str]:
        """Arguments of the last python that the script started."""
        arguments = self._folder / "arguments"
        path = f"{self._folder}{os.pathsep}{os.environ['PATH']}"
        settings = {"OUT": str(self._folder / "run"), "TRAIN": str(self.train), "ARGUMENTS": str(arguments)}
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_", "RAY_"))}
        env = {**outside, **settings, "PATH": path, **variables}
        subprocess.run([PAPER / f"{script}.sh", *overrides], env=env, cwd=cwd, check=True)
        return arguments.read_text().splitlines()

    def dry_run(self, script: str, *overrides: str, cwd: Path = ROOT, **variables: str) -> list[str]:
        """Arguments of the dry run."""
        module, *arguments = self.command(script, *overrides, cwd=cwd, DRY_RUN="1", **variables)[1:]
        assert module == "verl_v05.dry_run"
        return arguments

    def config(self, script: str, *overrides: str, **variables: str) -> DictConfig:
        """What the script launches, composed."""
        _, path, _, name, *rest = self.dry_run(script, *overrides, **variables)
        return compose_launch(path, name, rest)


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    return Recipes(tmp_path)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's policy, not warmed up: a dry run reads shapes, not weights."""
    folder, tokenizer = str(tmp_path_factory.mktemp("policy")), build_tokenizer()
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def demo(policy: str, recipes: Recipes) -> dict[str, str]:
    """Variables of a policy and data that are on this machine."""
    return {"MODEL": policy, "VAL": str(recipes.train)}


@pytest.mark.parametrize("setting", ROLLOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_passes_its_dry_run_with_as_many_rollouts_as_the_others(
    method: str, setting: str, recipes: Recipes, demo: dict[str, str], tmp_path: Path
) -> None:
    script, variables, group = METHODS[method]
    if is_demo := setting in DEMO:
        variables = {**variables, **demo}
    if setting == "gpu1 demo":
        variables |= {"TASK": str(tmp_path)}
    plan = tmp_path / "plan.json"
    arguments = recipes.dry_run(script, SETTING=setting.removesuffix(" demo"), **variables)
    assert main([*arguments, "--json", str(plan)]) == VALID
    data = json.loads(plan.read_text())
    step = data["step"]
    assert step["first_rollouts"] == ROLLOUTS[setting] and step["prompts"] == ROLLOUTS[setting] // group
    assert step["updates"] == (1 if is_demo else 4)
    messages = [problem["message"] for problem in data["problems"]]
    absent = f"data.val_files: not on this machine: {ROOT}/data/test/aime24"
    assert [message for message in messages if not message.startswith(absent)] == []


@pytest.mark.parametrize(("setting", "pool"), [("cluster", 8192), ("node", 2048), ("cpu", 256)])
def test_sparse_v05_looks_at_a_pool_and_starts_as_many_rollouts_as_the_others(
    setting: str, pool: int, recipes: Recipes, demo: dict[str, str], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    arguments = recipes.dry_run("v05_sparse", SETTING=setting, SEED="3", **(demo if setting == "cpu" else {}))
    assert main([*arguments, "--json", str(plan)]) == VALID
    step = json.loads(plan.read_text())["step"]
    assert step["prompts"] == pool and step["first_rollouts"] == step["max_rollouts"] == ROLLOUTS[setting]
    v05 = compose_launch(arguments[1], arguments[3], arguments[4:]).algorithm.v05
    assert (v05.schedule, v05.sparse.seed, v05.fusion) == ("sparse", 3, "empirical_bayes")
    assert (v05.baseline, v05.allocation) == ("leave_one_out", "outcome_variance")


def test_the_dry_run_checks_what_is_launched(recipes: Recipes) -> None:
    launched = recipes.command("grpo", "trainer.test_freq=5", SETTING="node", SEED="3")
    start = launched.index("verl.trainer.main_ppo") + 1
    assert launched[start:] == recipes.dry_run("grpo", "trainer.test_freq=5", SETTING="node", SEED="3")


@pytest.mark.parametrize("setting", ["cluster", "node", "gpu1"])
def test_on_gpus_verl_is_started_directly(setting: str, recipes: Recipes, tmp_path: Path) -> None:
    assert recipes.command("grpo", cwd=tmp_path, SETTING=setting)[:3] == ["-u", "-m", "verl.trainer.main_ppo"]


def test_on_a_cpu_verl_is_started_with_the_start_up_server_from_any_directory(recipes: Recipes, tmp_path: Path) -> None:
    server, *command = recipes.command("grpo", cwd=tmp_path, SETTING="cpu")
    assert Path(server).is_file() and Path(server).name == "warm_python.py"
    assert command[:6] == ["run", "--", "python", "-u", "-m", "verl.trainer.main_ppo"]


def test_the_demos_task_is_made_from_any_directory(recipes: Recipes, tmp_path: Path) -> None:
    recipes.command("grpo", cwd=tmp_path, SETTING="cpu", TRAIN=str(tmp_path / "absent"))
    assert Path((tmp_path / "arguments.path").read_text().strip()).resolve() == ROOT


def test_every_variable_that_a_recipe_reads_is_on_the_list_of_settings() -> None:
    show = 'source settings.sh; echo "${recipe_settings[@]}"; echo "${library_settings[@]}"'
    done = subprocess.run(["bash", "-c", show], cwd=PAPER, capture_output=True, text=True, check=True)
    recipe, library = (line.split() for line in done.stdout.splitlines())
    scripts = [path.read_text() for path in PAPER.glob("*.sh") if path.name != "settings.sh"]
    read = {name for text in scripts for name in re.findall(r"\$\{?([A-Z][A-Z0-9_]*)", text)} - NOT_SETTINGS
    assert {"FUSION", "BASELINE", "V0_MODEL"} < read
    assert {name for name in read if not name.startswith(tuple(library))} == {*recipe} and len(recipe) == len({*recipe})


def test_a_ray_that_runs_already_is_told_no_sizes(recipes: Recipes) -> None:
    def told(address: str) -> list[object]:
        ray_init = recipes.config("grpo", SETTING="cpu", RAY_ADDRESS=address).ray_kwargs.ray_init
        return [ray_init[name] for name in ("num_cpus", "num_gpus", "object_store_memory", "_system_config")]

    assert told("10.0.0.1:6379") == [None] * 4
    assert None not in told("") and told("") == told("local")


def test_paths_are_absolute_and_start_at_the_current_directory_or_another(recipes: Recipes, tmp_path: Path) -> None:
    def paths(**variables: str) -> list[str]:
        (tmp_path / "policy").mkdir(exist_ok=True)
        given = {"OUT": "run", "TRAIN": "a.parquet,/b.parquet", "DATA": "there", "MODEL": "policy", **variables}
        arguments = recipes.dry_run("grpo", cwd=tmp_path, **given)
        config = compose_launch(arguments[1], arguments[3], arguments[4:])
        folders = [config.trainer.default_local_dir, config.actor_rollout_ref.model.path]
        return [*config.data.train_files, config.data.val_files[0], *folders, *forwarded(config).values()]

    def expected(root: object, model: str) -> list[str]:
        out = f"{root}/run"
        data = [f"{root}/a.parquet", "/b.parquet", f"{root}/there/test/aime24.parquet"]
        return [*data, f"{out}/checkpoints", model, "false", f"{out}/metrics.jsonl", out, "offline"]

    assert paths() == expected(tmp_path, f"{tmp_path}/policy")
    assert paths(ROOT_DIR="/shared") == expected("/shared", "policy")  # no folder there: an id of the hub


def forwarded(config: DictConfig) -> dict[str, str]:
    return dict(config.ray_kwargs.ray_init.runtime_env.env_vars)


def test_the_libraries_variables_are_forwarded_to_the_nodes_and_secrets_are_not(recipes: Recipes) -> None:
    given = {"WANDB_ENTITY": "a, 'b'", "HF_HUB_OFFLINE": "1", "HF_TOKEN_PATH": "/t"}
    secret = {"WANDB_API_KEY": "secret-key", "HF_TOKEN": "secret-token"}
    arguments = recipes.dry_run("grpo", **given, **secret)
    found = forwarded(compose_launch(arguments[1], arguments[3], arguments[4:]))
    assert found.items() >= {**given, "WANDB_MODE": "online"}.items()
    assert "secret" not in " ".join(arguments)


def test_overrides_come_last_and_win(recipes: Recipes) -> None:
    config = recipes.config("grpo", "data.seed=7", "actor_rollout_ref.actor.optim.lr=2e-6", SEED="3")
    assert (config.data.seed, config.actor_rollout_ref.actor.optim.lr) == (7, 2e-6)


def test_the_papers_setting_is_the_papers(recipes: Recipes) -> None:
    config = recipes.config("grpo")
    actor, validation = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.val_kwargs
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.data.max_response_length) == (4, 8, 4096)
    assert (actor.optim.lr, actor.optim.lr_warmup_steps, actor.optim.clip_grad) == (1e-6, 10, 1.0)
    assert (validation.n, validation.temperature, validation.top_p) == (16, 1.0, 0.7)
    assert (actor.use_kl_loss, actor.kl_loss_coef) == (True, 0.001)
    assert len(config.data.val_files) == 6 and "wandb" in config.trainer.logger


def test_one_gpu_is_given_one_of_everything_and_the_papers_or_the_demos_data(recipes: Recipes, tmp_path: Path) -> None:
    paper, demo = recipes.config("v05", SETTING="gpu1"), recipes.config("v05", SETTING="gpu1", TASK=str(tmp_path))
    for config in (paper, demo):
        rollout = config.actor_rollout_ref.rollout
        assert config.trainer.device == "cuda" and config.trainer.nnodes * config.trainer.n_gpus_per_node == 1
        assert rollout.tensor_model_parallel_size == 1 and rollout.agent.num_workers <= 2
        # Nothing that is compiled at the first start.
        assert rollout.engine_kwargs.sglang.attention_backend == "triton"
        assert "wandb" not in config.trainer.logger
    assert (paper.data.max_response_length, demo.data.max_response_length) == (4096, 6)
    assert paper.algorithm.v05.prior.provider == "v0" and demo.algorithm.v05.prior.provider == "history"
    assert demo.actor_rollout_ref.rollout.engine_kwargs.sglang.max_total_tokens == 1_000_000
    assert demo.actor_rollout_ref.model.path == f"{tmp_path}/policy"
    started = recipes.config("v05", SETTING="gpu1", RAY_ADDRESS="10.0.0.1:6379")
    assert started.ray_kwargs.ray_init.num_cpus is None


def test_the_controls_differ_from_v05_in_the_baseline_alone(recipes: Recipes) -> None:
    control, ours = recipes.config("grpo", GROUP="4"), recipes.config("v05_fixed_k", K="4")
    for key in ("optim", "use_kl_loss", "loss_agg_mode", "ppo_mini_batch_size", "clip_ratio", "entropy_coeff"):
        assert control.actor_rollout_ref.actor[key] == ours.actor_rollout_ref.actor[key]
    assert control.data.train_batch_size == ours.data.train_batch_size
    assert not control.actor_rollout_ref.actor.use_kl_loss


def test_dapo_filters_groups_and_clips_higher(recipes: Recipes) -> None:
    config = recipes.config("dapo")
    assert config.algorithm.filter_groups.enable and config.algorithm.filter_groups.max_inflight_gen_batches == 3
    actor = config.actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.loss_agg_mode) == (0.2, 0.28, "token-mean")


@pytest.mark.parametrize(
    ("variables", "provider", "model"),
    [
        ({}, "v0", "Now-Join-Us/Generalist-Value-Model-V0"),
        ({"V0_MODEL": "/models/v0"}, "v0", "/models/v0"),
        ({"PRIOR": "history"}, "history", None),
        ({"PRIOR": "none"}, "none", None),
    ],
)
def test_the_prior_is_the_papers_unless_another_is_named(
    variables: dict[str, str], provider: str, model: str | None, recipes: Recipes
) -> None:
    prior = recipes.config("v05", **variables).algorithm.v05.prior
    assert (prior.provider, prior.kwargs.get("model")) == (provider, model)


def test_the_fusion_is_the_papers_unless_another_is_named(recipes: Recipes) -> None:
    def chosen(script: str, **variables: str) -> tuple[str, str, str]:
        v05 = recipes.config(script, **variables).algorithm.v05
        return v05.fusion, v05.baseline, v05.allocation

    ours = {"FUSION": "empirical_bayes", "BASELINE": "leave_one_out"}
    assert chosen("v05") == chosen("v05_fixed_k") == ("shrinkage", "plain", "osla")
    assert chosen("v05", **ours) == ("empirical_bayes", "leave_one_out", "posterior")
    assert chosen("v05_fixed_k", **ours) == ("empirical_bayes", "leave_one_out", "osla")


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("v05", {"SETTING": "laptop"}, "SETTING=laptop is not known: cluster, node, gpu1 or cpu"),
        ("grpo", {"GROUP": "3"}, "ROLLOUTS=8192 must be a multiple of group size (3) x UPDATES (4)"),
    ],
)
def test_an_impossible_setting_is_named(script: str, variables: dict[str, str], message: str) -> None:
    done = subprocess.run([PAPER / f"{script}.sh"], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_the_dry_run_prints_the_plan(recipes: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(recipes.dry_run("ppo")) == VALID
    printed = capsys.readouterr().out
    for what in ("critic", "sglang", "4 x 8 = 32 GPUs", "weights 0.5", "not validated on a GPU"):
        assert what in printed
