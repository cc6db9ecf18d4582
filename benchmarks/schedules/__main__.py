"""Makespan, utilisation and tail of the schedules, simulated: `python -m benchmarks.schedules --out FOLDER`.

One training step's rollouts under the project's own schedules, on engines with continuous batching, with real response
lengths, real success rates and measured decode times; from 8 to 1,024 GPUs. `--success-rates` takes `data/` of a clone
of Now-Join-Us/V0; without it the rates are a Beta that was fitted to it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from benchmarks.schedules import ScheduleError
from benchmarks.schedules.compared_schedules import LINES, REFERENCE, SCALED
from benchmarks.schedules.lengths import load_lengths, published
from benchmarks.schedules.schedules_page import draw_busy, draw_scale, page
from benchmarks.schedules.simulation import Run
from benchmarks.schedules.training_step import Setting, Step
from benchmarks.schedules.workload import public_rates
from value_model.files import write_text

MANY = 4096  # prompts, beyond which one seed is enough: the spread falls with their number
SHOWN = (REFERENCE, "rounds, step 2, no halt", "streaming, step 2", "streaming, to target")


def table(step: Step, prompts: int, gpus: int, seeds: Sequence[int]) -> tuple[pd.DataFrame, dict[str, Run]]:
    """Every line, a row for each seed; and the first seed's runs."""
    found = [step.compare(prompts, gpus, list(LINES), seed) for seed in tqdm(seeds, desc="all lines")]
    return pd.concat([rows for rows, _ in found]), found[0][1]


def scale(step: Step, prompts: Mapping[int, int], seeds: Sequence[int]) -> pd.DataFrame:
    """The scaled lines for each number of GPUs and its number of prompts, a row for each seed."""
    sizes = [(gpus, seed) for gpus in prompts for seed in (seeds if prompts[gpus] <= MANY else seeds[:1])]
    found = (step.compare(prompts[gpus], gpus, SCALED, seed)[0] for gpus, seed in tqdm(sizes, desc="sizes"))
    return pd.concat(found)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = f"{', '.join(published())}, or a CSV or parquet file with columns tokens and, if known, correct"
    cli.add_argument("--lengths", default="sky-t1-math500", help=known)
    cli.add_argument("--longest", type=int, default=4096, help="limit of a response in tokens (the paper's: 4096)")
    cli.add_argument("--long-lengths", default="qwen3-8b-gpqa", help="the second table's")
    cli.add_argument("--long-longest", type=int, default=16384)
    cli.add_argument("--within-prompt", type=float, default=0.4, help="correlation of one prompt's lengths")
    cli.add_argument("--success-rates", type=Path, metavar="FOLDER")
    cli.add_argument("--prompts", type=int, default=2048)
    cli.add_argument("--prompts-per-gpu", type=int, default=16)
    cli.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 128, 512, 1024])
    cli.add_argument("--gpus-shown", type=int, default=32, help="of the tables with every line")
    for field in fields(Setting):
        cli.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    cli.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cli.add_argument("--notes", type=Path, metavar="FILE", help="Markdown shown above the tables")
    cli.add_argument("--out", type=Path, default=Path("runs/schedules"))
    return cli


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    try:
        rates = public_rates(args.success_rates)
        notes = args.notes.read_text().strip() if args.notes else ""
        sources = ((args.lengths, args.longest), (args.long_lengths, args.long_longest))
        steps = [Step(load_lengths(name, longest, args.within_prompt), rates, setting) for name, longest in sources]
    except (ScheduleError, FileNotFoundError) as error:
        raise SystemExit(f"schedules: {error}") from None

    title = f"{args.gpus_shown} GPUs, {args.prompts:,} prompts, at most"
    tables, runs = [], []
    for step in steps:
        rows, of_first = table(step, args.prompts, args.gpus_shown, args.seeds)
        tables.append((f"{title} {step.lengths.longest:,} tokens", step, rows))
        runs.append(of_first)
    series = {
        f"{args.prompts:,} prompts": scale(steps[0], dict.fromkeys(args.gpus, args.prompts), args.seeds),
        f"{args.prompts_per_gpu} prompts a GPU": scale(
            steps[0], {gpus: args.prompts_per_gpu * gpus for gpus in args.gpus}, args.seeds
        ),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    draw_busy({name: runs[0][name] for name in SHOWN}, args.out / "busy.png")
    draw_scale(series, args.out / "makespan.png")
    shown = ["FOLDER" if argument == str(args.success_rates) else argument for argument in argv]
    command = shlex.join(["python", "-m", "benchmarks.schedules", *shown])
    write_text(args.out / "README.md", page(tables, series, len(args.seeds), MANY, command, notes))


if __name__ == "__main__":
    main()
