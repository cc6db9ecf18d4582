"""The plugin's part of a checkpoint: one JSON file in verl's ``global_step_{n}`` folder, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "v05_state.json"
FORMAT = 2


def save_state(folder: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write the state so that the file is either whole or absent."""
    write_json(Path(folder) / FILE, {"format": FORMAT, **state})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of a checkpoint so that it is either whole or absent; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_state(folder: str | os.PathLike, allow_missing: bool) -> dict[str, Any] | None:
    """Read the state; None if it is absent and ``allow_missing``.

    Raises:
        FileNotFoundError: the checkpoint holds no V0.5 state.
        ValueError: the file is damaged or of another format.
    """
    path = Path(folder) / FILE
    if not path.exists():
        if allow_missing:
            return None
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was written without V0.5. To resume it all the same, with an empty "
            "support buffer and a fresh prior, set algorithm.v05.allow_missing_state=true"
        )
    try:
        state = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise ValueError(f"{path} was written by another verl-v05; resume with that one")
    return state
