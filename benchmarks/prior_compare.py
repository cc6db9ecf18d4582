"""V0.5 with the value model, with each prompt's history, and without a prior, on the demo's task, over seeds.

`python -m benchmarks.prior_compare` trains what is not trained yet (finished runs are kept) and writes a table
(Markdown) and figures. The value model is the small one of the package, which has never seen the demo's policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.demo_compare import Method, accuracy_at, collect, draw, spread
from recipes.demo.runs import Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = (
    Method("v05_v0", "prior = v0 (value model)", 4, "#1b6ca8"),
    Method("v05", "prior = history", 4, "#e08e45"),
    Method("v05_none", "no prior", 4, "#8c8c8c"),
)
FIRST_EPOCH = 8  # steps: 256 prompts, 32 a step


def table(runs: dict[Method, list[Run]]) -> pd.DataFrame:
    """One row a prior: mean and sample standard deviation over seeds, of the runs and of their first epoch."""
    budget = min(r.rollouts.iloc[-1] for group in runs.values() for r in group)
    rows = []
    for method, group in runs.items():
        rows.append(
            {
                "prior": method.label,
                "accuracy after": spread([r.accuracy.iloc[-1] for r in group]),
                f"accuracy at {budget:.0f} rollouts": spread([accuracy_at(r, budget) for r in group]),
                "rollouts": spread([r.rollouts.iloc[-1] for r in group], 0),
                "accepted": spread([metric(r, "prior/accepted").mean() for r in group], 2),
                "missing": spread([metric(r, "prior/missing").mean() for r in group], 2),
                "|V - mean|, 1st epoch": spread([gap(r).loc[:FIRST_EPOCH].mean() for r in group], 2),
                "|V - mean|, later": spread([gap(r).loc[FIRST_EPOCH + 1 :].mean() for r in group], 2),
                "MSE of the baseline": spread([metric(r, "baseline_mse/fused").mean() for r in group]),
                "of the group mean": spread([metric(r, "baseline_mse/group_mean").mean() for r in group]),
                "prior on the critical path, s": spread([metric(r, "prior/wait_s").median() for r in group], 4),
                "its latency, s": spread([metric(r, "prior/latency_s").median() for r in group], 2),
            }
        )
    return pd.DataFrame(rows)


def metric(run: Run, name: str) -> pd.Series:
    """One of the ``v05/`` metrics at every training step."""
    return run.frame[f"v05/{name}"].dropna()


def gap(run: Run) -> pd.Series:
    """Mean |V - mean reward| at the steps where any prior was known; NaN elsewhere."""
    known = metric(run, "prior/missing") < 1
    return metric(run, "prior/gap").where(known)


def draw_priors(runs: dict[Method, list[Run]], path: Path) -> None:
    """Share of priors accepted, rollouts a prompt and the baseline's error against steps."""
    panels = (
        ("prior/accepted", "Share of prompts whose prior is accepted"),
        ("k/mean", "Rollouts a prompt"),
        ("baseline_mse/fused", "Squared error of the baseline"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    for axis, (name, title) in zip(axes, panels, strict=True):
        for method, group in runs.items():
            mean = np.mean([metric(r, name) for r in group], axis=0)
            axis.plot(metric(group[0], name).index, mean, color=method.colour, label=method.label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    console = Console()
    runs = collect(METHODS, args.out, args.seeds, args.steps, console)
    result = table(runs)
    (args.out / "priors.md").write_text(result.to_markdown(index=False) + "\n")
    draw(runs, args.out / "priors_accuracy.png")
    draw_priors(runs, args.out / "priors.png")
    console.print(result.to_markdown(index=False))
    console.print(f"written: {args.out}/priors.md, priors_accuracy.png, priors.png")


if __name__ == "__main__":
    main()
