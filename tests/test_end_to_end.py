"""Stock ``main_ppo`` with real FSDP2, sglang, Ray and TransferQueue on this machine: train, stop, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from recipes.demo.runs import Run, read_run
from recipes.demo.training_process import train
from value_model.trajectories import read_trajectories
from verl_v05 import Belief, advantages, fuse, squared_bias
from verl_v05.allocation import rollout_target
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion
from verl_v05.trainer.checkpoint import FILE, allocator_state, load_state

pytestmark = pytest.mark.slow

STEPS, SAVED_AT = 4, 2
NO_VALIDATION = ["trainer.val_before_train=false"]
SMALL = [
    "data.train_batch_size=24",
    "actor_rollout_ref.actor.ppo_mini_batch_size=12",  # two mini-batches of a varying number of rows
    "data.val_max_samples=32",
    "actor_rollout_ref.rollout.val_kwargs.n=1",
    "trainer.test_freq=4",
    "+algorithm.v05.prior.kwargs.min_rollouts=64",
]


@pytest.fixture(scope="session")
def unbroken(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two FSDP ranks that saves a checkpoint on its way."""
    out = tmp_path_factory.mktemp("unbroken")
    overrides = [*SMALL, "trainer.n_gpus_per_node=2", f"trainer.save_freq={SAVED_AT}"]
    train("v05", 0, task, out, Console(stderr=True), overrides, steps=STEPS)
    return out


@pytest.fixture(scope="session")
def resumed(task: Path, unbroken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run taken up from its checkpoint, in a folder that holds what it had logged."""
    out = tmp_path_factory.mktemp("resumed")
    shutil.copy(unbroken / "metrics.jsonl", out)
    checkpoint = unbroken / "checkpoints" / f"global_step_{SAVED_AT}"
    overrides = [
        *SMALL,
        "trainer.n_gpus_per_node=2",
        *NO_VALIDATION,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={checkpoint}",
    ]
    train("v05", 0, task, out, Console(stderr=True), overrides, steps=STEPS)
    return out


def run_of(out: Path) -> Run:
    return read_run(out / "metrics.jsonl")


def recorded(out: Path, step: int) -> pd.DataFrame:
    return pd.read_parquet(out / "record" / f"step_{step}.parquet")


def test_training_runs_to_its_end_with_dense_metrics(unbroken: Path) -> None:
    frame = run_of(unbroken).frame
    ours = frame.loc[1:, [c for c in frame if c.startswith("v05/")]]
    assert list(ours.index) == [1, 2, 3, 4]
    sometimes = ["v05/prior/mean", "v05/prior/gap"]  # in steps with a prior
    assert ours.drop(columns=sometimes).notna().all(axis=None) and ours[sometimes].iloc[-1].notna().all()
    assert (frame.loc[1:, "actor/grad_norm"] > 0).all()
    assert (ours["v05/prior/missing"].iloc[0], ours["v05/prior/missing"].iloc[-1]) == (1.0, 0.0)
    assert frame["val-core/verl_v05/demo_arithmetic/acc/mean@1"].dropna().index.tolist() == [0, 4]


def test_weights_reach_sglang_after_each_update(unbroken: Path) -> None:
    frame = run_of(unbroken).frame.loc[1:]
    # Probability of each sampled token by sglang and by FSDP, with the weights of the previous update.
    assert frame["training/rollout_probs_diff_max"].max() < 1e-4


def test_recorded_steps_replay_to_the_advantages_the_actor_used(unbroken: Path) -> None:
    for step in range(1, STEPS + 1):
        groups = recorded(unbroken, step)
        rewards = np.concatenate(groups["rewards"].to_list())
        group = np.repeat(np.arange(len(groups)), groups["k"])
        replayed = advantages(rewards, group, groups["prior"].to_numpy())
        used = np.concatenate(groups["advantages"].to_list())
        np.testing.assert_allclose(used, replayed.advantage.astype(np.float32), rtol=1e-6)


def test_rollouts_went_where_the_rule_sends_them(unbroken: Path) -> None:
    for step in range(1, STEPS + 1):
        for _, group in recorded(unbroken, step).iterrows():
            bias_sq = squared_bias(group["rewards"].mean(), group["k"], group["prior"])
            assert group["k"] == 16 or group["k"] >= rollout_target(bias_sq, 0.0039)
            first = group["rewards"][:4]
            stays = 4 >= rollout_target(fuse(first.mean(), 4, group["prior"]).bias_sq, 0.0039)
            assert (group["k"] == 4) == stays


def test_checkpoint_holds_the_support_buffer_and_the_prior(unbroken: Path) -> None:
    state = json.loads((unbroken / "checkpoints" / f"global_step_{SAVED_AT}" / FILE).read_text())
    measured = pd.concat([recorded(unbroken, s) for s in range(1, SAVED_AT + 1)])
    allocator = state["allocator"]
    assert {e["prompt_id"] for e in allocator["support"]} == set(measured["prompt_id"])
    assert allocator["prior"]["rollouts_seen"] == measured["k"].sum()
    assert state["cost"]["rollouts"] == measured["spent"].sum()


def test_resumed_run_goes_on_with_the_same_prompts_and_priors(unbroken: Path, resumed: Path) -> None:
    before, after = recorded(unbroken, SAVED_AT + 1), recorded(resumed, SAVED_AT + 1)
    before, after = (f.set_index("prompt_id")["prior"].sort_index() for f in (before, after))
    assert before.index.tolist() == after.index.tolist()
    np.testing.assert_array_equal(before, after)


def test_the_curve_of_a_resumed_run_is_whole(unbroken: Path, resumed: Path) -> None:
    before, after = (run_of(out).frame["timing_s/step"].dropna() for out in (unbroken, resumed))
    assert before.index.tolist() == after.index.tolist() == [1, 2, 3, 4]
    assert (before == after).tolist() == [True, True, False, False]  # the last two were run again


def test_sparse_v05_spends_its_budget_and_a_resumed_run_draws_the_same_prompts(task: Path, tmp_path: Path) -> None:
    pool, budget = 24, 16
    overrides = [*SMALL, *NO_VALIDATION, f"algorithm.v05.max_rollouts_per_step={budget}", "trainer.test_freq=-1"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train("v05_sparse", 0, task, whole, Console(stderr=True), [*overrides, "trainer.save_freq=2"], steps=3)
    checkpoint = whole / "checkpoints" / "global_step_2"
    overrides += ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}"]
    train("v05_sparse", 0, task, resumed, Console(stderr=True), overrides, steps=3)

    frame = run_of(whole).frame.loc[1:]
    assert (frame["v05/rollouts/spent"] == budget).all() and (frame["v05/sparse/looked_at"] == pool).all()
    skipped = frame["v05/sparse/skipped_solved"] + frame["v05/sparse/skipped_hopeless"]
    assert (skipped >= pool - budget).all() and (skipped == frame["v05/k/prompts_with_0"]).all()
    assert frame["v05/sparse/expected_min"].min() >= 0.2 * budget / pool - 1e-9
    drawn = [
        recorded(out, 3).set_index("prompt_id")[["spent", "expected", "opening_prior"]] for out in (whole, resumed)
    ]
    pd.testing.assert_frame_equal(*(table.sort_index() for table in drawn))


def test_a_grpo_run_with_a_reference_policy_records_outcomes_and_costs(task: Path, tmp_path: Path) -> None:
    frame = trained("grpo16", task, tmp_path, ["data.train_batch_size=6"])
    # The reference computes in the policy's precision: until the first update there is no difference between them.
    assert (frame["actor/kl_coef"] == 0.001).all() and frame["actor/kl_loss"].iloc[0] == 0 < frame[
        "actor/kl_loss"
    ].iloc[1]
    assert "dtype mismatch" not in (tmp_path / "train.log").read_text()
    table = read_trajectories([tmp_path])
    assert table.groupby("step").size().to_dict() == {1: 6, 2: 6}
    assert (table["n"] == 16).all()
    np.testing.assert_allclose((table.groupby("step")["score"].mean() + 1) / 2, frame["critic/score/mean"], atol=1e-6)
    assert frame["v05/total/rollouts"].tolist() == [96, 192]
    np.testing.assert_allclose(frame["v05/total/response_tokens"], (96 * frame["response_length/mean"]).cumsum())
    np.testing.assert_allclose(frame["v05/total/seconds"], frame["timing_s/step"].cumsum())


def test_dapo_trains_on_mixed_groups_alone_and_counts_what_it_threw_away(task: Path, tmp_path: Path) -> None:
    frame = trained("dapo", task, tmp_path, ["data.train_batch_size=6"])
    table = read_trajectories([tmp_path])
    assert (table["score"].abs() < 1).all() and table.groupby("step").size().to_dict() == {1: 6, 2: 6}
    thrown = frame.filter(like="training/filter_groups/").fillna(0).sum(axis=1)
    assert thrown.sum() > 0
    assert frame["v05/total/rollouts"].tolist() == (16 * (6 + thrown)).cumsum().tolist()


def test_ppo_trains_its_critic_and_logs_to_wandb_without_an_account(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    frame = trained("ppo", task, tmp_path, ["data.train_batch_size=24", "trainer.logger=[console,file,wandb]"])
    (wandb_run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert wandb_run.stat().st_size > 0
    assert frame["critic/vf_loss"].iloc[1] < frame["critic/vf_loss"].iloc[0]
    assert (frame["critic/grad_norm"] > 0).all() and (frame["actor/grad_norm"] > 0).all()
    assert frame["v05/total/rollouts"].tolist() == [96, 192]


def test_the_beta_fusion_trains_on_a_hard_budget_of_rollouts(task: Path, tmp_path: Path) -> None:
    budget = ["schedule=rounds", "cost=0", "max_rollouts_per_step=150", "halt_share=0", "pad_multiple=1"]
    overrides = ["data.train_batch_size=24", *(f"algorithm.v05.{setting}" for setting in budget)]
    frame = trained("v05_eb_loo", task, tmp_path, overrides)
    assert frame["v05/rollouts/spent"].tolist() == [96, 150]  # nobody asks before anything is believed
    assert frame["v05/rollouts/failed"].sum() == 0 and (frame["v05/fusion/strength"] > 0).all()
    groups = recorded(tmp_path, 2)
    replayed = advantages(
        np.concatenate(groups["rewards"].to_list()),
        np.repeat(np.arange(len(groups)), groups["k"]),
        Belief(groups["prior"].to_numpy(), groups["strength"].to_numpy()),
        fusion=EmpiricalBayesFusion(),
        baseline="leave_one_out",
    )
    # Leave-one-out baselines go by the belief that allocation went by, which does not hold the step's rewards.
    assert (groups["prior"] == groups["opening_prior"]).all() and groups["strength"].notna().all()
    used = np.concatenate(groups["advantages"].to_list())
    np.testing.assert_allclose(used, replayed.advantage.astype(np.float32), rtol=1e-6)


def trained(method: str, task: Path, out: Path, overrides: list[str]) -> pd.DataFrame:
    """Metrics of two training steps."""
    prompts = overrides[0].split("=")[1]
    quick = [f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}", "trainer.test_freq=-1", *NO_VALIDATION]
    train(method, 0, task, out, Console(stderr=True), [*overrides, *quick], steps=2)
    return run_of(out).frame.loc[1:]


def test_a_checkpoint_without_our_state_is_refused_with_the_way_out(task: Path, unbroken: Path, tmp_path: Path) -> None:
    stripped = tmp_path / f"global_step_{SAVED_AT}"
    shutil.copytree(unbroken / "checkpoints" / stripped.name, stripped, ignore=shutil.ignore_patterns("actor"))
    (stripped / FILE).unlink()
    with pytest.raises(FileNotFoundError, match="allow_missing_state=true"):
        allocator_state(stripped, load_state(stripped), allow_missing=False)
