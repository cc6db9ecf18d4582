"""The comparison of turn credit: exact values of the lakes, and steps of its lines."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.training.compare_turns import Grpo, Line, Run, V05Learner, lines
from benchmarks.training.lake import LakeTask, Policy
from recipes.agent.lake import MOST_TURNS, STATES, Lakes

SMALL = LakeTask(train=16, validation=8)


def test_exact_values_are_the_success_rates_of_sessions() -> None:
    lakes, lake = SMALL.lakes, np.arange(4)
    values, _ = lakes.values(SMALL.start, lake)
    played = SMALL.start.play(lakes, np.repeat(lake, 4000), np.random.default_rng(0))
    measured = played.reward.reshape(4, -1).mean(axis=1)
    assert np.abs(values[:, 0] - measured).max() < 4 * 2 / np.sqrt(4 * 4000)


def test_a_states_value_is_the_mean_of_its_actions_values() -> None:
    lakes, lake = SMALL.lakes, np.arange(8)
    values, of_action = lakes.values(SMALL.start, lake)
    mean = (SMALL.start.everywhere(lakes, lake) * of_action).sum(-1)
    assert np.allclose(np.where(lakes.ends[lake], values, mean), values)
    assert (values[lakes.goal[lake]] == 1).all() and (values[lakes.hole[lake]] == -1).all()


def test_sessions_follow_the_rules_and_end_once() -> None:
    lakes = SMALL.lakes
    played = Policy().play(lakes, np.arange(16), np.random.default_rng(1))
    after = lakes.next[played.lake[played.session], played.state, played.action]
    assert (played.session[:-1] <= played.session[1:]).all() and played.turns.max() <= MOST_TURNS
    assert (played.state[1:][~played.last[:-1]] == after[:-1][~played.last[:-1]]).all()
    assert not lakes.ends[played.lake[played.session], played.state].any()
    won = lakes.goal[played.lake, after[played.last]]
    assert (won == (played.reward > 0)).all()


def test_a_states_text_is_the_map_with_the_position() -> None:
    lakes = Lakes(3, 0)
    texts = [lakes.state_text(2, state).replace("\n", "") for state in range(STATES)]
    assert [text.index("A") for text in texts] == list(range(STATES))
    assert {text.replace("A", "", 1) for text in texts[:1]} == {lakes.text[2].replace("\n", "")[1:]}


def test_outcome_credit_is_the_same_in_all_turns_of_a_session_and_turn_credit_sums_to_it() -> None:
    runs = {name: Run(SMALL, Line(1, V05Learner, arguments), 0) for name, arguments in (
        ("outcome", {}), ("turn", {"values": "exact"}))}  # fmt: skip
    for step in range(1, 4):
        played = SMALL.start.play(SMALL.lakes, np.tile(np.arange(16), 16), np.random.default_rng(step))
        for run in runs.values():
            run.learner.plan(played.lake, step)
        found = {name: run.learner.advantages(played, step) for name, run in runs.items()}
    first = np.append(True, played.last[:-1])
    assert np.array_equal(found["outcome"], found["outcome"][first][played.session])
    assert np.abs(found["turn"] - found["outcome"]).max() > 0.1
    sums = [np.bincount(played.session, found[name]) for name in found]
    assert np.allclose(*sums)


def test_grpo_compares_the_sessions_of_a_map() -> None:
    run = Run(SMALL, Line(2, Grpo), 0)
    played = SMALL.start.play(SMALL.lakes, np.repeat(np.arange(8), 2), np.random.default_rng(0))
    outcome = run.learner.outcome(played).reshape(-1, 2)
    assert np.allclose(outcome.sum(axis=1), 0)
    assert (outcome[:, 0] == 0).tolist() == (played.reward[::2] == played.reward[1::2]).tolist()


@pytest.mark.parametrize("name", list(lines(None)))
def test_every_line_trains(name: str) -> None:
    line = lines(None)[name]
    measured = Run(SMALL, line, 0).train(2, every=1)
    assert [m.rollouts for m in measured] == [0, 128, 256]
    assert all(0 <= m.accuracy <= 1 and m.tokens >= m.rollouts for m in measured)
