"""Rows of a training batch matched with the step's rollouts."""

from __future__ import annotations

import numpy as np
import pytest

from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import NO_SESSION, match_rows


def group(uid: str, rewards: dict[int, float], prior: float = 0.0, failed: int = 0) -> Group:
    return Group(uid, Query(f"id {uid}", "", "s"), len(rewards) + failed, prior, rewards, failed)


def step(*groups: Group) -> StepRecord:
    return StepRecord(7, list(groups))


def test_rows_find_their_session_and_group() -> None:
    record = step(group("a", {0: 1.0, 1: -1.0}, 0.5), group("b", {0: -1.0}, -0.5))
    rows = match_rows(["b_0_0", "a_1_0", "a_0_0"], [False] * 3, record)
    assert rows.row_session.tolist() == [0, 1, 2] and rows.session_row.tolist() == [0, 1, 2]
    assert [rows.groups[g].uid for g in rows.session_group] == ["b", "a", "a"]
    assert rows.session_number.tolist() == [0, 1, 0]
    assert rows.rewards.tolist() == [-1.0, -1.0, 1.0]
    assert rows.opening_belief.prior.tolist() == [-0.5, 0.5]


def test_padding_rows_belong_to_no_session() -> None:
    record = step(group("a", {0: 1.0, 1: -1.0}))
    rows = match_rows(["pad1_0_0", "a_0_0", "pad-2", "a_1_0"], [True, False, True, False], record)
    assert rows.row_session.tolist() == [NO_SESSION, 0, NO_SESSION, 1]
    assert rows.session_row.tolist() == [1, 3]
    assert rows.spread(np.array([5.0, 6.0])).tolist() == [0, 5, 0, 6]


def test_a_session_of_several_outputs_counts_once_and_ends_with_its_last() -> None:
    record = step(group("a", {0: 1.0, 3: -1.0}), group("b", {1: 1.0}))
    keys = ["a_0_2", "a_0_10", "b_1_0", "a_0_0", "a_3_1", "a_3_0"]
    rows = match_rows(keys, [False] * 6, record)
    assert [keys[row] for row in rows.session_row] == ["a_0_10", "b_1_0", "a_3_1"]
    assert rows.rewards.tolist() == [1.0, 1.0, -1.0] and rows.session_number.tolist() == [0, 1, 3]
    assert rows.spread(np.array([1.0, 2.0, 3.0])).tolist() == [1, 1, 2, 1, 3, 3]


def test_groups_without_a_scored_rollout_are_left_out() -> None:
    record = step(group("dead", {}, 0.9, failed=4), group("a", {1: 1.0}, -0.9, failed=3))
    rows = match_rows(["a_1_0"], [False], record)
    assert [g.uid for g in rows.groups] == ["a"] and rows.opening_belief.prior.tolist() == [-0.9]
    assert rows.session_group.tolist() == [0]


def test_missing_priors_stay_missing() -> None:
    rows = match_rows(["a_0_0"], [False], step(group("a", {0: 1.0}, float("nan"))))
    assert np.isnan(rows.opening_belief.prior).tolist() == [True]


def test_uids_with_underscores_and_dashes_are_whole() -> None:
    rows = match_rows(["a_b_1_0", "a-b_0_0"], [False] * 2, step(group("a_b", {1: 1.0}), group("a-b", {0: -1.0})))
    assert [g.uid for g in rows.groups] == ["a_b", "a-b"]


@pytest.mark.parametrize("key", ["a_2_0", "other_0_0", "dead_0_0"])
def test_a_row_without_an_outcome_is_an_error_that_names_it(key: str) -> None:
    record = step(group("a", {0: 1.0, 1: 1.0}), group("dead", {}, failed=4))
    with pytest.raises(RuntimeError, match=f"row {key} has no outcome in step 7"):
        match_rows(["a_0_0", key], [False, False], record)


def test_a_step_in_which_everything_failed_is_an_error() -> None:
    record = step(group("a", {}, failed=4), group("b", {}, failed=4))
    with pytest.raises(RuntimeError, match="step 7 has no scored rollout: all 2 groups failed"):
        match_rows(["pad_0_0"], [True], record)


def test_outcomes_of_a_step_are_success_rates_of_the_scored_groups() -> None:
    record = step(group("a", {0: 1.0, 1: -1.0, 2: -1.0, 3: -1.0}), group("dead", {}, failed=4), group("b", {2: 1.0}))
    assert [(o.query.prompt_id, o.success, o.k) for o in record.outcomes()] == [("id a", 0.25, 4), ("id b", 1.0, 1)]
