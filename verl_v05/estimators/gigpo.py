"""GiGPO: a group's outcomes, and its steps in the same state (Feng et al., "Group-in-Group Policy Optimization for LLM
Agent Training", arXiv 2505.10978).

Formulas as in the project's specification, which has them from the paper and its public code (github.com/langfengQ/
verl-agent); neither was at hand when this was written, so no equation is numbered.
"""

from __future__ import annotations

import numpy as np

from verl_v05.estimators.base import TurnEstimator, estimator
from verl_v05.estimators.groups import check, relative
from verl_v05.rollout.turns import TurnRecords


@estimator("gigpo")
class GiGPO(TurnEstimator):
    """A = A^E + omega A^S: of the episode, and of the step among those of its group in the same state."""

    def turn_advantages(
        self, records: TurnRecords, *, omega: float = 1.0, gamma: float = 0.95, normalise: bool = True
    ) -> np.ndarray:
        """Advantage of each turn, (N,).

        A^E is the outcome less its group's mean; A^S the discounted return from the turn on, which is the sum of its
        and later rewards, less the mean over the turns of the group in its state, 0 where the state was met once.

        Args:
            omega: weight of A^S, >= 0.
            gamma: discount a turn, in [0, 1].
            normalise: divide each by its group's standard deviation (k - 1), as GRPO.

        Raises:
            ValueError: a parameter is out of range.
        """
        check(omega >= 0, f"omega must be at least 0; got {omega}")
        check(0 <= gamma <= 1, f"gamma must be in [0, 1]; got {gamma}")
        session, last = records.turns.session, records.last
        returns, ahead = np.zeros(len(session)), 0.0
        for turn in reversed(range(len(session))):
            ahead = records.reward[turn] + (0.0 if last[turn] else gamma * ahead)
            returns[turn] = ahead
        pairs = np.stack([records.group[session], records.state], axis=1)
        anchor = np.unique(pairs, axis=0, return_inverse=True)[1]
        episode = relative(records.outcome, records.group, normalise)[session]
        return episode + omega * relative(returns, anchor.reshape(-1), normalise)
