"""Turns: the runs of the policy's own tokens in a step's rows.

An agent loop may record each turn in its output's extra field ``turns``, a list in the order of the row's turns of
``{"state": key of the environment's state, "text": what the policy saw of it, "reward": reward after the turn}``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TURNS = "turns"  # extra field of an agent loop's output


@dataclass(frozen=True)
class TurnBatch:
    """N turns of S sessions: those of a session are next to each other and in order."""

    session: np.ndarray  # (N,) index of the session
    row: np.ndarray  # (N,) row that holds the turn
    start: np.ndarray  # (N,) first token of it in the row's response
    length: np.ndarray  # (N,) tokens

    def over_tokens(self, per_turn: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """A value of each turn on its tokens, 0 elsewhere, of shape (R, T)."""
        values = np.zeros(shape)
        token = np.arange(self.length.sum()) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        values[np.repeat(self.row, self.length), np.repeat(self.start, self.length) + token] = np.repeat(
            per_turn, self.length
        )
        return values


@dataclass(frozen=True)
class TurnRecords:
    """What the agent loop has recorded of a step's N turns, and the outcomes of its S sessions."""

    turns: TurnBatch
    state: np.ndarray  # (N,) number of the state; two turns of one group are in the same state where it is equal
    reward: np.ndarray  # (N,) reward after the turn
    outcome: np.ndarray  # (S,) reward of the session
    group: np.ndarray  # (S,) index of its group

    @property
    def last(self) -> np.ndarray:
        """Whether each turn is the last one of its session, (N,)."""
        return np.append(self.turns.session[1:] != self.turns.session[:-1], True)[: len(self.turns.session)]


def turn_starts(mask: np.ndarray) -> np.ndarray:
    """Indices of the first tokens of the turns of one response, whose mask is 1 on the policy's tokens, (T,)."""
    own = np.asarray(mask) != 0
    return np.flatnonzero(own & ~np.append(False, own[:-1]))


def turns_of(response_mask: np.ndarray, row_session: np.ndarray, row_output: np.ndarray) -> TurnBatch:
    """The turns of a step's rows.

    Args:
        response_mask: 1 on the policy's own tokens, (R, T).
        row_session: session of each row, negative for padding, (R,).
        row_output: number of each row in its session, (R,).
    """
    own = (np.asarray(response_mask) != 0) & (row_session >= 0)[:, None]
    edges = np.diff(np.pad(own, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    order = np.lexsort((start, row_output[row], row_session[row]))
    row, start, end = row[order], start[order], end[order]
    return TurnBatch(row_session[row], row, start, end - start)
