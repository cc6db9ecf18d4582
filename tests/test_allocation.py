"""Eq. 11, 12 and 36 against rational arithmetic, and allocation against one-by-one brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch

from verl_v05 import (
    empirical_mse,
    extra_rollouts,
    fuse,
    hand_out,
    marginal_return,
    noise_variance,
    posterior_gain,
    posterior_target,
    rollout_target,
    squared_bias,
)

COST = 0.0039
GRID = [(k, s, Fraction(i, 40) - 1) for k in range(1, 17) for s in range(k + 1) for i in range(81)]


def exact_bias_sq(k: int, successes: int, prior: Fraction) -> Fraction:
    return max(Fraction(0), (Fraction(2 * successes, k) - 1 - prior) ** 2 - Fraction(1, k))


def exact_mse(bias_sq: Fraction, k: int) -> Fraction:
    return bias_sq / (k * bias_sq + 1)


@cache
def grid_arrays() -> tuple[np.ndarray, np.ndarray]:
    """(k, squared bias as the code computes it) over the grid."""
    k, s, prior = np.array(GRID, dtype=object).T.astype(float)
    return k, squared_bias(2 * s / k - 1, k, prior)


@cache
def exact_grid() -> list[tuple[int, Fraction]]:
    return [(k, exact_bias_sq(k, s, prior)) for k, s, prior in GRID]


def wants_more(k: int, bias_sq: Fraction, cost: float) -> bool:
    """k < 1/sqrt(c) - 1/Delta^2, decided without a square root."""
    return bias_sq > 0 and Fraction(cost) * (k + 1 / bias_sq) ** 2 < 1


def greedy_padding(
    asked: np.ndarray, k: np.ndarray, spent: np.ndarray, bias_sq: np.ndarray, multiple: int, k_max: int
) -> list[int]:
    """One rollout at a time to the first prompt of largest g, in rationals."""
    given = [0] * len(asked)
    while (int(asked.sum()) + sum(given)) % multiple:
        gains = {
            i: exact_mse(Fraction(bias_sq[i]), n) - exact_mse(Fraction(bias_sq[i]), n + 1)
            for i, n in enumerate(int(k[i] + asked[i] + given[i]) for i in range(len(asked)))
            if spent[i] + asked[i] + given[i] < k_max
        }
        if not gains:
            break
        given[max(gains, key=lambda i: (gains[i], -i))] += 1
    return given


def padding(
    asked: np.ndarray, k: np.ndarray, spent: np.ndarray, bias_sq: np.ndarray, multiple: int, k_max: int
) -> np.ndarray:
    """What a dispatch is padded with, by OSLA's gain."""
    return hand_out(
        -int(asked.sum()) % multiple,
        np.clip(k_max - spent - asked, 0, None),
        lambda prompt, nth: marginal_return(bias_sq[prompt], k[prompt] + asked[prompt] + nth),
    )


def random_dispatch(rng: np.random.Generator, prompts: int, k_max: int) -> tuple[np.ndarray, ...]:
    """(asked, k, spent, squared bias) of a batch, some prompts with failed rollouts, many with equal bias."""
    spent = rng.integers(1, k_max + 1, prompts)
    k = np.maximum(spent - rng.integers(0, 3, prompts), 0)
    successes = rng.binomial(np.maximum(k, 1), rng.random(prompts))
    prior = rng.choice(np.linspace(-1, 1, 9), prompts)
    bias_sq = squared_bias(2 * successes / np.maximum(k, 1) - 1, np.maximum(k, 1), prior)
    return extra_rollouts(k, spent, rollout_target(bias_sq, COST), k_max=k_max, step=2), k, spent, bias_sq


def test_empirical_mse_equals_eq_11() -> None:
    k, bias_sq = grid_arrays()
    want = np.array([float(exact_mse(b, n)) for n, b in exact_grid()])
    assert np.abs(empirical_mse(bias_sq, k) - want).max() < 1e-12


def test_empirical_mse_is_the_error_of_the_fused_weight() -> None:
    """Eq. 11 is Theorem 3.2 at the weight of Eq. 8 and the variance of Eq. 6."""
    k, s, prior = np.array(GRID, dtype=object).T.astype(float)
    found = fuse(2 * s / k - 1, k, prior)
    split = found.weight**2 * noise_variance(k) + (1 - found.weight) ** 2 * found.bias_sq
    assert np.abs(empirical_mse(found.bias_sq, k) - split).max() < 1e-12


def test_marginal_return_is_the_drop_of_the_empirical_mse() -> None:
    k, bias_sq = grid_arrays()
    want = np.array([float(exact_mse(b, n) - exact_mse(b, n + 1)) for n, b in exact_grid()])
    assert np.abs(marginal_return(bias_sq, k) - want).max() < 1e-12


def test_marginal_return_exceeds_its_envelope() -> None:
    """Lemma 3.5, strictly wherever the prior is rejected."""
    k, bias_sq = grid_arrays()
    envelope = bias_sq**2 / ((k + 1) * bias_sq + 1) ** 2
    rejected = bias_sq > 1e-12
    assert (marginal_return(bias_sq, k)[rejected] > envelope[rejected]).all()
    assert (marginal_return(np.zeros(3), np.arange(1, 4)) == 0).all()


def test_marginal_return_falls_with_k_and_rises_with_the_bias() -> None:
    bias_sq, k = np.linspace(0.01, 4, 200)[:, None], np.arange(1, 65)
    gain = marginal_return(bias_sq, k)
    assert (np.diff(gain, axis=1) < 0).all() and (np.diff(gain, axis=0) > 0).all()


def test_empirical_mse_falls_with_k_and_stays_below_the_noise() -> None:
    bias_sq, k = np.linspace(0.01, 4, 200)[:, None], np.arange(1, 65)
    mse = empirical_mse(bias_sq, k)
    assert (np.diff(mse, axis=1) < 0).all() and (np.diff(mse, axis=0) > 0).all()
    assert (mse < noise_variance(k)).all() and (mse <= bias_sq).all()


@pytest.mark.parametrize("cost", [COST, 0.001, 0.02])
def test_rollout_target_is_where_the_envelope_meets_the_cost(cost: float) -> None:
    """Eq. 38 and 40."""
    bias_sq = np.linspace(0.05, 4, 300)
    k_plus_1 = rollout_target(bias_sq, cost)
    assert (bias_sq**2 / (k_plus_1 * bias_sq + 1) ** 2) == pytest.approx(cost, rel=1e-12)


def test_rollout_target_of_an_accepted_or_missing_prior_is_minus_infinity() -> None:
    assert rollout_target(0.0, COST) == -math.inf
    assert rollout_target(fuse(0.5, 4, float("nan")).bias_sq, COST) == -math.inf


def test_rollout_target_rises_with_the_bias_and_falls_with_the_cost() -> None:
    bias_sq = np.linspace(0, 4, 401)
    target = rollout_target(bias_sq, COST)
    assert (np.diff(target[1:]) > 0).all() and target[0] < target[1]
    assert target.max() < 1 / math.sqrt(COST) < 16.02
    assert (rollout_target(bias_sq[1:], 0.01) < target[1:]).all()


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan")])
def test_cost_must_be_positive(cost: float) -> None:
    with pytest.raises(ValueError, match="cost must be positive"):
        rollout_target(1.0, cost)


def test_torch_and_numpy_agree() -> None:
    k, bias_sq = grid_arrays()
    tensors = torch.tensor(bias_sq), torch.tensor(k)
    for function in (empirical_mse, marginal_return):
        assert np.abs(function(bias_sq, k) - function(*tensors).numpy()).max() <= 1e-15
    by_numpy, by_torch = rollout_target(bias_sq, COST), rollout_target(tensors[0], COST).numpy()
    assert np.allclose(by_numpy, by_torch, rtol=1e-15, atol=0)


@pytest.mark.parametrize("cost", [COST, 0.0005, 0.01, 0.05])
def test_every_decision_up_to_16_rollouts_equals_the_exact_one(cost: float) -> None:
    """Theorem 3.6: more iff k < 1/sqrt(c) - 1/Delta^2, in rationals; equality itself is left out."""
    k, bias_sq = grid_arrays()
    spent = k.astype(int)
    asks = extra_rollouts(spent, spent, rollout_target(bias_sq, cost), k_max=100, step=2)
    exact = exact_grid()
    margin = np.array([abs(n - (1 / math.sqrt(cost) - 1 / b)) if b else math.inf for n, b in exact])
    clear = margin > 1e-9
    want = np.array([2 * wants_more(n, b, cost) for n, b in exact])
    assert clear.mean() > 0.999
    assert (asks[clear] == want[clear]).all()
    assert 0 < (want > 0).mean() < 1


def test_a_prompt_asks_wherever_one_rollout_pays_and_only_where_the_last_one_did() -> None:
    """The rule bounds the cost by the envelope at k, between g(k) and g(k - 1)."""
    k, bias_sq = grid_arrays()
    spent = k.astype(int)
    asks = extra_rollouts(spent, spent, rollout_target(bias_sq, COST), k_max=100, step=2) > 0
    assert (marginal_return(bias_sq, k - 1)[asks] > COST).all()
    assert (marginal_return(bias_sq, k)[~asks] <= COST).all()


@pytest.mark.parametrize("step", [1, 2, 3, 5, None])
def test_extra_rollouts_equal_one_by_one_counting(step: int | None) -> None:
    rng = np.random.default_rng(0)
    for k_max in (4, 13, 16):
        _, k, spent, bias_sq = random_dispatch(rng, 500, k_max)
        asks = extra_rollouts(k, spent, rollout_target(bias_sq, COST), k_max=k_max, step=step)
        for i, ask in enumerate(asks):
            missing = 0  # rollouts until the stopping rule holds
            while wants_more(int(k[i]) + missing, Fraction(bias_sq[i]), COST):
                missing += 1
            room = k_max - int(spent[i])
            want = min(missing, room) if step is None else step if missing and step <= room else 0
            assert ask == want
        assert asks.dtype == np.int64


def test_a_prompt_stops_at_its_target_exactly() -> None:
    k, bias_sq = np.array([4, 5, 6, 7]), np.full(4, 0.5)  # 1/sqrt(1/64) - 1/0.5 = 6, without rounding
    assert (rollout_target(bias_sq, 1 / 64) == 6).all()
    assert extra_rollouts(k, k, rollout_target(bias_sq, 1 / 64), k_max=16, step=2).tolist() == [2, 2, 0, 0]
    assert extra_rollouts(k, k, rollout_target(bias_sq, 1 / 64), k_max=16, step=None).tolist() == [2, 1, 0, 0]


def test_failed_rollouts_count_towards_k_max() -> None:
    k, bias_sq = np.array([4, 4, 4, 4]), np.full(4, 3.0)
    spent = np.array([4, 13, 14, 15])
    assert extra_rollouts(k, spent, rollout_target(bias_sq, COST), k_max=16, step=2).tolist() == [2, 2, 2, 0]
    assert extra_rollouts(k, spent, rollout_target(bias_sq, COST), k_max=16, step=None).tolist() == [12, 3, 2, 1]


def test_repeated_asks_stop_at_k_max() -> None:
    for step in (1, 2, 3, None):
        spent = np.array([4])
        for _ in range(20):
            extra = extra_rollouts(spent, spent, rollout_target(np.array([3.75]), 1e-6), k_max=16, step=step)
            spent = spent + extra
        assert extra == 0 and spent <= 16 and (step is not None or spent == 16)


@pytest.mark.parametrize("multiple", [1, 2, 7, 32])
def test_padding_equals_handing_out_one_by_one(multiple: int) -> None:
    rng = np.random.default_rng(multiple)
    for prompts in (1, 2, 5, 12, 30):
        for _ in range(6):
            _, k, spent, bias_sq = random_dispatch(rng, prompts, 16)
            asked = np.where(spent <= 14, 2 * rng.integers(0, 2, prompts), 0)
            found = padding(asked, k, spent, bias_sq, multiple=multiple, k_max=16)
            assert found.tolist() == greedy_padding(asked, k, spent, bias_sq, multiple, 16)


def test_padding_completes_the_multiple_or_fills_every_prompt() -> None:
    rng = np.random.default_rng(0)
    filled = 0
    for prompts in (3, 10, 200):
        for _ in range(20):
            asked, k, spent, bias_sq = random_dispatch(rng, prompts, 16)
            total = spent + asked + (padded := padding(asked, k, spent, bias_sq, multiple=32, k_max=16))
            assert (padded >= 0).all() and padded.sum() < 32 and (total <= 16).all()
            assert (asked + padded).sum() % 32 == 0 or (total == 16).all()
            filled += (total == 16).all()
    assert 0 < filled < 60


def test_padding_prefers_the_largest_marginal_return_then_the_earlier_prompt() -> None:
    asked, k = np.array([2, 0, 0, 0]), np.array([4, 4, 4, 4])
    bias_sq = np.array([0.0, 1.0, 3.0, 1.0])
    # From k = 4 on, g is .0433, .0296, .0215 at 3.0 and .0333, .0238 at 1.0.
    wanted = {3: [0, 0, 1, 0], 4: [0, 1, 1, 0], 5: [0, 1, 1, 1], 6: [0, 1, 2, 1], 7: [0, 2, 2, 1]}
    for multiple, padded in wanted.items():
        assert padding(asked, k, k, bias_sq, multiple=multiple, k_max=16).tolist() == padded
    assert padding(asked, k, k, np.zeros(4), multiple=8, k_max=16).tolist() == [6, 0, 0, 0]


def test_padding_counts_what_the_dispatch_already_asks_for() -> None:
    k, bias_sq = np.array([4, 4]), np.array([3.0, 1.2])  # g: .0433 and .0355 at k = 4, .0215 at 3.0 and k = 6
    assert padding(np.array([2, 0]), k, k, bias_sq, multiple=3, k_max=16).tolist() == [0, 1]
    assert padding(np.array([2, 0]), k, k, bias_sq, multiple=3, k_max=4).tolist() == [0, 0]


def test_padding_of_a_full_or_empty_dispatch_is_nothing() -> None:
    k = np.array([4, 4])
    assert padding(np.array([16, 16]), k, k, np.ones(2), multiple=32, k_max=64).tolist() == [0, 0]
    assert padding(np.array([0, 0]), k, k, np.ones(2), multiple=32, k_max=64).tolist() == [0, 0]
    none = np.array([], dtype=int)
    assert padding(none, none, none, none.astype(float), multiple=32, k_max=16).tolist() == []


def exact_posterior(successes: int, k: int, q: Fraction, m: Fraction) -> tuple[Fraction, Fraction]:
    """(mean, variance) of 2p - 1 under the Beta posterior."""
    a, b = successes + m * q, k - successes + m * (1 - q)
    return 2 * a / (a + b) - 1, 4 * a * b / ((a + b) ** 2 * (a + b + 1))


POSTERIORS = [
    (k, s, Fraction(q, 8), Fraction(m, 2))
    for k in (1, 4, 9)
    for s in range(k + 1)
    for q in (1, 4, 7)
    for m in (1, 5, 40)
]


def test_posterior_gain_is_the_expected_drop_of_the_posterior_variance() -> None:
    """By enumerating both outcomes of the next rollout, and of the one after it."""
    for k, s, q, m in POSTERIORS:
        mean, variance = exact_posterior(s, k, q, m)
        p = (mean + 1) / 2
        after_one = p * exact_posterior(s + 1, k + 1, q, m)[1] + (1 - p) * exact_posterior(s, k + 1, q, m)[1]
        assert posterior_gain(float(variance), float(k + m), 0) == pytest.approx(float(variance - after_one), abs=1e-14)
        n = k + m  # the second rollout starts from the expected variance of the first
        assert posterior_gain(float(variance), float(n), 1) == pytest.approx(float(after_one / (n + 2)), abs=1e-14)


def test_posterior_target_counts_the_rollouts_that_pay() -> None:
    targets = set()
    for k, s, q, m in POSTERIORS:
        _, variance = exact_posterior(s, k, q, m)
        n, cost = k + m, Fraction(1, 200)
        pays = 0
        while variance * n / ((n + pays) * (n + pays + 1)) >= cost:
            pays += 1
        assert posterior_target(float(variance), float(n), k, float(cost)) == k + pays
        targets.add(pays)
    assert {0, 1, 2} < targets


def test_posterior_target_without_cost_is_infinite_and_without_prior_unknown() -> None:
    variance, n, k = np.array([0.5, 0.0, np.nan]), np.array([6.0, 6.0, np.nan]), np.array([4, 4, 4])
    assert posterior_target(variance, n, k, 0.0).tolist() == [np.inf, 4, 4]
    asks = extra_rollouts(k, k, posterior_target(variance, n, k, 0.0), k_max=16, step=None)
    assert asks.tolist() == [12, 0, 0]
    assert np.isnan(posterior_target(variance, n, k, 0.1)[2])
    assert extra_rollouts(k, k, posterior_target(variance, n, k, 0.001), k_max=16, step=2).tolist() == [2, 0, 0]
    with pytest.raises(ValueError, match="cost must not be negative"):
        posterior_target(variance, n, k, -0.1)


def test_hand_out_stops_where_nobody_gains_enough() -> None:
    gain = np.array([[0.5, 0.2, 0.1], [0.4, 0.3, 0.05], [np.nan, np.nan, np.nan]])
    room = np.array([3, 2, 3])
    for rollouts, want in [(0, [0, 0, 0]), (2, [1, 1, 0]), (3, [1, 2, 0]), (9, [2, 2, 0]), (-1, [0, 0, 0])]:
        assert hand_out(rollouts, room, lambda i, n: gain[i, n], at_least=0.2).tolist() == want
