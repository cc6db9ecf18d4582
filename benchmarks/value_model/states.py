"""How good values of states and the credit made of them are, against exact ones, on FrozenLake at equal rollouts.

`python -m benchmarks.value_model.states --out DIR [--value-model FOLDER]` trains the policy of
:mod:`benchmarks.training.lake` by V0.5 with outcome credit. State values of each kind learn beside it from the same
sessions, as in a run with turn credit, and do not act on it. At some of its steps the policy plays 8 sessions on each
of 16 maps, and every estimate is compared with the policy's exact values V and advantages Q - V in the states it
passed through, a state as often as it was met.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from scipy.stats import spearmanr

from benchmarks.dashboard.method_tables import interval
from benchmarks.training.compare_turns import Line, Run, V05Learner
from benchmarks.training.lake import LakeTask, Sessions
from value_model.conversions import value_of_probability
from value_model.files import write_text
from verl_v05.prior import Query
from verl_v05.rollout.state_values import state_id
from verl_v05.turn_credit import turn_credit

MAPS, GROUP, MEASURED_AT = 16, 8, (8, 32, 96)
DISCOUNT = 0.95  # GiGPO's, of a turn


class Passenger(V05Learner):
    """Learns the values of a run's states, and is asked for them without acting on the run."""

    def values_of(self, texts: Sequence[str], step: int) -> dict[str, np.ndarray]:
        """What the provider says, and what that becomes by calibration and the state's own history, in [-1, 1]."""
        states = self.states
        assert states is not None
        queries = [Query(state_id(text), text, "lake") for text in texts]
        probability = states.prior.predict(queries, states.support.sample(step), step)
        belief = states.fusion.believe([q.prompt_id for q in queries], probability)
        return {"provider": value_of_probability(probability), "calibrated": np.asarray(belief.prior)}


class Witnessed(V05Learner):
    """Outcome credit, with passengers."""

    def __init__(self, run: Run, seed: int, providers: Mapping[str, str]):
        super().__init__(run, seed)
        self.passengers = {name: Passenger(run, seed, values=prior) for name, prior in providers.items()}

    def plan(self, maps: np.ndarray, step: int) -> np.ndarray:
        for passenger in self.passengers.values():
            passenger.plan(maps, step)
        return super().plan(maps, step)

    def advantages(self, sessions: Sessions, step: int) -> np.ndarray | None:
        for passenger in self.passengers.values():
            passenger.advantages(sessions, step)
        return super().advantages(sessions, step)


def monte_carlo(run: Run, lake: np.ndarray, state: np.ndarray, rollouts: int, rng: np.random.Generator) -> np.ndarray:
    """Mean outcome of ``rollouts`` sessions from each state, (N,)."""
    values, _ = run.task.lakes.values(run.policy, lake)
    chance = (values[np.arange(len(lake)), state] + 1) / 2
    return value_of_probability(rng.binomial(rollouts, np.clip(chance, 0, 1)) / rollouts)


def anchored(sessions: Sessions) -> tuple[np.ndarray, np.ndarray]:
    """GiGPO's mean discounted return of a map's visits of a state, in [-1, 1], and its A^E + A^S, (N,) each."""
    end = np.cumsum(sessions.turns)
    to_go = end[sessions.session] - 1 - np.arange(len(sessions.session))
    returns = DISCOUNT**to_go * (sessions.reward[sessions.session] + 1) / 2
    key = sessions.lake[sessions.session] * 1000 + sessions.state
    frame = pd.DataFrame({"key": key, "r": returns}).groupby("key")["r"]
    mean, spread, count = (frame.transform(f).to_numpy() for f in ("mean", "std", "count"))
    step = np.where(count > 1, (returns - mean) / (np.nan_to_num(spread) + 1e-6), 0.0)
    return value_of_probability(mean), outcome(sessions) + step


def outcome(sessions: Sessions) -> np.ndarray:
    """GRPO's advantage of each turn, (N,)."""
    reward = sessions.reward.reshape(-1, GROUP)
    advantage = (reward - reward.mean(1, keepdims=True)) / (reward.std(1, ddof=1, keepdims=True) + 1e-6)
    return advantage.ravel()[sessions.session]


def measure(run: Run, learner: Witnessed, seed: int, step: int) -> list[dict[str, object]]:
    """Errors of every estimate of values and of credit, a row each."""
    rng, lakes = np.random.default_rng([seed, step]), run.task.lakes
    chosen = rng.choice(run.task.train, MAPS, replace=False)
    sessions = run.policy.play(lakes, np.repeat(chosen, GROUP), rng)
    lake, state = sessions.lake[sessions.session], sessions.state
    values, of_action = lakes.values(run.policy, lake)
    at = np.arange(len(lake))
    exact, advantage = values[at, state], of_action[at, state, sessions.action] - values[at, state]
    best = lakes.best_values(lake)[at, state].max(-1)
    texts = [lakes.state_text(m, s) for m, s in zip(lake, state, strict=True)]
    anchor, gigpo = anchored(sessions)
    met = pd.DataFrame({"key": lake * 1000 + state, "r": sessions.reward[sessions.session]})
    found = {
        "mean of the outcomes of its sessions": met.groupby("key")["r"].transform("mean").to_numpy(),
        "GiGPO's mean of a state": anchor,
        **{f"Monte Carlo, {n} rollouts a state": monte_carlo(run, lake, state, n, rng) for n in (1, 8)},
    }
    for name, passenger in learner.passengers.items():
        both = passenger.values_of(texts, step)
        if not np.isnan(both["provider"]).any():
            found[name] = both["provider"]
        found[f"{name}, calibrated"] = both["calibrated"]
    found["exact"] = exact
    credits = {"GRPO's outcome": outcome(sessions), "GiGPO": gigpo}
    believed = np.full(len(sessions.lake), 0.0)
    for name, value in found.items():
        first = np.append(True, sessions.last[:-1])
        believed[sessions.session[first]] = value[first]
        by_weight = [turn_credit(value, sessions.session, sessions.reward, believed, weight) for weight in (0.0, 1.0)]
        credits[f"turn credit by {name}"] = by_weight[1]
        credits[f"its change in value, {name}"] = by_weight[1] - by_weight[0]
    rows: list[dict[str, object]] = []
    where = {"step": step, "seed": seed}
    for name, value in found.items():
        ranks = spearmanr(value, exact).statistic, spearmanr(value, best).statistic
        mse = float(np.mean((value - exact) ** 2))
        rows.append({"kind": "value", "name": name, **where, "mse": mse, "rank": ranks[0], "second": ranks[1]})
    for name, credit in credits.items():
        rank, linear = spearmanr(credit, advantage).statistic, np.corrcoef(credit, advantage)[0, 1]
        rows.append({"kind": "credit", "name": name, **where, "mse": np.nan, "rank": rank, "second": linear})
    return rows


def collect(seeds: Sequence[int], steps: Sequence[int], providers: Mapping[str, str], console: Console) -> pd.DataFrame:
    """A row for each estimate, step and seed."""
    rows = []
    for seed in seeds:
        run = Run(LakeTask(), Line(1, Witnessed, {"providers": dict(providers)}), seed)
        for step in range(1, max(steps) + 1):
            run.step(step)
            if step in steps:
                rows += measure(run, run.learner, seed, step)
        console.print(f"seed {seed}")
    return pd.DataFrame(rows)


def tables(data: pd.DataFrame) -> str:
    """Means over the measured steps, with intervals over the seeds."""
    parts = []
    columns = {
        "value": {"mse": "MSE of V", "rank": "rank correlation with V", "second": "with V of the best policy"},
        "credit": {"rank": "rank correlation with Q - V", "second": "correlation"},
    }
    for kind, names in columns.items():
        rows = []
        for name, part in data[data["kind"] == kind].groupby("name", sort=False):
            row = {"estimate": name}
            for column, title in names.items():
                mean, low, high = interval(part.groupby("seed")[column].mean().to_numpy())
                row[title] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
            rows.append(row)
        parts.append(pd.DataFrame(rows).to_markdown(index=False))
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=list(MEASURED_AT))
    parser.add_argument("--value-model", help="folder of one that knows this kind of state")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    providers = {"states' history": "none", "critic": "critic"}
    if args.value_model:
        providers["value model"] = args.value_model
    data = collect(args.seeds, args.steps, providers, Console())
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "rows.csv", data.to_csv(index=False))
    write_text(args.out / "page.md", tables(data))
    print(tables(data))


if __name__ == "__main__":
    main()
