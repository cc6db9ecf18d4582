"""V0.5 against GRPO on the demo's task: accuracy against rollouts spent, over seeds.

`python -m benchmarks.demo_compare` trains every method with every seed (finished runs are kept, so it can be
stopped and started again), all with the same number of first rollouts a step, and writes a table (Markdown) and a
figure. GRPO-4 is the control: V0.5's number of prompts without its prior or its extra rollouts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from rich.console import Console

from recipes.demo.launch import train
from recipes.demo.make import Settings, make_demo
from recipes.demo.runs import Run, read_run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROLLOUTS_PER_STEP = 128
DONE = "done"


@dataclass(frozen=True)
class Method:
    """A line of the table; ``name`` is what ``recipes/demo/run.sh`` takes."""

    name: str
    label: str
    group: int
    colour: str

    @property
    def prompts(self) -> int:
        """Prompts a step."""
        return ROLLOUTS_PER_STEP // self.group


METHODS = (
    Method("v05", "V0.5 OSLA (streaming)", 4, "#1b6ca8"),
    Method("grpo16", "GRPO-16", 16, "#8c8c8c"),
    Method("grpo4", "GRPO-4 (control)", 4, "#e08e45"),
    Method("dapo", "DAPO", 16, "#8c8c8c"),
    Method("ppo", "PPO", 4, "#8c8c8c"),
    Method("v05_fixed_k4", "V0.5 fixed k = 4", 4, "#4c9f70"),
    Method("v05_fixed_k1", "V0.5 fixed k = 1", 1, "#4c9f70"),
    Method("v05_fixed_k2", "V0.5 fixed k = 2", 2, "#4c9f70"),
    Method("v05_fixed_k8", "V0.5 fixed k = 8", 8, "#4c9f70"),
    Method("grpo8", "GRPO-8 (control)", 8, "#e08e45"),
    Method("v05_rounds", "V0.5 OSLA (rounds)", 4, "#52a7e0"),
)


def collect(
    methods: Sequence[Method], out: Path, seeds: Sequence[int], steps: int, console: Console
) -> dict[Method, list[Run]]:
    """Train what is not trained yet and read everything."""
    task = out / "task"
    make_demo(task, Settings(), console)
    runs: dict[Method, list[Run]] = {method: [] for method in methods}
    for seed in seeds:  # seeds outermost: an interrupted comparison still holds every method
        for method in methods:
            folder = out / f"{method.name}_{seed}"
            if not (folder / DONE).exists():
                train(method.name, seed, task, folder, console, steps=steps)
                (folder / DONE).touch()
            run = read_run(folder / "metrics.jsonl", method.name, seed, ROLLOUTS_PER_STEP)
            runs[method].append(replace(run, frame=run.frame.loc[:steps]))  # a kept run may be longer
    return runs


def accuracy_at(run: Run, rollouts: float) -> float:
    """Validation accuracy after ``rollouts`` training rollouts, interpolated between validations."""
    accuracy = run.accuracy
    return float(np.interp(rollouts, run.rollouts[accuracy.index], accuracy))


def table(runs: dict[Method, list[Run]]) -> pd.DataFrame:
    """One row a method: mean and sample standard deviation over seeds."""
    budget = min(r.rollouts.iloc[-1] for group in runs.values() for r in group)
    rows = []
    for method, group in runs.items():
        rows.append(
            {
                "method": method.label,
                "prompts x group": f"{method.prompts} x {method.group}",
                "accuracy before": spread([r.accuracy.iloc[0] for r in group]),
                "accuracy after": spread([r.accuracy.iloc[-1] for r in group]),
                f"accuracy at {budget:.0f} rollouts": spread([accuracy_at(r, budget) for r in group]),
                "rollouts": spread([r.rollouts.iloc[-1] for r in group], 0),
                "response tokens": spread([r.tokens.iloc[-1] for r in group], 0),
                "seconds a step": spread([r.frame["timing_s/step"].median() for r in group], 2),
                "gradient norm": spread([r.frame["actor/grad_norm"].mean() for r in group], 2),
                "entropy at the end": spread([r.frame["actor/entropy"].iloc[-1] for r in group], 2),
            }
        )
    return pd.DataFrame(rows)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """ "mean ± standard deviation" over seeds."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def draw(runs: dict[Method, list[Run]], path: Path) -> None:
    """Accuracy against rollouts and against steps, a band of one standard deviation over seeds."""
    figure, (by_rollouts, by_step) = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, constrained_layout=True)
    for method, group in runs.items():
        accuracy = np.array([r.accuracy for r in group])
        steps = group[0].accuracy.index
        spent = np.mean([r.rollouts[steps] for r in group], axis=0)
        mean, deviation = accuracy.mean(axis=0), accuracy.std(axis=0, ddof=1 if len(group) > 1 else 0)
        for axis, x in ((by_rollouts, spent), (by_step, steps)):
            axis.plot(
                x, mean, marker="o", color=method.colour, label=f"{method.label}, {method.prompts} prompts a step"
            )
            axis.fill_between(x, mean - deviation, mean + deviation, color=method.colour, alpha=0.2)
    by_rollouts.set(title="Validation accuracy against rollouts spent", xlabel="training rollouts", ylabel="accuracy")
    by_step.set(title="and against steps", xlabel="step")
    by_rollouts.legend(loc="lower right")
    for axis in (by_rollouts, by_step):
        axis.grid(alpha=0.3)
    figure.suptitle(f"Mean ± standard deviation over {len(next(iter(runs.values())))} seeds")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    console = Console()
    runs = collect(METHODS, args.out, args.seeds, args.steps, console)
    result = table(runs)
    (args.out / "table.md").write_text(result.to_markdown(index=False) + "\n")
    draw(runs, args.out / "accuracy.png")
    console.print(result.to_markdown(index=False))
    console.print(f"written: {args.out}/table.md, {args.out}/accuracy.png")


if __name__ == "__main__":
    main()
