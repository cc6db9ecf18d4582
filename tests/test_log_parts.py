"""A run that is killed and resumed in place keeps what it logged, and its readers see one curve."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.tracking import Tracking

from benchmarks.dashboard.runs import read_metrics
from recipes.demo.runs import read_run
from verl_v05.trainer.base import SyncTrainer
from verl_v05.trainer.checkpoint import load_state, save_state
from verl_v05.trainer.log_parts import LogError, earlier_parts, move_aside, numbers, read_log

ACCURACY = "val-core/amc23/acc/mean@16"
Logged = list[tuple[int, dict[str, Any]]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    return tmp_path / "metrics.jsonl"


def config(logger: Any = "file") -> DictConfig:
    trainer = {"project_name": "project", "experiment_name": "run", "logger": logger, "default_local_dir": "."}
    return OmegaConf.create({"trainer": trainer, "algorithm": {"adv_estimator": "grpo"}})


def log(lines: Logged) -> None:
    """One start of verl's logger, as its trainer does it."""
    tracking = Tracking("project", "run", "file")
    for step, data in lines:
        tracking.log(data=data, step=step)
    tracking.finish()


def start(lines: Logged) -> None:
    move_aside(config())
    log(lines)


def trained(*steps: int, loss: float) -> Logged:
    return [(step, {"actor/loss": loss, "timing_s/step": 1.0}) for step in steps]


def losses(path: Path) -> dict[int, float]:
    return read_metrics(path)["actor/loss"].dropna().to_dict()


def test_the_curve_of_a_run_killed_twice_is_whole_and_holds_the_last_run_of_each_step(path: Path) -> None:
    start([(0, {ACCURACY: 0.1}), *trained(1, 2, 3, 4, 5, loss=1.0)])
    with open(path, "a") as file:
        file.write('{"step":6,"data":{"actor/lo')  # killed while it wrote
    start(trained(4, 5, loss=2.0))  # from the checkpoint of step 3
    start([(5, {ACCURACY: 0.5}), *trained(6, loss=3.0)])  # from step 5, which is validated again
    assert losses(path) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 3.0}
    assert read_metrics(path)[ACCURACY].dropna().to_dict() == {0: 0.1, 5: 0.5}
    assert read_run(path).frame["actor/loss"].dropna().to_dict() == losses(path)
    assert [part.name for part in earlier_parts(path)] == ["metrics.1.jsonl", "metrics.2.jsonl"]


def test_steps_that_will_be_run_again_are_shown_until_they_are(path: Path) -> None:
    start(trained(1, 2, 3, 4, loss=1.0))
    start([(2, {ACCURACY: 0.5})])
    assert losses(path) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    path.unlink()  # or the run was killed between the move and its first line
    assert losses(path) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}


@pytest.mark.parametrize("again", [[(0, {ACCURACY: 0.2}), *trained(1, loss=2.0)], trained(1, loss=2.0)])
def test_a_run_that_starts_anew_has_a_curve_of_its_own_and_loses_no_file(path: Path, again: Logged) -> None:
    start([(0, {ACCURACY: 0.1}), *trained(1, 2, loss=1.0)])
    before = path.read_bytes()
    start(again)
    assert read_log(path) == dict(again)
    assert earlier_parts(path)[0].read_bytes() == before


def test_a_damaged_line_of_an_earlier_part_is_named(path: Path) -> None:
    log(trained(1, 2, loss=1.0))
    path.write_text("oops\n" + path.read_text())
    start(trained(3, loss=1.0))
    with pytest.raises(LogError, match=r"metrics\.1\.jsonl, line 1 is no line of verl's file logger: 'oops'"):
        read_log(path)


def test_the_file_that_verl_chooses_itself_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
    monkeypatch.setenv("VERL_FILE_LOGGER_ROOT", str(tmp_path))
    start(trained(1, loss=1.0))
    start(trained(2, loss=1.0))
    assert losses(tmp_path / "project" / "run.jsonl") == {1: 1.0, 2: 1.0}


def test_a_log_that_the_run_will_not_write_to_stays_where_it_is(path: Path) -> None:
    log(trained(1, loss=1.0))
    assert move_aside(config(["console", "wandb"])) is None and path.exists()


def test_every_trainer_moves_the_log_before_verl_opens_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(trained(1, loss=1.0))
    monkeypatch.setattr(PPOTrainerSync, "fit", lambda *_: log(trained(2, loss=1.0)))
    monkeypatch.setattr("verl_v05.trainer.base.Watch", lambda *_: nullcontext())
    trainer = object.__new__(SyncTrainer)
    trainer.global_steps, trainer.config = 0, config()
    trainer.llm_server_manager = SimpleNamespace(get_replicas=list)
    trainer.fit(SimpleNamespace())
    assert losses(path) == {1: 1.0, 2: 1.0}


@pytest.mark.parametrize("torn", ["", '{"step":2,"data":{"actor/lo'])
def test_a_step_that_was_saved_and_not_logged_is_logged_by_the_resumed_run(path: Path, torn: str) -> None:
    log(trained(1, loss=1.0))
    with path.open("a") as file:
        file.write(torn)
    resume(path, path.parent)
    assert losses(path) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [2, 3]


def test_a_step_that_was_logged_is_not_logged_twice(path: Path) -> None:
    log(trained(1, 2, loss=1.0))
    resume(path, path.parent)
    assert losses(path) == {1: 1.0, 2: 1.0, 3: 3.0}
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [3]


def test_the_step_of_another_runs_checkpoint_is_not_logged(path: Path) -> None:
    resume(path, path.parent / "another")
    assert losses(path) == {3: 3.0}


def resume(path: Path, folder: Path) -> None:
    """Resume from a checkpoint of step 2 in a folder, and train step 3."""
    checkpoint = folder / "global_step_2"
    save_state(checkpoint, {"cost": {}, "metrics": numbers({"actor/loss": np.float32(2), "timing_s/step": 1.0})})
    trainer = object.__new__(SyncTrainer)
    trainer.config, trainer._estimator, trainer.global_steps = config(), None, 2
    paths = {"default_local_dir": str(path.parent), "resume_mode": "resume_path", "resume_from_path": str(checkpoint)}
    trainer.config.trainer.update(paths)
    trainer._restore(load_state(checkpoint))
    move_aside(trainer.config)
    trainer.logger = Tracking("project", "run", "file")
    trainer.global_steps += 1
    trainer.on_train_begin()
    trainer.logger.log(data={"actor/loss": 3.0, "timing_s/step": 1.0}, step=3)


def test_numbers_are_what_json_can_hold() -> None:
    metrics = {"a": 1, "b": np.float32(0.5), "c": float("nan"), "d": np.float64("inf"), "e": "text", "f": np.int64(2)}
    assert json.loads(json.dumps(numbers(metrics))) == {"a": 1, "b": 0.5, "f": 2}
