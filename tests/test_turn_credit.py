"""Turn credit: its sum, its weight, and its gradient by exact enumeration of a process that may stop early."""

from __future__ import annotations

import numpy as np
import pytest

from verl_v05.turn_credit import Evidence, evidence, turn_credit

SESSION = np.array([0, 0, 0, 1, 2, 2])  # of 3, 1 and 2 turns
OUTCOME = np.array([1.0, -1.0, 1.0])
BASELINE = np.array([0.2, -0.4, 0.0])
VALUES = np.array([9.0, 0.5, -0.3, 9.0, 9.0, 0.8])  # those of first turns are not used


def test_credit_by_hand() -> None:
    credit = turn_credit(VALUES, SESSION, OUTCOME, BASELINE, 1.0)
    assert np.allclose(credit, [3 * 0.3, 3 * -0.8, 3 * 1.3, -0.6, 2 * 0.8, 2 * 0.2])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_sessions_credits_sum_to_what_outcome_credit_gives_it(weight: float) -> None:
    credit = turn_credit(VALUES, SESSION, OUTCOME, BASELINE, weight)
    assert np.allclose(np.bincount(SESSION, credit), np.bincount(SESSION) * (OUTCOME - BASELINE))


def test_without_weight_it_is_outcome_credit_bit_for_bit() -> None:
    nonsense = np.full(len(SESSION), np.nan)
    assert (turn_credit(nonsense, SESSION, OUTCOME, BASELINE, 0.0) == (OUTCOME - BASELINE)[SESSION]).all()


def test_turns_out_of_order_and_weights_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="next to each other"):
        turn_credit(VALUES[:3], np.array([0, 1, 0]), OUTCOME[:2], BASELINE[:2], 0.5)
    with pytest.raises(ValueError, match="must be in"):
        turn_credit(VALUES, SESSION, OUTCOME, BASELINE, 1.5)


def random_sessions(rng: np.random.Generator, prompts: int, exact: float) -> tuple[np.ndarray, ...]:
    """Random walks of a success probability over 1 to 5 turns; values are ``exact`` parts the truth, the rest noise."""
    values, session, rewards = [], [], []
    for number in range(4 * prompts):
        p = 0.5
        for _ in range(rng.integers(1, 6)):
            noise = rng.uniform(-1, 1)
            values.append(exact * (2 * p - 1) + (1 - exact) * noise)
            session.append(number)
            p += rng.choice([-1, 1]) * min(p, 1 - p) * 0.8
        rewards.append(1.0 if rng.random() < p else -1.0)
    return np.array(values), np.array(session), np.array(rewards), np.zeros(4 * prompts), np.arange(4 * prompts) // 4


def test_the_weight_goes_to_one_for_exact_values_and_to_nothing_for_useless_ones() -> None:
    rng = np.random.default_rng(0)
    assert evidence(*random_sessions(rng, 1000, exact=1.0)).weight > 0.9
    useless = [evidence(*random_sessions(rng, 100, exact=0.0)).weight for _ in range(50)]
    assert np.mean(useless) < 0.05


def test_constant_values_have_no_weight() -> None:
    values, *others = random_sessions(np.random.default_rng(1), 50, exact=1.0)
    assert evidence(np.full_like(values, 0.3), *others).weight == 0.0
    assert Evidence().weight == 0.0


def test_old_evidence_is_forgotten() -> None:
    good, bad = (evidence(*random_sessions(np.random.default_rng(2), 300, exact=e)) for e in (1.0, 0.0))
    turned = good
    for _ in range(30):
        turned = turned.then(bad, forgetting=0.8)
    assert good.weight > 0.9 and turned.weight < 0.1
    assert good.then(Evidence(), 1.0) == good


def enumerated(theta: np.ndarray, score: str) -> np.ndarray:
    """Gradient of a four-state process, by all of its sessions: action 0 stops, 1 goes on, and the last must stop.

    The policy is a sigmoid a state; stopping in state t succeeds with chance ``WINS[t]``. The loss is the mean over a
    session's turns.

    Args:
        score: "policy gradient" (the exact one), "outcome" or "turn" (both with the exact value as the baseline).
    """
    go = np.append(1 / (1 + np.exp(-theta)), 0.0)
    win = WINS.copy()
    for t in reversed(range(3)):
        win[t] = (1 - go[t]) * WINS[t] + go[t] * win[t + 1]
    values = 2 * win - 1
    gradient, reach = np.zeros(3), 1.0
    for last in range(4):
        for outcome, chance in ((1.0, WINS[last]), (-1.0, 1 - WINS[last])):
            probability = reach * (1 - go[last]) * chance
            states = np.arange(last + 1)
            session = np.zeros(last + 1, dtype=int)
            weight = {"policy gradient": 0.0, "outcome": 0.0, "turn": 1.0}[score]
            credit = turn_credit(values[states], session, np.array([outcome]), values[:1], weight)
            slope = np.where(states < last, 1 - go[states], -go[states])  # of the log-probability by theta
            share = 1.0 if score == "policy gradient" else 1 / (last + 1)
            gradient += probability * share * np.bincount(states, credit * slope, minlength=4)[:3]
        reach *= go[last]
    return gradient


WINS = np.array([0.3, 0.6, 0.2, 0.9])


def test_turn_credit_with_exact_values_is_unbiased_where_the_policy_decides_when_to_stop() -> None:
    theta = np.array([0.4, -0.3, 0.8])
    exact = enumerated(theta, "policy gradient")
    assert np.allclose(enumerated(theta, "turn"), exact, atol=1e-12)
    assert np.abs(enumerated(theta, "outcome") - exact).max() > 0.02  # the average over tokens weighs by length
