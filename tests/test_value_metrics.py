"""Metrics of predicted probabilities, against brute force, scikit-learn and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from value_model.evaluation import metrics


def data(seed: int, rows: int = 120, groups: int = 4, levels: int = 11, decimals: int = 1):
    """Scores, predictions with ties and groups."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, rows) * 2 / (levels - 1) - 1
    return score, rng.random(rows).round(decimals), rng.integers(0, groups, rows)


def enumerated_pairs(score, p, group, strict):
    """(right, all) over every pair of a group with different scores."""
    right = pairs = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if group[i] == group[j] and score[i] > score[j]:
                pairs += 1
                right += p[i] > p[j] or (0 if strict else 0.5) * (p[i] == p[j])
    return right / pairs


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_scikit_learns(seed: int) -> None:
    score, p, _ = data(seed)
    label = metrics.hard_label(score)
    assert metrics.auc(label, p) == pytest.approx(roc_auc_score(label, p), abs=1e-12)


def test_auc_of_one_class_is_nan() -> None:
    assert np.isnan(metrics.auc([1, 1], [0.2, 0.3])) and np.isnan(metrics.auc([0], [0.2]))


@pytest.mark.parametrize("seed", range(5))
def test_grouped_auc_is_the_mean_over_groups_with_both_classes(seed: int) -> None:
    score, p, group = data(seed, groups=6)
    label = metrics.hard_label(score) | (group == 0)  # group 0 has one class
    kept = [g for g in range(1, 6)]
    each = [roc_auc_score(label[group == g], p[group == g]) for g in kept]
    sizes = [(group == g).sum() for g in kept]
    assert metrics.grouped_auc(label, p, group) == pytest.approx(np.average(each, weights=sizes), abs=1e-12)
    assert metrics.grouped_auc(label, p, group, weighted=False) == pytest.approx(np.mean(each), abs=1e-12)


def test_grouped_auc_does_not_see_the_level_of_a_group() -> None:
    score, p, group = data(0, decimals=3)
    label = metrics.hard_label(score)
    shifted = np.array(["m/1", "m/2", "n/1", "n/2"])[group]
    assert metrics.grouped_auc(label, p / 8 + group / 5, shifted) == metrics.grouped_auc(label, p, group)


def test_grouped_auc_without_a_group_of_both_classes_is_nan() -> None:
    assert np.isnan(metrics.grouped_auc([0, 1], [0.1, 0.9], ["a", "b"]))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_pair_accuracy_is_that_of_enumerated_pairs(seed: int, strict: bool) -> None:
    score, p, group = data(seed, rows=70, groups=1 + seed % 4, decimals=1 + seed % 3)
    want = enumerated_pairs(score, p, group, strict)
    assert metrics.pair_accuracy(score, p, group, strict=strict) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "half", "strict"), [([0.5, 0.5, 0.5], 0.5, 0), ([0.1, 0.5, 0.9], 1, 1), ([3, 2, 1], 0, 0)]
)
def test_pair_accuracy_at_its_ends(p: list[float], half: float, strict: float) -> None:
    score = [-1.0, 0.0, 1.0]
    assert metrics.pair_accuracy(score, p) == pytest.approx(half, abs=1e-12)
    assert metrics.pair_accuracy(score, p, strict=True) == pytest.approx(strict, abs=1e-12)


def test_pair_accuracy_without_pairs_is_nan() -> None:
    assert np.isnan(metrics.pair_accuracy([0.2, 0.2, 0.2], [0.1, 0.2, 0.3]))
    assert np.isnan(metrics.pair_accuracy([-1.0, 1.0], [0.1, 0.2], ["a", "b"]))
    assert np.isnan(metrics.pair_accuracy([-1.0], [0.1]))


def test_pair_accuracy_of_two_scores_is_the_auc() -> None:
    score, p, _ = data(1, levels=2)
    assert metrics.pair_accuracy(score, p) == pytest.approx(roc_auc_score(score > 0, p), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_separated_pairs_have_both_sides_of_one_half(seed: int) -> None:
    score, p, group = data(seed, rows=60)
    pairs = [(i, j) for i in range(60) for j in range(60) if group[i] == group[j] and score[i] >= 0 > score[j]]
    want = np.mean([p[i] > 0.5 >= p[j] for i, j in pairs])
    assert metrics.separated_pair_accuracy(score, p, group) == pytest.approx(want)
    assert np.isnan(metrics.separated_pair_accuracy([0.5], [0.5]))


def test_brier_is_scikit_learns_for_single_rollouts() -> None:
    score, p, _ = data(2, levels=2, decimals=3)
    want = brier_score_loss(score > 0, p)
    assert metrics.brier(score, p) == pytest.approx(want)
    assert metrics.brier(score, p, n=np.ones(len(p))) == pytest.approx(want)


def test_brier_with_rollouts_is_that_of_every_rollout() -> None:
    rng = np.random.default_rng(3)
    n, p = rng.integers(1, 9, 50), rng.random(50)
    outcomes = [rng.integers(0, 2, k) for k in n]
    score = [2 * o.mean() - 1 for o in outcomes]
    want = brier_score_loss(np.concatenate(outcomes), np.repeat(p, n))
    assert metrics.brier(score, p, n) == pytest.approx(want)


def test_reliability_is_scikit_learns_for_single_rollouts() -> None:
    score, p, _ = data(4, rows=200, levels=2, decimals=6)
    success, mean = calibration_curve(score > 0, p, n_bins=7)
    table = metrics.reliability(score, p, bins=7)
    assert table["p"].to_numpy() == pytest.approx(mean) and table["success"].to_numpy() == pytest.approx(success)
    assert table["rows"].sum() == 200


def test_reliability_takes_both_ends_and_leaves_empty_bins_nan() -> None:
    table = metrics.reliability([-1.0, 1.0, 0.0], [0.0, 1.0, 1.0], bins=4)
    assert table["rows"].tolist() == [1, 0, 0, 2] and table["success"].tolist()[::3] == [0, 0.75]
    assert table["success"].isna().tolist() == [False, True, True, False]


def test_ece_weighs_the_bins_gaps_by_their_rows() -> None:
    score, p = [-1.0, -1.0, 1.0, 1.0], [0.1, 0.15, 0.8, 0.3]
    assert metrics.ece(score, p, bins=2) == pytest.approx((3 * abs(0.55 / 3 - 1 / 3) + abs(0.8 - 1)) / 4)
    assert metrics.ece([-1.0, 1.0, -1.0, 1.0], [0.5] * 4) == 0


def test_value_mse_is_that_of_v_against_the_score() -> None:
    assert metrics.value_mse([-1.0, 0.5], [0.25, 0.5]) == pytest.approx((0.5**2 + 0.5**2) / 2)


@pytest.mark.parametrize("n", [2, 4, 10])
def test_unbiased_value_mse_has_no_sampling_noise_on_average(n: int) -> None:
    """Exactly: expectation over every possible number of successes."""
    from scipy.stats import binom

    rate, p = 0.7, 0.4
    successes = np.arange(n + 1)
    score = 2 * successes / n - 1
    estimate = [metrics.value_mse_unbiased([s], [n], [p]) for s in score]
    assert binom.pmf(successes, n, rate) @ estimate == pytest.approx((2 * p - 2 * rate) ** 2)


def test_unbiased_value_mse_leaves_single_rollouts_out() -> None:
    assert metrics.value_mse_unbiased([1.0, 1.0], [1, 5], [0.0, 0.5]) == pytest.approx(1.0)
    assert np.isnan(metrics.value_mse_unbiased([1.0], [1], [0.5]))


@pytest.mark.parametrize(
    ("score", "p", "message"),
    [([0.0], [np.nan], "row 0 is nan"), ([0.0, 1.0], [0.5], "one shape"), ([], [], "at least one row")],
)
def test_metrics_refuse_what_is_no_prediction(score: list[float], p: list[float], message: str) -> None:
    for metric in (metrics.brier, metrics.pair_accuracy, metrics.ece, metrics.auc):
        with pytest.raises(ValueError, match=message):
            metric(score, p)


def test_bootstrap_covers_the_mean_of_clusters() -> None:
    """Rows of a unit are copies: an interval over rows would be too narrow by sqrt(5)."""
    covered = []
    for seed in range(100):
        x = np.repeat(np.random.default_rng(seed).normal(size=60), 5)
        low, high = metrics.bootstrap_interval(np.mean, x, unit=np.repeat(np.arange(60), 5), seed=seed, n=200)
        covered.append(low <= 0 <= high)
    assert 0.86 <= np.mean(covered) <= 1


def test_bootstrap_moves_units_as_a_whole() -> None:
    unit, x = np.array(list("abcabc")), np.array([1.0, 2, 3, 1, 2, 3])

    def whole(x: np.ndarray) -> float:
        counts = np.unique(x, return_counts=True)[1]
        return float((counts % 2 == 0).all() and counts.sum() == 6)

    assert metrics.resample(whole, x, unit=unit, n=50).all()


def test_bootstrap_is_paired_and_repeatable() -> None:
    score, p, _ = data(5)
    unit = np.arange(len(p)) // 2
    one, two = (metrics.resample(metrics.brier, score, p, unit=unit, seed=s, n=20) for s in (1, 1))
    shifted = metrics.resample(lambda s, p: metrics.brier(s, p) + 0.25, score, p, unit=unit, seed=1, n=20)
    assert (one == two).all() and shifted - one == pytest.approx(np.full(20, 0.25))
    assert (metrics.resample(metrics.brier, score, p, unit=unit, seed=2, n=20) != one).any()


def test_bootstrap_of_an_array_metric_gives_an_interval_each_and_skips_nan() -> None:
    draws = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    low, high = metrics.interval(draws, level=1.0)
    assert (low[0], high[0]) == (1, 3) and np.isnan([low[1], high[1]]).all()
