"""Division of a budget among prompts: exact sums, floors, limits, and expectations checked over every possible draw."""

from __future__ import annotations

import numpy as np
import pytest

from verl_v05.selection import draw_counts, expected_counts


class Start:
    """Stands in for the generator: gives one start of the systematic sample."""

    def __init__(self, start: float):
        self.start = start

    def random(self) -> float:
        return self.start


def every_draw(expected: np.ndarray, starts: int = 4000) -> np.ndarray:
    """Counts at evenly spaced starts, (starts, P)."""
    return np.stack([draw_counts(expected, Start((i + 0.5) / starts)) for i in range(starts)])


def test_a_budget_is_shared_by_utility_above_an_equal_floor() -> None:
    found = expected_counts(np.array([1.0, 3.0, 0.0, 0.0]), 10, explore=0.2, most=10)
    np.testing.assert_allclose(found, [0.5 + 2, 0.5 + 6, 0.5, 0.5])


def test_what_exceeds_the_limit_goes_to_the_others_by_their_utility() -> None:
    found = expected_counts(np.array([100.0, 2.0, 1.0]), 6, explore=0.5, most=3)
    np.testing.assert_allclose(found, [3, 1 + 2 / 3, 1 + 1 / 3])


@pytest.mark.parametrize("seed", range(20))
def test_sum_floor_and_limit_hold_for_random_pools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts, most = int(rng.integers(1, 60)), int(rng.integers(1, 6))
    budget = int(rng.integers(0, prompts * most + 1))
    utility = rng.exponential(size=prompts) ** 4 * (rng.random(prompts) < 0.7)
    explore = float(rng.uniform(0.01, 1))
    found = expected_counts(utility, budget, explore=explore, most=most)
    assert found.sum() == pytest.approx(budget)
    assert (found >= explore * budget / prompts - 1e-9).all() and (found <= most + 1e-9).all()
    counts = draw_counts(found, rng)
    assert counts.sum() == budget and (np.abs(counts - found) < 1 + 1e-9).all()


@pytest.mark.parametrize("utility", [np.zeros(4), np.ones(4)])
def test_without_a_difference_all_prompts_expect_the_same(utility: np.ndarray) -> None:
    np.testing.assert_allclose(expected_counts(utility, 6, explore=0.1, most=2), 1.5)


def test_utilities_whose_sum_is_no_number_are_divided_all_the_same() -> None:
    assert expected_counts(np.full(4, 1e308), 10, explore=0.5, most=10).sum() == pytest.approx(10)


def test_a_full_pool_gets_the_limit() -> None:
    np.testing.assert_array_equal(expected_counts(np.array([5.0, 0.0]), 8, explore=0.1, most=4), [4, 4])


def test_counts_have_their_expectations_and_always_their_sum() -> None:
    expected = np.array([0.3, 1.7, 0.05, 0.95, 2.0, 1.0])
    counts = every_draw(expected)
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=1e-3)
    assert set(counts.sum(axis=1)) == {6}


def test_a_run_of_neighbours_gets_its_share_in_every_draw() -> None:
    expected = np.random.default_rng(0).dirichlet(np.ones(12)) * 7
    of_source = every_draw(expected)[:, 3:9].sum(axis=1)
    assert of_source.max() - of_source.min() <= 1
    assert abs(of_source.mean() - expected[3:9].sum()) < 1e-2


def test_weights_by_expectation_estimate_the_plain_sum_without_bias() -> None:
    gradient = np.array([1.0, -2.0, 0.5, 3.0])
    expected = expected_counts(np.array([0.1, 4.0, 1.0, 2.0]), 3, explore=0.2, most=2)
    estimates = every_draw(expected) @ (gradient / expected)
    assert estimates.mean() == pytest.approx(gradient.sum(), abs=2e-2)


def test_the_same_seed_draws_the_same_counts() -> None:
    expected = np.full(10, 0.5)
    first, again, other = (draw_counts(expected, np.random.default_rng([s, 3])) for s in (1, 1, 2))
    assert (first == again).all() and first.sum() == other.sum() == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utility": np.array([1.0, np.nan])}, "utilities must be finite"),
        ({"utility": np.array([1.0, -1.0])}, "utilities must be finite and not negative"),
        ({"explore": 0.0}, r"explore must be in \(0, 1\]"),
        ({"budget": 9}, "budget must be in"),
        ({"budget": -1}, "budget must be in"),
    ],
)
def test_impossible_values_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_counts(**{"utility": np.ones(2), "budget": 2, "explore": 0.5, "most": 4, **changes})


def test_expectations_that_sum_to_no_integer_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to an integer"):
        draw_counts(np.array([0.5, 0.7]), np.random.default_rng(0))
