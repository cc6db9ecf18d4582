"""The Beta posterior against rational arithmetic, and its baseline without the rollout itself."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import binom

from verl_v05 import Belief, advantages, baseline_mse, fuse, fuse_beta, leave_one_out, posterior_variance
from verl_v05.fusion import FusionMethod, ShrinkageFusion
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion

NAN = float("nan")
CASES = [
    (k, s, Fraction(q, 10), Fraction(m, 4))
    for k in (1, 2, 4, 16)
    for s in range(k + 1)
    for q in range(11)
    for m in (1, 8, 90)
]


def columns() -> tuple[np.ndarray, ...]:
    """(mean reward, k, prior, strength) of the cases."""
    k, s, q, m = (np.array(column, dtype=float) for column in zip(*CASES, strict=True))
    return 2 * s / k - 1, k, 2 * q - 1, m


def test_baseline_is_the_mean_of_the_beta_posterior() -> None:
    want = [float(2 * (s + m * q) / (k + m) - 1) for k, s, q, m in CASES]
    found = fuse_beta(*columns())
    assert np.abs(found.baseline - want).max() < 1e-14
    assert np.abs(found.weight - [float(k / (k + m)) for k, _, _, m in CASES]).max() < 1e-15


def test_variance_is_that_of_the_beta_posterior() -> None:
    """4 a b / ((a + b)^2 (a + b + 1)), the variance of 2p - 1."""
    want = []
    for k, s, q, m in CASES:
        a, b = s + m * q, k - s + m * (1 - q)
        want.append(float(4 * a * b / ((a + b) ** 2 * (a + b + 1))))
    _, k, _, strength = columns()
    assert np.abs(posterior_variance(fuse_beta(*columns()).baseline, k, strength) - want).max() < 1e-14


def test_squared_bias_is_that_of_the_papers_test() -> None:
    mean_reward, k, prior, _ = columns()
    assert (fuse_beta(*columns()).bias_sq == fuse(mean_reward, k, prior).bias_sq).all()


def test_no_estimator_of_the_bench_has_less_error_where_its_beta_prior_is_true() -> None:
    """Over p ~ Beta(m q, m (1 - q)) by quadrature, against the mean, Eq. 9 and the prior alone."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    p = ((nodes + 1) / 2)[:, None]
    for k in (1, 4, 16):
        for q, m in [(0.5, 2.0), (0.8, 5.0), (0.3, 30.0)]:
            s = np.arange(k + 1)
            density = weights[:, None] * p ** (m * q - 1) * (1 - p) ** (m * (1 - q) - 1)
            joint = density / density.sum() * binom.pmf(s, k, p)
            mean_reward, prior = 2 * s / k - 1, 2 * q - 1
            fused = fuse_beta(mean_reward, k, prior, m)
            error = lambda b, joint=joint: (joint * (b - (2 * p - 1)) ** 2).sum()  # noqa: E731
            others = (mean_reward, fuse(mean_reward, k, prior).baseline, np.full(k + 1, prior))
            assert all(error(fused.baseline) < error(other) - 1e-6 for other in others)
            expected = (joint * posterior_variance(fused.baseline, k, m)).sum()
            assert error(fused.baseline) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_reward": 1.1}, "mean_reward must be in"),
        ({"mean_reward": NAN}, "mean_reward must be in"),
        ({"k": 0}, "k must be at least 1"),
        ({"prior": NAN}, "prior must be in .* not NaN"),
        ({"prior": -1.5}, "prior must be in"),
        ({"strength": 0.0}, "strength must be positive"),
        ({"strength": NAN}, "strength must be positive"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_beta(**{"mean_reward": 0.0, "k": 4, "prior": 0.0, "strength": 2.0, **changes})


def belief(prior: np.ndarray, strength: np.ndarray, beta: bool) -> tuple[Belief | np.ndarray, FusionMethod]:
    """(belief, fusion) of the empirical-Bayes fusion or of Eq. 9."""
    return (Belief(prior, strength), EmpiricalBayesFusion()) if beta else (prior, ShrinkageFusion())


def batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rewards, group, prior, strength) of groups of 1 to 6 rollouts in mixed order."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(30), rng.integers(1, 7, 30)))
    rewards = np.where(rng.random(len(group)) < rng.random(30)[group], 1.0, -1.0)
    return rewards, group, rng.uniform(-1, 1, 30), rng.uniform(0.1, 20, 30)


@pytest.mark.parametrize("beta", [False, True])
def test_leave_one_out_equals_the_fusion_of_the_others(beta: bool) -> None:
    for seed in range(3):
        rewards, group, prior, strength = batch(seed)
        prior = prior if beta else np.where(np.arange(30) % 5 == 0, NAN, prior)
        found = leave_one_out(rewards, group, *belief(prior, strength, beta))
        for i, g in enumerate(group):
            others = rewards[(group == g) & (np.arange(len(group)) != i)]
            if len(others) == 0:
                want = rewards[i] if np.isnan(prior[g]) else prior[g]
            elif beta:
                want = fuse_beta(others.mean(), len(others), prior[g], strength[g]).baseline
            else:
                want = fuse(others.mean(), len(others), prior[g]).baseline
            assert found[i] == pytest.approx(float(want), abs=1e-12)


@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("baseline", ["plain", "leave_one_out"])
def test_advantages_measure_each_rollout_against_the_chosen_baseline(beta: bool, baseline: str) -> None:
    rewards, group, prior, strength = batch(5)
    believed, fusion = belief(prior, strength, beta)
    found = advantages(rewards, group, believed, fusion=fusion, baseline=baseline, group_weighting="per_rollout")
    mean, k = found.mean_reward, found.k
    fused = fuse_beta(mean, k, prior, strength) if beta else fuse(mean, k, prior)
    reference = fused.baseline[group] if baseline == "plain" else leave_one_out(rewards, group, believed, fusion)
    assert (found.rollout_baseline == reference).all() and (found.baseline == fused.baseline).all()
    sigma = np.maximum(np.sqrt(1 - reference**2), 0.1)
    assert found.advantage == pytest.approx((rewards - reference) / sigma, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("beta", [False, True])
def test_leave_one_out_makes_the_expected_product_with_the_reward_that_of_no_baseline(k: int, beta: bool) -> None:
    """E[b_-i (r_i - mu)] = 0 by enumerating all rewards of a group: the gradient's direction is unbiased."""
    p, (believed, fusion) = 0.3, belief(np.array([0.5]), np.array([3.0]), beta)
    covariance = {"plain": 0.0, "leave_one_out": 0.0}
    for outcome in range(2**k):
        success = np.array([outcome >> i & 1 for i in range(k)], dtype=float)
        probability = np.prod(np.where(success == 1, p, 1 - p))
        found = {
            name: advantages(2 * success - 1, np.zeros(k, dtype=int), believed, fusion=fusion, baseline=name)
            for name in covariance
        }
        for name, result in found.items():
            covariance[name] += probability * (result.rollout_baseline[0] * (success[0] - p))
    assert covariance["leave_one_out"] == pytest.approx(0, abs=1e-15)
    assert covariance["plain"] > 0.01 or (k == 1 and not beta)


def test_numpy_and_torch_agree() -> None:
    rewards, group, prior, strength = batch(1)
    tensors = [torch.as_tensor(x) for x in (rewards, group, prior, strength)]
    fusion = EmpiricalBayesFusion()
    by_torch = advantages(*tensors[:2], Belief(*tensors[2:]), fusion=fusion, baseline="leave_one_out")
    by_numpy = advantages(rewards, group, Belief(prior, strength), fusion=fusion, baseline="leave_one_out")
    assert by_torch.advantage.numpy() == pytest.approx(by_numpy.advantage, abs=1e-14)


def test_estimated_error_of_the_beta_fusion_is_unbiased() -> None:
    """Over all outcomes of one group, the estimate's mean is the error of the baseline made from k - 1 rollouts."""
    k, p, prior, strength = 4, 0.7, np.array([-0.2]), np.array([2.5])
    estimate = sum(
        binom.pmf(s, k, p)
        * baseline_mse(np.repeat([1.0, -1.0], [s, k - s]), np.zeros(k, dtype=int), *belief(prior, strength, True))[0]
        for s in range(k + 1)
    )
    s = np.arange(k)
    fused = fuse_beta(2 * s / (k - 1) - 1, k - 1, prior, strength).baseline
    assert estimate == pytest.approx((binom.pmf(s, k - 1, p) * (fused - (2 * p - 1)) ** 2).sum(), abs=1e-12)


def test_strengths_without_their_fusion_are_refused() -> None:
    rewards, group, prior, strength = batch(1)
    with pytest.raises(ValueError, match="strengths were given, but ShrinkageFusion has none"):
        advantages(rewards, group, Belief(prior, strength))


def test_unknown_baselines_are_refused() -> None:
    with pytest.raises(ValueError, match="baseline must be one of"):
        advantages(np.ones(2), np.zeros(2, dtype=int), np.zeros(1), baseline="loo")
