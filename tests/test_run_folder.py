"""What a launch finds in the folders of a run is said before anything starts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import verl.trainer.ppo.v1  # noqa: F401  # imports our trainers, which are circular without it
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from tests.faults.statement import fault
from tests.mounts import tmpfs
from verl_v05 import plugin
from verl_v05.launch import CheckConfig, CheckLaunch
from verl_v05.run_folder import check_run_folder
from verl_v05.settings import SettingsError
from verl_v05.trainer.base import SyncTrainer
from verl_v05.trainer.checkpoint import FILE, KEYS, TRACKER, naming_state_file, save_state

ROOT = Path(__file__).parents[1]
ALLOCATOR = {"provider": "history", "prior": {}, "fusion": "shrinkage", "belief": {}, "support": []}
LAUNCH = """
import sys
from hydra import compose, initialize_config_module
from verl_v05 import plugin
from verl_v05.launch import CheckLaunch
plugin.register()
with initialize_config_module("verl_v05.config", version_base=None):
    CheckLaunch().on_run_start(compose("v05", overrides=["platform=cpu", f"trainer.default_local_dir={sys.argv[1]}"]))
print("launched", flush=True)
sys.stdin.read()
"""


@cache
def preset(name: str) -> DictConfig:
    plugin.register()
    with initialize_config_module("verl_v05.config", version_base=None):
        config = compose(name, overrides=["platform=cpu"])
    OmegaConf.set_struct(config, False)
    return config


def launched(run: Path, *overrides: str, name: str = "v05") -> None:
    """Check a launch into the folder ``run``."""
    config = preset(name).copy()
    config.merge_with_dotlist([f"trainer.default_local_dir={run}", *overrides])
    (CheckLaunch() if name == "v05" else CheckConfig()).on_run_start(config)


def refusal(run: Path, *overrides: str, name: str = "v05") -> str:
    with pytest.raises(SystemExit) as caught:
        launched(run, *overrides, name=name)
    return str(caught.value)


def checkpoint(run: Path, step: int, **parts: Any) -> Path:
    """A step's folder with the parts of our state, named by verl's tracker."""
    folder = run / f"global_step_{step}"
    folder.mkdir(parents=True)
    if parts:
        save_state(folder, parts)
    (run / TRACKER).write_text(str(step))
    return folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, not even root."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    with tmpfs(folder, "ro") as problem:
        if problem:
            if os.geteuid() == 0:
                pytest.skip(f"a file system cannot be mounted here: {problem}")
            folder.chmod(0o500)
        yield folder


# Folders


def test_a_launch_makes_nothing_but_its_folder_and_the_lock(tmp_path: Path) -> None:
    launched(tmp_path / "run", f"algorithm.v05.record_dir={tmp_path}/new/record")
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == [".run.lock"]


@fault(
    "a folder of the run cannot be written to",
    happens="refused at launch, with its key",
    do="change the key, or the folder's rights",
)
@pytest.mark.parametrize("below", ["", "/deep/er"])
def test_folders_that_cannot_be_written_to_are_refused_at_launch(
    read_only: Path, tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"{read_only}{below}"
    assert f"trainer.default_local_dir='{folder}' must be a folder that can be written to" in refusal(Path(folder))
    prior = ["algorithm.v05.prior.provider=v0", f"algorithm.v05.prior.kwargs.cache_path={folder}/cache"]
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", f"{folder}/metrics.jsonl")
    message = refusal(tmp_path / "run", f"algorithm.v05.record_dir={folder}", *prior, "trainer.logger=[console,file]")
    assert f"algorithm.v05.record_dir='{folder}' must be a folder that can be written to ({read_only}: " in message
    for key in ("cache_path", "VERL_FILE_LOGGER_PATH (or _ROOT)"):
        assert f"{key}='{folder}' must be a folder that can be written to" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["trajectories", "state_trajectories"])
def test_a_folder_of_trajectories_that_cannot_be_written_to_is_refused_at_launch(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with tmpfs(tmp_path / name, "ro") as problem:
        if problem:
            pytest.skip(f"a file system cannot be mounted here: {problem}")
        message = refusal(tmp_path)
        assert message.count("must be a folder that can be written to") == 1
        assert f"trainer.default_local_dir='{tmp_path}/{name}' must be a folder" in message


def test_a_file_in_the_place_of_a_folder_is_refused_at_launch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "algorithm.v05.record_dir=" in refusal(tmp_path / "run", f"algorithm.v05.record_dir={tmp_path}/file")
    assert "Not a directory" in refusal(tmp_path / "file" / "run", name="grpo")


@fault(
    "a second launch into a run's folder",
    happens="refused with the first one's process; the lock of a dead one is none",
    do="end the first, or take another folder",
)
def test_a_second_launch_into_a_folder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", LAUNCH, str(tmp_path)], env=environment, **pipes)
    try:
        assert first.stdout is not None and first.stdout.readline() == "launched\n"
        message = refusal(tmp_path)
        assert f"trainer.default_local_dir: {tmp_path} is in use by process {first.pid} on " in message
    finally:
        first.kill()
        first.wait()
    launched(tmp_path)


# What would be resumed


@fault(
    "verl's tracker names a checkpoint that is missing",
    happens="refused at launch, with what is there",
    do="put it back, or write the number of another into the file",
)
@pytest.mark.parametrize("name", ["v05", "grpo"])
def test_a_tracker_that_names_a_missing_folder_is_refused(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path, 8, allocator=ALLOCATOR)
    (tmp_path / TRACKER).write_text("12")
    message = refusal(tmp_path, name=name)
    assert f"{tmp_path}/{TRACKER} names global_step_12, which is missing (there: global_step_8): put it back" in message
    (tmp_path / TRACKER).write_text("12\x00")
    assert f"{TRACKER} is damaged" in refusal(tmp_path, name=name)
    launched(tmp_path, "trainer.resume_mode=disable", name=name)
    (tmp_path / TRACKER).write_text("8\n")
    launched(tmp_path, name=name)
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_9"]
    assert "global_step_9' is missing (there: global_step_8)" in refusal(tmp_path, *resume, name=name)


def test_a_checkpoint_without_v05_is_refused_before_anything_starts(tmp_path: Path) -> None:
    checkpoint(tmp_path, 8)
    assert "algorithm.v05.allow_missing_state=true" in refusal(tmp_path)
    launched(tmp_path, "algorithm.v05.allow_missing_state=true")


@fault(
    "a checkpoint of V0.5 is resumed with another algorithm",
    happens="launch and trainer say that its prior, fusion and support buffer are left out",
    do="nothing, if that is meant",
)
def test_a_checkpoint_of_v05_that_grpo_resumes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint(tmp_path, 8, allocator=ALLOCATOR, cost={"rollouts": 3})
    with caplog.at_level(logging.WARNING, "verl_v05"):
        launched(tmp_path)
        assert caplog.text == ""
        launched(tmp_path, name="grpo")
    assert "global_step_8 is resumed with algorithm.adv_estimator=grpo: V0.5's state in it" in caplog.text
    assert "LEFT OUT" in caplog.text


@fault(
    "a checkpoint's state file lacks a key",
    happens="refused at launch, with file and key",
    do="resume from an earlier checkpoint",
)
@pytest.mark.parametrize("part", KEYS)
def test_a_state_file_that_lacks_a_key_is_refused_by_file_and_key(tmp_path: Path, part: str) -> None:
    whole = {"allocator": ALLOCATOR, "cost": {"rollouts": 3}, "estimator": {"name": "ha_dw", "state": {}}}
    folder = checkpoint(tmp_path, 8, **whole)
    launched(tmp_path)
    damaged: list[tuple[str, Any]] = [(f"{part} is no object", None), (f"{part} is no object", [1])]
    damaged += [(f"{part}.{key} is missing", {k: v for k, v in whole[part].items() if k != key}) for key in KEYS[part]]
    damaged += [("cost.rollouts is no number", {"rollouts": "3"})] if part == "cost" else []
    for reason, value in damaged:
        save_state(folder, {**whole, part: value})
        assert f"{folder}/{FILE} is damaged: {reason}" in refusal(tmp_path)


@fault(
    "a checkpoint's state file is nested 200,000 deep",
    happens="refused at launch, with the file",
    do="resume from an earlier checkpoint",
)
def test_a_state_file_nested_too_deeply_is_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    (folder / FILE).write_text('{"format": 3, "allocator": ' + "[" * 200_000 + "]" * 200_000 + "}")
    for name in ("v05", "grpo"):
        assert f"{folder}/{FILE} is damaged (nested too deeply)" in refusal(tmp_path, name=name)


def test_what_lacks_deep_inside_a_state_is_named_by_its_file(tmp_path: Path) -> None:
    class PriorError(RuntimeError): ...

    for error in (KeyError("counts"), TypeError("no mapping"), PriorError("KeyError: 'counts'")):
        with pytest.raises(ValueError, match=rf"{FILE} cannot be restored: .*(counts|mapping).*resume from an earlier"):
            with naming_state_file(tmp_path, PriorError):
                raise error
    with pytest.raises(ValueError, match="^the provider is another$"), naming_state_file(tmp_path):
        raise ValueError("the provider is another")


def test_a_run_without_the_launch_check_is_checked_by_its_trainer(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("12")
    trainer = {"default_local_dir": str(tmp_path), "resume_mode": "auto", "logger": "console"}
    config = OmegaConf.create({"trainer": trainer, "algorithm": {"adv_estimator": "grpo"}})
    with pytest.raises(SettingsError, match="names global_step_12, which is missing"):
        SyncTrainer(config)
    (tmp_path / TRACKER).unlink()
    check_run_folder(config)
    assert os.listdir(tmp_path) == []
