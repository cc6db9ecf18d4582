"""Training as a child process (``run.sh``): its log in a file, its progress on the console."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from recipes.demo.runs import read_run

SCRIPT = Path(__file__).parent / "run.sh"

# What the log says when a phase of the start-up begins, in order.
PHASES = (
    ("ray init kwargs", "starting Ray"),
    ("Using dataset class", "loading data"),
    ("create worker group", "starting FSDP"),
    ("actor and ref model engine initialized", "starting sglang"),
    ("all initialize finished", "starting agent loops"),
    ("Creating file logger", "validating"),
    ("Training Progress", "training"),
)
TAIL_LINES = 30
METRICS = "metrics.jsonl"


class RunFailedError(RuntimeError):
    """The training process ended with an error."""


def train(
    method: str, seed: int, task: Path, out: Path, console: Console, overrides: Sequence[str] = (), steps: int = 40
) -> None:
    """Train to the end, showing progress.

    Args:
        method: of ``run.sh``.
        seed: order of the data, and of sampling.
        task: folder of :func:`recipes.demo.make.make_demo`.
        out: for ``train.log``, ``metrics.jsonl`` and checkpoints; made if it is not there.
        console: for the progress bar.
        overrides: hydra overrides.
        steps: training steps.

    Raises:
        RunFailedError: with the last lines of the log and where it is.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / "train.log"
    command = [str(SCRIPT), method, str(seed), str(task.resolve()), str(out.resolve()), *overrides]
    command.append(f"trainer.total_training_steps={steps}")
    # Until the trainer moves it aside, an earlier run's log is no progress of this one.
    earlier = _inode(out / METRICS)
    # The script's "python" is this one, whether or not its environment is activated. Its Ray is one of its own, where
    # others run on this machine.
    env = {
        **os.environ,
        "RAY_ADDRESS": "local",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            code = _watch(process, log, out, method, steps, console, earlier)
        except BaseException:  # Ctrl-C too: no training run may continue without this process
            process.terminate()
            process.wait()
            raise
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise RunFailedError(f"training ended with code {code}; the end of {log}:\n{tail}")


def _watch(
    process: subprocess.Popen, log: Path, out: Path, method: str, steps: int, console: Console, earlier: int | None
) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task(f"{method}: importing verl", total=steps)
        while process.poll() is None:
            progress.update(bar, **_status(log, out, method, earlier))
            time.sleep(1)
        progress.update(bar, **_status(log, out, method, earlier))
    return process.returncode


def _status(log: Path, out: Path, method: str, earlier: int | None) -> dict[str, object]:
    metrics = out / METRICS
    if _inode(metrics) not in (None, earlier):
        run = read_run(metrics)
        accuracy = f"validation accuracy {run.accuracy.iloc[-1]:.3f}" if len(run.accuracy) else "training"
        return {"description": f"{method}: {accuracy}", "completed": run.steps}
    text = log.read_text(errors="replace")
    reached = [phase for marker, phase in PHASES if marker in text]
    return {"description": f"{method}: {reached[-1] if reached else 'importing verl'}"}


def _inode(path: Path) -> int | None:
    """Identity of a file that something was written to; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:  # the trainer may just be moving it
        return None
    return found.st_ino if found.st_size else None
