"""Train an in-context head from scratch on synthetic tasks: ``python -m value_model.pretrain_head --out DIR``.

The head is a small network of tabpfn's v2.5 architecture, trained as TabPFN is: every step draws new tasks, gives the
network a context with hard labels, and trains it to predict the success probability of further rows. The target is the
task's true probability, not a label, so the head's probabilities are calibrated.

Writes ``head.v2.5.safetensors`` (tabpfn's loader requires the version in the name), ``head.json`` (settings and
metrics on held-out tasks) and ``training.pt``, from which the same command resumes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from value_model.config_loader import config_from_dict
from value_model.files import write_json
from value_model.pretraining.head_metrics import evaluate_head, metrics_table
from value_model.pretraining.settings import PretrainError, PretrainSettings
from value_model.pretraining.trainer import HeadTrainer, predict
from value_model.training.log import training_progress

WEIGHTS, REPORT, TRAINING = "head.v2.5.safetensors", "head.json", "training.pt"


def pretrain(settings: PretrainSettings, out: str | os.PathLike, console: Console | None = None) -> HeadTrainer:
    """Train, or resume from ``out/training.pt``; writes the weights and that file every ``save_every`` steps.

    Raises:
        PretrainError: ``out`` holds the unfinished training of other settings.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    trainer = HeadTrainer(settings)
    if (out / TRAINING).exists():
        trainer.load(out / TRAINING)
    with training_progress(console) as progress:
        bar = progress.add_task("training", total=settings.steps, completed=trainer.step, state="")
        losses: list[float] = []
        while trainer.step < settings.steps:
            losses.append(trainer.advance())
            progress.update(bar, advance=1, state=f"loss {losses[-1]:.4f}")
            if trainer.step % settings.save_every == 0 or trainer.step == settings.steps:
                trainer.save(out / TRAINING)
                trainer.save_head(out / WEIGHTS)
                seconds = f"{trainer.seconds:.0f} s of CPU"
                progress.console.print(f"step {trainer.step}: mean loss {np.mean(losses):.4f}, {seconds}")
                losses.clear()
    return trainer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m value_model.pretrain_head", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, and to resume from")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; results repeat bit for bit with 1")
    for field in fields(PretrainSettings):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, metavar=kind.__name__)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and write the report."""
    options = vars(_parser().parse_args(arguments))
    out, threads = options.pop("out"), options.pop("threads")
    settings = config_from_dict(PretrainSettings, options, PretrainError)
    torch.set_num_threads(threads)
    console = Console()
    trainer = pretrain(settings, out, console)
    measured = evaluate_head(
        partial(predict, trainer.network),
        features=settings.features,
        queries=settings.queries,
        tasks=settings.measured_tasks,
        seed=settings.seed,
    )
    console.print(metrics_table(measured))
    report = {"settings": asdict(settings), "cpu_seconds": round(trainer.seconds), "measured": measured}
    write_json(out / REPORT, report, indent=2)


if __name__ == "__main__":
    main()
