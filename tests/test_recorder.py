"""Where trajectories are recorded: checked before the run, one row a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from value_model.trajectories import read_trajectories
from verl_v05.prior import Outcome, Query
from verl_v05.settings import SettingsError
from verl_v05.trainer.recorder import check_folder, write_outcomes


def config(folder: Path) -> DictConfig:
    trainer = {"default_local_dir": str(folder), "project_name": "project", "experiment_name": "run"}
    return OmegaConf.create({"trainer": trainer})


def test_the_folder_is_made_before_the_run(tmp_path: Path) -> None:
    check_folder(config(tmp_path / "new" / "checkpoints"))
    assert (tmp_path / "new" / "checkpoints" / "trajectories").is_dir()


def test_a_folder_that_cannot_be_made_is_refused_by_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="trainer.default_local_dir='.*file/run' must be a folder"):
        check_folder(config(tmp_path / "file" / "run"))


def test_a_prompt_that_is_twice_in_a_batch_is_one_row_of_more_rollouts(tmp_path: Path) -> None:
    prompt, other = Query("a", "1+1=", "sums"), Query("b", "1+2=", "sums")
    write_outcomes(config(tmp_path), 3, [Outcome(prompt, 1.0, 4), Outcome(other, 0.5, 4), Outcome(prompt, 0.0, 12)])
    table = read_trajectories([tmp_path]).set_index("prompt_id")
    assert table.loc["a", ["step", "score", "n"]].tolist() == [3, -0.5, 16]
    assert table.loc["b", ["score", "n"]].tolist() == [0.0, 4]
    assert set(table["model"]) == {"project/run"}
