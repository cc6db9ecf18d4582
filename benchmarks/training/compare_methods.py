"""The paper's comparison on the demo's task: every method, over seeds, with the paper's figures.

`python -m benchmarks.training.compare_methods` trains every method with every seed, all with the same number of first
rollouts a step, and draws what `benchmarks.dashboard` draws. Finished runs are kept, so it can be interrupted.
GRPO-4 and GRPO-8 are controls: V0.5's number of prompts without its prior or its extra rollouts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.dashboard.__main__ import main as draw_dashboard
from recipes.demo.make import Settings, make_demo
from recipes.demo.training_process import train

METHODS = (
    "v05",
    "grpo16",
    "grpo4",
    "dapo",
    "ppo",
    "v05_fixed_k1",
    "v05_fixed_k2",
    "v05_fixed_k4",
    "v05_fixed_k8",
    "grpo8",
    "v05_rounds",
)
DONE = "done"


def collect(
    methods: Sequence[str],
    out: Path,
    seeds: Sequence[int],
    steps: int,
    console: Console,
    overrides: Callable[[str, int], Sequence[str]] = lambda method, seed: (),
    task: Path | None = None,
) -> dict[str, list[Path]]:
    """Train what is not trained yet; the run folders of each method, by seed.

    Args:
        task: folder of :mod:`recipes.demo.make`; the arithmetic task, made in ``out``, if None.
        overrides: (method, seed) -> further hydra overrides; asked right before that run, after those before it in
            ``methods`` have been trained with the seed.

    Raises:
        ValueError: a finished run of another number of steps is in the way.
    """
    if task is None:
        task = out / "task"
        make_demo(task, Settings(), console)
    folders: dict[str, list[Path]] = {method: [] for method in methods}
    for seed in seeds:  # seeds outermost: an interrupted comparison still holds every method
        for method in methods:
            folder = out / f"{method}_{seed}"
            if _steps_done(folder) not in (None, steps):
                raise ValueError(f"{folder} is a run of {_steps_done(folder)} steps, not {steps}: use another --out")
            if _steps_done(folder) is None:
                changes = ["trainer.test_freq=6", *overrides(method, seed)]
                train(method, seed, task, folder, console, changes, steps)
                (folder / DONE).write_text(str(steps))
            folders[method].append(folder)
    return folders


def _steps_done(folder: Path) -> int | None:
    done = folder / DONE
    return int(done.read_text()) if done.exists() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--notes", help="Markdown shown above the numbers")
    args = parser.parse_args(argv)
    folders = collect(args.methods, args.out, args.seeds, args.steps, Console())
    runs = [str(folder) for group in folders.values() for folder in group]
    notes = ["--notes", args.notes] if args.notes else []
    title = "The paper's comparison on the demo's arithmetic"
    raise SystemExit(draw_dashboard([*runs, "--out", str(args.out / "dashboard"), "--title", title, *notes]))


if __name__ == "__main__":
    main()
