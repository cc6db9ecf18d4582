"""`python -m recipes.demo`: make the task, train on it with sparse V0.5, show what happened."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from recipes.demo.make import SETTINGS, Settings, make_demo
from recipes.demo.run_summary import draw_run, summary_table
from recipes.demo.runs import read_run
from recipes.demo.training_process import RunFailedError, train


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=SETTINGS, default=Settings.task)
    parser.add_argument("--out", type=Path, help="[runs/demo; of another task runs/demo_TASK]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--method",
        default="v05_sparse",
        help="of run.sh; v05_rounds: the paper's, v05_sparse_v0: with the value model",
    )
    args = parser.parse_args()

    console, started = Console(), time.monotonic()
    folder = args.out or Path("runs") / ("demo" if args.task == Settings.task else f"demo_{args.task}")
    task, out = folder / "task", folder / f"{args.method}_{args.seed}"
    make_demo(task, SETTINGS[args.task], console)
    try:
        train(args.method, args.seed, task, out, console, steps=args.steps)
    except RunFailedError as error:
        raise SystemExit(str(error)) from None
    run = read_run(out / "metrics.jsonl")
    picture = out / "run.png"
    draw_run(run, picture)
    console.print(summary_table(run))
    console.print(f"picture: {picture}   metrics: {out}/metrics.jsonl   log: {out}/train.log")
    console.print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
