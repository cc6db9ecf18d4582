"""Eq. 10 against a loop over rollouts, and the unbiasedness of the baseline's error by exact enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from verl_v05 import advantages, baseline_mse, fuse

NAN = float("nan")


def random_groups(seed: int, groups: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rewards, group, prior) with groups of 1 to 16 rollouts in mixed order, some priors missing."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), rng.integers(1, 17, groups)))
    rewards = np.where(rng.random(len(group)) < rng.random(groups)[group], 1.0, -1.0)
    prior = np.where(rng.random(groups) < 0.2, NAN, rng.uniform(-1, 1, groups))
    return rewards, group, prior


def reference(
    rewards: np.ndarray, group: np.ndarray, prior: np.ndarray, shaping: np.ndarray, floor: float, per_prompt: bool
) -> list[float]:
    """Eq. 6-10 written out for one rollout at a time."""
    result = []
    for i, g in enumerate(group):
        mates = [r for r, other in zip(rewards, group, strict=True) if other == g]
        k, mean, v = len(mates), math.fsum(mates) / len(mates), prior[g]
        if math.isnan(v):
            baseline = mean
        elif (mean - v) ** 2 <= 1 / k:
            baseline = v
        else:
            baseline = mean - 1 / k / (mean - v)
        sigma = max(math.sqrt(max(0.0, 1 - baseline**2)), floor)
        weight = len(rewards) / len(prior) / k if per_prompt else 1.0
        result.append(weight * (rewards[i] + shaping[i] - baseline) / sigma)
    return result


@pytest.mark.parametrize("per_prompt", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_advantages_equal_a_loop_over_rollouts(seed: int, per_prompt: bool) -> None:
    rewards, group, prior = random_groups(seed)
    shaping = np.random.default_rng(seed).uniform(-0.5, 0, len(rewards))
    weighting = "per_prompt" if per_prompt else "per_rollout"
    found = advantages(rewards, group, prior, shaping=shaping, sigma_floor=0.2, group_weighting=weighting)
    assert found.advantage == pytest.approx(reference(rewards, group, prior, shaping, 0.2, per_prompt), abs=1e-12)


def test_bounded_outcomes_that_are_not_binary_are_accepted() -> None:
    rewards, group, prior = random_groups(0)
    rewards = np.random.default_rng(0).uniform(-1, 1, len(rewards))
    want = reference(rewards, group, prior, np.zeros(len(rewards)), 0.1, True)
    assert advantages(rewards, group, prior).advantage == pytest.approx(want, abs=1e-12)


def test_group_fields_are_those_of_the_fusion() -> None:
    rewards, group, prior = random_groups(1)
    found = advantages(rewards, group, prior)
    assert found.k.tolist() == [(group == g).sum() for g in range(len(prior))]
    assert found.mean_reward == pytest.approx([rewards[group == g].mean() for g in range(len(prior))], abs=1e-15)
    fusion = fuse(found.mean_reward, found.k, prior)
    for name in ("baseline", "weight", "bias_sq"):
        assert (getattr(found, name) == getattr(fusion, name)).all()


def test_per_prompt_weights_have_mean_one() -> None:
    rewards, group, prior = random_groups(2)
    weighted = advantages(rewards, group, prior).advantage
    plain = advantages(rewards, group, prior, group_weighting="per_rollout").advantage
    used = np.abs(plain) > 1e-9
    weights = (len(rewards) / len(prior) / np.bincount(group))[group]
    assert weights.mean() == pytest.approx(1, abs=1e-12)
    assert (weighted / np.where(used, plain, 1))[used] == pytest.approx(weights[used], rel=1e-12)


def test_per_prompt_weights_turn_the_mean_over_rollouts_into_the_mean_over_prompts() -> None:
    """Eq. 10: E over prompts of (1/K) sum over its rollouts, whatever multiplies the advantage."""
    rewards, group, prior = random_groups(3)
    ratio = np.random.default_rng(3).uniform(0.8, 1.2, len(rewards))
    weighted = advantages(rewards, group, prior).advantage
    plain = advantages(rewards, group, prior, group_weighting="per_rollout").advantage
    over_prompts = np.mean([(ratio * plain)[group == g].mean() for g in range(len(prior))])
    assert (ratio * weighted).mean() == pytest.approx(over_prompts, abs=1e-12)
    assert (ratio * plain).mean() != pytest.approx(over_prompts, abs=1e-4)


def test_groups_of_equal_size_have_weight_one() -> None:
    group = np.repeat(np.arange(5), 4)
    rewards, prior = np.where(np.arange(20) % 3, 1.0, -1.0), np.linspace(-0.8, 0.8, 5)
    by_prompt = advantages(rewards, group, prior).advantage
    assert (by_prompt == advantages(rewards, group, prior, group_weighting="per_rollout").advantage).all()


@pytest.mark.parametrize("prior", [1.0, -1.0])
def test_certain_prior_is_held_by_the_sigma_floor(prior: float) -> None:
    rewards = prior * np.array([1.0, 1.0, 1.0, -1.0])  # mean within 1/2 of V: accepted, baseline exactly V
    found = advantages(rewards, np.zeros(4, int), np.array([prior]), sigma_floor=0.1)
    assert found.baseline == prior and found.sigma == 0.1
    assert found.advantage.tolist() == pytest.approx([0, 0, 0, -20 * prior], abs=1e-12)


def test_sigma_floor_acts_only_below_itself() -> None:
    prior = np.array([0.0, 0.6, 0.99])
    found = advantages(np.ones(12), np.repeat(np.arange(3), 4), prior, sigma_floor=0.3)
    assert found.baseline == pytest.approx([1 - 0.25, 0.6, 0.99], abs=1e-12)
    assert found.sigma == pytest.approx([math.sqrt(1 - 0.75**2), 0.8, 0.3], abs=1e-12)


def test_all_equal_group_without_a_prior_has_no_signal() -> None:
    found = advantages(np.ones(4), np.zeros(4, int), np.array([NAN]))
    assert found.advantage.tolist() == [0, 0, 0, 0] and np.isfinite(found.sigma).all()


def test_all_equal_group_carries_signal_against_its_prior() -> None:
    found = advantages(np.full(4, -1.0), np.zeros(4, int), np.array([0.0]))
    assert (found.advantage < -0.2).all()


def test_a_single_rollout_is_compared_with_its_prior() -> None:
    found = advantages(np.array([1.0]), np.array([0]), np.array([0.5]))
    assert found.advantage == pytest.approx([0.5 / math.sqrt(0.75)], abs=1e-12)


def test_shaping_enters_the_advantage_and_nothing_else() -> None:
    rewards, group, prior = random_groups(4)
    shaping = np.random.default_rng(4).uniform(-2, 0, len(rewards))
    without, shaped = (advantages(rewards, group, prior, shaping=s) for s in (0.0, shaping))
    for name in without._fields[1:]:
        assert (getattr(without, name) == getattr(shaped, name)).all(), name
    weights = (len(rewards) / len(prior) / without.k)[group]
    assert shaped.advantage - without.advantage == pytest.approx(weights * shaping / without.sigma[group], abs=1e-12)


def test_order_of_rollouts_and_groups_does_not_matter() -> None:
    rewards, group, prior = random_groups(5)
    rng = np.random.default_rng(5)
    order, rename = rng.permutation(len(rewards)), rng.permutation(len(prior))
    renamed_prior = np.empty_like(prior)
    renamed_prior[rename] = prior
    want = advantages(rewards, group, prior)
    found = advantages(rewards[order], rename[group[order]], renamed_prior)
    assert (found.advantage == want.advantage[order]).all()
    assert (found.baseline[rename] == want.baseline).all()


def test_torch_and_numpy_agree() -> None:
    rewards, group, prior = random_groups(6)
    shaping = np.linspace(-1, 0, len(rewards))
    by_numpy = advantages(rewards, group, prior, shaping=shaping)
    tensors = [torch.tensor(a) for a in (rewards, group, prior)]
    by_torch = advantages(*tensors, shaping=torch.tensor(shaping))
    for name, a, b in zip(by_numpy._fields, by_numpy, by_torch, strict=True):
        assert isinstance(b, torch.Tensor) and b.dtype == torch.float64
        assert np.abs(a - b.numpy()).max() <= 1e-12, name
    assert baseline_mse(*tensors) == pytest.approx(baseline_mse(rewards, group, prior), abs=1e-12)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("rewards", "group", "prior", "message"),
    [
        ([1.0, -1.5], [0, 0], [0.0], r"rewards must be in \[-1, 1\].*-1\.5"),
        ([1.0, NAN], [0, 0], [0.0], "rewards must be in .*nan"),
        ([1.0, -1.0], [0, 0], [0.0, 0.0], "at least one rollout"),
        ([1.0, -1.0], [0, 2], [0.0, 0.0, 0.0], "at least one rollout"),
        ([1.0, -1.0], [0, 1], [0.0], "every group needs a prior"),
        ([1.0, -1.0], [0, 1], [0.0, 1.2], "prior must be in"),
    ],
)
def test_unusable_inputs_are_refused(make: object, rewards: list, group: list, prior: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        advantages(make(rewards), make(group), make(prior))


def test_unknown_group_weighting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"per_prompt.*per_rollout.*'mean'"):
        advantages(np.ones(1), np.zeros(1, int), np.zeros(1), group_weighting="mean")


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_baseline_mse_is_unbiased(size: int) -> None:
    """Over all reward vectors of a group its expectation is the exact error of a baseline of size - 1 rollouts."""
    vectors = np.array(list(itertools.product([-1.0, 1.0], repeat=size)))
    successes = (vectors > 0).sum(axis=1)
    fewer = np.arange(size)
    for prior in (-1.0, -0.4, 0.0, 0.3, 0.95, NAN):
        estimates = np.array([baseline_mse(v, np.zeros(size, int), np.array([prior])) for v in vectors])
        means = 2 * fewer / (size - 1) - 1
        fused = fuse(means, size - 1, prior).baseline
        for p in (0.0, 0.1, 0.5, 0.7, 1.0):
            expected = (p**successes * (1 - p) ** (size - successes)) @ estimates
            pmf = np.array([math.comb(size - 1, int(s)) for s in fewer]) * p**fewer * (1 - p) ** (size - 1 - fewer)
            exact = [pmf @ (b - (2 * p - 1)) ** 2 for b in (fused, means)]
            assert expected == pytest.approx(exact, abs=1e-12)


def test_baseline_mse_averages_over_rollouts_and_leaves_single_ones_out() -> None:
    rewards, group, prior = random_groups(7)
    parts = [(g, (group == g).sum()) for g in range(len(prior)) if (group == g).sum() >= 2]
    each = np.array([baseline_mse(rewards[group == g], np.zeros(k, int), prior[g : g + 1]) for g, k in parts])
    sizes = np.array([k for _, k in parts])
    assert (np.bincount(group) == 1).any()
    assert baseline_mse(rewards, group, prior) == pytest.approx(sizes @ each / sizes.sum(), abs=1e-12)


def test_baseline_mse_of_single_rollouts_is_unknown() -> None:
    assert all(math.isnan(v) for v in baseline_mse(np.ones(3), np.arange(3), np.zeros(3)))


def test_baseline_mse_without_a_prior_is_that_of_the_group_mean() -> None:
    rewards, group, prior = random_groups(8)
    fused, mean = baseline_mse(rewards, group, np.full(len(prior), NAN))
    assert fused == mean
