"""Which code a process runs: the same on the driver and on every worker, or the run must not start."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path


@cache
def fingerprint() -> str:
    """Digest of the Python files of both packages that a run imports."""
    digest = hashlib.sha256()
    for package in ("value_model", "verl_v05"):
        root = Path(str(files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(root)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check_same(where: str, theirs: str) -> None:
    """Raise if another process runs other code than this one."""
    if theirs != fingerprint():
        raise RuntimeError(
            f"{where} runs another build of verl_v05 ({theirs}) than the driver ({fingerprint()}): "
            "install the same verl-v05 on every node and restart the Ray cluster"
        )
