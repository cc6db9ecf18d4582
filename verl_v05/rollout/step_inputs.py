"""From a step's rows and beliefs to its advantages; needs no verl."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verl_v05.advantage import LEAVE_ONE_OUT, Advantages, advantages
from verl_v05.fusion import Belief, FusionMethod
from verl_v05.rollout.rows import StepRows
from verl_v05.rollout.turns import turns_of
from verl_v05.settings import V05Settings
from verl_v05.turn_credit import turn_credit


@dataclass
class StepInputs:
    """Rows, beliefs and settings of one step, and the advantages that they give."""

    rows: StepRows
    shaping: np.ndarray | float
    settings: V05Settings
    fusion: FusionMethod
    turn_weight: float = 0.0  # of turn credit
    loss_agg_mode: str = "seq-mean-token-mean"  # of the loss that the advantages are for
    _result: Advantages | None = None

    @property
    def result(self) -> Advantages:
        """What :meth:`compute` found.

        Raises:
            RuntimeError: it was not called.
        """
        if self._result is None:
            raise RuntimeError("V0.5's estimator was not called: algorithm.adv_estimator is another one")
        return self._result

    def compute(self) -> Advantages:
        """The step's advantages, which are the result from then on."""
        self._result = advantages(
            self.rows.rewards,
            self.rows.session_group,
            self.belief,
            fusion=self.fusion,
            baseline=self.settings.baseline,
            shaping=self.shaping,
            sigma_floor=self.settings.sigma_floor,
            group_weighting=self.settings.group_weighting,
            group_weight=self.group_weight,
        )
        return self._result

    def token_advantages(self, response_mask: np.ndarray) -> np.ndarray:
        """:meth:`compute`, on the policy's own tokens, as the actor's loss takes it, (R, T).

        Args:
            response_mask: 1 on the policy's own tokens, (R, T).

        Raises:
            RuntimeError: the rows hold other turns than the states that the agent loop has named.
        """
        result = self.compute()
        if self.turn_weight > 0:
            token_level = self._turn_advantages(response_mask, result)
        else:
            token_level = self.rows.spread(result.advantage)[:, None] * response_mask
        return token_level * self.row_weight(response_mask)[:, None]

    def row_weight(self, response_mask: np.ndarray) -> np.ndarray:
        """:meth:`StepRows.loss_weight` of the step's loss, (R,)."""
        return self.rows.loss_weight(response_mask.sum(axis=1), self.loss_agg_mode)

    def _turn_advantages(self, response_mask: np.ndarray, result: Advantages) -> np.ndarray:
        """Each turn's own credit, on its tokens, (R, T)."""
        turns = turns_of(response_mask, self.rows.row_session, self.rows.row_output)
        values = self.rows.state_values
        found = np.bincount(turns.session, minlength=len(values))
        for session, of_session in enumerate(values):
            if len(of_session) != found[session]:
                uid = self.rows.groups[self.rows.session_group[session]].uid
                raise RuntimeError(
                    f"session {self.rows.session_number[session]} of prompt {uid} has {found[session]} turns in its "
                    f"rows and {len(of_session)} states: its agent loop must record one state a turn"
                )
        credit = turn_credit(
            np.concatenate(values), turns.session, self.rows.rewards + self.shaping, result.rollout_baseline,
            self.turn_weight,
        )  # fmt: skip
        return turns.over_tokens(credit * result.scale[turns.session], response_mask.shape)

    @property
    def group_weight(self) -> np.ndarray | float:
        """Factor on each group's advantages, (G,): with ``sparse.importance_weights`` 1 / the rollouts it expected.

        Times the pool's mean expectation, so that equal chances give 1.
        """
        if not self.settings.sparse.importance_weights:
            return 1.0
        return self.rows.mean_expected / np.array([g.expected for g in self.rows.groups])

    @property
    def belief(self) -> Belief:
        """What the baselines go by, of each group.

        ``leave_one_out`` claims a baseline that does not depend on the rollout's own reward. A belief that was fitted
        to the step holds every reward of it, so there the one from before the step is taken.
        """
        leave_one_out = self.settings.baseline == LEAVE_ONE_OUT
        return self.rows.opening_belief if leave_one_out else self.rows.fitted_belief
