"""``python -m benchmarks.estimators.turn_gradients``: expected gradients of turns' estimators, enumerated exactly.

In each of :data:`TURNS` turns the policy stops or goes on; stopping after t turns succeeds with chance ``SUCCESS[t]``,
and so does the end. K sessions are a group. All groups are enumerated with their chances and handed to the estimators
at once; the true gradient comes from the exact values of the states. Seconds of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from value_model.files import write_text
from verl_v05.estimators.gigpo import GiGPO
from verl_v05.estimators.groups import relative
from verl_v05.estimators.tree_opo import TreeOPO
from verl_v05.rollout.turns import TurnBatch, TurnRecords
from verl_v05.turn_credit import turn_credit

TURNS = 3
GO = np.array([0.5, -0.3, 0.8])  # logits of going on, the policy's parameters
SUCCESS = np.array([0.2, 0.6, 0.1, 0.8])  # stopping in turn 0, 1, 2; at the end
SIZES = (2, 3, 4)
PAGE = Path(__file__).parent / "turns.md"

Credit = Callable[[TurnRecords], np.ndarray]


def values() -> np.ndarray:
    """Chance of success before each turn and at the end, (TURNS + 1,)."""
    found, go = SUCCESS.copy(), expit(GO)
    for turn in reversed(range(TURNS)):
        found[turn] = go[turn] * found[turn + 1] + (1 - go[turn]) * SUCCESS[turn]
    return found


def true_gradient() -> np.ndarray:
    """Of the chance of success by the logits, (TURNS,)."""
    go = expit(GO)
    reached = np.cumprod(np.append(1.0, go[:-1]))
    return reached * go * (1 - go) * (values()[1:] - SUCCESS[:TURNS])


def groups(k: int) -> tuple[TurnRecords, np.ndarray, np.ndarray]:
    """Every ordered group of ``k`` sessions: its turns, its chance (G,), and the action's score of each turn (N,)."""
    go = expit(GO)
    endings = list(product(range(TURNS + 1), (0.0, 1.0)))  # turn of the stop, TURNS for none; outcome
    chance = np.array(
        [
            np.prod(go[:stop]) * (1 if stop == TURNS else 1 - go[stop]) * (SUCCESS[stop] if won else 1 - SUCCESS[stop])
            for stop, won in endings
        ]
    )
    chosen = np.array(list(product(range(len(endings)), repeat=k)))  # (G, k)
    stop, won = (np.array(column)[chosen.ravel()] for column in zip(*endings, strict=True))
    turns = np.minimum(stop + 1, TURNS)
    session = np.repeat(np.arange(len(stop)), turns)
    state = np.arange(len(session)) - np.repeat(np.cumsum(turns) - turns, turns)
    last = state == turns[session] - 1
    score = (stop[session] != state) - go[state]
    batch = TurnBatch(session, session, state, np.ones_like(state))
    group = np.repeat(np.arange(len(chosen)), k)
    records = TurnRecords(batch, state, np.where(last, won[session], 0.0), won, group)
    return records, chance[chosen].prod(axis=1), score


def expected_gradient(credit: Credit, k: int) -> np.ndarray:
    """Of the mean over a group's sessions of the sum of credit times score, (TURNS,)."""
    records, chance, score = groups(k)
    of_turn = chance[records.group[records.turns.session]] * credit(records) * score / k
    return np.bincount(records.state, weights=of_turn, minlength=TURNS)


def prior_credit(records: TurnRecords) -> np.ndarray:
    """V0.5's outcome credit where the prior is exact and accepted."""
    return records.outcome[records.turns.session] - values()[0]


def state_credit(records: TurnRecords, weight: float = 1.0) -> np.ndarray:
    """V0.5's turn credit, likewise, with exact values of the states."""
    exact = values()
    baseline = np.full(len(records.outcome), exact[0])
    return turn_credit(exact[records.state], records.turns.session, records.outcome, baseline, weight)


def index_credit(records: TurnRecords, normalise: bool) -> np.ndarray:
    """The outcome among those of the group's sessions that have a turn of the same number."""
    session, number = records.turns.session, records.turns.start
    return relative(records.outcome[session], records.group[session] * TURNS + number, normalise)


CREDITS: dict[str, Credit] = {
    "outcome less an exact prior (`v05`, `credit=outcome`)": prior_credit,
    "outcome less the group's mean (GRPO without its deviation)": lambda records: GiGPO().turn_advantages(
        records, omega=0.0, normalise=False
    ),
    "`v05`, `credit=turn`, exact values, weight 1": state_credit,
    "`gigpo`, gamma = 1, `normalise=false`": lambda records: GiGPO().turn_advantages(
        records, gamma=1.0, normalise=False
    ),
    "`gigpo`, gamma = 1": lambda records: GiGPO().turn_advantages(records, gamma=1.0),
    "`tree_opo`, alpha = 1, `normalise=false`": lambda records: TreeOPO().turn_advantages(records, normalise=False),
    "`tree_opo`, alpha = 0.5, `normalise=false`": lambda records: TreeOPO().turn_advantages(
        records, alpha=0.5, normalise=False
    ),
    "centred by turn number (not offered)": lambda records: index_credit(records, normalise=False),
    "normalised by turn number (not offered)": lambda records: index_credit(records, normalise=True),
}


def run() -> pd.DataFrame:
    """Of each credit and group size: ``scale`` of its expected gradient on the true one, and ``bias``, the part of it
    that is at right angles to the true gradient, over the part along it."""
    true, rows = true_gradient(), []
    for (name, credit), k in product(CREDITS.items(), SIZES):
        found = expected_gradient(credit, k)
        scale = found @ true / (true @ true)
        bias = np.linalg.norm(found / scale - true) / np.linalg.norm(true)
        rows.append({"credit": name, "k": k, "scale": scale, "bias": bias})
    return pd.DataFrame(rows)


def page(found: pd.DataFrame) -> str:
    """The page's text."""
    shown = found.assign(cell=[f"{b:.3f} ({s:.2f})" for b, s in zip(found["bias"], found["scale"], strict=True)])
    table = shown.pivot(index="credit", columns="k", values="cell").loc[list(CREDITS)]
    table.columns = [f"K = {k}" for k in table.columns]
    return f"""# Bias of credit where the policy decides when to stop

`python -m benchmarks.estimators.turn_gradients`. A process of up to {TURNS} turns, in each of which
the policy stops or goes on; every group of K sessions is enumerated with its chance, so nothing
here is sampled. Cells: length of the part of the expected gradient that is at right angles to the
true one, over the part along it; in brackets that part over the true gradient. An unbiased
direction has 0.

{table.to_markdown()}

A constant factor is the learning rate's; a bias of the direction is not. Outcome credit has none.
Centring by turn number has one: how many sessions reach a turn is the policy's doing, and so is
then the factor (n - 1)/n on the turn's gradient. A state of this process is the turn's number, so
`tree_opo` with alpha = 1 is the same thing here, and the step part of `gigpo` has the same factor.
`credit=turn` takes the mean change in value over a session's turns off, which depends on where it
stopped; its weight falls with the values' measured error.

It is of this one process: its chances are in the file. It says nothing of variance, which is what
credit of turns is for.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators.turn_gradients")
    parser.add_argument("--out", type=Path, default=PAGE)
    text = page(run())
    write_text(parser.parse_args(arguments).out, text)
    print(text)


if __name__ == "__main__":
    main()
