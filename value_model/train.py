"""Train a value model on trajectories: ``python -m value_model.train --config FILE [key=value ...]``.

Under torchrun the tasks of an update are split over the processes. ``out`` gets ``metrics.jsonl`` (a line per
update), ``training.pt`` (from which the same command resumes), ``best.pt`` and at the end the model in ``model/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from value_model.checkpoint import CheckpointError
from value_model.files import DiskFullError, FolderInUseError, lock_folder
from value_model.head import HeadError
from value_model.model import ValueModel
from value_model.training.data import load_data
from value_model.training.log import metrics_log, training_progress
from value_model.training.meta_tasks import MetaTaskError
from value_model.training.processes import ProcessGroup, process_group
from value_model.training.settings import SettingsError, TrainSettings, load_settings
from value_model.training.trainer import MODEL, TRAINING, Trainer, TrainError
from value_model.trajectories import TrajectoryError


def train(settings: TrainSettings, processes: ProcessGroup | None = None, console: Console | None = None) -> ValueModel:
    """Train, or resume the run in ``settings.out``, and write the best model to ``out/model``.

    Raises:
        SettingsError: settings that do not fit the data.
        TrainError: ``out`` holds a run of other settings, or the tasks cannot be split over the processes.
        FolderInUseError: another run writes to ``out``.
        DiskFullError: a file of the run did not fit.
    """
    processes = processes or ProcessGroup()
    out = Path(settings.out)
    if processes.is_main_process:
        lock_folder(out)
    trainer = Trainer(settings, load_data(settings), processes)
    if (out / TRAINING).exists():
        trainer.load(out / TRAINING)
    main_process = processes.is_main_process
    log = metrics_log(settings, trainer.update) if main_process else nullcontext(lambda record: None)
    with log as write_record, training_progress(console, disable=not main_process) as progress:
        bar = progress.add_task("training", total=trainer.updates, completed=trainer.update, state="")
        while trainer.update < trainer.updates:
            record = trainer.advance()
            write_record(record)
            due = trainer.update % settings.checkpoint_every == 0 or trainer.update == trainer.updates
            if main_process and due:
                trainer.save(out / TRAINING)
            progress.update(bar, completed=trainer.update, state=_progress_state(trainer, record["loss"]))
    return trainer.finish()


def _progress_state(trainer: Trainer, loss: float) -> str:
    metric = trainer.settings.validation.metric
    best = f" best {metric} {trainer.best[metric]:.4f}" if trainer.best else ""
    return f"loss {loss:.4f}{best}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m value_model.train", description="Train a value model.")
    parser.add_argument("--config", type=Path, required=True, help="a yaml file such as recipes/value_model/small.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file's")
    args = parser.parse_args(arguments)
    try:
        settings = load_settings(args.config, args.overrides)
        with process_group(settings.device) as processes:
            train(settings, processes)
            if processes.is_main_process:
                Console().print(f"model written to {Path(settings.out) / MODEL}")
    except (SettingsError, TrainError, TrajectoryError, MetaTaskError, HeadError, CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error
    except (FolderInUseError, DiskFullError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
