"""The exact policy: its gradient against autograd, enumeration against sampling, known biases of group estimators."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import binom

from benchmarks.exact_policy import (
    Groups,
    average_moments,
    batch_estimates,
    enumerate_groups,
    gradient_moments,
    group_estimates,
    make_policy,
    moments,
    sample_batch,
    sample_groups,
)

RATES = (0.05, 0.4, 0.5, 0.9)
POLICY = make_policy(RATES, responses=4, correct=1, dim=8, seed=3)


def group_mean(rewards: np.ndarray, responses: np.ndarray) -> np.ndarray:
    return rewards - rewards.mean(axis=1, keepdims=True)


def leave_one_out(rewards: np.ndarray, responses: np.ndarray) -> np.ndarray:
    k = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * k / (k - 1)


def constant(rewards: np.ndarray, responses: np.ndarray, *, baseline: float) -> np.ndarray:
    return rewards - baseline


def by_response(rewards: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """An advantage that tells responses of equal reward apart, and divides by the group's deviation."""
    lengths = 1.0 + responses
    baseline = (lengths * rewards).sum(axis=1, keepdims=True) / lengths.sum(axis=1, keepdims=True)
    return (rewards - baseline) / (rewards.std(axis=1, keepdims=True) + 0.1)


def all_sequences(prompt: int, k: int) -> Groups:
    """Every ordered group of k responses, the long way round."""
    responses = np.array(list(product(range(4), repeat=k)))
    return Groups(responses, POLICY.rewards[prompt][responses], POLICY.probabilities[prompt][responses].prod(axis=1))


def test_policy_has_the_success_rates_it_was_asked_for() -> None:
    assert POLICY.success_rate == pytest.approx(RATES, abs=1e-12)
    assert POLICY.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert (POLICY.rewards == [1, -1, -1, -1]).all()


def test_gradient_equals_autograd() -> None:
    theta = torch.tensor(POLICY.theta, requires_grad=True)
    logits = torch.tensor(POLICY.features) @ theta + torch.tensor(POLICY.offsets)
    means = (torch.softmax(logits, dim=1) * torch.tensor(POLICY.rewards)).sum(dim=1)
    for prompt, mean in enumerate(means):
        (found,) = torch.autograd.grad(mean, theta, retain_graph=True)
        assert np.abs(POLICY.gradients[prompt] - found.numpy()).max() < 1e-12
    (found,) = torch.autograd.grad(means.mean(), theta, retain_graph=True)
    assert np.abs(POLICY.gradient - found.numpy()).max() < 1e-12
    (score,) = torch.autograd.grad(torch.log_softmax(logits, dim=1)[2, 3], theta)
    assert np.abs(POLICY.scores[2, 3] - score.numpy()).max() < 1e-12


def test_gradients_of_prompts_interact() -> None:
    gram = POLICY.gradients @ POLICY.gradients.T
    assert np.abs(gram[~np.eye(4, dtype=bool)]).min() > 1e-4


@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_enumerated_probabilities_sum_to_one_and_have_the_binomial_number_of_successes(k: int) -> None:
    for prompt, rate in enumerate(RATES):
        groups = enumerate_groups(POLICY, prompt, k)
        assert groups.probability.sum() == pytest.approx(1, abs=1e-12)
        successes = np.bincount((groups.rewards > 0).sum(axis=1), weights=groups.probability, minlength=k + 1)
        assert np.abs(successes - binom.pmf(np.arange(k + 1), k, rate)).max() < 1e-12


@pytest.mark.parametrize("k", [1, 3, 5])
def test_multisets_have_the_moments_of_all_sequences(k: int) -> None:
    for prompt in range(4):
        short = gradient_moments(POLICY, prompt, enumerate_groups(POLICY, prompt, k), by_response)
        long = gradient_moments(POLICY, prompt, all_sequences(prompt, k), by_response)
        assert np.abs(short.mean - long.mean).max() < 1e-12
        assert short.trace.value == pytest.approx(long.trace.value, abs=1e-12)


def test_an_outcome_reweights_the_groups_with_each_number_of_successes() -> None:
    """Groups of 3 of which only those with one success are kept, against the filtered long enumeration."""
    kept = enumerate_groups(POLICY, 1, 3, outcome=np.array([0, 1.0, 0, 0]))
    groups = all_sequences(1, 3)
    one = (groups.rewards > 0).sum(axis=1) == 1
    probability = np.where(one, groups.probability, 0) / groups.probability[one].sum()
    want = gradient_moments(POLICY, 1, groups._replace(probability=probability), by_response)
    found = gradient_moments(POLICY, 1, kept, by_response)
    assert kept.probability.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(found.mean - want.mean).max() < 1e-12
    assert found.trace.value == pytest.approx(want.trace.value, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_leave_one_out_mean_and_constant_baselines_are_unbiased(k: int) -> None:
    for prompt in range(4):
        groups = enumerate_groups(POLICY, prompt, k)
        for advantage in (leave_one_out, partial(constant, baseline=0.7)):
            assert np.abs(gradient_moments(POLICY, prompt, groups, advantage).bias).max() < 1e-12


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_group_mean_shrinks_the_gradient_by_k_minus_1_over_k(k: int) -> None:
    for prompt in range(4):
        found = gradient_moments(POLICY, prompt, enumerate_groups(POLICY, prompt, k), group_mean)
        assert np.abs(found.mean - (k - 1) / k * POLICY.gradients[prompt]).max() < 1e-12
        assert found.scale.value == pytest.approx((k - 1) / k, abs=1e-12)


def test_one_rollout_with_a_constant_baseline_has_the_trace_of_its_definition() -> None:
    """E |s|^2 (r - b)^2 - |g|^2, summed over responses by hand; four rollouts divide it by four."""
    advantage = partial(constant, baseline=-0.3)
    for prompt in range(4):
        squares = (POLICY.scores[prompt] ** 2).sum(axis=1) * (POLICY.rewards[prompt] + 0.3) ** 2
        want = POLICY.probabilities[prompt] @ squares - (POLICY.gradients[prompt] ** 2).sum()
        for k in (1, 4):
            found = gradient_moments(POLICY, prompt, enumerate_groups(POLICY, prompt, k), advantage)
            assert found.trace.value == pytest.approx(want / k, rel=1e-12)


def test_scale_is_divided_out_of_the_relative_noise() -> None:
    groups = enumerate_groups(POLICY, 1, 4)
    small = gradient_moments(POLICY, 1, groups, leave_one_out)
    large = gradient_moments(POLICY, 1, groups, lambda r, o: 7 * leave_one_out(r, o))
    assert large.trace.value == pytest.approx(49 * small.trace.value, rel=1e-12)
    assert large.scale.value == pytest.approx(7, rel=1e-12)
    assert large.relative_noise.value == pytest.approx(small.relative_noise.value, rel=1e-12)
    assert small.relative_noise.value == pytest.approx(small.trace.value / (small.gradient**2).sum(), rel=1e-12)
    assert small.rms_norm.value**2 == pytest.approx(small.trace.value + (small.mean**2).sum(), rel=1e-12)


def test_sampled_moments_agree_with_enumeration_within_four_standard_errors() -> None:
    for prompt in range(4):
        exact = gradient_moments(POLICY, prompt, enumerate_groups(POLICY, prompt, 4), by_response)
        groups = sample_groups(POLICY, prompt, 4, 40_000, np.random.default_rng(prompt))
        found = gradient_moments(POLICY, prompt, groups, by_response)
        assert (np.abs(found.mean - exact.mean) <= 4 * found.mean_error).all()
        for name in ("trace", "rms_norm", "cosine", "scale", "relative_noise"):
            value, error = getattr(found, name)
            assert 0 < error < 0.1 * abs(value), name
            assert abs(value - getattr(exact, name).value) <= 4 * error, name
            assert getattr(exact, name).error == 0


def test_standard_errors_equal_the_spread_over_repetitions() -> None:
    rng = np.random.default_rng(0)
    many = [gradient_moments(POLICY, 1, sample_groups(POLICY, 1, 4, 500, rng), by_response) for _ in range(400)]
    for name in ("trace", "rms_norm", "cosine", "scale", "relative_noise"):
        values, errors = np.array([getattr(m, name) for m in many]).T
        assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15), name


def test_average_over_prompts_agrees_with_drawn_batches() -> None:
    parts = [gradient_moments(POLICY, p, enumerate_groups(POLICY, p, 4), by_response) for p in range(4)]
    exact = average_moments(parts)
    responses, rewards = sample_batch(POLICY, 4, 40_000, np.random.default_rng(1))
    flat = by_response(rewards.reshape(-1, 4), responses.reshape(-1, 4)).reshape(rewards.shape)
    found = moments(batch_estimates(POLICY, responses, flat), POLICY.gradient)
    assert np.abs(exact.gradient - POLICY.gradient).max() < 1e-15
    assert (np.abs(found.mean - exact.mean) <= 4 * found.mean_error).all()
    for name in ("trace", "cosine", "scale", "relative_noise"):
        value, error = getattr(found, name)
        assert abs(value - getattr(exact, name).value) <= 4 * error, name
    with pytest.raises(ValueError, match="exact moments only"):
        average_moments([found])


def test_batches_hold_the_same_estimates_as_their_groups() -> None:
    responses, rewards = sample_batch(POLICY, 3, 50, np.random.default_rng(2))
    flat = by_response(rewards.reshape(-1, 3), responses.reshape(-1, 3)).reshape(rewards.shape)
    groups = [Groups(responses[:, p], rewards[:, p], None) for p in range(4)]
    want = np.mean([group_estimates(POLICY, p, g, by_response) for p, g in enumerate(groups)], axis=0)
    assert np.abs(batch_estimates(POLICY, responses, flat) - want).max() < 1e-12


def test_policies_without_a_gradient_are_refused() -> None:
    with pytest.raises(ValueError, match=r"success rates must be in \(0, 1\).*1\.0"):
        make_policy([0.5, 1.0])
    with pytest.raises(ValueError, match=r"correct must be in 1\.\.3.*got 4"):
        make_policy([0.5], responses=4, correct=4)
