"""Turns of a step's rows."""

from __future__ import annotations

import numpy as np

from verl_v05.rollout.turns import turn_starts, turns_of

MASK = np.array(
    [
        [1, 1, 0, 0, 1, 0],  # session 1, its second row
        [0, 1, 1, 1, 1, 1],  # session 0
        [1, 0, 1, 0, 1, 1],  # session 1, its first row
        [1, 1, 1, 1, 1, 1],  # padding
        [0, 0, 0, 0, 0, 0],  # session 2 answered nothing
    ]
)
SESSION, OUTPUT = np.array([1, 0, 1, -1, 2]), np.array([1, 0, 0, 0, 0])


def test_turns_of_a_session_are_in_order_over_its_rows() -> None:
    turns = turns_of(MASK, SESSION, OUTPUT)
    assert turns.session.tolist() == [0, 1, 1, 1, 1, 1]
    assert turns.row.tolist() == [1, 2, 2, 2, 0, 0]
    assert turns.start.tolist() == [1, 0, 2, 4, 0, 4]
    assert turns.length.tolist() == [5, 1, 1, 2, 2, 1]


def test_a_turns_value_is_on_its_own_tokens() -> None:
    turns = turns_of(MASK, SESSION, OUTPUT)
    spread = turns.over_tokens(np.arange(1.0, 7.0), MASK.shape)
    assert spread.tolist() == [[5, 5, 0, 0, 6, 0], [0, 1, 1, 1, 1, 1], [2, 0, 3, 0, 4, 4], [0] * 6, [0] * 6]


def test_turns_start_where_the_policys_tokens_do() -> None:
    assert turn_starts(np.array([1, 1, 0, 1])).tolist() == [0, 3]
    assert turn_starts(np.array([0, 0, 1, 1])).tolist() == [2]
    assert turn_starts(np.zeros(3)).tolist() == []
