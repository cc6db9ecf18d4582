"""The related work's estimators as verl finds and calls them, and HA-DW's anchor in a checkpoint."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_v05.estimators import bnpo, ha_dw, james_stein, mc_grpo, qae
from verl_v05.estimators.register import check_parameters, estimator_of, load_parameters, using
from verl_v05.plugin import FOLLOWERS
from verl_v05.trainer.base import SyncTrainer
from verl_v05.trainer.checkpoint import FILE

NAMES = ("mc_grpo", "qae", "bnpo", "james_stein", "ha_dw")
PURE = {
    "mc_grpo": mc_grpo.advantages,
    "qae": qae.advantages,
    "bnpo": bnpo.advantages,
    "james_stein": james_stein.advantages,
    "ha_dw": lambda rewards, group, **kw: ha_dw.step(ha_dw.Anchor(), rewards, group, **kw)[1],
}


def compute(name: str, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's call of the estimator, under a trainer that carries state."""
    with using(estimator_of(name)):
        return get_adv_estimator_fn(name)(*args)


def verl_batch(seed: int = 0, padding: int = 3) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Token rewards, mask and uids of groups of 1 to 6, rows in any order, the last ones verl's padding."""
    rng = np.random.default_rng(seed)
    uids = np.array([f"uid{i}" for i, k in enumerate([1, 6, 4, 5, 3]) for _ in range(k)], dtype=object)
    uids = np.r_[uids[rng.permutation(len(uids))], uids[:padding]]
    length = rng.integers(1, 7, len(uids))
    mask = torch.as_tensor(np.arange(8) < length[:, None]).long()
    rewards = torch.zeros(len(uids), 8)
    rewards[torch.arange(len(uids)), torch.as_tensor(length) - 1] = torch.as_tensor(
        rng.integers(0, 2, len(uids))
    ).float()
    mask[len(uids) - padding :] = 0
    return rewards, mask, uids


def config(*overrides: str) -> DictConfig:
    """What ``python -m verl.trainer.main_ppo`` makes of overrides."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", list(overrides))


def test_verls_estimators_bring_ours_with_them() -> None:
    assert FOLLOWERS["verl.trainer.ppo.core_algos"] == ("verl_v05.estimators.register",)
    for name in NAMES:
        assert get_adv_estimator_fn(name).__name__ == f"compute_{name}_outcome_advantage"


@pytest.mark.parametrize("name", NAMES)
def test_every_token_of_the_mask_gets_the_pure_advantage_and_padding_counts_for_nothing(name: str) -> None:
    rewards, mask, uids = verl_batch()
    advantages, returns = compute(name, rewards, mask, uids)

    real = slice(0, len(uids) - 3)
    outcome, group = rewards[real].sum(dim=1).double().numpy(), pd.Categorical(uids[real]).codes
    expected = PURE[name](outcome, group).advantage
    np.testing.assert_allclose(advantages[real, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0
    assert torch.equal(advantages, advantages[:, :1] * mask)
    assert (advantages[-3:] == 0).all()
    assert torch.equal(advantages, returns) and advantages.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_verls_dispatch_reaches_the_estimator_with_the_parameters_of_the_command_line(name: str) -> None:
    changes = {
        "mc_grpo": {"eps": 1.0},
        "qae": {"k": 0.7, "eps": 0.5},
        "bnpo": {"low": -1.0, "max_weight": 0.9},
        "james_stein": {"leave_one_out": False},
        "ha_dw": {"scale": 2.0, "low": -1.0, "eta": 3.0},
    }[name]
    given = [f"+algorithm.{name}.{key}={value}" for key, value in changes.items()]
    algorithm = config(f"algorithm.adv_estimator={name}", *given).algorithm
    rewards, mask, uids = verl_batch(1, padding=0)
    data = DataProto.from_dict({"token_level_rewards": rewards, "response_mask": mask}, non_tensors={"uid": uids})
    keys = [f"{uid}_{i}_0" for i, uid in enumerate(uids)]
    with using(estimator_of(name)):
        data = compute_advantage_for_multi_trajectories(data, keys, algorithm.adv_estimator, config=algorithm)

    outcome, group = rewards.sum(dim=1).double().numpy(), pd.Categorical(uids).codes
    expected = PURE[name](outcome, group, **changes).advantage
    np.testing.assert_allclose(data.batch["advantages"][:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected, PURE[name](outcome, group).advantage)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+algorithm.qae.quantile=0.4"], r"algorithm\.qae\.quantile: .* \(known keys: k, interpolate, eps\)"),
        (["+algorithm.qae.k=large"], r"algorithm\.qae\.k: Value 'large'"),
        (["+algorithm.qae=0.4"], r"algorithm\.qae=0\.4 is not allowed: set one of its keys, algorithm\.qae\.KEY"),
    ],
)
def test_keys_that_mean_nothing_are_refused_by_name_before_anything_is_generated(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_parameters(config("algorithm.adv_estimator=qae", *overrides).algorithm)


def test_verls_own_estimators_are_none_of_our_business() -> None:
    check_parameters(config("algorithm.adv_estimator=grpo", "+algorithm.qae.quantile=0.4").algorithm)
    assert load_parameters(None, "qae") == {"k": 0.4, "interpolate": False, "eps": 1e-6}


def test_values_and_rewards_out_of_range_are_refused_by_the_name_of_the_group() -> None:
    rewards, mask, uids = verl_batch()
    with pytest.raises(ValueError, match=r"algorithm\.qae: k must be in \(0, 1\); got 1.5"):
        get_adv_estimator_fn("qae")(rewards, mask, uids, config={"qae": {"k": 1.5}})
    with pytest.raises(ValueError, match=r"algorithm\.bnpo: rewards must be in \[low, high\] = \[0.0, 1.0\]; got"):
        get_adv_estimator_fn("bnpo")(2 * rewards - 0.1, mask, uids)


def test_ha_dw_remembers_the_batches_of_its_run() -> None:
    run, anchor = estimator_of("ha_dw"), ha_dw.Anchor()
    for seed in range(3):
        rewards, mask, uids = verl_batch(seed, padding=0)
        with using(run):
            token_level, _ = get_adv_estimator_fn("ha_dw")(rewards, mask, uids)
        outcome, group = rewards.sum(dim=1).double().numpy(), pd.Categorical(uids).codes
        anchor, expected = ha_dw.step(anchor, outcome, group)
        np.testing.assert_allclose(token_level[:, 0].numpy(), expected.advantage, rtol=1e-5, atol=1e-6)
    assert run.anchor == anchor and len(anchor.recent) == 3


def test_an_estimator_with_state_is_refused_where_nothing_carries_it() -> None:
    with pytest.raises(
        RuntimeError, match=r"ha_dw keeps state from step .*: set trainer.v1.trainer_mode=sync_recorded"
    ):
        get_adv_estimator_fn("ha_dw")(*verl_batch())
    get_adv_estimator_fn("qae")(*verl_batch())


def trainer(folder: Path, adv_estimator: str, step: int, monkeypatch: pytest.MonkeyPatch) -> SyncTrainer:
    """A trainer that neither trains nor writes weights."""
    monkeypatch.setattr(PPOTrainerSync, "fit", lambda *_: None)
    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", lambda *_: None)
    monkeypatch.setattr("verl_v05.trainer.base.Watch", lambda *_: nullcontext())
    monkeypatch.setattr(SyncTrainer, "_metrics_so_far", lambda *_: {})  # of a step, and there is none
    made = object.__new__(SyncTrainer)
    made.global_steps, made._step_began = step, 0.0
    made.config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": adv_estimator},
            "trainer": {"default_local_dir": str(folder), "resume_mode": "auto", "logger": ["console"]},
        }
    )
    made.llm_server_manager = SimpleNamespace(get_replicas=list)
    made.fit(SimpleNamespace())
    return made


def test_checkpoints_carry_totals_and_anchor_and_new_runs_start_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, "ha_dw", 0, monkeypatch)
    run._estimator.anchor = saved = ha_dw.Anchor(0.25, (0.2, 0.3))
    run._cost = run._cost.spend(7, 21.0)
    run.global_steps = 2
    run._save_checkpoint()
    assert [path.name for path in (tmp_path / "global_step_2").iterdir()] == [FILE]
    resumed = trainer(tmp_path, "ha_dw", 2, monkeypatch)
    assert resumed._estimator.anchor == saved and resumed._cost.rollouts == 7 and not caplog.text

    assert trainer(tmp_path, "ha_dw", 0, monkeypatch)._estimator.anchor == ha_dw.Anchor()

    assert trainer(tmp_path, "ha_dw", 3, monkeypatch)._estimator.anchor == ha_dw.Anchor()
    assert "ha_dw: it starts anew at the resumed step" in caplog.text
    assert "v05/total/* count from the resumed step" in caplog.text


def test_other_estimators_write_no_state_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpo", "qae"):
        run = trainer(tmp_path, name, 0, monkeypatch)
        run.global_steps = 1
        run._save_checkpoint()
        assert "estimator" not in json.loads((tmp_path / "global_step_1" / FILE).read_text())


@pytest.mark.parametrize("state", [{"belief": 2, "recent": []}, {"belief": 0.5, "recent": ["a"]}, {"gpu": 1}])
def test_a_damaged_anchor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict) -> None:
    content = {"format": 3, "cost": {}, "estimator": {"name": "ha_dw", "state": state}}
    (tmp_path / "global_step_1").mkdir()
    (tmp_path / "global_step_1" / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"state of ha_dw in the checkpoint's v05_state.json is damaged"):
        trainer(tmp_path, "ha_dw", 1, monkeypatch)


def test_damaged_totals_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "global_step_1").mkdir()
    (tmp_path / "global_step_1" / FILE).write_text('{"format": 3, "cost": {"rollouts": 1, "gpu": 2}}')
    with pytest.raises(ValueError, match="totals in the checkpoint's v05_state.json are damaged"):
        trainer(tmp_path, "grpo", 1, monkeypatch)


def test_resuming_a_v05_checkpoint_with_another_algorithm_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "global_step_1").mkdir()
    (tmp_path / "global_step_1" / FILE).write_text('{"format": 3, "cost": {}, "allocator": {}}')
    trainer(tmp_path, "grpo", 1, monkeypatch)
    assert "prior, fusion and support buffer are left out" in caplog.text


def test_a_path_that_is_no_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"algorithm\.adv_estimator='no\.such\.thing' cannot be imported"):
        check_parameters(config("algorithm.adv_estimator=no.such.thing").algorithm)
