"""Estimators of turns: by hand, and as verl calls them on sessions of several rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from benchmarks.estimators import turn_gradients
from verl_v05.estimators.gigpo import GiGPO
from verl_v05.estimators.register import TurnRows, estimator_of, using
from verl_v05.estimators.tree_opo import TreeOPO
from verl_v05.rollout.turns import TurnBatch, TurnRecords


def records(states: list[list[int]], outcome: list[float], group: list[int]) -> TurnRecords:
    """Sessions whose reward comes with the last turn."""
    session = np.repeat(np.arange(len(states)), [len(s) for s in states])
    last = np.append(session[1:] != session[:-1], True)
    zeros = np.zeros_like(session)
    reward = np.where(last, np.array(outcome)[session], 0.0)
    turns = TurnBatch(session, session, zeros, zeros + 1)
    return TurnRecords(turns, np.concatenate(states), reward, np.array(outcome), np.array(group))


def test_gigpo_by_hand() -> None:
    # Two sessions of one prompt: both in states 0 and 1, one wins; the winner was in state 2 alone.
    found = GiGPO().turn_advantages(records([[0, 1, 2], [0, 1]], [1.0, 0.0], [0, 0]), gamma=0.5, normalise=False)
    episode = np.array([0.5, 0.5, 0.5, -0.5, -0.5])
    step = np.array([0.125, 0.25, 0.0, -0.125, -0.25])  # returns 1/4, 1/2, 1 against 0, 0
    assert np.allclose(found, episode + step)


def test_gigpo_normalises_by_the_standard_deviation_of_each_group() -> None:
    found = GiGPO().turn_advantages(records([[0], [0], [0]], [1.0, 1.0, 0.0], [0, 0, 0]), gamma=1.0)
    spread = np.std([1, 1, 0], ddof=1)
    assert np.allclose(found, 2 * np.array([1, 1, -2]) / 3 / spread, rtol=1e-4)


def test_gigpo_without_its_steps_is_grpo() -> None:
    found = GiGPO().turn_advantages(records([[0, 1], [2], [0], [0, 3]], [1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]), omega=0.0)
    outcome = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    grpo, _ = get_adv_estimator_fn("grpo")(outcome, torch.ones(4, 1), np.array(["a", "a", "b", "b"], dtype=object))
    assert np.allclose(found, grpo[[0, 0, 1, 2, 3, 3], 0].numpy(), rtol=1e-4)


def test_the_same_state_of_another_prompt_is_another_state() -> None:
    apart = GiGPO().turn_advantages(records([[0], [0]], [1.0, 0.0], [0, 1]))
    assert (apart == 0).all()


@pytest.mark.parametrize(("parameter", "value"), [("omega", -1.0), ("gamma", 1.5)])
def test_gigpo_refuses_parameters_out_of_range(parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=parameter):
        GiGPO().turn_advantages(records([[0]], [1.0], [0]), **{parameter: value})


def test_tree_opo_by_hand() -> None:
    # Three sessions of one prompt part after state 0 and after 0, 1; state 2 below 1 is another prefix than 2 below 0.
    tree = records([[0, 1, 2], [0, 1], [0, 2]], [1.0, 0.0, 0.0], [0, 0, 0])
    value = np.array([1 / 3, 1 / 2, 1.0, 1 / 3, 1 / 2, 1 / 3, 0.0])
    reward = np.array([1.0, 1, 1, 0, 0, 0, 0])
    for alpha in (0.0, 0.5, 1.0):
        kept = reward - alpha * value
        found = TreeOPO().turn_advantages(tree, alpha=alpha, normalise=False)
        assert np.allclose(found, kept - kept.mean())
        found = TreeOPO().turn_advantages(tree, alpha=alpha)
        assert np.allclose(found, (kept - kept.mean()) / kept.std(ddof=1), rtol=1e-4)


def test_tree_opo_compares_no_prefixes_or_rewards_of_different_prompts() -> None:
    found = TreeOPO().turn_advantages(records([[0], [0]], [1.0, 0.0], [0, 1]), alpha=0.5)
    assert (found == 0).all()


def test_tree_opo_values_a_revisited_state_by_the_way_to_it() -> None:
    # The second visit of state 0 is the prefix 0, 0, which only the winner has: alone there, its r - V is 0.
    found = TreeOPO().turn_advantages(records([[0, 0], [0]], [1.0, 0.0], [0, 0]), normalise=False)
    assert np.allclose(found, [0.5, 0.0, -0.5])


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_tree_opo_refuses_parameters_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        TreeOPO().turn_advantages(records([[0]], [1.0], [0]), alpha=alpha)


MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
UID = np.array(["a", "a", "a", "a"], dtype=object)  # rows: session 0 in two rows, session 1 in one, padding
REWARDS = torch.tensor([[0, 0, 0, 1.0], [1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
TURNS = [
    [{"state": "x", "text": "", "reward": 0.0}, {"state": "y", "text": "", "reward": 0.0}],
    [{"state": "z", "text": "", "reward": 1.0}],
    [{"state": "x", "text": "", "reward": 0.0}, {"state": "y", "text": "", "reward": 0.0}],
    None,
]


def rows(turns: list) -> TurnRows:
    return TurnRows(np.array([0, 0, 1, -1]), np.array([0, 1, 0, 0]), turns)


def called(turns: list, name: str = "gigpo", **parameters: float) -> torch.Tensor:
    instance = estimator_of(name)
    assert instance is not None
    config = {name: {"normalise": False, **(parameters or {"gamma": 0.5})}}
    with using(instance, rows(turns)):
        return get_adv_estimator_fn(name)(REWARDS, MASK, UID, config=config)[0]


def test_verl_gets_each_turns_advantage_on_its_tokens_over_all_rows_of_a_session() -> None:
    expected = torch.tensor([[0.625, 0.625, 0, 0.75], [0.5, 0, 0, 0], [-0.625, 0, -0.75, -0.75], [0, 0, 0, 0]])
    assert torch.allclose(called(TURNS), expected)


def test_verl_gets_tree_opo_by_name_with_its_parameters() -> None:
    # r - V/2: V is 1/2 in the shared prefixes and 1 for the winner alone in z.
    kept = torch.tensor([0.75, 0.75, 0.5, -0.25, -0.25])
    a = kept - kept.mean()
    expected = torch.stack([a[[0, 0, 0, 1]], a[[2, 2, 2, 2]], a[[3, 3, 4, 4]], torch.zeros(4)]) * MASK
    assert torch.allclose(called(TURNS, "tree_opo", alpha=0.5), expected)
    with pytest.raises(ValueError, match=r"algorithm\.tree_opo: alpha must be in \[0, 1\]; got 2"):
        called(TURNS, "tree_opo", alpha=2.0)


def test_rows_without_recorded_turns_and_other_trainers_are_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="a row has 2 turns, and its agent loop has recorded none .*'turns'"):
        called([None, *TURNS[1:]])
    with pytest.raises(RuntimeError, match="sync_recorded"):
        get_adv_estimator_fn("gigpo")(REWARDS, MASK, UID)


@pytest.mark.parametrize("k", [2, 3])
def test_where_the_policy_decides_when_to_stop_outcome_credit_is_unbiased_and_turn_numbers_are_not(k: int) -> None:
    true, outcome = turn_gradients.true_gradient(), turn_gradients.prior_credit
    np.testing.assert_allclose(turn_gradients.expected_gradient(outcome, k), true, rtol=1e-12)
    grpo, by_number = (
        turn_gradients.expected_gradient(turn_gradients.CREDITS[name], k)
        for name in (
            "outcome less the group's mean (GRPO without its deviation)",
            "centred by turn number (not offered)",
        )
    )
    np.testing.assert_allclose(grpo, true * (k - 1) / k, rtol=1e-12)
    factors = by_number / true
    assert factors.max() / factors.min() > 1.3  # a later turn, which fewer sessions reach, learns more slowly
    unweighted = turn_gradients.expected_gradient(lambda records: turn_gradients.state_credit(records, 0.0), k)
    np.testing.assert_allclose(unweighted, true, rtol=1e-12)


def test_the_true_gradient_of_the_process_is_that_of_its_chance_of_success(monkeypatch: pytest.MonkeyPatch) -> None:
    step, go, true = 1e-6, turn_gradients.GO, turn_gradients.true_gradient()
    for turn in range(turn_gradients.TURNS):
        ends = []
        for sign in (1, -1):
            monkeypatch.setattr(turn_gradients, "GO", go + sign * step * (np.arange(len(go)) == turn))
            ends.append(turn_gradients.values()[0])
        assert true[turn] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_the_page_of_turns_is_what_the_estimators_give() -> None:
    assert turn_gradients.PAGE.read_text() == turn_gradients.page(turn_gradients.run())
