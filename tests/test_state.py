"""The checkpoint file: whole or absent, older formats, and readable errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from verl_v05.trainer.checkpoint import FILE, allocator_state, load_state, save_state

STATE = {
    "cost": {"rollouts": 3},
    "allocator": {"provider": "history", "prior": {"counts": {"a": [1.5, 0.5]}}, "support": [{"prompt_id": "é"}]},
}


def test_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "global_step_3"
    save_state(folder, STATE)
    assert load_state(folder) == STATE
    assert os.listdir(folder) == [FILE]


def test_saving_again_replaces_the_state(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    save_state(tmp_path, {"cost": {}})
    assert load_state(tmp_path) == {"cost": {}}


def test_a_failing_dump_leaves_the_old_file(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(tmp_path, {"cost": object()})
    assert (tmp_path / FILE).read_bytes() == before and os.listdir(tmp_path) == [FILE]


def test_the_file_appears_only_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        assert not (tmp_path / FILE).exists()
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, STATE)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_without_v05_says_how_to_resume_from_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{FILE} is missing.*algorithm\.v05\.allow_missing_state=true"):
        allocator_state(tmp_path, load_state(tmp_path), allow_missing=False)
    assert allocator_state(tmp_path, load_state(tmp_path), allow_missing=True) is None


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    whole = (tmp_path / FILE).read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 2):
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{FILE} is damaged .*resume from an earlier checkpoint"):
            load_state(tmp_path)


@pytest.mark.parametrize("content", [{}, {"format": 1, **STATE}, {"format": "1"}, {"format": 4}])
def test_another_format_is_refused(tmp_path: Path, content: dict) -> None:
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="written by another verl-v05"):
        load_state(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"null"])
def test_any_damage_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=FILE):
        load_state(tmp_path)


def test_the_three_files_of_version_0_1_are_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"format": 2, **STATE["allocator"]}))
    (tmp_path / "v05_cost.json").write_text('{"rollouts": 384, "response_tokens": 1000.5, "seconds": 12.25}')
    (tmp_path / "v05_ha_dw.json").write_text('{"belief": 0.25, "recent": [0.2, 0.3]}')
    assert load_state(tmp_path) == {
        "allocator": STATE["allocator"],
        "cost": {"rollouts": 384, "response_tokens": 1000.5, "seconds": 12.25},
        "estimator": {"name": "ha_dw", "state": {"belief": 0.25, "recent": [0.2, 0.3]}},
    }


def test_a_run_without_v05_of_version_0_1_has_no_state_file(tmp_path: Path) -> None:
    (tmp_path / "v05_cost.json").write_text('{"rollouts": 384}')
    assert load_state(tmp_path) == {"cost": {"rollouts": 384}}
