"""The paper's fusion against the empirical-Bayes one on the demo's task, at the same rollouts, paired by seed.

`python -m benchmarks.training.compare_fusions` trains what is not trained yet (finished runs are kept) and draws what
`benchmarks.dashboard` draws. Without extra rollouts every method spends k = 4 a prompt. With them, the empirical-Bayes
runs divide a hard budget: what the OSLA run of the same seed spent, spread evenly over its steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.dashboard.__main__ import main as draw_dashboard
from benchmarks.dashboard.methods import EMPIRICAL_BAYES, LEAVE_ONE_OUT
from benchmarks.dashboard.runs import ROLLOUTS, read_run
from benchmarks.training.compare_methods import collect

EB, EB_LOO = EMPIRICAL_BAYES.suffix, EMPIRICAL_BAYES.suffix + LEAVE_ONE_OUT.suffix
FIXED = tuple(f"v05_fixed_k4{variant}" for variant in ("", EB, EB_LOO))
OSLA = "v05"
BUDGETED = tuple(f"v05_rounds{variant}" for variant in (EB, EB_LOO))


def budget_of(folder: Path) -> list[str]:
    """Overrides that give a run the rollouts of a finished one, to be divided by the expected gain."""
    run = read_run(folder)
    return [
        f"algorithm.v05.max_rollouts_per_step={round(run.frame[ROLLOUTS].iloc[-1] / run.steps)}",
        "algorithm.v05.cost=0",
        "algorithm.v05.halt_share=0",
        "algorithm.v05.pad_multiple=1",
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/fusion"))
    parser.add_argument("--dynamic", action="store_true", help="with extra rollouts, instead of k = 4 for every prompt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=18)
    args = parser.parse_args()

    def overrides(method: str, seed: int) -> Sequence[str]:
        return budget_of(args.out / f"{OSLA}_{seed}") if method in BUDGETED else ()

    methods = (OSLA, *BUDGETED) if args.dynamic else FIXED
    folders = collect(methods, args.out, args.seeds, args.steps, Console(), overrides)
    runs = [str(folder) for group in folders.values() for folder in group]
    reference = read_run(folders[methods[0]][0]).method
    page = args.out / ("dynamic" if args.dynamic else "fixed")
    raise SystemExit(draw_dashboard([*runs, "--out", str(page), "--reference", reference]))


if __name__ == "__main__":
    main()
