"""Rows of a training batch matched with the rollouts, groups and priors of the step.

A row is a trajectory in TransferQueue, keyed ``{uid}_{session}_{index}``. A session may have several rows
(multi-turn agents that cut their history); synthetic padding rows have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from verl_v05.fusion import Belief
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord

if TYPE_CHECKING:
    from transfer_queue import KVBatchMeta

NO_SESSION = -1


@dataclass(frozen=True)
class StepRows:
    """R rows, S sessions (scored rollouts), G groups with at least one of them."""

    row_session: np.ndarray  # (R,) index of the row's session, NO_SESSION for padding
    row_output: np.ndarray  # (R,) number of the row in its session, 0 for padding
    session_row: np.ndarray  # (S,) row of the session's last output
    session_group: np.ndarray  # (S,) index of the session's group
    session_number: np.ndarray  # (S,) number of the session in its group
    rewards: np.ndarray  # (S,) outcome rewards in [-1, 1]
    groups: list[Group]  # (G,)
    mean_expected: float = (
        math.nan
    )  # first rollouts that a prompt of the step, with or without any, could expect; or NaN

    @property
    def opening_belief(self) -> Belief:
        """Of each group before its rollouts, (G,)."""
        return self._belief("prior", "strength")

    @property
    def fitted_belief(self) -> Belief:
        """Of each group after the fusion has learnt from the step, these rewards among it, (G,)."""
        return self._belief("fitted_prior", "fitted_strength")

    def loss_weight(self, tokens: np.ndarray, loss_agg_mode: str) -> np.ndarray:
        """Factor on each row's advantages that makes the loss count sessions, not rows, (R,).

        With it the gradient does not depend on how a session's tokens are cut into rows: Eq. 10's 1 / K counts
        rollouts, where verl's seq-mean losses divide by the number of rows and average over each row's own tokens. 1
        for every row where each session has one, and with the token losses, which count no rows.

        Args:
            tokens: own tokens of each row, (R,).
            loss_agg_mode: verl's ``actor.loss_agg_mode``.
        """
        weight = np.ones(len(tokens))
        if not loss_agg_mode.startswith("seq-mean"):
            return weight
        own = self.row_session != NO_SESSION
        if loss_agg_mode == "seq-mean-token-mean":
            whole = np.bincount(self.row_session[own], weights=tokens[own], minlength=len(self.rewards))
            share = tokens[own] / np.maximum(whole[self.row_session[own]], 1)
            weight[own] = np.where(whole[self.row_session[own]] > 0, share, 1.0)
        weight[own] *= own.sum() / len(self.rewards)
        return weight

    @property
    def state_values(self) -> list[list[float]]:
        """Of each session, V of the states before its turns; empty without ``credit=turn``."""
        numbered = zip(self.session_group, self.session_number, strict=True)
        return [self.groups[group].state_values.get(int(number), []) for group, number in numbered]

    def spread(self, per_session: np.ndarray) -> np.ndarray:
        """Copy a value of each session to its rows; 0 for padding, shape (R,)."""
        return np.where(self.row_session == NO_SESSION, 0.0, per_session[self.row_session])

    def _belief(self, *names: str) -> Belief:
        return Belief(*(np.array([getattr(g, name) for g in self.groups]) for name in names))


def match_rows(keys: Sequence[str], is_padding: Sequence[bool], record: StepRecord) -> StepRows:
    """Match a batch's keys with the step's record.

    Raises:
        RuntimeError: a row's session was never scored, or the batch holds no scored row at all.
    """
    group_of = {g.uid: g for g in record.groups}
    groups: dict[str, int] = {}
    sessions: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], tuple[int, int]] = {}  # session -> (output index, row)
    row_session, row_output = np.full(len(keys), NO_SESSION), np.zeros(len(keys), dtype=int)
    for row, (key, padding) in enumerate(zip(keys, is_padding, strict=True)):
        if padding:
            continue
        uid, session, index = key.rsplit("_", 2)
        name = (uid, int(session))
        if uid not in group_of or name[1] not in group_of[uid].rewards:
            raise RuntimeError(f"row {key} has no outcome in step {record.step}; rows and allocator are out of step")
        groups.setdefault(uid, len(groups))
        row_session[row], row_output[row] = sessions.setdefault(name, len(sessions)), int(index)
        last[name] = max(last.get(name, (-1, -1)), (int(index), row))
    if not sessions:
        raise RuntimeError(f"step {record.step} has no scored rollout: all {len(record.groups)} groups failed")
    return StepRows(
        row_session=row_session,
        row_output=row_output,
        session_row=np.array([last[s][1] for s in sessions]),
        session_group=np.array([groups[uid] for uid, _ in sessions]),
        session_number=np.array([number for _, number in sessions]),
        rewards=np.array([group_of[uid].rewards[number] for uid, number in sessions]),
        groups=[group_of[uid] for uid in groups],
        mean_expected=float(np.mean(record.column("expected"))),
    )


def padding(batch: KVBatchMeta) -> list[bool]:
    """Whether each row is one of verl's synthetic padding rows."""
    return [bool(tag.get("is_padding", False)) for tag in batch.tags]


def response_tokens(batch: KVBatchMeta) -> int:
    """Response tokens of the batch's real rows."""
    return sum(tag["response_len"] for tag, padded in zip(batch.tags, padding(batch), strict=True) if not padded)


def last_outputs(batch: KVBatchMeta) -> list[str]:
    """Key of each session's last output, which carries its outcome; keys are ``{uid}_{session}_{index}``."""
    last: dict[str, int] = {}
    for key, padded in zip(batch.keys, padding(batch), strict=True):
        if not padded:
            session, index = key.rsplit("_", 1)
            last[session] = max(last.get(session, 0), int(index))
    return [f"{session}_{index}" for session, index in last.items()]
