"""``algorithm.adv_estimator=v05``: verl's estimator signature around :func:`verl_v05.advantages`.

verl hands an estimator token rewards, masks and uids; the belief, the outcome rewards and the session of each
row come from the trainer through :func:`step_inputs`, aligned with verl's rows and checked against its uids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import register_adv_est

from verl_v05.advantage import LEAVE_ONE_OUT, Advantages, advantages
from verl_v05.fusion import Belief, FusionMethod
from verl_v05.rollout.rows import StepRows
from verl_v05.settings import V05Settings

NAME = "v05"


@dataclass
class StepInputs:
    """What the estimator needs beyond verl's arguments, and what it found."""

    rows: StepRows
    shaping: np.ndarray | float
    settings: V05Settings
    fusion: FusionMethod
    _result: Advantages | None = None

    @property
    def result(self) -> Advantages:
        """What the estimator found.

        Raises:
            RuntimeError: it was not called.
        """
        if self._result is None:
            raise RuntimeError("V0.5's estimator was not called: algorithm.adv_estimator is another one")
        return self._result

    @result.setter
    def result(self, found: Advantages) -> None:
        self._result = found

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


_inputs: ContextVar[StepInputs] = ContextVar("v05_step_inputs")


@contextmanager
def step_inputs(inputs: StepInputs) -> Iterator[StepInputs]:
    """Make ``inputs`` those of the estimator calls inside."""
    token = _inputs.set(inputs)
    try:
        yield inputs
    finally:
        _inputs.reset(token)


@register_adv_est(NAME)
def compute_v05_outcome_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantage of Eq. 10 for every response token.

    Args:
        token_level_rewards: (R, T); only its dtype and device are used, the outcome comes from the step's inputs.
        response_mask: (R, T), 1 on the policy's own tokens.
        index: (R,) uid of each row.

    Returns:
        advantages and returns, both (R, T), 0 outside the mask and on padding rows.

    Raises:
        RuntimeError: called outside V0.5's trainer, or with other rows than the step's.
    """
    inputs = _inputs.get(None)
    if inputs is None:
        raise RuntimeError(
            f"adv_estimator={NAME} needs the prior of V0.5's trainer: set trainer.v1.trainer_mode={NAME}"
        )
    rows, settings = inputs.rows, inputs.settings
    uids = np.array([g.uid for g in rows.groups])[rows.session_group]
    if len(index) != len(rows.row_session) or (np.asarray(index)[rows.session_row] != uids).any():
        raise RuntimeError("the estimator was given other rows than the step's batch")
    inputs.result = advantages(
        rows.rewards,
        rows.session_group,
        inputs.belief,
        fusion=inputs.fusion,
        baseline=settings.baseline,
        shaping=inputs.shaping,
        sigma_floor=settings.sigma_floor,
        group_weighting=settings.group_weighting,
        group_weight=inputs.group_weight,
    )
    per_row = torch.as_tensor(rows.spread(inputs.result.advantage)).to(token_level_rewards)
    token_level = per_row.unsqueeze(-1) * response_mask
    return token_level, token_level
