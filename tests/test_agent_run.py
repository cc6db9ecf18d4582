"""Trainings of an agent: stock ``main_ppo`` with sessions of several turns and rows, for V0.5 and GRPO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from recipes.agent.make import DATA_SOURCE, Settings, make

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lake_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "task"
    make(folder, Settings(train_size=16, val_size=4, steps=40, problems_per_step=16), Console(quiet=True))
    return folder


def train(method: str, task: Path, out: Path, *overrides: str) -> list[dict[str, float]]:
    """Metrics of each step of a training of two steps."""
    command = [str(ROOT / "recipes/agent/run.sh"), method, "0", str(task), str(out), *overrides]
    environment = {**os.environ, "RAY_ADDRESS": "local", "ROLLOUTS": "16", "STEPS": "2"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ended = subprocess.run(
        [*command, "trainer.val_before_train=false", "trainer.test_freq=2"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [step["data"] for step in map(json.loads, lines) if "v05/total/rollouts" in step["data"]]


def test_v05_trains_with_turn_credit_on_sessions_of_several_rows(lake_task: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    steps = train("v05_fixed_k2_eb_loo", lake_task, out, "algorithm.v05.credit=turn")
    assert [step["v05/total/rollouts"] for step in steps] == [16, 32]
    assert all(step["v05/states/visits"] >= step["v05/states/distinct"] > 8 for step in steps)
    assert all(step["v05/rollouts/failed"] == 0 for step in steps)
    states = pd.read_parquet(out / "checkpoints/state_trajectories/step_2.parquet")
    assert set(states["data_source"]) == {DATA_SOURCE} and states["prompt"].str.contains("A").all()
    assert any(f"val-core/{DATA_SOURCE}/acc/mean@1" in step for step in steps)


@pytest.mark.parametrize("estimator", ["grpo", "gigpo", "tree_opo"])
def test_other_estimators_train_on_the_same_task(estimator: str, lake_task: Path, tmp_path: Path) -> None:
    steps = train("grpo4", lake_task, tmp_path / "run", f"algorithm.adv_estimator={estimator}")
    assert [step["v05/total/rollouts"] for step in steps] == [16, 32]
