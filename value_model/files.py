"""Atomic writes of files: the only implementation of write-then-rename in this project.

And :func:`lfs_pointer_problem`, for readers: a clone without Git LFS has small text files in the place of large ones.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def lfs_pointer_problem(path: str | os.PathLike) -> str | None:
    """What is wrong, and what to do, if ``path`` is a file that holds a pointer of Git LFS; else None."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return None  # what is wrong with it is for its reader to report
    if start != LFS_POINTER:
        return None
    return f"{os.fspath(path)} is a pointer of Git LFS in the place of the file: run `git lfs pull` where it was cloned"


@contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` when the block ends without an error.

    The folder is created if missing. The temporary name is unique, so that two processes never write to one file, and
    the content is synced to disk before the rename, so that a power failure leaves the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file atomically, see :func:`replaced`."""
    with replaced(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """:func:`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """:func:`write_text` of JSON."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def nan_as_none(record: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of a JSON object's values with None for each NaN, which JSON cannot represent."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
