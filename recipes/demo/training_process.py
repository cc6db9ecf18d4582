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
    # Until verl opens the file anew, an earlier run's metrics would be shown as progress of this one.
    (out / "metrics.jsonl").unlink(missing_ok=True)
    # The script's "python" is this one, whether or not its environment is activated.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            code = _watch(process, log, out, method, steps, console)
        except BaseException:  # Ctrl-C too: no training run may continue without this process
            process.terminate()
            process.wait()
            raise
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        raise RunFailedError(f"training ended with code {code}; the end of {log}:\n{tail}")


def _watch(process: subprocess.Popen, log: Path, out: Path, method: str, steps: int, console: Console) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task(f"{method}: importing verl", total=steps)
        while process.poll() is None:
            progress.update(bar, **_status(log, out, method))
            time.sleep(1)
        progress.update(bar, **_status(log, out, method))
    return process.returncode


def _status(log: Path, out: Path, method: str) -> dict[str, object]:
    metrics = out / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        run = read_run(metrics)
        accuracy = f"validation accuracy {run.accuracy.iloc[-1]:.3f}" if len(run.accuracy) else "training"
        return {"description": f"{method}: {accuracy}", "completed": run.steps}
    text = log.read_text(errors="replace")
    reached = [phase for marker, phase in PHASES if marker in text]
    return {"description": f"{method}: {reached[-1] if reached else 'importing verl'}"}
