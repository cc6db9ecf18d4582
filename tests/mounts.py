"""File systems that tests mount for themselves."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[str]:
    """Mount one on a folder; yields why it cannot be mounted here, empty if it can."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    try:
        yield mounted.stderr.decode().strip() or "mount failed" if mounted.returncode else ""
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
