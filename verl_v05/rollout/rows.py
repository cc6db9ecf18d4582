"""Rows of a training batch matched with the rollouts, groups and priors of the step.

A row is a trajectory in TransferQueue, keyed ``{uid}_{session}_{index}``. A session may have several rows
(multi-turn agents that cut their history); synthetic padding rows have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord

NO_SESSION = -1


@dataclass(frozen=True)
class StepRows:
    """R rows, S sessions (scored rollouts), G groups with at least one of them."""

    row_session: np.ndarray  # (R,) index of the row's session, NO_SESSION for padding
    session_row: np.ndarray  # (S,) row of the session's last output
    session_group: np.ndarray  # (S,) index of the session's group
    session_number: np.ndarray  # (S,) number of the session in its group
    rewards: np.ndarray  # (S,) outcome rewards in [-1, 1]
    groups: list[Group]  # (G,)

    @property
    def prior(self) -> np.ndarray:
        """Prior of each group, NaN where missing, shape (G,)."""
        return np.array([g.prior for g in self.groups])

    @property
    def strength(self) -> np.ndarray | None:
        """Strength of each group's Beta prior, (G,); None with the paper's fusion, which has none."""
        strength = np.array([g.strength for g in self.groups])
        return None if np.isnan(strength).all() else strength

    def spread(self, per_session: np.ndarray) -> np.ndarray:
        """Copy a value of each session to its rows; 0 for padding, shape (R,)."""
        return np.where(self.row_session == NO_SESSION, 0.0, per_session[self.row_session])


def match_rows(keys: Sequence[str], is_padding: Sequence[bool], record: StepRecord) -> StepRows:
    """Match a batch's keys with the step's record.

    Raises:
        RuntimeError: a row's session was never scored, or the batch holds no scored row at all.
    """
    group_of = {g.uid: g for g in record.groups}
    groups: dict[str, int] = {}
    sessions: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], tuple[int, int]] = {}  # session -> (output index, row)
    row_session = np.full(len(keys), NO_SESSION)
    for row, (key, padding) in enumerate(zip(keys, is_padding, strict=True)):
        if padding:
            continue
        uid, session, index = key.rsplit("_", 2)
        name = (uid, int(session))
        if uid not in group_of or name[1] not in group_of[uid].rewards:
            raise RuntimeError(f"row {key} has no outcome in step {record.step}; rows and allocator are out of step")
        groups.setdefault(uid, len(groups))
        row_session[row] = sessions.setdefault(name, len(sessions))
        last[name] = max(last.get(name, (-1, -1)), (int(index), row))
    if not sessions:
        raise RuntimeError(f"step {record.step} has no scored rollout: all {len(record.groups)} groups failed")
    return StepRows(
        row_session=row_session,
        session_row=np.array([last[s][1] for s in sessions]),
        session_group=np.array([groups[uid] for uid, _ in sessions]),
        session_number=np.array([number for _, number in sessions]),
        rewards=np.array([group_of[uid].rewards[number] for uid, number in sessions]),
        groups=[group_of[uid] for uid in groups],
    )
