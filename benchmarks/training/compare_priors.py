"""V0.5 with the value model, with each prompt's history, and without a prior, on the demo's task, over seeds.

`python -m benchmarks.training.compare_priors` trains what is not trained yet (finished runs are kept) and writes a
table (Markdown) and figures. The value model is the package's small one, which was not trained on the demo's policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.dashboard.method_tables import accuracy_at, common_budget
from benchmarks.dashboard.methods import NO_PRIOR, VALUE_MODEL_PRIOR
from benchmarks.dashboard.runs import ROLLOUTS, Run, read_run
from benchmarks.png import panels, to_png
from benchmarks.training.compare_methods import collect
from value_model.files import write_bytes, write_text

LABELS = {
    f"v05{VALUE_MODEL_PRIOR.suffix}": "prior = v0 (value model)",
    "v05": "prior = history",
    f"v05{NO_PRIOR.suffix}": NO_PRIOR.name,
}
COLOURS = dict(zip(LABELS.values(), ("#1b6ca8", "#e08e45", "#8c8c8c"), strict=True))
FIRST_EPOCH = 8  # steps: 256 prompts, 32 a step
PANELS = {
    "prior/accepted": "Share of prompts whose prior is accepted",
    "k/mean": "Rollouts a prompt",
    "baseline_mse/fused": "Squared error of the baseline",
}

Runs = Mapping[str, Sequence[Run]]  # by label


def table(runs: Runs) -> pd.DataFrame:
    """One row for each prior: mean and sample standard deviation over seeds, of the runs and of their first epoch."""
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


def draw_accuracy(runs: Runs) -> Figure:
    """Accuracy against rollouts, means over seeds."""
    figure, (axis,) = panels(1)
    for label, group in runs.items():
        (source,) = group[0].accuracy
        steps = group[0].accuracy[source].index
        spent = np.mean([r.frame.loc[steps, ROLLOUTS] for r in group], axis=0)
        accuracy = np.mean([r.accuracy[source] for r in group], axis=0)
        axis.plot(spent, accuracy, marker="o", color=COLOURS[label], label=label)
    axis.set(title="Validation accuracy", xlabel="training rollouts")
    axis.legend()
    return figure


def draw_priors(runs: Runs) -> Figure:
    """Share of priors accepted, rollouts a prompt and the baseline's error against steps, means over seeds."""
    figure, axes = panels(len(PANELS))
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for label, group in runs.items():
            mean = np.mean([metric(r, name) for r in group], axis=0)
            axis.plot(metric(group[0], name).index, mean, color=COLOURS[label], label=label)
        axis.set(title=title, xlabel="step")
    axes[0].legend()
    return figure


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
    result = table(runs).to_markdown(index=False)
    write_text(args.out / "priors.md", result + "\n")
    write_bytes(args.out / "accuracy.png", to_png(draw_accuracy(runs)))
    write_bytes(args.out / "priors.png", to_png(draw_priors(runs)))
    console.print(result)
    console.print(f"written: {args.out}/priors.md, accuracy.png, priors.png")


if __name__ == "__main__":
    main()
