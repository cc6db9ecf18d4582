"""Tree-OPO: sessions as a tree of prefixes (Huang, Nguyen, Zimmer, "Tree-OPO: Off-policy Monte Carlo Tree-Guided
Advantage Optimization for Multistep Reasoning", arXiv 2509.09284).

The formula is the project's specification's, which has it from notes about the paper; neither the paper's equations nor
code of its authors were at hand, so no equation is numbered and the default of ``alpha`` is not the paper's. Of the
paper's estimates of the advantage this is the centred one; its quadratic program with order constraints is left out.

Prefixes there are a teacher's, and completions of each are the policy's. Here nothing is branched: the prefixes are the
sequences of states that the sessions of a prompt have in common, and each turn's completion is the rest of its session.
"""

from __future__ import annotations

import numpy as np

from verl_v05.estimators.base import TurnEstimator, estimator
from verl_v05.estimators.groups import check, relative
from verl_v05.rollout.turns import TurnRecords


@estimator("tree_opo")
class TreeOPO(TurnEstimator):
    """A = r - alpha V(prefix), less its mean over the turns of the prompt's group."""

    def turn_advantages(self, records: TurnRecords, *, alpha: float = 1.0, normalise: bool = True) -> np.ndarray:
        """Advantage of each turn, (N,).

        r is the outcome of the turn's session and V the mean outcome of the group's sessions that have the turn's
        prefix, the states from the session's first one to the turn's. V holds the session's own outcome: with
        ``alpha=1`` a turn whose prefix no other session has is measured against itself. Where the policy decides when
        to stop, that biases the gradient's direction (``benchmarks/estimators/turns.md``).

        Args:
            alpha: weight of V, in [0, 1]; with 0 only the outcome counts.
            normalise: divide by the group's standard deviation (k - 1), as GRPO.

        Raises:
            ValueError: ``alpha`` is out of range.
        """
        check(0 <= alpha <= 1, f"alpha must be in [0, 1]; got {alpha}")
        session = records.turns.session
        outcome, group = records.outcome[session], records.group[session]
        prefix = prefixes(session, group, records.state)
        value = np.bincount(prefix, weights=outcome) / np.maximum(np.bincount(prefix), 1)
        return relative(outcome - alpha * value[prefix], group, normalise)


def prefixes(session: np.ndarray, group: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Number of each turn's prefix, equal where the group and all states up to the turn's are, (N,).

    Args:
        session: of each turn; those of a session are next to each other and in order, (N,).
        group: of each turn's session, (N,).
        state: number of the turn's state, (N,).
    """
    first = np.append(True, session[1:] != session[:-1])[: len(session)]
    depth = np.arange(len(session)) - np.maximum.accumulate(np.where(first, np.arange(len(session)), 0))
    prefix, known = np.zeros(len(session), dtype=int), 0
    for at in range(depth.max(initial=-1) + 1):
        here = np.flatnonzero(depth == at)
        parent = group[here] if at == 0 else prefix[here - 1]
        found, number = np.unique(np.stack([parent, state[here]], axis=1), axis=0, return_inverse=True)
        prefix[here] = known + number.reshape(-1)
        known += len(found)
    return prefix
