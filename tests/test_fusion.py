"""Eq. 6-9 against exact rational arithmetic, and the exact facts of Theorems 3.2-3.4, A.4 and A.8."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from verl_v05 import fuse, noise_variance, squared_bias

KS = range(1, 17)
PRIORS = [Fraction(i, 40) - 1 for i in range(81)]
NAN = float("nan")


class Case(NamedTuple):
    k: int
    mean: Fraction
    prior: Fraction


def exact_fusion(case: Case) -> tuple[Fraction, Fraction, Fraction]:
    """(baseline, weight, squared bias) of Eq. 6-9, in rationals."""
    noise = Fraction(1, case.k)
    bias_sq = max(Fraction(0), (case.mean - case.prior) ** 2 - noise)
    weight = bias_sq / (bias_sq + noise)
    return weight * case.mean + (1 - weight) * case.prior, weight, bias_sq


@cache
def all_cases() -> list[Case]:
    """Every number of successes of every group of up to 16 rollouts, with every prior of the grid."""
    return [Case(k, Fraction(2 * s, k) - 1, prior) for k in KS for s in range(k + 1) for prior in PRIORS]


def columns(cases: list[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, k, prior) of the cases as float arrays."""
    k, mean, prior = np.array(cases, dtype=object).T.astype(float)
    return mean, k, prior


def binomial(k: int, p: Fraction) -> list[Fraction]:
    """Probability of each number of successes in k rollouts."""
    return [math.comb(k, s) * p**s * (1 - p) ** (k - s) for s in range(k + 1)]


def float_binomial(k: int, p: float) -> np.ndarray:
    s = np.arange(k + 1)
    log_choose = math.lgamma(k + 1) - np.array([math.lgamma(i + 1) + math.lgamma(k - i + 1) for i in s])
    return np.exp(log_choose + s * math.log(p) + (k - s) * math.log1p(-p))


def probabilities(parts: int) -> Iterator[Fraction]:
    return (Fraction(i, parts) for i in range(parts + 1))


def test_fusion_equals_exact_arithmetic_for_every_group_up_to_16_rollouts() -> None:
    cases = all_cases()
    found = fuse(*columns(cases))
    exact = np.array([[float(v) for v in exact_fusion(case)] for case in cases]).T
    assert len(cases) == 152 * 81
    for name, got, want in zip(found._fields, found, exact, strict=True):
        assert np.abs(got - want).max() < 1e-12, name


def test_accepted_prior_is_the_baseline_to_the_last_bit() -> None:
    cases = [c for c in all_cases() if (c.mean - c.prior) ** 2 <= Fraction(1, c.k)]
    mean, k, prior = columns(cases)
    found = fuse(mean, k, prior)
    assert len(cases) > 3000
    assert (found.baseline == prior).all() and (found.weight == 0).all() and (found.bias_sq == 0).all()


def test_rejected_prior_leaves_the_mean_moved_by_the_reciprocal_of_the_gap() -> None:
    cases = [c for c in all_cases() if (c.mean - c.prior) ** 2 > Fraction(1, c.k)]
    want = [float(c.mean - Fraction(1, c.k) / (c.mean - c.prior)) for c in cases]
    found = fuse(*columns(cases))
    assert len(cases) > 3000
    assert np.abs(found.baseline - want).max() < 1e-12
    assert (found.weight > 0).all() and (found.weight < 1).all()


def test_baseline_lies_between_mean_and_prior() -> None:
    mean, k, prior = columns(all_cases())
    baseline = fuse(mean, k, prior).baseline
    assert (baseline >= np.minimum(mean, prior) - 1e-15).all()
    assert (baseline <= np.maximum(mean, prior) + 1e-15).all()


def test_baseline_is_continuous_where_the_prior_turns_from_accepted_to_rejected() -> None:
    for k in KS:
        edge = 1 / math.sqrt(k)
        inside, outside = (fuse(-0.5, k, edge - 0.5 + e).baseline.item() for e in (-1e-9, 1e-9))
        assert inside == pytest.approx(outside, abs=1e-8)


def test_swapping_success_and_failure_flips_the_sign() -> None:
    mean, k, prior = columns(all_cases())
    assert (fuse(mean, k, prior).baseline == -fuse(-mean, k, -prior).baseline).all()


@pytest.mark.parametrize(
    ("k", "mean", "prior", "baseline"),
    [
        pytest.param(4, -0.5, 0.8, -0.5 + 0.25 / 1.3, id="one success in a group, prior rejected"),
        pytest.param(4, -0.5, -0.8, -0.8, id="one success in a group, prior accepted"),
        pytest.param(16, -0.875, -0.5, -0.875 + 0.0625 / 0.375, id="one success in the largest group"),
        pytest.param(4, 1.0, 0.6, 0.6, id="all equal, prior accepted"),
        pytest.param(4, 1.0, -0.5, 1.0 - 0.25 / 1.5, id="all successes, prior rejected"),
        pytest.param(4, -1.0, 0.5, -1.0 + 0.25 / 1.5, id="all failures, prior rejected"),
        pytest.param(1, 1.0, 0.0, 0.0, id="k = 1, gap on the boundary"),
        pytest.param(1, 1.0, -0.6, 1.0 - 1 / 1.6, id="k = 1, prior rejected"),
        pytest.param(4, 1.0, 1.0, 1.0, id="V = 1, confirmed"),
        pytest.param(4, -1.0, 1.0, -1.0 + 0.25 / 2, id="V = 1, contradicted"),
        pytest.param(4, 1.0, -1.0, 1.0 - 0.25 / 2, id="V = -1, contradicted"),
        pytest.param(1, -1.0, 1.0, -0.5, id="V = 1, contradicted by one rollout"),
        pytest.param(4, 0.5, 0.8, 0.8, id="the paper's A.8: 3 of 4, V = 0.8 is accepted"),
        pytest.param(2, 0.0, 0.8, -0.5 / -0.8, id="the paper's A.8: 1 of 2, V = 0.8 is rejected"),
    ],
)
def test_edge_cases_have_a_defined_result(k: int, mean: float, prior: float, baseline: float) -> None:
    assert fuse(mean, k, prior).baseline.item() == pytest.approx(baseline, abs=1e-15)


def test_missing_prior_leaves_the_mean_and_asks_for_nothing() -> None:
    mean = np.array([-1.0, -0.5, 0.0, 1.0])
    found = fuse(mean, np.array([4, 4, 1, 1]), np.full(4, NAN))
    assert (found.baseline == mean).all() and (found.weight == 1).all() and (found.bias_sq == 0).all()


def test_missing_prior_does_not_disturb_its_neighbours() -> None:
    found = fuse(np.array([0.5, 0.5, 0.5]), 4, np.array([-0.9, NAN, 0.6]))
    assert found.baseline[0] == fuse(0.5, 4, -0.9).baseline
    assert found.baseline[1:].tolist() == [0.5, 0.6]


def test_torch_and_numpy_agree_and_keep_their_kind() -> None:
    mean, k, prior = columns(all_cases())
    prior[::7] = NAN
    by_numpy = fuse(mean, k, prior)
    by_torch = fuse(torch.tensor(mean), torch.tensor(k), torch.tensor(prior))
    for a, b in zip(by_numpy, by_torch, strict=True):
        assert isinstance(a, np.ndarray) and isinstance(b, torch.Tensor) and b.dtype == torch.float64
        assert np.abs(a - b.numpy()).max() <= 1e-15


def test_single_precision_inputs_are_computed_in_double() -> None:
    assert fuse(torch.tensor([0.5]), torch.tensor([4]), torch.tensor([-0.5])).baseline.dtype == torch.float64
    assert fuse(np.float32([0.5]), np.int32([4]), np.float16([-0.5])).baseline.dtype == np.float64


def test_inputs_broadcast() -> None:
    mean, prior = np.linspace(-1, 1, 5)[:, None], np.linspace(-1, 1, 9)
    found = fuse(mean, 4, prior)
    assert {field.shape for field in found} == {(5, 9)}
    for i in range(5):
        for j in range(9):
            assert found.baseline[i, j] == fuse(mean[i, 0], 4, prior[j]).baseline


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("mean", "k", "prior", "message"),
    [
        ([0.0, 1.01], [4, 4], [0.0, 0.0], r"mean_reward must be in \[-1, 1\].*1\.01"),
        ([0.0, NAN], [4, 4], [0.0, 0.0], "mean_reward must be in .*nan"),
        ([0.0, 0.0], [4, 0], [0.0, 0.0], "k must be at least 1"),
        ([0.0, 0.0], [4, 4], [0.0, -1.5], r"prior must be in \[-1, 1\].*-1\.5"),
        ([0.0, 0.0], [4, 4], [0.0, math.inf], "prior must be in .*inf"),
    ],
)
def test_values_out_of_range_are_refused(make: object, mean: list, k: list, prior: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fuse(make(mean), make(k), make(prior))


def test_noise_variance_bounds_the_variance_of_the_mean_and_is_reached_at_one_half() -> None:
    for k in KS:
        true = [1 - (2 * p - 1) ** 2 for p in probabilities(20)]
        assert max(float(v) / k for v in true) == noise_variance(k)


def test_squared_bias_is_zero_exactly_inside_the_acceptance_region() -> None:
    """A.4: accepted iff the prior is within 1/sqrt(k) of the mean."""
    cases = all_cases()
    accepted = np.array([(c.mean - c.prior) ** 2 * c.k <= 1 for c in cases])
    assert ((squared_bias(*columns(cases)) == 0) == accepted).all()


def test_one_more_success_stays_within_the_acceptance_radius_from_four_rollouts_on() -> None:
    """A.8: the gap 2/k between neighbouring means is no larger than 1/sqrt(k) iff k >= 4."""
    for k in KS:
        accepted = squared_bias(-1 + 2 / k, k, -1.0).item() == 0  # one success against V = -1
        assert accepted == (k >= 4)


def test_mse_of_a_fixed_weight_splits_into_variance_and_squared_bias() -> None:
    """Theorem 3.2, exactly; with 3.3's weight no other weight is better."""
    weights = [Fraction(i, 8) for i in range(9)]
    for k in (1, 2, 4, 7, 16):
        for p in probabilities(6):
            true, pmf = 2 * p - 1, binomial(k, p)
            variance = (1 - true**2) / k
            for prior in (Fraction(-1), Fraction(-1, 3), Fraction(1, 2)):
                gap_sq = (prior - true) ** 2

                def mse(w: Fraction, true=true, pmf=pmf, prior=prior, k=k) -> Fraction:
                    fused = (w * (Fraction(2 * s, k) - 1) + (1 - w) * prior for s in range(k + 1))
                    return sum(q * (b - true) ** 2 for q, b in zip(pmf, fused, strict=True))

                assert all(mse(w) == w**2 * variance + (1 - w) ** 2 * gap_sq for w in weights)
                if variance + gap_sq:
                    oracle = gap_sq / (gap_sq + variance)
                    assert all(mse(oracle) <= mse(w) for w in weights)


def test_bias_never_exceeds_one_over_root_k() -> None:
    """Theorem 3.4 (1), exactly, for the estimator of the paper."""
    priors = [Fraction(i, 10) - 1 for i in range(21)]
    for k in KS:
        rates = [(2 * p - 1, binomial(k, p)) for p in probabilities(8)]
        for prior in priors:
            fused = [exact_fusion(Case(k, Fraction(2 * s, k) - 1, prior))[0] for s in range(k + 1)]
            for true, pmf in rates:
                bias = sum(q * b for q, b in zip(pmf, fused, strict=True)) - true
                assert bias**2 * k <= 1, (k, prior, true)


def test_bias_of_the_implementation_never_exceeds_one_over_root_k() -> None:
    """Theorem 3.4 (1) on a fine grid, for the estimator of the code; the pointwise bound of its proof too."""
    priors = np.array([float(v) for v in PRIORS])
    p = np.linspace(0, 1, 101)[:, None]
    for k in KS:
        s = np.arange(k + 1)
        mean = 2 * s / k - 1
        pmf = np.array([math.comb(k, int(i)) for i in s]) * p**s * (1 - p) ** (k - s)
        fused = fuse(mean[:, None], k, priors).baseline
        assert np.abs(fused - mean[:, None]).max() <= 1 / math.sqrt(k) + 1e-12
        assert np.abs(pmf @ fused - (2 * p - 1)).max() <= 1 / math.sqrt(k) + 1e-12


def test_bias_under_a_wrong_prior_falls_as_one_over_k() -> None:
    """Theorem 3.4 (2) with the constants of its proof, and the limit k |bias| -> 1 / Delta."""
    for p, prior in [(0.5, 0.9), (0.25, 0.3), (0.8, -0.2), (0.1, 1.0)]:
        true, gap = 2 * p - 1, abs(prior - (2 * p - 1))
        for k in (64, 256, 1024, 4096):
            fused = fuse(2 * np.arange(k + 1) / k - 1, k, prior).baseline
            bias = abs(float_binomial(k, p) @ fused - true)
            assert 1 / math.sqrt(k) < gap / 2
            assert bias <= 2 / (k * gap) + 2 * math.exp(-k * gap**2 / 8) / math.sqrt(k)
        assert k * bias * gap == pytest.approx(1, abs=0.01)
