"""A composed config is checked as a whole before anything starts."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import verl
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from verl.experimental.reward_loop import migrate_legacy_reward_impl
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.reward import resolve_reward_manager_cls
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.tracking import Tracking

from verl_v05 import plugin
from verl_v05.compat.config import MOVED, NOT_IN_V1, SHADOWED, UNREAD, new_name, verl_defaults
from verl_v05.compat.packages import (
    FLASH_ATTENTION,
    LOGGERS,
    attention_costs,
    attention_of,
    is_installed,
    lacking,
)
from verl_v05.launch import CheckConfig, CheckLaunch, check_run
from verl_v05.settings import SettingsError

ACTOR, MODEL, TRAINER = "actor_rollout_ref.actor", "actor_rollout_ref.model", "trainer"
RESUME = f"{TRAINER}.resume_mode"
# What nobody means, in any preset, and the message that it gets.
WRONG_LAUNCHES = [
    # old keys
    (
        ["custom_reward_function.path=my.py"],
        "custom_reward_function.path='my.py' .* set reward.custom_reward_function.path",
    ),
    (["custom_reward_function.name=f"], "set reward.custom_reward_function.name"),
    (["+custom_reward_function.reward_kwargs.a=1"], "set reward.custom_reward_function.reward_kwargs.a"),
    (["reward_model.reward_manager=dapo"], "reward_model.reward_manager='dapo' .* set reward.reward_manager.name"),
    (["reward_model.enable=true"], "reward_model.enable=True .* set reward.reward_model.enable"),
    (["reward_model.num_workers=3"], "set reward.num_workers"),
    (["reward_model.model.path=rm"], "set reward.reward_model.model_path"),
    (["reward_model.model.external_lib=lib"], "reward_model.model.external_lib='lib' .* it has no new name"),
    (["reward_model.rollout.name=vllm"], "set reward.reward_model.rollout.name"),
    (["reward_model.reward_loop_class_name=Mine"], "set reward.reward_manager.name"),
    (["sandbox_fusion.url=http://localhost"], "set reward.sandbox_fusion.url"),
    ([f"{ACTOR}.grad_clip=0.5"], f"{ACTOR}.grad_clip=0.5 .* set {ACTOR}.optim.clip_grad"),
    (["critic.grad_clip=0.5"], "set critic.optim.clip_grad"),
    # values of another type
    ([f"{ACTOR}.optim.lr=small"], f"{ACTOR}.optim.lr='small' .* must be a number"),
    ([f"{TRAINER}.total_epochs=ten"], "trainer.total_epochs='ten' .* must be a number"),
    ([f"{TRAINER}.save_freq=[1]"], r"trainer.save_freq=\[1\] .* must be a number"),
    ([f"{TRAINER}.total_training_steps=1e3x"], "total_training_steps='1e3x' .* must be a number"),
    ([f"{TRAINER}.nnodes=two"], "trainer.nnodes='two' .* must be a number"),
    ([f"{ACTOR}.use_kl_loss='no'"], f"{ACTOR}.use_kl_loss='no' .* must be true or false"),
    ([f"{TRAINER}.val_before_train='off'"], "val_before_train='off' .* must be true or false"),
    # unknown choices
    ([f"{TRAINER}.logger=[console,wandbb]"], "trainer.logger='wandbb' .* among console, file, wandb"),
    ([f"{TRAINER}.logger=wandbb"], "trainer.logger='wandbb' .* among console"),
    ([f"{TRAINER}.logger=null"], "trainer.logger=None .* among console"),
    (["data.truncation=middel"], "data.truncation='middel' .* one of error, left, right, middle"),
    ([f"{RESUME}=always"], "trainer.resume_mode='always' .* one of auto, disable, resume_path"),
    ([f"{RESUME}=resume_path"], "trainer.resume_from_path=None .* ending in global_step_N"),
    (
        [f"{RESUME}=resume_path", f"{TRAINER}.resume_from_path=out/global_step_8/"],
        "resume_from_path='out/global_step_8/' .* without a slash behind",
    ),
    (
        [f"{RESUME}=resume_path", f"{TRAINER}.resume_from_path=out/global_step_8/actor"],
        "resume_from_path='out/global_step_8/actor' .* ending in global_step_N",
    ),
    (
        [f"{RESUME}=auto", f"{TRAINER}.resume_from_path=out/global_step_8"],
        "resume_from_path='out/global_step_8' is read only with trainer.resume_mode=resume_path, which is auto",
    ),
    # what verl's V1 trainer cannot do
    (["algorithm.adv_estimator=remax"], "algorithm.adv_estimator='remax' .* verl's V1 trainer does not compute"),
    (["algorithm.adv_estimator=optimal_token_baseline"], "V1 trainer does not compute"),
    (["data.gen_batch_size=24"], "data.gen_batch_size=24 .* a divisor of data.train_batch_size="),
    (["data.gen_batch_size=0"], "data.gen_batch_size=0 .* a divisor"),
]
IDS = [" ".join(overrides) for overrides, _ in WRONG_LAUNCHES]
# Those of V0.5's group.
WRONG_V05 = [
    ("algorithm.v05=streaming", "algorithm.v05='streaming' .* with a slash, algorithm/v05=streaming"),
    (
        "algorithm.v05.prior=history",
        "algorithm.v05.prior='history' .* a group: set its keys, algorithm.v05.prior.provider",
    ),
    ("algorithm.v05.custom=3", "algorithm.v05.custom=3 is not allowed, it is a group$"),
    ("algorithm.v05.k_init=four", "algorithm.v05.k_init: .*four"),
    ("algorithm.v05.k_initial=4", "algorithm.v05.k_initial: .*known keys: fusion, baseline"),
]


def config(*overrides: str, platform: str = "cpu", name: str = "v05", hydra: bool = False) -> DictConfig:
    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        return compose(name, overrides=[f"platform={platform}", *overrides], return_hydra_config=hydra)


@pytest.fixture(autouse=True)
def folder_of_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch makes the folder of its checkpoints, to lock it."""
    monkeypatch.chdir(tmp_path)


@cache
def preset(name: str) -> DictConfig:
    return config(name=name)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("schedule", ["rounds", "streaming", "fixed"])
def test_presets_pass_on_every_platform(schedule: str, platform: str) -> None:
    settings = check_run(config(f"algorithm/v05={schedule}", platform=platform))
    assert (settings.schedule, settings.k_init) == (schedule, 4)


def test_group_size_follows_k_init() -> None:
    composed = config("algorithm/v05=fixed", "algorithm.v05.k_init=1")
    assert composed.actor_rollout_ref.rollout.n == 1
    check_run(composed)


def test_platform_is_chosen_by_what_the_machine_has() -> None:
    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        chosen = compose("v05")
    expected = {"cpu": "cpu", "gpu": "cuda"}[plugin.platform()]
    assert chosen.trainer.device == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.adv_estimator=grpo", "algorithm.adv_estimator='grpo' is not allowed: .* must be 'v05'"),
        ("trainer.v1.trainer_mode=sync", "trainer.v1.trainer_mode='sync'"),
        ("actor_rollout_ref.rollout.n=8", r"rollout.n=8 .* must be 4 \(algorithm.v05.k_init\)"),
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class=null", "agent_loop_manager_class=None"),
        ("algorithm.use_kl_in_reward=true", "use actor.use_kl_loss"),
        ("algorithm.filter_groups.enable=true", "filter_groups.enable=True"),
        ("actor_rollout_ref.actor.use_dynamic_bsz=false", "use_dynamic_bsz=False"),
        ("critic.enable=true", "critic.enable=True"),
        ("reward.reward_model.enable=true", "enable_resource_pool=False .* must be True"),
        ("data.train_batch_size=100", "ppo_mini_batch_size=256 .* must divide data.train_batch_size=100"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=300", "must divide"),
        (
            "algorithm.v05.prior.provider=nobody",
            "prior.provider='nobody' is not allowed: .* history, none",
        ),
        ("+algorithm.v05.prior.kwargs.strength=-1", "kwargs.strength=-1 is not allowed: it must be positive"),
        ("+algorithm.v05.prior.kwargs.color=red", "prior.kwargs=.*color"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_run(config(override))


def test_cap_must_cover_the_first_rollouts_and_forbids_refills() -> None:
    streaming = ("algorithm/v05=streaming", "data.train_batch_size=256", "algorithm.v05.max_rollouts_per_step=1024")
    check_run(config(*streaming))
    with pytest.raises(SettingsError, match=r"max_rollouts_per_step=1000 must be at least .* = 1024"):
        check_run(config(*streaming, "algorithm.v05.max_rollouts_per_step=1000"))
    with pytest.raises(SettingsError, match="sync_refill_failed_groups=True"):
        check_run(config(*streaming, "trainer.v1.sampler.sync_refill_failed_groups=true"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.v05.max_rollouts_per_step=1025"], r"=1025 must be at most train_batch_size x k_max = 1024"),
        (
            ["algorithm.v05.max_rollouts_per_step=8", "actor_rollout_ref.actor.ppo_mini_batch_size=16"],
            r"=8 must be at least train_batch_size / ppo_mini_batch_size = 16",
        ),
        (["data.gen_batch_size=64"], r"data.gen_batch_size=64 is not allowed: .* null or data.train_batch_size"),
        (["trainer.v1.sampler.sync_refill_failed_groups=true"], "refills would exceed the step's cap"),
        (["actor_rollout_ref.rollout.n=1"], "rollout.n=1 is not allowed: with V0.5 it must be 0"),
    ],
)
def test_a_pool_that_cannot_share_the_budget_is_refused(overrides: list[str], message: str) -> None:
    sparse = ("algorithm/v05=sparse", "data.train_batch_size=256", "algorithm.v05.max_rollouts_per_step=128")
    assert check_run(config(*sparse)).schedule == "sparse"
    with pytest.raises(SettingsError, match=message):
        check_run(config(*sparse, *overrides))


def test_launch_stops_with_the_message_alone() -> None:
    with pytest.raises(SystemExit, match=r"verl-v05: algorithm\.adv_estimator='grpo'"):
        CheckLaunch().on_run_start(config("algorithm.adv_estimator=grpo"))
    CheckLaunch().on_run_start(config())


@pytest.mark.parametrize(("overrides", "message"), WRONG_LAUNCHES, ids=IDS)
def test_a_wrong_launch_stops_with_its_reason(overrides: list[str], message: str) -> None:
    for name in ("v05", "grpo"):
        wrong = preset(name).copy()
        OmegaConf.set_struct(wrong, False)
        wrong.merge_with_dotlist([override.removeprefix("+") for override in overrides])
        with pytest.raises(SystemExit, match=f"verl-v05: .*{message}"):
            (CheckLaunch() if name == "v05" else CheckConfig()).on_run_start(wrong)


@pytest.mark.parametrize(("override", "message"), WRONG_V05)
def test_a_wrong_group_of_v05_is_the_reason_and_not_what_refers_to_it(override: str, message: str) -> None:
    with pytest.raises(SystemExit, match=f"verl-v05: {message}"):
        CheckLaunch().on_run_start(config(f"++{override}"))


@pytest.mark.parametrize("name", ["v05", "grpo", "dapo", "ppo"])
def test_every_preset_is_checked_at_launch(name: str) -> None:
    composed = config(name=name, hydra=True)
    (callback,) = composed.hydra.callbacks.values()
    assert callback._target_ == f"verl_v05.launch.{'CheckLaunch' if name == 'v05' else 'CheckConfig'}"
    instantiate(callback).on_run_start(preset(name))


PRESENT = find_spec("email")  # any package
FLASH = f"++{MODEL}.override_config.attn_implementation=flash_attention_2"


@pytest.mark.parametrize(
    ("name", "absent", "overrides", "message"),
    [
        ("v05", "httpx", ["algorithm.v05.prior.provider=http"], r"provider=http needs httpx.*'verl-v05\[http\]'"),
        ("v05", "tabpfn", ["algorithm.v05.prior.provider=v0"], r"provider=v0 needs tabpfn.*: .*'verl-v05\[v0\]'"),
        ("v05", "wandb", [f"{TRAINER}.logger=[wandb]"], r"logger=wandb needs wandb.*'verl-v05\[wandb\]'"),
        ("grpo", "sglang", [], r"rollout.name=sglang needs sglang, .*'verl-v05\[sglang\]'"),
        ("grpo", "flash_attn", [FLASH], r"needs flash_attn.*--no-build-isolation 'verl-v05\[flash-attn\]'"),
        ("grpo", "liger_kernel", [f"{MODEL}.use_liger=true"], "use_liger=True needs liger_kernel"),
    ],
)
def test_what_the_run_would_import_and_is_absent_stops_the_launch_by_name(
    name: str, absent: str, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = CheckLaunch() if name == "v05" else CheckConfig()
    monkeypatch.setattr("verl_v05.compat.packages.find_spec", lambda module: None if module == absent else PRESENT)
    with pytest.raises(SystemExit, match=message):
        check.on_run_start(config(*overrides, name=name))
    monkeypatch.setattr("verl_v05.compat.packages.find_spec", lambda module: PRESENT)
    check.on_run_start(preset(name))


def test_a_critic_on_gpus_needs_flash_attn_whatever_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(f"++{MODEL}.override_config.attn_implementation=sdpa", name="ppo", platform="cpu")
    assert [*lacking(wanted, of_machine=True)] == []
    wanted.trainer.device = "cuda"
    (message,) = lacking(wanted, of_machine=True)
    assert message.startswith("critic=flash_attention_2 needs flash_attn, not installed here")


@pytest.mark.parametrize("installed", [True, False])
def test_attention_on_gpus_is_chosen_by_what_is_installed_and_told_at_launch(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("verl_v05.plugin", "verl_v05.compat.packages"):
        monkeypatch.setattr(f"{place}.is_installed", lambda module: installed or module != FLASH_ATTENTION)
    wanted = config("setting=cluster", f"{MODEL}.path=policy", platform="gpu", name="grpo")
    assert attention_of(wanted) == ("flash_attention_2" if installed else "sdpa")
    assert wanted.actor_rollout_ref.model.use_fused_kernels is not installed
    CheckConfig().on_run_start(wanted)
    told = capsys.readouterr().out
    assert f"attn_implementation={attention_of(wanted)} (flash-attn is {'installed' if installed else 'not'}" in told
    assert ("mask of 24576 x 24576 (0.6 GiB)" in told) is not installed
    wanted.actor_rollout_ref.model.use_fused_kernels = False
    assert any("token by token" in cost for cost in attention_costs(wanted)) is not installed


def test_a_package_is_looked_up_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "costly" / "part").mkdir(parents=True)
    (tmp_path / "costly" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "costly" / "module.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("costly", "costly.module", "costly.part", "costly.other", "no_such_package.module")
    assert [is_installed(name) for name in names] == [True, True, True, False, False]


# --- what the tables repeat of verl ---


def test_new_names_are_those_that_verl_itself_gives() -> None:
    old = [key for key in verl_defaults() if key.partition(".")[0] in {name.partition(".")[0] for name in MOVED}]
    composed = preset("grpo").copy()
    OmegaConf.set_struct(composed, False)
    for key in old:
        OmegaConf.update(composed, key, f"value of {key}")
    composed.reward_model.reward_kwargs = "value of reward_model.reward_kwargs"
    migrated = migrate_legacy_reward_impl(composed)
    values = OmegaConf.to_yaml(migrated)
    assert len(old) > 30
    for key in (*old, "reward_model.reward_kwargs"):
        if key == "reward_model.reward_loop_class_name":  # see the next test
            continue
        new = new_name(key)
        if new is None:
            assert f"value of {key}" not in values
        else:
            assert OmegaConf.select(migrated, new) == f"value of {key}"


def test_verl_takes_the_class_of_a_reward_manager_from_its_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine: ...\n")
    composed = config(f"reward.reward_manager.module.path={tmp_path / 'mine.py'}", "reward.reward_manager.name=Mine")
    composed.reward.reward_manager.source = "importlib"
    assert resolve_reward_manager_cls(composed).__name__ == "Mine"


def test_loggers_are_verls() -> None:
    assert {*LOGGERS} == {*Tracking.supported_backend, "tracking"}


def test_estimators_that_cannot_run_are_those_that_need_more_than_verls_v1_trainer_has() -> None:
    algorithm = preset("grpo").algorithm.copy()
    OmegaConf.set_struct(algorithm, False)
    algorithm.gdpo_reward_keys = ["acc"]
    fields = ("rm_scores", "rollout_log_probs", "old_log_probs", "ref_log_prob", "values", "token_level_scores")

    def runs(name: str) -> bool:
        tensors = {field: torch.rand(4, 3) for field in (*fields, "token_level_rewards")}
        data = DataProto.from_single_dict(tensors | {"response_mask": torch.ones(4, 3, dtype=torch.long)})
        data.non_tensor_batch["uid"] = np.array(["a", "a", "b", "b"], dtype=object)
        keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0"]
        try:
            compute_advantage_for_multi_trajectories(data, keys, name, num_repeat=2, config=algorithm)
        except (AssertionError, KeyError, TypeError):
            return False
        return True

    assert {e.value for e in AdvantageEstimator if not runs(e.value)} == {*NOT_IN_V1}


def test_nothing_of_verls_v1_trainer_reads_the_dead_keys() -> None:
    # The dataclasses hold a key without use of it; the other folders are trainers of their own.
    other = ("ray_trainer.py", "main_ppo_v0", "sft", "workers/config/", "trainer/config/", "async_policy", "separation")
    root = Path(verl.__file__).parent
    paths = [path for path in root.rglob("*.py") if not any(part in path.as_posix() for part in (*other, "one_step"))]
    text = "\n".join(path.read_text() for path in paths)
    for key in (*SHADOWED, *UNREAD):
        name = key.rpartition(".")[2]
        # Only the dataset class takes the truncation, and keeps it.
        uses = [line.strip() for line in text.splitlines() if re.search(rf"\b{name}\b", line)]
        if key == "data.truncation":
            uses = [use for use in uses if use.startswith("self.truncation") or use.startswith("config.truncation")]
            assert uses == ['self.truncation = config.get("truncation", "error")']
        else:
            assert uses == [], key
