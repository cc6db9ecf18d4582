"""The plugin's part of a checkpoint: one JSON file in verl's ``global_step_{n}`` folder, written atomically.

Its parts are what one run carries from step to step: ``cost`` (the totals), ``estimator`` (of an estimator that keeps
state) and ``allocator`` (prior, fusion and support buffer of V0.5). A run writes the parts that it has.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from value_model.files import write_json

FILE = "v05_state.json"
FORMAT = 3
# Until format 3 the file held the allocator's part alone, beside two others.
ALLOCATOR_ONLY_FORMAT = 2
OLD_FILES = {"cost": "v05_cost.json", "estimator": "v05_ha_dw.json"}

ALLOCATOR, COST, ESTIMATOR = "allocator", "cost", "estimator"


def save_state(folder: str | os.PathLike, parts: dict[str, Any]) -> None:
    """Write the parts so that the file is either whole or absent."""
    write_json(Path(folder) / FILE, {"format": FORMAT, **parts})


def load_state(folder: str | os.PathLike) -> dict[str, Any]:
    """Read the parts that a checkpoint has; empty for one that was written without this plugin.

    Raises:
        ValueError: a file is damaged or of another format.
    """
    path = Path(folder) / FILE
    state: dict[str, Any] = _read(path) if path.exists() else {"format": FORMAT}
    found = state.pop("format", None)
    if found not in (FORMAT, ALLOCATOR_ONLY_FORMAT):
        raise ValueError(f"{path} was written by another verl-v05; resume with that one")
    parts = state if found == FORMAT else {ALLOCATOR: state}
    for part, name in OLD_FILES.items():
        old = Path(folder) / name
        if part not in parts and old.exists():
            parts[part] = _read(old) if part == COST else {"name": "ha_dw", "state": _read(old)}
    return parts


def allocator_state(folder: str | os.PathLike, parts: dict[str, Any], allow_missing: bool) -> dict[str, Any] | None:
    """The allocator's part of :func:`load_state`; None if it is absent and ``allow_missing``.

    Raises:
        FileNotFoundError: the checkpoint holds none.
    """
    if ALLOCATOR not in parts and not allow_missing:
        raise FileNotFoundError(
            f"{Path(folder) / FILE} is missing, or has no part of V0.5's: the checkpoint was written without V0.5. To "
            "resume it all the same, with an empty support buffer and a fresh prior, set "
            "algorithm.v05.allow_missing_state=true"
        )
    return parts.get(ALLOCATOR)


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged (no object); resume from an earlier checkpoint")
    return state
