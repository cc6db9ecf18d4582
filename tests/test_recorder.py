"""What is recorded of a step's outcomes: one row a prompt."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from value_model.trajectories import read_trajectories
from verl_v05.prior import Outcome, Query
from verl_v05.trainer.recorder import write_outcomes


def config(folder: Path) -> DictConfig:
    trainer = {"default_local_dir": str(folder), "project_name": "project", "experiment_name": "run"}
    return OmegaConf.create({"trainer": trainer})


def test_a_prompt_that_is_twice_in_a_batch_is_one_row_of_more_rollouts(tmp_path: Path) -> None:
    prompt, other = Query("a", "1+1=", "sums"), Query("b", "1+2=", "sums")
    write_outcomes(config(tmp_path), 3, [Outcome(prompt, 1.0, 4), Outcome(other, 0.5, 4), Outcome(prompt, 0.0, 12)])
    table = read_trajectories([tmp_path]).set_index("prompt_id")
    assert table.loc["a", ["step", "score", "n"]].tolist() == [3, -0.5, 16]
    assert table.loc["b", ["score", "n"]].tolist() == [0.0, 4]
    assert set(table["model"]) == {"project/run"}
