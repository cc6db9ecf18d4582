"""Sparse V0.5 against the field, against useless priors, and with its parts taken away one at a time.

`python -m benchmarks.training.compare_sparse --task FOLDER --out DIR` trains every line with every seed in this process
(:mod:`benchmarks.training.in_process`), keeps what is done in ``runs.csv``, and writes ``page.md``. With ``--verl`` the
field is trained by `recipes/demo/run.sh`, with verl, FSDP and sglang. All lines have the same first policy, validation
prompts and rollouts a step; a seed is the order of the data and the sampling.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console

from benchmarks.dashboard.method_tables import interval
from benchmarks.dashboard.runs import ROLLOUTS, SECONDS, TOKENS, read_run
from benchmarks.training.compare_methods import collect as train_verl
from benchmarks.training.in_process import Line, Run, Task
from value_model.conversions import success_of_reward
from value_model.files import write_text
from verl_v05.allocation import AllocationRule, Demand
from verl_v05.fusion import Belief, FusionMethod


class Thompson(AllocationRule):
    """Utility of a rollout by one draw of the success rate from the belief: its outcome variance, 4 p (1 - p)."""

    needs_strength = plans_budget = True

    def __init__(self, cost: float):
        super().__init__(cost)
        self._rng = np.random.default_rng(0)

    def demand(self, mean_reward: np.ndarray, k: np.ndarray, belief: Belief, fusion: FusionMethod) -> Demand:
        q, m = success_of_reward(belief.prior), belief.strength
        known = ~np.isnan(q)
        p = np.full(len(q), np.nan)
        p[known] = self._rng.beta((m * q)[known], (m * (1 - q))[known])
        return Demand(np.full(len(q), np.inf), lambda prompt, before: 4 * (p * (1 - p))[prompt] / (before + 1))


def preset(name: str) -> dict[str, Any]:
    """All values of ``algorithm/v05=NAME``."""
    with initialize_config_module("verl_v05.config", version_base=None):
        return OmegaConf.to_container(compose(overrides=[f"+algorithm/v05={name}"]).algorithm.v05)


SPARSE = preset("sparse")
FIXED: dict[str, Any] = {"schedule": "fixed", "k_init": 1, "fusion": "empirical_bayes", "baseline": "leave_one_out"}
PAPER_BASELINE = {"fusion": "shrinkage"}  # leave-one-out at k = 1: the prior as it is
POOL = 2  # prompts looked at a rollout


def sparse(rollouts: int, pool: float = POOL, prior: str = "v0", **overrides: Any) -> Line:
    """Sparse V0.5 with some of its settings changed."""
    return Line(rollouts, pool=round(pool * rollouts), prior=prior, overrides={**SPARSE, **overrides})


def fixed(rollouts: int, k: int = 1, prior: str = "v0", **overrides: Any) -> Line:
    """V0.5 with k rollouts for every prompt."""
    return Line(rollouts, pool=rollouts // k, prior=prior, overrides={**FIXED, "k_init": k, **overrides})


REFERENCE, TARGET = "sparse", "GRPO-16"
# The field on the real trainer: methods of recipes/demo/run.sh. Sparse V0.5 has the prompts' history as its prior.
VERL_FIELD = {
    REFERENCE: "v05_sparse",
    TARGET: "grpo16",
    "GRPO-4": "grpo4",
    "DAPO": "dapo",
    "k = 1, plain history (SPO)": "v05_fixed_k1_loo",
}
VERL_ROLLOUTS = 128  # a step, of SETTING=cpu
COSTS = ("rollouts", "tokens", "seconds")


def lines(rollouts: int) -> dict[str, dict[str, Line]]:
    """The lines by table, each at ``rollouts`` a step."""
    n = rollouts
    return {
        "field": {
            REFERENCE: sparse(n),
            TARGET: Line(n, group=16),
            "GRPO-4": Line(n, group=4),
            "GRPO-16, DAPO's filter": Line(n, group=16, filtered=True),
            "k = 1, plain history (SPO)": fixed(n, prior="history", **PAPER_BASELINE),
        },
        "useless prior": {
            "no prior": sparse(n, prior="none"),
            "constant prior": sparse(n, prior="constant"),
            "shuffled prior": sparse(n, prior="shuffled"),
        },
        "where it comes from": {
            "k = 1 for all": fixed(n),
            "k = 1 for all, not calibrated": fixed(n, **PAPER_BASELINE),
            "k = 1 for all, no prior": fixed(n, prior="none"),
            "k = 4 for all": fixed(n, k=4),
            "history instead of V0": sparse(n, prior="history"),
            "V0 without the prompts' history": sparse(n, calibration={"history_forgetting": 0.0}),
            "true success rates as prior": sparse(n, prior="oracle"),
            "true success rates, headroom": sparse(n, prior="oracle", allocation="headroom"),
            "plain baseline": sparse(n, baseline="plain"),
        },
        "utility": {
            "utility: headroom": sparse(n, allocation="headroom"),
            "utility: posterior variance drop": sparse(n, allocation="posterior"),
            "utility: product": sparse(n, allocation="product"),
            "utility: Thompson draw": sparse(n, allocation="benchmarks.training.compare_sparse.Thompson"),
        },
        "ablation": {
            "pool of 1 prompt a rollout": sparse(n, pool=1),
            "pool of 4 prompts a rollout": sparse(n, pool=4),
            "no skipping (explore 1)": sparse(n, sparse={"explore": 1.0}),
            "explore 0.05": sparse(n, sparse={"explore": 0.05}),
            "k at most 1": sparse(n, k_max=1),
            "k at most 8": sparse(n, k_max=8),
            "a quarter held back": sparse(n, sparse={"reserve": 0.25}),
            "importance weights": sparse(n, sparse={"importance_weights": True}),
            "not normalised": sparse(n, sigma_floor=1.0),
        },
    }


class Job(NamedTuple):
    """One run."""

    task: Path
    name: str
    line: Line
    seed: int
    total: int
    value_model: str | None
    wrong_labels: float = 0.0


def train(job: Job) -> list[dict[str, Any]]:
    """One run; a row for each time that it was measured."""
    name, line, seed = job.name, job.line, job.seed
    steps = job.total // line.rollouts
    run = Run(Task(job.task, job.wrong_labels), line, seed, job.value_model)
    return [
        {"line": name, "rollouts_a_step": line.rollouts, "seed": seed, **measured._asdict()}
        for measured in run.train(steps, every=max(1, steps // 6))
    ]


def collect(jobs: Sequence[Job], path: Path, processes: int, console: Console) -> pd.DataFrame:
    """All rows; runs that are in the file already are not repeated."""
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["line", "rollouts_a_step", "seed"])
    finished = set(done[["line", "rollouts_a_step", "seed"]].itertuples(index=False, name=None))
    left = [job for job in jobs if (job.name, job.line.rollouts, job.seed) not in finished]
    # Spawned: a forked torch may hang. One thread a process is fastest at this size.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for count, rows in enumerate(pool.map(train, left), 1):
            done = pd.concat([done, pd.DataFrame(rows)], ignore_index=True)
            write_text(path, done.to_csv(index=False))
            last = rows[-1]
            console.print(f"{count}/{len(left)} {last['line']}, seed {last['seed']}: {last['accuracy']:.3f}")
    return done


def collect_verl(task: Path, out: Path, seeds: Sequence[int], total: int, console: Console) -> pd.DataFrame:
    """As :func:`collect`, of the field on the real trainer, with the seconds of its steps."""
    steps = total // VERL_ROLLOUTS

    def overrides(method: str, seed: int) -> list[str]:
        return [f"trainer.test_freq={max(1, steps // 6)}"]

    folders = train_verl(list(VERL_FIELD.values()), out, seeds, steps, console, overrides, task)
    rows = []
    for line, method in VERL_FIELD.items():
        for seed, folder in zip(seeds, folders[method], strict=True):
            run = read_run(folder)
            (accuracy,) = run.accuracy.values()
            spent = run.frame[[ROLLOUTS, TOKENS, SECONDS]].ffill().fillna(0).loc[accuracy.index].set_axis(COSTS, axis=1)
            rows.append(spent.assign(line=line, rollouts_a_step=VERL_ROLLOUTS, seed=seed, accuracy=accuracy))
    return pd.concat(rows, ignore_index=True)


def rollouts_until(curve: pd.DataFrame, accuracy: float, cost: str = "rollouts") -> float:
    """What a run had spent when it first had an accuracy, interpolated; infinite if it never had."""
    spent, reached = curve[cost].to_numpy(float), np.maximum.accumulate(curve["accuracy"].to_numpy(float))
    if reached[-1] < accuracy:
        return np.inf
    after = int(np.argmax(reached >= accuracy))
    if after == 0:
        return spent[0]
    share = (accuracy - reached[after - 1]) / (reached[after] - reached[after - 1])
    return float(spent[after - 1] + share * (spent[after] - spent[after - 1]))


def difference(values: Sequence[float]) -> str:
    """Mean of paired differences with its interval, if there are enough of them for one."""
    mean, low, high = interval(values)
    return f"{mean:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")


def table(
    data: pd.DataFrame, names: Sequence[str], total: int, reference: str = REFERENCE, target: str = TARGET
) -> pd.DataFrame:
    """One row a line: accuracy at thirds of the rollouts, its paired difference to a line, cost until another's end.

    Over the seeds that all of the lines have.
    """
    curves = {key: curve.sort_values("rollouts") for key, curve in data.groupby(["line", "seed"])}
    # A run that was interrupted has lines without some of the seeds.
    needed = {reference, target, *names}
    seeds = [s for s in sorted(data["seed"].unique()) if all((name, s) in curves for name in needed)]
    end = float(np.mean([curves[target, s]["accuracy"].iloc[-1] for s in seeds]))
    rows = []
    for name in names:
        own = [curves[name, s] for s in seeds]
        at = {part: [np.interp(total * part, c["rollouts"], c["accuracy"]) for c in own] for part in (1 / 3, 2 / 3, 1)}
        base = [np.interp(total, curves[reference, s]["rollouts"], curves[reference, s]["accuracy"]) for s in seeds]
        rows.append(
            {
                "line": name,
                **{f"at {total * part:,.0f}": f"{np.mean(at[part]):.3f}" for part in at},
                "± at the end": f"{np.std(at[1], ddof=1):.3f}" if len(seeds) > 1 else "",
                f"difference to {reference}": "" if name == reference else difference(np.array(at[1]) - base),
                **{
                    f"{cost} until {end:.3f}": _cost(np.array([rollouts_until(c, end, cost) for c in own]))
                    for cost in COSTS
                    if cost in data
                },
            }
        )
    return pd.DataFrame(rows)


def _cost(values: np.ndarray) -> str:
    reached = np.isfinite(values)
    if not reached.any():
        return "never"
    mean, low, high = interval(values[reached])
    if not reached.all():
        return f"{mean:,.0f} ({reached.sum()} of {len(values)})"
    return f"{mean:,.0f}" + ("" if math.isnan(low) else f" [{low:,.0f}, {high:,.0f}]")


def page(data: pd.DataFrame, total: int, command: str) -> str:
    """The tables of every number of rollouts a step; of the real trainer, the field's alone."""
    parts = [f"`{command} --total {total}`; seeds {', '.join(map(str, sorted(data['seed'].unique())))}.\n"]
    if COSTS[-1] in data:
        return "\n".join([*parts, table(data, list(VERL_FIELD), total).to_markdown(index=False), ""])
    for n, here in data.groupby("rollouts_a_step", sort=True):
        present = set(here["line"])
        for title, group in lines(int(n)).items():
            if names := [name for name in group if name in present]:
                result = table(here, names, total).to_markdown(index=False)
                parts.append(f"## {n} rollouts a step: {title}\n\n{result}\n")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", type=Path, required=True, help="folder of recipes.demo.make")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[128, 32], help="a step")
    parser.add_argument("--total", type=int, default=2304, help="rollouts of a run")
    parser.add_argument("--tables", nargs="+", choices=list(lines(1)), default=list(lines(1)))
    parser.add_argument("--value-model", help="folder; the package's small one if left out")
    parser.add_argument("--wrong-labels", type=float, default=0.0, help="share of the training prompts with one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--verl", action="store_true", help="the field on the real trainer, at 128 rollouts a step")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console, command = Console(), "python -m benchmarks.training.compare_sparse --task TASK --out DIR"
    if args.verl:
        data = collect_verl(args.task, args.out, args.seeds, args.total, console)
        write_text(args.out / "runs.csv", data.to_csv(index=False))
        write_text(args.out / "page.md", page(data, args.total, f"{command} --verl"))
        return
    chosen = {(n, name): line for n in args.rollouts for t in args.tables for name, line in lines(n)[t].items()}
    # Every table compares with these two.
    chosen |= {(n, name): lines(n)["field"][name] for n in args.rollouts for name in (REFERENCE, TARGET)}
    jobs = [
        Job(args.task, name, line, seed, args.total, args.value_model, args.wrong_labels)
        for seed in args.seeds
        for (_, name), line in chosen.items()
    ]
    data = collect(jobs, args.out / "runs.csv", args.processes, console)
    write_text(args.out / "page.md", page(data, args.total, command))
    console.print(f"written: {args.out}/page.md, runs.csv")


if __name__ == "__main__":
    main()
