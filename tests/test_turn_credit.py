"""Turn credit: its sum, its weight, and its gradient by exact enumeration of a process that may stop early."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from verl_v05.turn_credit import Evidence, evidence, turn_credit

SESSION = np.array([0, 0, 0, 1, 2, 2])  # of 3, 1 and 2 turns
OUTCOME = np.array([1.0, -1.0, 1.0])
BASELINE = np.array([0.2, -0.4, 0.0])
VALUES = np.array([9.0, 0.5, -0.3, 9.0, 9.0, 0.8])  # those of first turns are not used


def test_credit_by_hand() -> None:
    credit = turn_credit(VALUES, SESSION, OUTCOME, BASELINE, 1.0)
    more = [0.3 - 0.8 / 3, -0.8 - 0.8 / 3, 1.3 - 0.8 / 3, 0.0, 0.8 - 0.5, 0.2 - 0.5]
    assert np.allclose(credit, np.array([0.8, 0.8, 0.8, -0.6, 1.0, 1.0]) + more)


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


def gradients(theta: np.ndarray, may_stop: bool) -> tuple[np.ndarray, np.ndarray]:
    """Exact policy gradient of a process of four states, and the expectation of turn credit's, by all of its sessions.

    Action 1 goes on to the next state, 0 stops (``may_stop``) or goes on as well, having lowered the chance of success.
    The policy is a sigmoid a state, values are exact, the baseline is the first state's, the weight is 1.
    """
    go = np.append(1 / (1 + np.exp(-theta)), 0.0)
    actions = [[a for a in (0, 1) if a or t < 3] for t in range(3)]
    sessions = []  # (states, actions, probability, chance of success)
    for path in itertools.product(*actions):
        length = path.index(0) + 1 if may_stop and 0 in path else 3
        states, taken = np.arange(length), np.array(path[:length])
        chance = WINS[length - 1 if may_stop else 3] * 0.7 ** (0 if may_stop else 3 - sum(path))
        probability = np.prod(np.where(taken, go[states], 1 - go[states]))
        sessions.append((tuple(path[:length]), states, taken, probability, chance))
    sessions = list({name: rest for name, *rest in sessions}.values())

    def value(prefix: tuple[int, ...]) -> float:
        n = len(prefix)
        here = [(p, c) for states, taken, p, c in sessions if len(taken) >= n and tuple(taken[:n]) == prefix]
        return sum(p * (2 * c - 1) for p, c in here) / sum(p for p, _ in here)

    exact, turn = np.zeros(3), np.zeros(3)
    for states, taken, probability, chance in sessions:
        values = np.array([value(tuple(taken[:t])) for t in states])
        slope = np.where(taken, 1 - go[states], -go[states])  # of the log-probability by theta
        for outcome, p in ((1.0, chance), (-1.0, 1 - chance)):
            credit = turn_credit(values, np.zeros_like(states), np.array([outcome]), values[:1], 1.0)
            np.add.at(exact, states, probability * p * (outcome - values[0]) * slope)
            np.add.at(turn, states, probability * p * credit * slope)
    return exact, turn


WINS = np.array([0.3, 0.6, 0.2, 0.9])
THETA = np.array([0.4, -0.3, 0.8])


def test_with_exact_values_and_one_length_it_is_the_policy_gradient_times_a_constant() -> None:
    exact, turn = gradients(THETA, may_stop=False)
    assert np.allclose(turn, exact * (1 + 1 - 1 / 3), atol=1e-12)


def test_where_the_policy_decides_when_to_stop_it_stays_close_in_direction() -> None:
    exact, turn = gradients(THETA, may_stop=True)
    cosine = exact @ turn / np.linalg.norm(exact) / np.linalg.norm(turn)
    assert 0.97 < cosine < 1 - 1e-6  # the mean over the session's turns divides by a length that the actions decide
