"""The bench's statistics against enumeration and hand-computed values."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from benchmarks.bench.statistics import holm, interval, mean_of_means, pass_at_k, powers_of_two, sign_flip


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 0, 2), (4, 1, 2), (5, 2, 3), (6, 5, 1), (6, 5, 2), (3, 3, 3)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_response(n: int, correct: int, k: int) -> None:
    draws = list(combinations([1] * correct + [0] * (n - correct), k))
    assert pass_at_k(np.array([correct]), n, k)[0] == pytest.approx(np.mean([any(d) for d in draws]))


@pytest.mark.parametrize("k", [1, 2, 16, 1024, 2047, 2048])
def test_pass_at_k_of_many_responses_is_the_exact_fraction(k: int) -> None:
    n, correct = 2048, np.array([0, 1, 2, 7, 1000, 1024, 2047, 2048])
    exact = [float(1 - Fraction(comb(n - c, k), comb(n, k))) for c in correct.tolist()]
    found = pass_at_k(correct, n, k)
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=0)
    assert found[0] == 0 and found[-1] == 1


def test_pass_at_k_refuses_more_draws_than_responses() -> None:
    with pytest.raises(ValueError, match=r"k=5 must be in \[1, 4\]"):
        pass_at_k(np.array([1]), 4, 5)


def test_powers_of_two_end_at_the_number_of_responses() -> None:
    assert [powers_of_two(n) for n in (1, 4, 6, 16)] == [[1], [1, 2, 4], [1, 2, 4], [1, 2, 4, 8, 16]]


def test_benchmarks_weigh_the_same_whatever_their_sizes() -> None:
    assert mean_of_means(np.array([1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx((0.5 + 0.25) / 2)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(200):
        scores = rng.binomial(4, rng.beta(1, 2, size=40)) / 4  # mean 1/3
        low, high = interval([scores], seed=repeat, resamples=500)
        hits += low <= 1 / 3 <= high
    assert 0.90 <= hits / 200 <= 0.98


def test_problems_are_drawn_anew_within_each_benchmark() -> None:
    rng = np.random.default_rng(1)
    groups = [rng.random(60), 5 + rng.random(200)]
    low, high = interval(groups, seed=0)
    deviation = np.sqrt(sum(g.var() / len(g) for g in groups)) / 2
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    assert interval(groups, seed=0) == (low, high)


def test_there_is_no_interval_without_spread_or_of_one_problem() -> None:
    assert interval([np.zeros(5), np.ones(3)], seed=0) is None
    assert interval([np.array([0.3]), np.array([0.0, 1.0])], seed=0) is None
    assert interval([np.zeros(5), np.array([0.0, 0.5, 1.0])], seed=0) is not None


def test_sign_flips_of_few_problems_are_enumerated() -> None:
    groups = [np.array([0.5, 0.25, -0.25]), np.array([0.75, 0.25])]
    observed = abs(mean_of_means(*groups))
    null = [
        abs(mean_of_means(groups[0] * signs[:3], groups[1] * signs[3:]))
        for signs in (np.array(s) for s in product([1, -1], repeat=5))
    ]
    assert sign_flip(groups, seed=0) == pytest.approx(np.mean(np.array(null) >= observed - 1e-12))


def test_four_equal_gains_have_two_of_sixteen_patterns_as_extreme() -> None:
    assert sign_flip([np.full(4, 0.5)], seed=0) == pytest.approx(2 / 16)


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip([np.zeros(6)], seed=0) == 1.0


def test_holm_multiplies_the_smallest_by_the_number_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
