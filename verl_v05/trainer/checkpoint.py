"""The plugin's part of a checkpoint: one JSON file in verl's ``global_step_{n}`` folder, written atomically.

Its parts are what one run carries from step to step: ``cost`` (the totals), ``metrics`` (of the saved step, which is
logged later), ``estimator`` (of an estimator that keeps state) and ``allocator`` (prior, fusion and support buffer of
V0.5). A run writes the parts that it has.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from value_model.files import DiskFullError, naming_full_disk, read_json, write_json

FILE = "v05_state.json"
FORMAT = 3
# Until format 3 the file held the allocator's part alone, beside two others.
ALLOCATOR_ONLY_FORMAT = 2
OLD_FILES = {"cost": "v05_cost.json", "estimator": "v05_ha_dw.json"}

ALLOCATOR, COST, ESTIMATOR, METRICS = "allocator", "cost", "estimator", "metrics"
# What each part has to have for a run that resumes from it.
KEYS = {
    ALLOCATOR: ("provider", "prior", "fusion", "belief", "support"),
    COST: (),
    ESTIMATOR: ("name", "state"),
    METRICS: (),
}
NUMBERS = (COST, METRICS)  # parts that hold nothing else
TRACKER = "latest_checkpointed_iteration.txt"  # verl's, beside the folders


def save_state(folder: str | os.PathLike, parts: dict[str, Any]) -> None:
    """Write the parts so that the file is either whole or absent."""
    write_json(Path(folder) / FILE, {"format": FORMAT, **parts})


@contextmanager
def torn_folder_removed(folder: str | os.PathLike) -> Iterator[None]:
    """Write a whole checkpoint in the block; if the disk is full, what was written of it goes again.

    A step that the tracker names stays, however torn: resuming has to fail at it, not begin anew.

    Raises:
        value_model.files.DiskFullError: naming the file, or the folder where verl's part did not fit.
    """
    folder = Path(folder)
    try:
        with naming_full_disk(folder):
            yield
    except DiskFullError:
        if tracked_folder(folder.parent) != folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def tracked_folder(run: str | os.PathLike) -> Path | None:
    """The checkpoint that verl resumes a run from, there or not; None where it begins anew.

    Raises:
        ValueError: the tracker does not hold a number.
    """
    tracker = Path(run) / TRACKER
    try:
        text = tracker.read_text(errors="replace")
    except FileNotFoundError:
        return None
    try:
        return Path(run) / f"global_step_{int(text)}"
    except ValueError:
        raise ValueError(f"{tracker} is damaged: {text[:40]!r} is no step") from None


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


def check_parts(folder: str | os.PathLike, parts: dict[str, Any], names: Iterable[str]) -> None:
    """Check that the parts of these names, where they are there, have what a run reads of them.

    Raises:
        ValueError: naming the file and the key.
    """
    path = Path(folder) / FILE
    for name in names:
        part = parts.get(name, {})
        if not isinstance(part, Mapping):
            raise ValueError(f"{path} is damaged: {name} is no object; resume from an earlier checkpoint")
        if name in NUMBERS and (odd := [key for key, value in part.items() if not isinstance(value, (int, float))]):
            raise ValueError(f"{path} is damaged: {name}.{odd[0]} is no number; resume from an earlier checkpoint")
        if missing := [key for key in KEYS[name] if name in parts and key not in part]:
            raise ValueError(f"{path} is damaged: {name}.{missing[0]} is missing; resume from an earlier checkpoint")


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


@contextmanager
def naming_state_file(folder: str | os.PathLike, *errors: type[Exception]) -> Iterator[None]:
    """Name the file where the block, which restores a part of it, cannot read what is in that part.

    Raises:
        ValueError: in the place of ``errors``, and of those of what is not there or of another type.
    """
    unreadable: tuple[type[Exception], ...] = (LookupError, TypeError, AttributeError, *errors)
    try:
        yield
    except unreadable as error:
        path, reason = Path(folder) / FILE, getattr(error, "cause", error)  # without Ray's traceback around it
        raise ValueError(f"{path} cannot be restored: {reason!r}; resume from an earlier checkpoint") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); resume from an earlier checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged (no object); resume from an earlier checkpoint")
    return state
