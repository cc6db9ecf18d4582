"""Files of a run: atomic writes by several processes, full disks, one process a folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from benchmarks.bench.samples import Sample, SampleStore
from tests.faults.statement import fault
from tests.mounts import tmpfs
from value_model.files import LOCK, DiskFullError, FolderInUseError, lock_folder, read_json, replaced, write_json
from value_model.model import ValueModel
from value_model.train import train
from value_model.training.log import metrics_log
from value_model.training.settings import load_settings
from verl_v05.trainer.base import SyncTrainer
from verl_v05.trainer.checkpoint import load_state, save_state, torn_folder_removed

pytest_plugins = ("tests.tiny_value_model",)

ROOT = Path(__file__).parents[1]
SETTINGS = load_settings(ROOT / "recipes" / "value_model" / "small.yaml", ["data.paths=[nowhere]"])
SAVES = """
import sys
from value_model.files import write_json
for number in range(300):
    write_json(sys.argv[1], {"writer": sys.argv[2], "number": number, "filling": "x" * 20_000})
"""
HOLD = """
import sys, time
from value_model.files import lock_folder
lock_folder(sys.argv[1])
print("locked", flush=True)
time.sleep(60)
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with tmpfs(disk, "size=256k") as problem:
        if problem:
            pytest.skip(f"a file system cannot be mounted here: {problem}")
        yield disk


# Several processes


@fault(
    "two processes save one file",
    happens="each save is whole, no reader sees a torn one",
    do="nothing",
)
def test_two_processes_that_save_one_file_never_fail_and_are_never_read_torn(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"filling": "x" * 20_000})
    writers = [python(SAVES, str(path), name) for name in "ab"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert len(read_json(path)["filling"]) == 20_000
        reads += 1
    assert [writer.wait() for writer in writers] == [0, 0] and reads > 10
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_second_process_in_a_folder_is_refused_with_the_first_ones_number(tmp_path: Path) -> None:
    first = python(HOLD, str(tmp_path / "run"))
    try:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        with pytest.raises(FolderInUseError, match=rf"{tmp_path}/run is in use by process {first.pid} on \S+: end it"):
            lock_folder(tmp_path / "run")
        lock_folder(tmp_path / "another run")
    finally:
        first.kill()
        first.wait()
    lock_folder(tmp_path / "run")  # the lock of a process that is dead is none
    lock_folder(tmp_path / "run" / ".." / "run")  # and one's own can be taken again
    second = python(HOLD, str(tmp_path / "run"))
    assert second.wait() == 1 and f"process {os.getpid()} " in (tmp_path / "run" / LOCK).read_text()


def test_a_second_training_of_a_value_model_into_a_folder_is_refused(tmp_path: Path) -> None:
    first = python(HOLD, str(tmp_path))
    try:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        with pytest.raises(FolderInUseError, match=f"process {first.pid} "):
            train(replace(SETTINGS, out=str(tmp_path)))
    finally:
        first.kill()
        first.wait()


def test_a_lock_is_not_inherited_by_what_its_process_started(tmp_path: Path) -> None:
    code = HOLD.replace("print(", "import os\nif os.fork() == 0: time.sleep(30)\nprint(")
    first = python(code, str(tmp_path))
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    first.kill()
    first.wait()
    try:
        lock_folder(tmp_path)
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


# Full disks


def write_too_much(path: Path, kind: str) -> None:
    """Half a megabyte, by each library that writes files of a run."""
    tensor = torch.rand(2**17)
    if kind == "bytes":
        path.write_bytes(tensor.numpy().tobytes())
    elif kind == "torch":
        torch.save({"a": tensor}, path)
    elif kind == "safetensors":
        save_file({"a": tensor}, path)
    else:
        pd.DataFrame({"a": tensor.numpy()}).to_parquet(path)


@pytest.mark.parametrize("kind", ["bytes", "torch", "safetensors", "parquet"])
def test_what_fills_the_disk_is_named_and_leaves_nothing_torn(full_disk: Path, kind: str) -> None:
    file = full_disk / "file"
    file.write_text("the old one")
    with pytest.raises(DiskFullError, match=rf"the disk is full.*'{file}'") as caught, replaced(file) as partial:
        write_too_much(partial, kind)
    assert caught.value.errno == errno.ENOSPC and isinstance(caught.value, OSError)
    assert file.read_text() == "the old one" and os.listdir(full_disk) == ["file"]


def test_other_errors_of_writing_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replaced(tmp_path / "file") as partial:
        (partial / "nowhere").write_text("")
    with pytest.raises(RuntimeError, match="PytorchStreamWriter failed") as caught, replaced(tmp_path / "file"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert not isinstance(caught.value, OSError) and os.listdir(tmp_path) == []


def test_a_checkpoint_on_a_full_disk_is_removed_and_earlier_steps_stay_whole(full_disk: Path) -> None:
    state = {"allocator": {"filling": "x" * 40_000}}
    with torn_folder_removed(full_disk / "global_step_1"):
        save_state(full_disk / "global_step_1", state)
    (full_disk / "latest_checkpointed_iteration.txt").write_text("1")

    def save_actor(folder: Path) -> None:
        save_state(folder, state)
        (folder / "actor").mkdir()
        torch.save({"a": torch.zeros(2**17)}, folder / "actor" / "model_world_size_1_rank_0.pt")

    for step in (2, 1):  # a new one, and one that the tracker names, which is left for whoever restores it
        folder = full_disk / f"global_step_{step}"
        with pytest.raises(DiskFullError, match=f"the disk is full.*'{folder}'"), torn_folder_removed(folder):
            save_actor(folder)
        assert folder.exists() == (step == 1)
    assert load_state(full_disk / "global_step_1") == state

    (full_disk / "filling").write_bytes(b"x" * (os.statvfs(full_disk).f_bavail * 4096 - 4096))
    folder = full_disk / "global_step_3"
    with pytest.raises(DiskFullError, match=f"'{folder}/v05_state.json'"), torn_folder_removed(folder):
        save_state(folder, state)
    assert not folder.exists()


def test_the_trainer_removes_a_checkpoint_that_fills_the_disk(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's part is written by workers, whose errors arrive as text."""

    def save(trainer: PPOTrainerSync) -> None:
        folder = full_disk / "global_step_2" / "actor"
        folder.mkdir()
        try:
            torch.save({"a": torch.zeros(2**17)}, folder / "model.pt")
        except (OSError, RuntimeError) as error:
            raise RuntimeError(f"ray::save_checkpoint() ... {error}") from None

    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", save)
    monkeypatch.setattr(SyncTrainer, "_state_parts", lambda self: {"cost": {}})
    trainer = SyncTrainer.__new__(SyncTrainer)
    trainer.config = OmegaConf.create({"trainer": {"default_local_dir": str(full_disk), "resume_mode": "auto"}})
    trainer.global_steps = 2
    with pytest.raises(DiskFullError, match="the disk is full.*global_step_2'"):
        trainer._save_checkpoint()
    assert os.listdir(full_disk) == []


def test_logs_that_fill_the_disk_are_named(full_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="metrics.jsonl'"):
        with metrics_log(replace(SETTINGS, out=str(full_disk)), 0) as write:
            for step in range(2000):
                write({"step": step, "filling": "x" * 1000})
    (full_disk / "metrics.jsonl").unlink()
    sample = Sample("amc23", "1", 0, 1, 1.0, 1, 1, "stop", "1", "1", True, None, "x" * 1000)
    with pytest.raises(DiskFullError, match="amc23.jsonl'"), closing(SampleStore(full_disk, {})) as store:
        for _ in range(2000):
            store.append(sample)


@fault(
    "the disk is full while a value model is saved",
    happens="the save ends and says so; the old model stays",
    do="free some space and save again",
)
def test_a_value_model_on_a_full_disk_leaves_the_old_one(
    tiny_model: ValueModel, full_disk: Path, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    size = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*"))
    disk = full_disk
    subprocess.run(["mount", "-o", f"remount,size={int(size * 1.6)}", str(disk)], check=True)
    tiny_model.save_pretrained(disk / "model")
    with pytest.raises(DiskFullError, match=f"the disk is full.*'{disk}/model'"):
        tiny_model.save_pretrained(disk / "model")
    assert os.listdir(disk) == ["model"]
    assert ValueModel.from_pretrained(disk / "model").identity == tiny_model.identity


# Damage


@pytest.mark.parametrize("content", ["", "{", "\x00", '{"a": ' * 200_000, "[" * 200_000 + "]" * 200_000])
def test_what_is_no_json_is_a_value_error_however_deep(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "file")
    (tmp_path / "file").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "file") == {"a": [1]}
