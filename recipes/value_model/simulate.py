"""Trajectories of simulated policies on the demo's tasks: ``python -m recipes.value_model.simulate --out FILE``.

Real policies take minutes each, and a value model overfits to a handful of them. Simulated ones take milliseconds. They
start as the demo's do after their warm-up (:mod:`recipes.demo.task`, :mod:`recipes.demo.calculation`): a last digit is
known or not, here with a bias for or against whole levels as well, and success rates rise from step to step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from recipes.demo.make import MODULES
from recipes.demo.task import TaskProblem
from value_model.conversions import reward_of_success
from value_model.trajectories import write_trajectories

PREFIXES = {"arithmetic": "simulated", "calculation": "simulated_calculation"}  # of the policies' names


@dataclass(frozen=True)
class SimulationSettings:
    """How many policies, how long their runs, and how far from the plain demo's they may be."""

    task: str = "arithmetic"
    policies: int = 150
    steps: int = 12
    prompts: int = 512
    prompts_per_step: int = 256  # many queries a task: for a small encoder they cost next to nothing
    rollouts: int = 4
    level_bias: float = 1.5  # largest standard deviation of a level's logit, drawn for each policy
    prompt_noise: float = 0.5  # standard deviation of a prompt's logit
    growth: float = 4.0  # largest mean gain in logit over the run, drawn for each policy


# Calculations are simulated with less that no prompt shows, as each of their many skills moves the outcome less.
SETTINGS = {
    "arithmetic": SimulationSettings(),
    "calculation": SimulationSettings(
        task="calculation", policies=250, rollouts=8, level_bias=0.3, prompt_noise=0.2, growth=1.5
    ),
}


def simulate(settings: SimulationSettings, seed: int) -> pd.DataFrame:
    """A trajectory table; the same seed gives the same table, and more policies only add to it."""
    tables = [_simulate_policy(settings, seed, number) for number in range(settings.policies)]
    return pd.concat(tables, ignore_index=True)


def _simulate_policy(settings: SimulationSettings, seed: int, number: int) -> pd.DataFrame:
    rng = np.random.default_rng([seed, number])
    problems, _ = import_module(MODULES[settings.task]).split_problems(rng, settings.prompts, 0)
    start = _initial_logits(problems, settings, rng)
    gain = rng.uniform(0, settings.growth) * rng.uniform(0, 2, len(problems))
    order = np.concatenate([rng.permutation(len(problems)) for _ in range(settings.steps)])
    rows = order[: settings.steps * settings.prompts_per_step]
    step = np.repeat(np.arange(settings.steps), settings.prompts_per_step)
    p = 1 / (1 + np.exp(-(start[rows] + gain[rows] * step / settings.steps)))
    wins = rng.binomial(settings.rollouts, p)
    return pd.DataFrame(
        {
            "model": f"{PREFIXES[settings.task]}_{seed}_{number}",
            "step": step + 1,
            "prompt_id": [_prompt_id(problems[row].prompt) for row in rows],
            "prompt": [problems[row].prompt for row in rows],
            "data_source": [problems[row].data_source for row in rows],
            "score": reward_of_success(wins / settings.rollouts),
            "n": settings.rollouts,
        }
    )


def _initial_logits(
    problems: Sequence[TaskProblem], settings: SimulationSettings, rng: np.random.Generator
) -> np.ndarray:
    """Each problem's log-odds at the start."""
    task = import_module(MODULES[settings.task])
    competences = task.draw_competences(rng)
    bias = rng.normal(0, rng.uniform(0, settings.level_bias), len(task.LEVELS))
    by_level = {level.name: b for level, b in zip(task.LEVELS, bias, strict=True)}
    known = np.clip([task.aimed_success(problem, competences) for problem in problems], 0.02, 0.98)
    shift = np.array([by_level[problem.level] for problem in problems])
    return np.log(known / (1 - known)) + shift + rng.normal(0, settings.prompt_noise, len(problems))


def _prompt_id(prompt: str) -> str:
    return blake2b(prompt.encode(), digest_size=8).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write trajectories of simulated policies.")
    parser.add_argument("--out", type=Path, required=True, help="parquet file")
    parser.add_argument("--task", choices=MODULES, default=SimulationSettings.task)
    parser.add_argument("--policies", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    settings = SETTINGS[args.task]
    if args.policies is not None:
        settings = replace(settings, policies=args.policies)
    table = simulate(settings, args.seed)
    write_trajectories(table, args.out)
    Console().print(f"{len(table)} rows of {settings.policies} policies written to {args.out}")


if __name__ == "__main__":
    main()
