"""Files of a run: atomic writes (the only implementation of write-then-rename in this project), full disks, locks.

And what readers need: :func:`read_json`, and :func:`lfs_pointer_problem`, since a clone without Git LFS has small text
files in the place of large ones.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import math
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LOCK = ".run.lock"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of libraries in C++ and Rust, and of other processes, have the system's message in their text, or (torch's
# writer of archives) only their own, which other failures have as well.
DISK_FULL_TEXTS = tuple(os.strerror(number) for number in DISK_FULL)
WRITER_TEXTS = ("PytorchStreamWriter failed", "inline_container.cc")
NEARLY_NOTHING = 16 * 2**20  # bytes that are still free where the next block of a tensor did not fit
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)


class DiskFullError(OSError):
    """A file or folder cannot be written because its disk, or the user's quota of it, is full."""


class FolderInUseError(RuntimeError):
    """Another process writes to the folder; the message names it."""


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
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Raise :class:`DiskFullError` with ``path`` in the place of whatever error the full disk of a write gave.

    The torn file has to be there still when the block ends: some errors tell a full disk by the free space alone.
    """
    try:
        yield
    except DiskFullError:
        raise  # it names the file, which is more than the folder around it
    except Exception as error:
        if not _is_of_full_disk(error, Path(path)):
            raise
        message = "the disk is full, or your quota of it: free some space and start again; not written"
        raise DiskFullError(errno.ENOSPC, message, os.fspath(path)) from error


def _is_of_full_disk(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    text = str(error)
    if any(known in text for known in DISK_FULL_TEXTS):
        return True
    folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
    return any(known in text for known in WRITER_TEXTS) and shutil.disk_usage(folder).free < NEARLY_NOTHING


def exchange(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Swap two names of one file system in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library without it
        return False
    return renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


_locks: dict[Path, TextIO] = {}


def lock_folder(folder: str | os.PathLike) -> None:
    """Keep other processes out of a run's folder until this one ends, however it ends; repeating it is harmless.

    Raises:
        FolderInUseError: another process has it.
        OSError: the folder cannot be made or written to.
    """
    path = Path(folder).resolve() / LOCK
    if path in _locks:  # closing a second file of the same name would release the lock
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        # A lock of the kernel: released when its process dies, and not inherited by the processes that it started.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        with file:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("%s cannot be locked (%s): a second run in it would not be noticed", folder, error)
                return
            holder = file.read().strip() or "another process"
        raise FolderInUseError(
            f"{folder} is in use by {holder}: end it, wait for it, or choose another folder for this run"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _locks[path] = file


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


def read_json(path: str | os.PathLike) -> Any:
    """Parse a file of JSON.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than Python reads.
        OSError: it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def nan_as_none(record: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of a JSON object's values with None for each NaN, which JSON cannot represent."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
