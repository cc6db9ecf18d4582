"""Summary of one V0.5 run of the demo: a short table and a figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from rich.table import Table

from recipes.demo.runs import Run

matplotlib.use("Agg")  # before pyplot is imported: the machine may have no display
import matplotlib.pyplot as plt

GRPO_GROUP = 16
LOOKED_AT = "v05/sparse/looked_at"


def summary_table(run: Run) -> Table:
    """Accuracy before and after, what it cost, and what GRPO with groups of 16 would have cost."""
    accuracy, prompts = run.accuracy, run.prompts
    rollouts, tokens = int(run.rollouts.iloc[-1]), int(run.tokens.iloc[-1])
    table = Table(title=f"V0.5 on {prompts} prompts in {run.steps} steps", show_header=False)
    if LOOKED_AT in run.frame:
        table.add_row("prompts looked at", f"{int(run.frame[LOOKED_AT].sum())}")
    table.add_row("validation accuracy before", f"{accuracy.iloc[0]:.3f}")
    table.add_row("validation accuracy after", f"{accuracy.iloc[-1]:.3f}")
    table.add_row("rollouts spent", f"{rollouts} ({rollouts / prompts:.1f} a prompt)")
    table.add_row("response tokens spent", f"{tokens}")
    grpo = prompts * GRPO_GROUP
    table.add_row(f"GRPO-{GRPO_GROUP} on the same prompts", f"{grpo} rollouts ({grpo / rollouts:.1f}x)")
    table.add_row("seconds a step", f"{run.frame['timing_s/step'].median():.1f}")
    return table


def draw_run(run: Run, path: Path) -> None:
    """Write a PNG: accuracy, rollouts a prompt, prompts skipped or priors rejected, belief or baseline."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    _draw_accuracy(axes[0, 0], run)
    _draw_group_sizes(axes[0, 1], run)
    if LOOKED_AT in run.frame:
        _draw_skipped(axes[1, 0], run)
        _draw_belief(axes[1, 1], run)
    else:
        _draw_priors(axes[1, 0], run)
        _draw_baseline_error(axes[1, 1], run)
    figure.suptitle("V0.5 demo: a belief decides which prompts deserve rollouts")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_accuracy(axis: plt.Axes, run: Run) -> None:
    accuracy = run.accuracy
    axis.plot(run.rollouts[accuracy.index], accuracy, marker="o")
    axis.set(title="Validation accuracy", xlabel="training rollouts spent", ylabel="accuracy", ylim=(0, 1))
    axis.grid(alpha=0.3)


def _draw_group_sizes(axis: plt.Axes, run: Run) -> None:
    columns = sorted((int(c.rsplit("_", 1)[1]), c) for c in run.frame if c.startswith("v05/k/prompts_with_"))
    counts = run.frame[[c for _, c in columns]].dropna()
    kept = [i for i, (k, _) in enumerate(columns) if counts.iloc[:, i].any()]
    shades = plt.cm.viridis(np.linspace(0.9, 0.1, max(len(kept), 2)))
    shares = counts.to_numpy().T / counts.to_numpy().sum(axis=1)
    axis.stackplot(counts.index, shares[kept], labels=[f"k = {columns[i][0]}" for i in kept], colors=shades)
    axis.set(title="Rollouts a prompt got", xlabel="step", ylabel="share of prompts", ylim=(0, 1))
    axis.legend(loc="lower left", fontsize=8, ncols=2)


def _draw_priors(axis: plt.Axes, run: Run) -> None:
    names = ["accepted", "rejected", "missing"]
    shares = run.frame[[f"v05/prior/{n}" for n in names]].dropna()
    axis.stackplot(shares.index, shares.to_numpy().T, labels=names, colors=["#4c9f70", "#d1495b", "#cccccc"])
    axis.set(title="What became of the priors", xlabel="step", ylabel="share of prompts", ylim=(0, 1))
    axis.legend(loc="lower left", fontsize=8)


def _draw_skipped(axis: plt.Axes, run: Run) -> None:
    names = {"skipped_solved": "skipped, rather solved", "skipped_hopeless": "skipped, rather hopeless"}
    shares = run.frame[[f"v05/sparse/{n}" for n in names]].div(run.frame[LOOKED_AT], axis=0).dropna()
    rolled = 1 - shares.sum(axis=1)
    axis.stackplot(
        shares.index,
        [rolled, *shares.to_numpy().T],
        labels=["rolled out", *names.values()],
        colors=["#4c9f70", "#9ecae1", "#d1495b"],
    )
    axis.set(title="Prompts looked at", xlabel="step", ylabel="share of prompts", ylim=(0, 1))
    axis.legend(loc="lower left", fontsize=8)


def _draw_belief(axis: plt.Axes, run: Run) -> None:
    for name, label in (("prior/mean", "believed before the rollouts"), ("fusion/mean_reward", "found")):
        axis.plot(run.frame[f"v05/{name}"].dropna(), label=label)
    axis.set(title="Mean reward of the prompts rolled out", xlabel="step", ylabel="reward, -1 to 1", ylim=(-1, 1))
    axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.3)


def _draw_baseline_error(axis: plt.Axes, run: Run) -> None:
    for name, label in (("fused", "fused baseline"), ("group_mean", "group mean")):
        key = f"v05/baseline_mse/{name}"  # absent where no step had a prompt with two rollouts
        axis.plot(run.frame[key].dropna() if key in run.frame else [], label=label)
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set(title="Squared error of the baseline (leave-one-out estimate)", xlabel="step", ylabel="MSE")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
