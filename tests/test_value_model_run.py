"""Stock ``main_ppo`` with the embedded value model as its prior, whose replica is killed on the way."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import psutil
import pytest
from rich.console import Console

from recipes.demo.runs import Run, read_run
from recipes.demo.training_process import train
from value_model.trajectories import read_trajectories

pytestmark = pytest.mark.slow

STEPS, KILLED_AFTER = 14, 3
SMALL = [
    "data.train_batch_size=24",
    "actor_rollout_ref.actor.ppo_mini_batch_size=24",
    "algorithm.v05.support.capacity=48",
    "algorithm.v05.support.sample=20",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
]


def replicas() -> list[psutil.Process]:
    """Value model replicas that this process has started; others may run on the machine."""
    return [p for p in psutil.Process().children(recursive=True) if "ray::Replica" in command(p)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kill_a_replica_after(step: int, metrics: Path, training: Thread) -> None:
    while training.is_alive():
        if metrics.exists() and metrics.stat().st_size and read_run(metrics).steps >= step:
            [replica] = replicas()
            replica.kill()
            return
        time.sleep(0.2)


@pytest.fixture(scope="module")
def out(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only replica dies after its third step."""
    out = tmp_path_factory.mktemp("v0_run")
    errors: list[Exception] = []

    def run() -> None:
        try:
            train("v05_v0", 0, task, out, Console(stderr=True), SMALL, steps=STEPS)
        except Exception as error:
            errors.append(error)

    training = Thread(target=run)
    training.start()
    kill_a_replica_after(KILLED_AFTER, out / "metrics.jsonl", training)
    training.join()
    if errors:
        raise errors[0]
    return out


@pytest.fixture(scope="module")
def run(out: Path) -> Run:
    return read_run(out / "metrics.jsonl")


def prior_metric(run: Run, name: str) -> pd.Series:
    return run.frame[f"v05/prior/{name}"].loc[1:]


def test_the_run_goes_on_to_its_end_with_dense_metrics(run: Run) -> None:
    assert run.steps == STEPS
    ours = run.frame.loc[1:, [c for c in run.frame if c.startswith("v05/")]]
    with_a_prior = ["v05/prior/mean", "v05/prior/gap"]
    assert ours.drop(columns=with_a_prior).notna().all(axis=None)
    assert all((ours[name].notna() == (ours["v05/prior/missing"] < 1)).all() for name in with_a_prior)


def test_priors_are_there_once_the_support_buffer_is_and_missing_after_the_kill_until_the_restart(run: Run) -> None:
    missing = prior_metric(run, "missing")
    assert missing.loc[1] == 1.0 and (missing.loc[2:KILLED_AFTER] == 0.0).all()
    lost = missing.loc[KILLED_AFTER + 1 :]
    assert (lost == 1.0).any(), "the kill must have cost some step its priors"
    assert lost.iloc[-1] == 0.0, "and they are back"


def test_the_metrics_say_what_happened(run: Run) -> None:
    assert prior_metric(run, "restarts").iloc[[0, -1]].tolist() == [0, 1]
    assert (prior_metric(run, "failures") > 0).sum() == (prior_metric(run, "missing").loc[2:] == 1.0).sum()
    assert prior_metric(run, "replicas_loaded").iloc[[0, -1]].tolist() == [1, 1]


def test_each_prompt_is_embedded_once_in_the_run(run: Run, out: Path) -> None:
    prompts = read_trajectories([out])["prompt"].nunique()
    # Those whose first step was one without a replica are embedded later or never.
    assert prior_metric(run, "embedded").sum() <= prompts


def test_trajectories_are_recorded_without_being_asked_for(out: Path) -> None:
    table = read_trajectories([out])
    records = pd.concat(pd.read_parquet(p) for p in sorted((out / "record").glob("*.parquet")))
    both = table.merge(records, on=["step", "prompt_id"], validate="one_to_one", suffixes=("", "_recorded"))
    assert len(both) == len(table) == len(records)
    np.testing.assert_allclose(both["score"], both["mean_reward"], atol=1e-9)
    assert (both["n"] == both["k"]).all() and set(table["model"]) == {"v05_demo/v05_v0_0"}
