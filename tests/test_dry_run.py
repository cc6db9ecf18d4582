"""A launch is composed, checked and planned without a GPU and without Ray."""

from __future__ import annotations

import io
import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from verl_v05.dry_run import plan as planning
from verl_v05.dry_run.__main__ import INVALID, TOO_LARGE, VALID, main
from verl_v05.dry_run.checks import check_config, check_model
from verl_v05.dry_run.compose import compose_launch
from verl_v05.dry_run.launch import has_critic, has_reference, read_launch
from verl_v05.dry_run.memory import GIB, PROCESS, Item, Phase, training_state
from verl_v05.dry_run.plan import Plan, Shapes, make_plan, shapes_of, step_of
from verl_v05.dry_run.report import print_plan
from verl_v05.dry_run.shapes import ShapeError, find_config, known_shapes
from verl_v05.dry_run.trace import ModelShape, measure
from verl_v05.dry_run.verl_checks import check_with_verl

PKG = "pkg://verl_v05.config"
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
PARAMETERS, LAYER = 356, 156


@cache
def base(name: str, platform: str, *groups: str) -> DictConfig:
    return compose_launch(PKG, name, [f"platform={platform}", *groups])


def compose(*overrides: str, name: str = "grpo", platform: str = "gpu") -> DictConfig:
    """A small launch; hydra composes each choice of groups once, values are set afterwards."""
    sizes = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=32"]
    small = ["actor_rollout_ref.rollout.tensor_model_parallel_size=1", "actor_rollout_ref.model.path=tiny"]
    groups = [o for o in overrides if "/" in o.partition("=")[0]]
    config = deepcopy(base(name, platform, *groups))
    OmegaConf.set_struct(config, False)
    config.merge_with_dotlist([*sizes, *small, *(o.removeprefix("+") for o in overrides if o not in groups)])
    return config


def ppo(*overrides: str) -> DictConfig:
    """verl's own config, so that no preset of ours has a say."""
    own = ["algorithm.adv_estimator=gae", "critic.model.path=tiny", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
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


def plan_of(config: DictConfig, tiny: Path, gpu_memory: float = 80 * GIB) -> Plan:
    assert errors(config) == []
    launch = read_launch(config)
    return make_plan(launch, shapes_of(launch, {"tiny": tiny}), gpu_memory)


def phase(plan: Plan, name: str) -> dict[str, float]:
    return {item.name: item.size for p in plan.memory.phases if p.name == name for item in p.items}


# --- what a model takes ---


def test_parameters_are_counted_as_by_hand() -> None:
    shape = measure(Qwen3Config(**TINY), "policy", torch.bfloat16)
    assert (shape.parameters, shape.layers, shape.layer_parameters) == (PARAMETERS, 2, LAYER)
    assert shape.root_parameters == 44
    assert measure(Qwen3Config(**TINY), "critic", torch.bfloat16).parameters == PARAMETERS + 4 + 1  # a head of one


def test_released_models_have_their_published_size() -> None:
    counts = {
        model: measure(find_config("", model, {}), "policy", torch.bfloat16).parameters for model in known_shapes()
    }
    assert counts == {"Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096, "Qwen/Qwen3-Embedding-0.6B": 595_776_512}


def test_training_state_and_kv_cache_are_those_of_real_tensors(tiny: Path) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**TINY))
    optimizer, cache, tokens = torch.optim.AdamW(model.parameters()), DynamicCache(), 7
    model(input_ids=torch.zeros(1, tokens, dtype=torch.long), past_key_values=cache).logits.sum().backward()
    optimizer.step()
    launch = read_launch(compose("trainer.n_gpus_per_node=1", "actor_rollout_ref.rollout.dtype=float32"))
    plan = make_plan(launch, shapes_of(launch, {"tiny": tiny}), GIB)
    state = training_state(launch.actor, plan.shapes.policy)
    assert state.parameters == sum(p.nbytes for p in model.parameters())
    assert state.gradients == sum(p.grad.nbytes for p in model.parameters())
    moments = [t for s in optimizer.state.values() for name, t in s.items() if name != "step"]
    assert state.optimizer == sum(t.nbytes for t in moments)
    assert plan.memory.kv.token_size * tokens == sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_a_real_backward_pass_keeps(dtype: torch.dtype) -> None:
    config = Qwen3Config(
        **{**TINY, "hidden_size": 32, "head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 64}
    )
    model, tokens = Qwen3ForCausalLM(config).to(dtype), 256
    weights = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes() > 8:  # scalars do not grow with the tokens
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    real = sum(storage.nbytes() for storage in kept.values())
    assert measure(config, "policy", dtype).saved * tokens == pytest.approx(real, rel=0.02)


# --- what a step does, and where ---


def test_v05_plans_first_rollouts_the_maximum_and_the_cap() -> None:
    step = step_of(read_launch(compose(name="v05")))
    assert (step.first_rollouts, step.max_rollouts, step.updates) == (256, 1024, 2)
    assert step.max_tokens == 1024 * (512 + 512)
    capped = compose("algorithm/v05=streaming", "algorithm.v05.max_rollouts_per_step=300", name="v05")
    assert step_of(read_launch(capped)).max_rollouts == 300
    assert step_of(read_launch(compose("algorithm/v05=fixed", name="v05"))).max_rollouts == 256


def test_groups_that_are_replaced_leave_the_rollouts_open() -> None:
    step = step_of(read_launch(compose("algorithm.filter_groups.enable=true", "actor_rollout_ref.rollout.n=16")))
    assert (step.first_rollouts, step.max_rollouts, step.max_tokens) == (1024, None, None)


def test_ppo_has_a_critic_with_updates_and_memory_of_its_own(tiny: Path) -> None:
    plan = plan_of(ppo("critic.ppo_mini_batch_size=16", "critic.ppo_epochs=2"), tiny)
    assert (plan.step.updates, plan.step.critic_updates) == (2, 8)
    assert plan.shapes.critic.parameters == PARAMETERS + 5
    assert phase(plan, "critic: optimizer step")["parameter shards"] == (PARAMETERS + 5) * 4 / 8
    assert phase(plan, "rollout")["critic: shards left on the GPU"] == 3 * (PARAMETERS + 5) * 4 / 8
    assert plan_of(compose("actor_rollout_ref.rollout.n=16"), tiny).launch.critic is None


def test_a_kl_penalty_brings_the_reference_policy() -> None:
    assert read_launch(compose("actor_rollout_ref.actor.use_kl_loss=true")).reference
    assert read_launch(compose("algorithm.use_kl_in_reward=true")).reference
    assert not read_launch(compose()).reference
    # With LoRA the reference is the actor without its adapter.
    assert not read_launch(
        compose("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.model.lora_rank=8")
    ).reference


def test_critic_and_reference_are_decided_as_verl_decides() -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy

    launches = [compose(), ppo(), compose("critic.enable=true"), ppo("critic.enable=false"), compose(name="v05")]
    launches += [compose("actor_rollout_ref.actor.use_kl_loss=true"), compose("algorithm.use_kl_in_reward=true")]
    for config in launches:
        assert has_critic(config) == need_critic(config)
        assert has_reference(config) == bool(need_reference_policy(config))


def test_four_nodes_hold_a_value_model_each_with_their_last_rank(tiny: Path) -> None:
    plan = plan_of(compose("algorithm.v05.prior.provider=v0", "trainer.nnodes=4", name="v05"), tiny)
    assert len(plan.places) == 32
    assert [(p.node, p.bundle, p.rank) for p in plan.places if p.value_model] == [
        (0, 7, 7),
        (1, 7, 15),
        (2, 7, 23),
        (3, 7, 31),
    ]
    assert [p.replica for p in plan.places] == list(range(32))
    assert phase(plan, "rollout")["processes (assumed)"] == 3 * PROCESS
    small = plan.shapes.value_model
    assert small.parameters == 259 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 16 + 2 * 64) + 64
    assert small.weights > 4 * small.parameters  # adapter and head come on top
    assert phase(plan, "rollout")["value model"] == small.weights + small.working


def test_replicas_of_two_gpus_take_neighbours(tiny: Path) -> None:
    plan = plan_of(compose("actor_rollout_ref.rollout.tensor_model_parallel_size=2"), tiny)
    assert [(p.replica, p.replica_rank) for p in plan.places] == [(r // 2, r % 2) for r in range(8)]
    assert phase(plan, "rollout")["rollout weights"] == PARAMETERS * 2 / 2
    assert plan.memory.kv.token_size == 2 * 2 * 1 * 2 * 2  # the one key-value head is on both GPUs


# --- memory ---


def test_shards_shrink_with_the_gpus_that_share_them(tiny: Path) -> None:
    items = [
        phase(plan_of(compose(f"trainer.nnodes={nodes}", *more), tiny), "actor: optimizer step")
        for nodes, more in [(1, ()), (4, ()), (4, ("actor_rollout_ref.actor.fsdp_config.fsdp_size=8",))]
    ]
    assert [i["parameter shards"] for i in items] == [PARAMETERS * 4 / 8, PARAMETERS * 4 / 32, PARAMETERS * 4 / 8]
    assert [i["optimizer shards"] / i["parameter shards"] for i in items] == [2, 2, 2]


def test_the_static_share_is_taken_of_what_is_free_when_the_engine_starts(tiny: Path) -> None:
    plan = plan_of(compose("actor_rollout_ref.rollout.gpu_memory_utilization=0.5"), tiny, gpu_memory=10 * GIB)
    free = 10 * GIB - 2 * PROCESS - PARAMETERS * 4 / 8
    assert plan.memory.kv.size == 0.5 * free - PARAMETERS * 2
    assert plan.memory.kv.tokens == int(plan.memory.kv.size / 16)  # 2 x 2 layers x 1 head x 2 x 2 bytes
    assert plan.memory.kv.sequences == plan.memory.kv.tokens // 1024
    capped = plan_of(compose("+actor_rollout_ref.rollout.engine_kwargs.sglang.max_total_tokens=5000"), tiny)
    assert (capped.memory.kv.tokens, capped.memory.kv.sequences) == (5000, 4)


def test_offloading_empties_the_gpu_for_the_rollout(tiny: Path) -> None:
    prefix = "actor_rollout_ref.actor.fsdp_config"
    left = "actor: shards left on the GPU"
    assert phase(plan_of(compose(), tiny), "rollout")[left] == 3 * PARAMETERS * 4 / 8
    half = plan_of(compose(f"{prefix}.optimizer_offload=true"), tiny)
    assert phase(half, "rollout")[left] == PARAMETERS * 4 / 8
    assert "optimizer shards" not in phase(half, "actor: forward")
    assert "optimizer shards" in phase(half, "actor: forward and backward")
    none = plan_of(compose(f"{prefix}.optimizer_offload=true", f"{prefix}.param_offload=true"), tiny)
    assert left not in phase(none, "rollout")


def test_checkpointing_keeps_only_the_layers_inputs(tiny: Path) -> None:
    tokens, name = 4096, "actor: forward and backward"
    size = f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}"
    with_it = plan_of(compose(size), tiny)
    shape = with_it.shapes.policy
    outside = shape.saved - 2 * shape.layer_saved
    assert phase(with_it, name)["activations"] == pytest.approx(tokens * (2 * 2 * 4 + outside))
    without = plan_of(compose(size, "actor_rollout_ref.model.enable_gradient_checkpointing=false"), tiny)
    assert phase(without, name)["activations"] == pytest.approx(tokens * shape.saved)


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        ([], 1),
        (["actor_rollout_ref.rollout.temperature=0.7"], 2),
        (["actor_rollout_ref.actor.entropy_coeff=0.01"], 3),
        (["actor_rollout_ref.model.use_remove_padding=false"], 2),
        (["actor_rollout_ref.model.use_fused_kernels=true"], 0),
    ],
)
def test_logits_are_counted_as_often_as_verl_copies_them(overrides: list[str], copies: int) -> None:
    assert read_launch(compose(*overrides)).actor.logit_copies == copies


def test_an_engine_that_does_not_sleep_stays_during_the_update(tiny: Path) -> None:
    asleep, awake = (
        plan_of(compose(f"actor_rollout_ref.rollout.free_cache_engine={sleeps}"), tiny) for sleeps in ("true", "false")
    )
    assert "KV cache" not in phase(asleep, "actor: forward and backward")
    assert phase(awake, "actor: forward and backward")["KV cache"] == awake.memory.kv.size


def test_verdicts_leave_a_margin() -> None:
    def verdict(used: float, failure: str | None = None) -> str:
        return Phase("", (Item("", used / 2), Item("", used / 2)), 100.0, failure).verdict

    assert [verdict(90), verdict(91), verdict(100), verdict(101)] == ["fits", "tight", "tight", "exceeds"]
    assert verdict(1, "no room for one sequence") == "exceeds"


def test_qwen3_4b_fits_eight_gpus_of_80_gib_but_not_one_of_24() -> None:
    own = [
        "actor_rollout_ref.model.path=Qwen/Qwen3-4B-Instruct-2507",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.6",
    ]
    config = compose(*own, "data.max_response_length=4096")
    launch = read_launch(config)
    shapes = shapes_of(launch, {})
    assert {p.verdict for p in make_plan(launch, shapes, 80 * GIB).memory.phases} == {"fits"}
    alone = read_launch(compose(*own, "data.max_response_length=4096", "trainer.n_gpus_per_node=1"))
    assert {p.verdict for p in make_plan(alone, shapes, 24 * GIB).memory.phases} == {"exceeds"}


def test_on_a_cpu_no_gpu_is_estimated(tiny: Path) -> None:
    plan = plan_of(compose(platform="cpu"), tiny)
    assert plan.memory is None
    console = Console(record=True, width=200, file=io.StringIO())
    print_plan(plan, console)
    text = console.export_text()
    assert "all of this is host memory" in text and "GiB" not in text


# --- what is refused ---


def test_presets_pass() -> None:
    for name in ("v05", "grpo"):
        for platform in ("cpu", "gpu"):
            config = compose("actor_rollout_ref.rollout.n=4", name=name, platform=platform)
            assert errors(config) == [] and check_with_verl(config) == []


ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.nnodes=0", "trainer.nnodes=0 is not allowed: it must be an integer of at least 1"),
        ("data.train_batch_size=null", "data.train_batch_size=None .* at least 1"),
        (f"{ROLLOUT}.name=???", f"{ROLLOUT}.name is not set"),
        (f"{ROLLOUT}.tensor_model_parallel_size=3", r"tensor_model_parallel_size=3 .* GPUs divide .* = 8"),
        (f"{ACTOR}.fsdp_config.fsdp_size=3", "fsdp_size=3 .* -1 or a divisor of .* = 8"),
        (f"{ACTOR}.ulysses_sequence_parallel_size=3", "ulysses_sequence_parallel_size=3 .* a divisor of the 8 GPUs"),
        (f"{ROLLOUT}.gpu_memory_utilization=1.5", "gpu_memory_utilization=1.5 .* between 0 and 1"),
        (
            "reward.reward_model.enable_resource_pool=true",
            "reward.reward_model.nnodes=0 .* at least 1 with enable_reso",
        ),
        (f"{ROLLOUT}.dtype=int4", "rollout.dtype='int4' .* one of fp32, .*bf16"),
        (f"{ACTOR}.fsdp_config.model_dtype=int4", "fsdp_config.model_dtype='int4'"),
        (f"{ACTOR}.ppo_mini_batch_size=48", r"ppo_mini_batch_size=48 .* a divisor of data.train_batch_size=64"),
        (f"{ACTOR}.ppo_mini_batch_size=128", "ppo_mini_batch_size=128"),
        (f"{ACTOR}.ppo_mini_batch_size=4", r"ppo_mini_batch_size=4 .* 4 x .*n=1 rollouts divide over 8 GPUs"),
        (f"{ACTOR}.ppo_max_token_len_per_gpu=1023", r"ppo_max_token_len_per_gpu=1023 .* \+ max_response_length = 1024"),
        (f"{ROLLOUT}.log_prob_max_token_len_per_gpu=1000", "rollout.log_prob_max_token_len_per_gpu=1000 .* at least"),
        (f"{ROLLOUT}.max_model_len=1000", "rollout.max_model_len=1000 .* at least .* = 1024"),
        (f"{ROLLOUT}.log_prob_use_dynamic_bsz=false", "log_prob_use_dynamic_bsz=False .* must be True"),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(override: str, message: str) -> None:
    found = errors(compose(f"{ACTOR}.use_dynamic_bsz=true", override))
    assert any(re.search(message, error) for error in found), found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["critic.enable=false"], "critic.enable=False is not allowed: it must be null or true with .*=gae"),
        (["critic.ppo_mini_batch_size=24"], "critic.ppo_mini_batch_size=24 .* a divisor of data.train_batch_size=64"),
        (["critic.ppo_max_token_len_per_gpu=512"], "critic.ppo_max_token_len_per_gpu=512 .* at least"),
        (["critic.fsdp.fsdp_size=5"], "critic.fsdp.fsdp_size=5"),
        (["critic.ppo_epochs=0"], "critic.ppo_epochs=0 .* at least 1"),
        (
            [f"{ACTOR}.use_kl_loss=true", "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=9"],
            "ref.log_prob_max_token_len_per_gpu=9 ",
        ),
    ],
)
def test_errors_of_ppo_and_the_reference_policy(overrides: list[str], message: str) -> None:
    assert any(re.search(message, error) for error in errors(ppo(*overrides)))


def test_a_fixed_micro_batch_divides_a_gpus_rollouts() -> None:
    own = [f"{ACTOR}.use_dynamic_bsz=false", f"{ROLLOUT}.n=4", f"{ACTOR}.ppo_micro_batch_size_per_gpu"]
    assert errors(compose(*own[:2], f"{own[2]}=8")) == []
    (message,) = errors(compose(*own[:2], f"{own[2]}=5"))
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
    (message,) = errors(compose("actor_rollout_ref.actor.ppo_mini_batch_size=48", name="v05"))
    assert "ppo_mini_batch_size=48 (in prompts) must divide data.train_batch_size=64" in message
    (message,) = errors(compose("algorithm.adv_estimator=grpo", name="v05"))  # the launch would refuse it too
    assert "algorithm.adv_estimator='grpo' is not allowed: with V0.5 it must be 'v05'" in message
    more = ("algorithm.v05.prior.provider=v0", "+algorithm.v05.prior.kwargs.replicas_per_node=9")
    (message,) = errors(compose(*more, name="v05"))
    assert "replicas_per_node=9 is not allowed: a node has 8 ranks" in message


def test_the_policys_own_limits_are_named(tiny: Path) -> None:
    launch = read_launch(compose("data.max_response_length=2000", f"{ROLLOUT}.tensor_model_parallel_size=4"))
    messages = [problem.message for problem in check_model(launch, shapes_of(launch, {"tiny": tiny}).policy, 4096)]
    assert "tensor_model_parallel_size=4 is not allowed: it must divide the model's 2 attention heads" in messages[1]
    assert "max_model_len=4096 is not allowed: it must be at most the model's 2048" in messages[0]
    (first, _) = check_model(launch, shapes_of(launch, {"tiny": tiny}).policy)
    assert first.message.startswith("data.max_prompt_length + data.max_response_length=2512 is not allowed")


def test_what_the_plan_leaves_out_is_said(tmp_path: Path) -> None:
    there = tmp_path / "train.parquet"
    there.touch()
    config = compose(
        f"data.train_files={there}",
        "data.val_files=[missing_a.parquet,missing_b.parquet]",
        "actor_rollout_ref.model.lora_rank=8",
        "trainer.v1.trainer_mode=separate_async",
        f"{ROLLOUT}.name=vllm",
        "critic.enable=true",
    )
    found = "\n".join(warnings(config))
    for text in (
        "data.val_files: not on this machine: missing_a.parquet, missing_b.parquet",
        "LoRA: ",
        "trainer_mode=separate_async",
        "rollout.name=vllm",
        "rollout.n=1 with grpo: a group of one",
        "critic.enable=True: algorithm.adv_estimator=grpo makes no use of it",
    ):
        assert text in found
    assert "train_files" not in found


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
    assert check_with_verl(ppo()) == []  # without the critic's files


# --- where shapes come from ---


def test_an_unknown_model_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"path='some/model'.*--model-config some/model=PATH, or run `hf download"):
        find_config("actor_rollout_ref.model.path", "some/model", {})
    with pytest.raises(ShapeError, match=r"path='./nowhere'.*--model-config ./nowhere=PATH$"):
        find_config("path", "./nowhere", {})
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ShapeError, match=r"config.json is no model config that transformers knows"):
        find_config("path", str(tmp_path), {})


def test_a_folder_and_the_hubs_cache_are_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_config("", str(tiny), {}).vocab_size == 10
    assert find_config("", "some/model", {"some/model": tiny / "config.json"}).vocab_size == 10
    monkeypatch.setattr("verl_v05.dry_run.shapes.try_to_load_from_cache", lambda *_: str(tiny / "config.json"))
    assert find_config("", "some/model", {}).vocab_size == 10


# --- the command ---


def run(tiny: Path, *arguments: str, config: str = "v05") -> int:
    sizes = ["data.train_batch_size=64", "actor_rollout_ref.actor.ppo_mini_batch_size=32"]
    paths = ["--config-path", PKG, "--config-name", config, "platform=gpu", f"actor_rollout_ref.model.path={tiny}"]
    return main([*paths, *sizes, "actor_rollout_ref.rollout.tensor_model_parallel_size=1", *arguments])


def test_a_valid_launch_is_printed_and_written(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "deep" / "plan.json"
    assert run(tiny, "--json", str(file), "--cfg", "job") == VALID
    text = capsys.readouterr().out
    assert "adv_estimator: v05" in text and "first rollouts" in text and "optimizer updates" in text
    data = json.loads(file.read_text())
    assert data["valid"] and data["step"]["max_rollouts"] == 1024 and len(data["places"]) == 8
    assert data["shapes"]["policy"]["parameters"] == PARAMETERS
    assert {phase["verdict"] for phase in data["memory"]["phases"]} == {"fits"}
    assert [f.name for f in file.parent.iterdir()] == ["plan.json"]


def test_exit_codes_tell_invalid_from_too_large(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tiny, "--gpu-memory-gib", "0.5") == TOO_LARGE
    file = tmp_path / "plan.json"
    assert run(tiny, "data.train_batch_size=50", "--json", str(file)) == INVALID
    data = json.loads(file.read_text())
    assert not data["valid"] and "ppo_mini_batch_size=32" in data["problems"][0]["message"]
    assert run(tiny, "actor_rollout_ref.model.path=some/model") == INVALID
    assert "--model-config some/model=PATH" in capsys.readouterr().out.replace("\n", " ")
    assert run(tiny, "actor_rollout_ref.model.path=some/model", "--model-config", str(tiny)) == VALID


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.train_batchsize=4"], "train_batchsize"),
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
    own = ["actor_rollout_ref.rollout.name=sglang", "actor_rollout_ref.actor.use_dynamic_bsz=true"]
    assert main([*own, f"actor_rollout_ref.model.path={tiny}", f"critic.model.path={tiny}"]) == VALID
    assert "critic" in capsys.readouterr().out


def test_plan_needs_every_shape_its_launch_has(tiny: Path) -> None:
    launch = read_launch(ppo())
    shapes = shapes_of(launch, {"tiny": tiny})
    assert isinstance(shapes, Shapes) and isinstance(shapes.critic, ModelShape) and shapes.value_model is None
    assert planning.make_plan(launch, shapes, GIB).places[-1].rank == 7
