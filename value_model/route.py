"""Which of several policies to ask for a prompt: the value model as a router.

:class:`Router` predicts, from each policy's own context, how likely it is to solve a prompt, and picks the one whose
expected value ``success - price * cost`` is largest. ``python -m value_model.route TRAJECTORIES...`` measures that on
recorded policies, beside the best single one, a random one, and an oracle that knows the measured outcomes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from value_model.checks import require
from value_model.conversions import success_of_reward
from value_model.evaluation.predictions import ValueModelLike
from value_model.trajectories import read_trajectories, split_by_prompt, success


@dataclass(frozen=True)
class Policy:
    """A policy that may be asked."""

    name: str
    prompts: Sequence[str]  # that it was measured on, its context
    scores: Sequence[float]  # their mean outcome rewards, in [-1, 1]
    cost: float = 0.0  # of one rollout, in any unit


class Routes(NamedTuple):
    """Which policy each of Q prompts goes to."""

    policy: list[str]  # its name, (Q,)
    success: np.ndarray  # expected success of it, in [0, 1], (Q,)
    cost: np.ndarray  # (Q,)


class Router:
    """Routes prompts to the policies of a pool.

    Args:
        model: a :class:`value_model.ValueModel`.
        policies: at least one; each context needs successes and failures.
        price: success probability that a unit of cost is worth, >= 0.

    Raises:
        ValueError: there is no policy, a name is there twice, or the price is negative.
    """

    def __init__(self, model: ValueModelLike, policies: Sequence[Policy], price: float = 0.0):
        names = [policy.name for policy in policies]
        require("policies", names, 0 < len(names) == len(set(names)), "at least one, each name once")
        require("price", price, price >= 0, "at least 0")
        self._model, self._policies, self._price = model, list(policies), price

    def success(self, prompts: Sequence[str]) -> np.ndarray:
        """Success probability of each policy on each prompt, (policies, Q)."""
        return np.stack([self._model.predict(p.prompts, p.scores, prompts) for p in self._policies])

    def route(self, prompts: Sequence[str]) -> Routes:
        """The policy of each prompt; of equally good ones the first."""
        success, cost = self.success(prompts), np.array([policy.cost for policy in self._policies])
        chosen = choose(success, cost, self._price)
        names = [self._policies[i].name for i in chosen]
        return Routes(names, success[chosen, np.arange(len(prompts))], cost[chosen])


def choose(success: np.ndarray, cost: np.ndarray, price: float) -> np.ndarray:
    """Index of the policy with the largest ``success - price * cost`` for each prompt, (Q,).

    Args:
        success: (policies, Q), NaN for a policy that must not be chosen; at least one of each prompt is a number.
        cost: (policies,).
    """
    return np.nanargmax(success - price * cost[:, None], axis=0)


def compare(
    table: pd.DataFrame, model: ValueModelLike, costs: Mapping[str, float], price: float, context: int, seed: int
) -> tuple[pd.DataFrame, int]:
    """How the router does on prompts that no context holds, beside policies chosen without looking at the prompt.

    A prompt counts if at least two policies were measured on it, and is routed among those. A policy's last measurement
    of a prompt is its outcome.

    Args:
        table: trajectories of :func:`value_model.trajectories.read_trajectories`.
        costs: of a rollout by policy; 0 for others.
        context: most prompts in a policy's context.

    Returns:
        success, cost and value of each choice, with the paired difference in value to "best on average" and its 95 %
        interval over resampled prompts; number of prompts.

    Raises:
        ValueError: no prompt that was held out was measured on two policies.
    """
    latest = table.sort_values("step", kind="stable").drop_duplicates(["model", "prompt_id"], keep="last")
    parts = split_by_prompt(latest, {"context": 0.8, "routed": 0.2}, seed)
    measured = parts["routed"].assign(p=success(parts["routed"])).pivot(index="model", columns="prompt", values="p")
    measured = measured.loc[:, measured.notna().sum() > 1]
    if measured.empty:
        raise ValueError("no held-out prompt was measured on two policies; record them on the same prompts")
    policies = []
    for name in measured.index:
        rows = parts["context"].query("model == @name")
        rows = rows.sample(min(context, len(rows)), random_state=seed)
        policies.append(Policy(name, list(rows["prompt"]), list(rows["score"]), costs.get(name, 0.0)))
    truth, cost = measured.to_numpy(), np.array([policy.cost for policy in policies])
    known = ~np.isnan(truth)
    average = np.array([np.mean(success_of_reward(np.array(policy.scores))) for policy in policies])
    predicted = Router(model, policies, price).success(list(measured.columns))
    picks = {
        "best on average": np.where(known, average[:, None], np.nan),
        "value model": np.where(known, predicted, np.nan),
        "oracle": truth,
    }
    outcome = {}
    for name, believed in picks.items():
        chosen = choose(believed, cost, price)
        outcome[name] = truth[chosen, np.arange(truth.shape[1])], cost[chosen]
    outcome["random"] = np.nanmean(truth, axis=0), np.nanmean(np.where(known, cost[:, None], np.nan), axis=0)
    return _summary(outcome, price, seed), truth.shape[1]


def _summary(outcome: Mapping[str, tuple[np.ndarray, np.ndarray]], price: float, seed: int) -> pd.DataFrame:
    prompts = len(outcome["random"][0])
    draws = np.random.default_rng(seed).integers(prompts, size=(2000, prompts))
    reference = outcome["best on average"]
    rows = []
    for name, (p, spent) in outcome.items():
        gain = (p - price * spent) - (reference[0] - price * reference[1])
        low, high = np.percentile(gain[draws].mean(axis=1), [2.5, 97.5])
        paired = "" if name == "best on average" else f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append(
            {
                "choice": name,
                "success": f"{p.mean():.3f}",
                "cost": f"{spent.mean():.3f}",
                "value": f"{(p - price * spent).mean():.3f}",
                "difference to best on average": paired,
            }
        )
    return pd.DataFrame(rows)


def _cost(text: str) -> tuple[str, float]:
    name, _, cost = text.rpartition("=")
    return name, float(cost)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m value_model.route", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="TRAJECTORIES", help="parquet, jsonl or run folder")
    parser.add_argument("--model", help="folder or hub id of a value model (default: the package's small one)")
    parser.add_argument("--policies", nargs="+", metavar="NAME", help="those to choose among (default: all recorded)")
    parser.add_argument("--cost", nargs="+", type=_cost, default=[], metavar="NAME=COST", help="of a rollout (0)")
    parser.add_argument("--price", type=float, default=0.0, help="success probability that a unit of cost is worth")
    parser.add_argument("--context-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    from value_model.model import ValueModel  # importing torch takes seconds

    try:
        table = read_trajectories(args.runs)
        if args.policies:
            table = table[table["model"].isin(args.policies)]
        model = ValueModel.from_pretrained(args.model)
        result, prompts = compare(table, model, dict(args.cost), args.price, args.context_size, args.seed)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    Console().print(f"{prompts} prompts, {table['model'].nunique()} policies\n")
    Console().print(result.to_markdown(index=False), soft_wrap=True)


if __name__ == "__main__":
    main()
