"""``algorithm.adv_estimator=v05``: verl's estimator signature around :func:`verl_v05.advantages`.

verl hands an estimator token rewards, masks and uids; the belief, the outcome rewards and the session of each
row come from the trainer through :func:`step_inputs`, aligned with verl's rows and checked against its uids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import register_adv_est

from verl_v05.rollout.step_inputs import StepInputs

NAME = "v05"


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
    rows = inputs.rows
    uids = np.array([g.uid for g in rows.groups])[rows.session_group]
    if len(index) != len(rows.row_session) or (np.asarray(index)[rows.session_row] != uids).any():
        raise RuntimeError("the estimator was given other rows than the step's batch")
    token_level = torch.as_tensor(inputs.token_advantages(response_mask.float().cpu().numpy())).to(token_level_rewards)
    return token_level, token_level
