"""A launch is composed, checked and planned without a GPU and without Ray."""

from __future__ import annotations

import io
import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from omegaconf import DictConfig, OmegaConf
from pyarrow.parquet import write_table
from rich.console import Console
from transformers import Qwen3Config

from tests.test_run_check import IDS, WRONG_LAUNCHES
from verl_v05.compat.contract import resolve, source_of
from verl_v05.compat.verl_0_9_1 import DRY_RUN_SOURCES
from verl_v05.dry_run.__main__ import INVALID, VALID, main
from verl_v05.dry_run.checks import check_config, check_model
from verl_v05.dry_run.compose import compose_launch
from verl_v05.dry_run.from_verl import check_with_verl, read_workers
from verl_v05.dry_run.model_sizes import KNOWN, ModelShape, ShapeError, find_config, measure
from verl_v05.dry_run.plan import RELEASED_V0, Plan, make_plan, step_of
from verl_v05.dry_run.tables import print_plan

pytestmark = pytest.mark.filterwarnings("ignore:Disabled critic")

PKG = "pkg://verl_v05.config"
ROLLOUT, ACTOR, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.actor", "actor_rollout_ref.model"
# Embedding 10 x 4 (tied); a layer: q 16, k 8, v 8, o 16, q and k norms 4, MLP 3 x 32, norms 8 = 156; final norm 4.
TINY = {
    "model_type": "qwen3",
    "vocab_size": 10,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
PARAMETERS = 356
QWEN3_4B, LARGE = "Qwen/Qwen3-4B-Instruct-2507", ModelShape(parameters=4_022_468_096, heads=32, context=262144)


@cache
def base(name: str, platform: str) -> DictConfig:
    """A small launch, without interpolations: they take most of the time of a check."""
    sizes = ["data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=32"]
    small = [f"{ROLLOUT}.tensor_model_parallel_size=1", f"{MODEL}.path=tiny"]
    config = compose_launch(PKG, name, [f"platform={platform}", *sizes, *small])
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))


def compose(*overrides: str, name: str = "grpo", platform: str = "gpu") -> DictConfig:
    """hydra composes each config once, values are set afterwards."""
    config = deepcopy(base(name, platform))
    config.merge_with_dotlist([override.removeprefix("+") for override in overrides])
    return config


def ppo(*overrides: str) -> DictConfig:
    """verl's own config, so that no preset of ours has a say."""
    own = ["algorithm.adv_estimator=gae", "critic.model.path=tiny", f"{ACTOR}.use_dynamic_bsz=true"]
    return compose(*own, *overrides)


def errors(config: DictConfig) -> list[str]:
    return [problem.message for problem in check_config(config) if problem.level == "error"]


def warnings(config: DictConfig) -> list[str]:
    return [problem.message for problem in check_config(config) if problem.level == "warning"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def plan_of(config: DictConfig, policy: ModelShape = LARGE) -> Plan:
    workers = read_workers(config)
    return make_plan(config, workers, policy, None if workers.critic is None else policy)


def numbers(config: DictConfig) -> dict[str, int | None]:
    return {key: amount.number for key, amount in step_of(config, read_workers(config)).items()}


@pytest.mark.parametrize("path", DRY_RUN_SOURCES)
def test_rules_of_verl_that_are_repeated_are_those_of_the_installed_verl(path: str) -> None:
    assert source_of(resolve(path)) == DRY_RUN_SOURCES[path], f"{path} differs: see whether the dry run still holds"


# --- what a model takes ---


def test_parameters_are_counted_as_by_hand() -> None:
    assert measure(Qwen3Config(**TINY)) == ModelShape(PARAMETERS, heads=2, context=2048)
    assert measure(Qwen3Config(**TINY), critic=True).parameters == PARAMETERS + 4 + 1  # a head of one


def test_released_models_have_their_published_size() -> None:
    assert {model: measure(find_config("", model, {})) for model in KNOWN} == {QWEN3_4B: LARGE}


def test_shards_shrink_with_the_gpus_that_share_them() -> None:
    size = f"{ACTOR}.fsdp_config.fsdp_size=8"
    where = [
        plan_of(compose(f"trainer.nnodes={nodes}", *more)).models["actor"].where
        for nodes, more in [(1, ()), (4, ()), (4, (size,)), (1, (f"{ACTOR}.fsdp_config.model_dtype=bf16",))]
    ]
    assert where == [
        "8 shards (fsdp, fp32, weights 1.9 GiB, Adam moments 3.7 GiB)",
        "32 shards (fsdp, fp32, weights 0.5 GiB, Adam moments 0.9 GiB)",
        "8 shards (fsdp, fp32, weights 1.9 GiB, Adam moments 3.7 GiB)",
        "8 shards (fsdp, bf16, weights 0.9 GiB, Adam moments 1.9 GiB)",
    ]


def test_the_inference_engine_divides_the_weights_by_tensor_parallel_ranks() -> None:
    plan = plan_of(compose(f"{ROLLOUT}.tensor_model_parallel_size=2", f"{ROLLOUT}.gpu_memory_utilization=0.6"))
    assert plan.models["sglang"].where == "4 replicas of 2 ranks (bfloat16, weights 3.7 GiB, static share 0.6)"


def test_on_a_cpu_no_gpu_is_estimated() -> None:
    config = compose(platform="cpu")
    console = Console(record=True, width=200, file=io.StringIO())
    print_plan(plan_of(config), config, console)
    text = console.export_text()
    assert "all of this is host memory" in text and "GiB" not in text


# --- what a step does, and where ---


def test_v05_plans_first_rollouts_the_maximum_and_the_cap() -> None:
    step = numbers(compose(name="v05"))
    assert (step["first_rollouts"], step["max_rollouts"], step["updates"]) == (256, 1024, 2)
    assert step["max_tokens"] == 1024 * (512 + 512)
    sparse = ["schedule=sparse", "k_init=0", "max_rollouts_per_step=200"]
    step = numbers(compose(*(f"algorithm.v05.{value}" for value in sparse), name="v05"))
    assert (step["first_rollouts"], step["max_rollouts"]) == (200, 200)
    capped = compose("algorithm.v05.schedule=streaming", "algorithm.v05.max_rollouts_per_step=300", name="v05")
    assert numbers(capped)["max_rollouts"] == 300
    assert numbers(compose("algorithm.v05.schedule=fixed", name="v05"))["max_rollouts"] == 256


def test_groups_that_are_replaced_leave_the_rollouts_open() -> None:
    step = numbers(compose("algorithm.filter_groups.enable=true", f"{ROLLOUT}.n=16"))
    assert (step["first_rollouts"], step["max_rollouts"], step["max_tokens"]) == (1024, None, None)


def test_ppo_has_a_critic_with_updates_and_memory_of_its_own() -> None:
    plan = plan_of(ppo("critic.ppo_mini_batch_size=16", "critic.ppo_epochs=2", "critic.fsdp.model_dtype=bf16"))
    assert (plan.step["updates"].number, plan.step["critic_updates"].number) == (2, 8)
    assert plan.models["critic"].where == "8 shards (fsdp, bf16, weights 0.9 GiB, Adam moments 1.9 GiB)"
    assert "critic" not in plan_of(compose()).models


def test_a_kl_penalty_brings_the_reference_policy() -> None:
    def has_reference(*overrides: str) -> bool:
        return read_workers(compose(*overrides)).reference is not None

    assert has_reference(f"{ACTOR}.use_kl_loss=true")
    assert has_reference("algorithm.use_kl_in_reward=true")
    assert not has_reference()
    # With LoRA the reference is the actor without its adapter.
    assert not has_reference(f"{ACTOR}.use_kl_loss=true", f"{MODEL}.lora_rank=8")
    assert not has_reference(f"{ACTOR}.use_kl_loss=true", f"+{MODEL}.lora_adapter_path=adapter")


def test_four_nodes_hold_a_value_model_each_with_their_last_rank() -> None:
    plan = plan_of(compose("algorithm.v05.prior.provider=v0", "trainer.nnodes=4", name="v05"))
    assert len(plan.places) == 32
    assert [(p.node, p.bundle, p.rank) for p in plan.places if p.value_model] == [
        (0, 7, 7),
        (1, 7, 15),
        (2, 7, 23),
        (3, 7, 31),
    ]
    assert [p.replica for p in plan.places] == list(range(32))
    assert plan.models["value model"].where == "1 a node, 0.1 of a GPU booked"


def test_the_released_value_model_is_in_the_plan_with_its_head() -> None:
    v0 = ["algorithm.v05.prior.provider=v0", f"algorithm.v05.prior.kwargs.model={RELEASED_V0}"]
    model = plan_of(compose(*v0, name="v05")).models["value model"]
    assert model.parameters == 606_763_568
    assert model.where == "1 a node, 0.1 of a GPU booked, weights 1.2 GiB, up to 4.3 GiB while it answers"
    exact = plan_of(compose(*v0, "algorithm.v05.prior.kwargs.dtype=float32", name="v05")).models["value model"]
    assert "weights 2.3 GiB" in exact.where
    assert "GiB" not in plan_of(compose(*v0, name="v05", platform="cpu")).models["value model"].where


def test_replicas_of_two_gpus_take_neighbours() -> None:
    plan = plan_of(compose(f"{ROLLOUT}.tensor_model_parallel_size=2"))
    assert [(p.replica, p.replica_rank) for p in plan.places] == [(r // 2, r % 2) for r in range(8)]


def test_a_pool_of_its_own_comes_beside_the_trainers_nodes() -> None:
    reward = [f"reward.reward_model.{o}" for o in ("enable=true", "enable_resource_pool=true", "nnodes=2")]
    assert plan_of(compose(*reward)).models["reward model"].where == "2 x 8 GPUs more"


# --- what is refused ---


@pytest.mark.parametrize("name", ["v05", "grpo"])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_presets_pass(name: str, platform: str) -> None:
    assert errors(compose(f"{ROLLOUT}.n=4", name=name, platform=platform)) == []


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            [
                "trainer.nnodes=0",
                "data.train_batch_size=null",
                f"{ROLLOUT}.name=???",
                "reward.reward_model.enable_resource_pool=true",
            ],
            [
                "trainer.nnodes=0 is not allowed: it must be an integer of at least 1",
                "data.train_batch_size=None .* at least 1",
                f"{ROLLOUT}.name is not set",
                "reward.reward_model.nnodes=0 .* at least 1 with enable_reso",
            ],
        ),
        (
            [
                f"{ROLLOUT}.tensor_model_parallel_size=3",
                f"{ACTOR}.fsdp_config.fsdp_size=3",
                f"{ACTOR}.ulysses_sequence_parallel_size=3",
                f"{ROLLOUT}.gpu_memory_utilization=1.5",
                f"{ROLLOUT}.dtype=int4",
                f"{ACTOR}.fsdp_config.model_dtype=int4",
                f"{ACTOR}.ppo_mini_batch_size=48",
                f"{ROLLOUT}.max_model_len=1000",
                f"{ROLLOUT}.log_prob_use_dynamic_bsz=false",
                f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=1",
            ],
            [
                r"tensor_model_parallel_size=3 .* GPUs divide .* = 8",
                "fsdp_size=3 .* -1 or a divisor of .* = 8",
                "ulysses_sequence_parallel_size=3 .* a divisor of the 8 GPUs",
                "gpu_memory_utilization=1.5 .* between 0 and 1",
                "rollout.dtype='int4' .* one of auto, .*bfloat16",
                "fsdp_config.model_dtype='int4' .* one of .*fp32, .*bf16",
                r"ppo_mini_batch_size=48 .* a divisor of data.train_batch_size=64",
                "rollout.max_model_len=1000 .* at least .* = 1024",
                "log_prob_use_dynamic_bsz=False .* must be True",
            ],
        ),
        (
            [
                f"{ACTOR}.ppo_mini_batch_size=128",
                f"{ACTOR}.ppo_max_token_len_per_gpu=1023",
                f"{ROLLOUT}.log_prob_max_token_len_per_gpu=1000",
            ],
            [
                "ppo_mini_batch_size=128",
                r"ppo_max_token_len_per_gpu=1023 .* \+ max_response_length = 1024",
                "rollout.log_prob_max_token_len_per_gpu=1000 .* at least",
            ],
        ),
        (
            [f"{ACTOR}.ppo_mini_batch_size=4"],
            [r"ppo_mini_batch_size=4 .* 4 x .*n=1 rollouts divide over 8 GPUs"],
        ),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(overrides: list[str], messages: list[str]) -> None:
    found = errors(compose(f"{ACTOR}.use_dynamic_bsz=true", *overrides))
    for message in messages:
        assert any(re.search(message, error) for error in found), (message, found)
    assert len(found) == len(messages)


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["critic.enable=false"], ["critic.enable=False is not allowed: it must be null or true with .*=gae"]),
        (["critic.ppo_epochs=0"], ["critic.ppo_epochs=0 .* at least 1"]),
        (
            [
                "critic.ppo_mini_batch_size=24",
                "+critic.ppo_infer_max_token_len_per_gpu=300",
                "critic.fsdp.fsdp_size=5",
                "critic.fsdp.ulysses_sequence_parallel_size=3",
                f"{ACTOR}.use_kl_loss=true",
                "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=9",
            ],
            [
                "critic.ppo_mini_batch_size=24 .* a divisor of data.train_batch_size=64",
                "critic.ppo_infer_max_token_len_per_gpu=300 .* at least .* = 1024, over 3 GPUs",
                "critic.fsdp.fsdp_size=5",
                "critic.fsdp.ulysses_sequence_parallel_size=3 .* a divisor of the 8 GPUs",
                "ref.log_prob_max_token_len_per_gpu=9 ",
            ],
        ),
    ],
)
def test_errors_of_ppo_and_the_reference_policy(overrides: list[str], messages: list[str]) -> None:
    found = errors(ppo(*overrides))
    for message in messages:
        assert any(re.search(message, error) for error in found), (message, found)


def test_a_fixed_micro_batch_divides_a_gpus_rollouts() -> None:
    own = [f"{key}=false" for key in (f"{ACTOR}.use_dynamic_bsz", f"{ROLLOUT}.log_prob_use_dynamic_bsz")]
    own += [f"{ROLLOUT}.n=4", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=8"]
    assert errors(compose(*own, f"{ACTOR}.ppo_micro_batch_size_per_gpu=8")) == []
    (message,) = errors(compose(*own, f"{ACTOR}.ppo_micro_batch_size_per_gpu=5"))
    assert "ppo_micro_batch_size_per_gpu=5 is not allowed: it must be a divisor of a GPU's 16 rollouts" in message


def test_replicas_fill_nodes_or_parts_of_one() -> None:
    sizes = [
        "trainer.nnodes=3",
        "trainer.n_gpus_per_node=4",
        "data.train_batch_size=96",
        f"{ACTOR}.ppo_mini_batch_size=96",
    ]
    (message,) = errors(compose(*sizes, f"{ROLLOUT}.tensor_model_parallel_size=6"))
    assert "must be such that a replica's 6 GPUs are whole nodes or divide one of 4" in message
    assert errors(compose(*sizes, f"{ROLLOUT}.tensor_model_parallel_size=4")) == []


def test_v05_is_checked_by_its_own_rules() -> None:
    (message,) = errors(compose(f"{ACTOR}.ppo_mini_batch_size=48", name="v05"))
    assert "ppo_mini_batch_size=48 (in prompts) must divide data.train_batch_size=64" in message
    (message,) = errors(compose("algorithm.adv_estimator=grpo", name="v05"))  # the launch would refuse it too
    assert "algorithm.adv_estimator='grpo' is not allowed: with V0.5 it must be 'v05'" in message
    more = ("algorithm.v05.prior.provider=v0", "+algorithm.v05.prior.kwargs.replicas_per_node=9")
    (message,) = errors(compose(*more, name="v05"))
    assert "replicas_per_node=9 is not allowed: a node has 8 ranks" in message


def test_the_policys_own_limits_are_named() -> None:
    def messages(*overrides: str) -> list[str]:
        config = compose("data.max_response_length=2000", *overrides)
        return [p.message for p in check_model(config, read_workers(config), ModelShape(PARAMETERS, 2, 2048))]

    limit, heads = messages(f"{ROLLOUT}.tensor_model_parallel_size=4", f"{ROLLOUT}.max_model_len=4096")
    assert "tensor_model_parallel_size=4 is not allowed: it must divide the model's 2 attention heads" in heads
    assert "max_model_len=4096 is not allowed: it must be at most the model's 2048" in limit
    (message,) = messages()
    assert message.startswith("data.max_prompt_length + data.max_response_length=2512 is not allowed")


def test_what_the_plan_leaves_out_is_said(tmp_path: Path) -> None:
    there = tmp_path / "train.parquet"
    there.touch()
    config = compose(
        f"data.train_files={there}",
        "data.val_files=[missing_a.parquet,missing_b.parquet]",
        f"{MODEL}.lora_rank=8",
        "trainer.v1.trainer_mode=separate_async",
        "critic.enable=true",
        "critic.ppo_mini_batch_size=32",
        "critic.ppo_max_token_len_per_gpu=24576",
    )
    found = "\n".join(warnings(config))
    for text in (
        "data.val_files: not on this machine: missing_a.parquet, missing_b.parquet",
        "LoRA: ",
        "trainer_mode=separate_async",
        "rollout.n=1 with grpo: a group of one",
        "critic.enable=True: algorithm.adv_estimator=grpo makes no use of it",
        "critic.ppo_max_token_len_per_gpu=24576 has no effect: verl's V1 trainer reads ",
    ):
        assert text in found
    assert "train_files" not in found


# --- what the run would open ---

MESSAGES = [{"role": "user", "content": "1 + 1 = ?"}]
ROW = {"prompt": MESSAGES, "data_source": "sums", "reward_model": {"ground_truth": "2"}}


def parquet(folder: Path, *rows: dict) -> str:
    file = folder / "rows.parquet"
    write_table(pa.Table.from_pylist(list(rows), schema=pa.Table.from_pylist([ROW]).schema if not rows else None), file)
    return str(file)


@pytest.mark.parametrize(("overrides", "message"), WRONG_LAUNCHES, ids=IDS)
def test_what_stops_every_launch_is_an_error(overrides: list[str], message: str) -> None:
    assert any(re.search(message, error) for error in errors(compose(*overrides)))


def test_data_that_the_run_can_use_passes(tmp_path: Path) -> None:
    file = parquet(tmp_path, *[ROW] * 64)
    lines = tmp_path / "rows.jsonl"
    lines.write_text(f"{json.dumps(ROW)}\n" * 64)
    (tmp_path / "rows.json").write_text(json.dumps([ROW] * 64))
    for name in (file, lines, tmp_path / "rows.json", f"[{file},{lines}]"):
        config = compose(f"data.train_files={name}", f"data.val_files=[{file}]")
        assert errors(config) == [] and not any("data." in warning for warning in warnings(config))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows.parquet has no rows"),
        ([ROW] * 63, "data.train_files: 63 rows are less than one batch, data.train_batch_size=64"),
        ([{"question": "1 + 1 = ?"}], "has no column prompt, data_source, reward_model, only question"),
        ([{"prompt": MESSAGES, "data_source": "sums"}], "has no column reward_model, only prompt, data_source"),
        ([ROW | {"prompt": "1 + 1"}], r"no messages, \[\{role, content\}, ...\], in prompt, but a str: '1 \+ 1'"),
        ([ROW | {"prompt": ["1 + 1 = ?"]}], r"in prompt, but a list: \['1 \+ 1"),
        ([ROW | {"reward_model": "2"}], "has no ground_truth in reward_model: '2'"),
    ],
)
def test_data_that_the_run_cannot_use_is_an_error(rows: list[dict], message: str, tmp_path: Path) -> None:
    (found,) = errors(compose(f"data.train_files={parquet(tmp_path, *rows)}"))
    assert re.search(message, found)


def test_files_that_nobody_can_read_are_errors(tmp_path: Path) -> None:
    pointer, table = tmp_path / "pointer.parquet", tmp_path / "table.csv"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    table.write_text("prompt\n")
    found = errors(compose(f"data.train_files=[{pointer},{tmp_path}]", f"data.val_files={table}"))
    for name, reason in [("pointer.parquet", "magic bytes"), (str(tmp_path), "reads .parquet"), ("table.csv", ".json")]:
        assert any(f"{name} cannot be read" in error and reason in error for error in found)
    assert len(found) == 3
    (empty,) = errors(compose("data.train_files=[]"))
    assert empty == "data.train_files=[] is not allowed: it must be a file or a list of them"


def test_own_datasets_and_reward_managers_have_their_own_columns(tmp_path: Path) -> None:
    file = parquet(tmp_path, *[{"prompt": MESSAGES}] * 64)
    (tmp_path / "mine.py").write_text("class Mine: ...\n")
    given = f"data.train_files={file}"
    manager = [f"reward.reward_manager.{key}" for key in ("source=importlib", f"module.path={tmp_path / 'mine.py'}")]
    assert errors(compose(given, f"data.custom_cls.path={tmp_path / 'mine.py'}")) == []
    assert errors(compose(given, *manager, "reward.reward_manager.name=Mine")) == []
    (found,) = errors(compose(given))
    assert "has no column data_source, reward_model" in found


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("import no_such_module\n", (), "custom_reward_function cannot be loaded: No module named 'no_such_module'"),
        ("def compute_score(:\n", (), "custom_reward_function cannot be loaded: invalid syntax"),
        ("raise SystemExit('no key')\n", (), "custom_reward_function cannot be loaded: no key"),
        ("def score(): ...\n", (), "custom_reward_function cannot be loaded: .*compute_score"),
        ("def compute_score(): ...\n", ("reward.reward_manager.name=no",), "reward_manager cannot be loaded: .*no"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_an_error(
    text: str, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(text)
    (found,) = errors(compose(f"reward.custom_reward_function.path={tmp_path / 'reward.py'}", *overrides))
    assert re.search(message, found)


def test_rewards_that_are_elsewhere_are_warned_of() -> None:
    manager = [f"reward.reward_manager.{key}" for key in ("source=importlib", "module.path=manager.py")]
    config = compose("reward.custom_reward_function.path=reward.py", *manager)
    assert errors(config) == []
    files = {"custom_reward_function.path": "reward.py", "reward_manager.module.path": "manager.py"}
    assert {f"reward.{key}: not on this machine: {file}" for key, file in files.items()} <= {*warnings(config)}
    (found,) = errors(compose("reward.custom_reward_function.path=pkg://no.such.package"))
    assert "custom_reward_function cannot be loaded: No module named 'no'" in found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (f"+{MODEL}.override_config.attn_implementation=flash_attention_2",),
            "=flash_attention_2 needs flash_attn, not",
        ),
        (("trainer.logger=[console,wandb]",), "trainer.logger=wandb needs wandb, not installed here"),
        (("trainer.logger=vemlp_wandb",), "trainer.logger=vemlp_wandb needs volcengine_ml_platform, not"),
        (
            ("algorithm.v05.prior.provider=v0",),
            "provider=v0 needs sentence_transformers, tabpfn, not installed here: pip",
        ),
        ((f"{ROLLOUT}.name=vllm",), "rollout.name=vllm needs vllm, not installed here"),
    ],
)
def test_packages_that_are_absent_are_warned_of(
    overrides: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_v05.compat.packages.find_spec", lambda name: None)
    assert any(message in warning for warning in warnings(compose(*overrides, name="v05", platform="cpu")))


def test_a_launch_for_gpus_is_not_held_against_a_machine_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_v05.compat.packages.find_spec", lambda name: None)
    found = "\n".join(warnings(compose("trainer.logger=[console,wandb]", platform="gpu")))
    assert "needs wandb" in found and "flash_attn" not in found and "sglang" not in found


def test_keys_without_effect_are_warned_of() -> None:
    found = warnings(compose("trainer.balance_batch=false", "data.truncation=left", "+reward_function.path=my.py"))
    assert "trainer.balance_batch=False has no effect: verl's V1 trainer does not read it" in found
    assert "data.truncation=left has no effect: verl's V1 trainer does not read it" in found
    assert "reward_function: verl has no such key, only code of your own can read it" in found


def test_verl_itself_refuses() -> None:
    def refused(*overrides: str) -> str:
        return "\n".join(problem.message for problem in check_with_verl(compose(*overrides)))

    assert "Unknown trainer 'nobody'. Available trainers: " in refused("trainer.v1.trainer_mode=nobody")
    assert "adv_estimator='nobody' is not allowed: it must be one of " in refused("algorithm.adv_estimator=nobody")
    estimator = ("algorithm.adv_estimator=qae", "+algorithm.qae.quantile=0.4")
    assert "algorithm: Key 'quantile' not in 'qae'" in refused(*estimator)
    assert "Invalid loss_agg_mode: nonsense" in refused(f"{ACTOR}.loss_agg_mode=nonsense")
    assert "Please set at least one of 'actor.ppo_micro_batch_size'" in refused(f"{ACTOR}.use_dynamic_bsz=false")
    assert "pipeline_model_parallel_size > 1" in refused(f"{ROLLOUT}.pipeline_model_parallel_size=2")
    assert "filter_groups.metric must be set" in refused(
        "algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=null"
    )
    assert "Invalid loss_agg_mode: nonsense" in refused(
        f"{ACTOR}.use_kl_loss=true", "+actor_rollout_ref.ref.loss_agg_mode=nonsense"
    )
    assert check_with_verl(ppo()) == []  # without the critic's files


# --- where shapes come from ---


def test_an_unknown_model_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"path='some/model'.*--model-config some/model=PATH, or run `hf download"):
        find_config(f"{MODEL}.path", "some/model", {})
    with pytest.raises(ShapeError, match=r"path='./nowhere'.*--model-config ./nowhere=PATH$"):
        find_config("path", "./nowhere", {})
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ShapeError, match=r"config.json that transformers knows"):
        find_config("path", str(tmp_path), {})
    with pytest.raises(ShapeError, match=r"config.json that transformers knows"):
        find_config("path", "some/model", {"some/model": tmp_path / "nowhere"})


def test_a_folder_and_the_hubs_cache_are_read(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_config("", str(tiny), {}).vocab_size == 10
    assert find_config("", "some/model", {"some/model": tiny / "config.json"}).vocab_size == 10
    cached = tmp_path / "models--some--model"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text(json.dumps(TINY))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_config("", "some/model", {}).vocab_size == 10


# --- the command ---


def run(tiny: Path, *arguments: str, config: str = "v05") -> int:
    sizes = ["data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=32"]
    paths = ["--config-path", PKG, "--config-name", config, "platform=gpu", f"{MODEL}.path={tiny}"]
    return main([*paths, *sizes, f"{ROLLOUT}.tensor_model_parallel_size=1", *arguments])


def test_a_valid_launch_is_printed_and_written(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "deep" / "plan.json"
    given = [f"{MODEL}.path=some/model", "--model-config", str(tiny)]
    assert run(tiny, "--json", str(file), "--cfg", "job", *given) == VALID
    text = capsys.readouterr().out
    assert "adv_estimator: v05" in text and "first rollouts" in text and "optimizer updates" in text
    assert "not validated on a GPU" in text
    data = json.loads(file.read_text())
    assert data["valid"] and data["step"]["max_rollouts"] == 1024 and len(data["places"]) == 8
    assert data["models"]["actor"]["parameters"] == PARAMETERS
    assert [f.name for f in file.parent.iterdir()] == ["plan.json"]


def test_the_exit_code_tells_an_invalid_launch(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "plan.json"
    assert run(tiny, "data.train_batch_size=50", "--json", str(file)) == INVALID
    data = json.loads(file.read_text())
    assert not data["valid"] and "ppo_mini_batch_size=32" in data["problems"][0]["message"]
    assert run(tiny, f"{MODEL}.path=some/model") == INVALID
    assert "--model-config some/model=PATH" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.train_batchsize=4"], "train_batchsize"),
        (["algorithm.v05=streaming"], "with a slash, algorithm/v05=streaming"),
        (["algorithm/v05=nothing"], "Could not find 'algorithm/v05/nothing'"),
        (["data.train_batch_size=1,2"], "data.train_batch_size"),
        (["--config-name", "nothing"], "Cannot find primary config 'nothing'"),
        (["--config-path", "/nowhere"], "/nowhere"),
        (["--config-path", "pkg://verl_v05.nowhere"], "verl_v05.nowhere"),
    ],
)
def test_what_hydra_refuses_is_hydras_message(
    tiny: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(tiny, *arguments) == INVALID
    assert message in capsys.readouterr().out


def test_verls_own_config_is_the_default_as_for_main_ppo(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    own = [f"{ROLLOUT}.name=sglang", f"{ACTOR}.use_dynamic_bsz=true"]
    assert main([*own, f"{MODEL}.path={tiny}", f"critic.model.path={tiny}"]) == VALID
    assert "critic" in capsys.readouterr().out
