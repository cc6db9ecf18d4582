"""The checkpoint file: whole or absent, and readable errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from verl_v05.trainer.checkpoint import FILE, load_state, save_state

STATE = {"provider": "history", "prior": {"counts": {"a": [1.5, 0.5]}}, "support": [{"prompt_id": "é", "k": 4}]}


def test_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "global_step_3"
    save_state(folder, STATE)
    assert load_state(folder, allow_missing=False) == STATE
    assert os.listdir(folder) == [FILE]


def test_saving_again_replaces_the_state(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    save_state(tmp_path, {"provider": "none"})
    assert load_state(tmp_path, allow_missing=False) == {"provider": "none"}


def test_a_failing_dump_leaves_the_old_file(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(tmp_path, {"provider": "history", "prior": object()})
    assert (tmp_path / FILE).read_bytes() == before
    save_state(tmp_path, {"provider": "none"})
    assert load_state(tmp_path, allow_missing=False) == {"provider": "none"}


def test_a_failing_first_dump_leaves_no_state(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_state(tmp_path, {"prior": object()})
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path, allow_missing=False)


def test_the_file_appears_only_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        assert not (tmp_path / FILE).exists()
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, STATE)
    assert not (tmp_path / FILE).exists()


def test_a_missing_state_says_how_to_resume_without_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{FILE} is missing.*algorithm\.v05\.allow_missing_state=true"):
        load_state(tmp_path, allow_missing=False)
    assert load_state(tmp_path, allow_missing=True) is None


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_damaged_state_is_refused_even_where_a_missing_one_is_allowed(tmp_path: Path, allow_missing: bool) -> None:
    save_state(tmp_path, STATE)
    whole = (tmp_path / FILE).read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{FILE} is damaged .*resume from an earlier checkpoint"):
            load_state(tmp_path, allow_missing)


@pytest.mark.parametrize("content", [{}, {"format": 1, **STATE}, {"format": "1"}])
def test_another_format_is_refused(tmp_path: Path, content: dict) -> None:
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="written by another verl-v05"):
        load_state(tmp_path, allow_missing=True)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"null"])
def test_any_damage_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=FILE):
        load_state(tmp_path, allow_missing=False)
