"""V0.5 with the value model, with each prompt's history, and without a prior, on the demo's task, over seeds.

`python -m benchmarks.prior_compare` trains what is not trained yet (finished runs are kept) and writes a table
(Markdown) and figures. The value model is the small one of the package, which has never seen the demo's policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.dashboard.runs import ROLLOUTS, Run, read_run
from benchmarks.dashboard.table import accuracy_at, common_budget
from benchmarks.demo_compare import collect

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LABELS = {"v05_v0": "prior = v0 (value model)", "v05": "prior = history", "v05_none": "no prior"}
COLOURS = dict(zip(LABELS.values(), ("#1b6ca8", "#e08e45", "#8c8c8c"), strict=True))
FIRST_EPOCH = 8  # steps: 256 prompts, 32 a step

Runs = Mapping[str, Sequence[Run]]  # by label


def table(runs: Runs) -> pd.DataFrame:
    """One row a prior: mean and sample standard deviation over seeds, of the runs and of their first epoch."""
    everything = [run for group in runs.values() for run in group]
    budget = common_budget(everything, ROLLOUTS)
    (source,) = everything[0].accuracy
    rows = []
    for label, group in runs.items():
        rows.append(
            {
                "prior": label,
                "accuracy after": spread([r.accuracy[source].iloc[-1] for r in group]),
                f"accuracy at {budget:.0f} rollouts": spread([accuracy_at(r, source, ROLLOUTS, budget) for r in group]),
                "rollouts": spread([r.frame[ROLLOUTS].iloc[-1] for r in group], 0),
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


def spread(values: Sequence[float], digits: int = 3) -> str:
    """ "mean ± standard deviation" over seeds."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def metric(run: Run, name: str) -> pd.Series:
    """One of the ``v05/`` metrics at every training step."""
    return run.metric(f"v05/{name}")


def gap(run: Run) -> pd.Series:
    """Mean |V - mean reward| at the steps where any prior was known; NaN elsewhere."""
    known = metric(run, "prior/missing") < 1
    return metric(run, "prior/gap").where(known)


def draw_accuracy(runs: Runs, path: Path) -> None:
    """Accuracy against rollouts, means over seeds."""
    figure, axis = plt.subplots(figsize=(6, 4.2), constrained_layout=True)
    for label, group in runs.items():
        (source,) = group[0].accuracy
        steps = group[0].accuracy[source].index
        spent = np.mean([r.frame.loc[steps, ROLLOUTS] for r in group], axis=0)
        accuracy = np.mean([r.accuracy[source] for r in group], axis=0)
        axis.plot(spent, accuracy, marker="o", color=COLOURS[label], label=label)
    axis.set(title="Validation accuracy", xlabel="training rollouts")
    _finish(figure, [axis], path)


def draw_priors(runs: Runs, path: Path) -> None:
    """Share of priors accepted, rollouts a prompt and the baseline's error against steps, means over seeds."""
    panels = (
        ("prior/accepted", "Share of prompts whose prior is accepted"),
        ("k/mean", "Rollouts a prompt"),
        ("baseline_mse/fused", "Squared error of the baseline"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    for axis, (name, title) in zip(axes, panels, strict=True):
        for label, group in runs.items():
            mean = np.mean([metric(r, name) for r in group], axis=0)
            axis.plot(metric(group[0], name).index, mean, color=COLOURS[label], label=label)
        axis.set(title=title, xlabel="step")
    _finish(figure, axes, path)


def _finish(figure: plt.Figure, axes: Sequence[plt.Axes], path: Path) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=18)
    args = parser.parse_args(argv)
    console = Console()
    folders = collect(list(LABELS), args.out, args.seeds, args.steps, console)
    runs = {LABELS[method]: [read_run(folder, LABELS[method]) for folder in group] for method, group in folders.items()}
    result = table(runs)
    (args.out / "priors.md").write_text(result.to_markdown(index=False) + "\n")
    draw_accuracy(runs, args.out / "priors_accuracy.png")
    draw_priors(runs, args.out / "priors.png")
    console.print(result.to_markdown(index=False))
    console.print(f"written: {args.out}/priors.md, priors_accuracy.png, priors.png")


if __name__ == "__main__":
    main()
