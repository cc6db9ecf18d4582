"""The related work's estimators, as pure functions, against numbers worked out by hand from the papers' formulas."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from verl_v05.estimators import GroupAdvantage, bnpo, ha_dw, james_stein, mc_grpo, qae
from verl_v05.estimators.groups import make_groups


def ha_dw_from(belief: float | None) -> Callable[..., GroupAdvantage]:
    return lambda rewards, group, **kw: ha_dw.step(ha_dw.Anchor(belief), rewards, group, **kw)[1]


ESTIMATORS = {
    "mc_grpo": mc_grpo.advantages,
    "qae": qae.advantages,
    "qae interpolated": lambda rewards, group: qae.advantages(rewards, group, interpolate=True),
    "bnpo": bnpo.advantages,
    "ha_dw": ha_dw_from(0.6),
    "ha_dw first batch": ha_dw_from(None),
    "james_stein": james_stein.advantages,
    "james_stein positive part": lambda rewards, group: james_stein.advantages(rewards, group, leave_one_out=False),
}
every = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
normalised = pytest.mark.parametrize("estimator", list(ESTIMATORS.values())[:-2], ids=list(ESTIMATORS)[:-2])


def batch(*rewards: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and groups, one list a group."""
    return np.concatenate(rewards).astype(float), np.repeat(np.arange(len(rewards)), [len(r) for r in rewards])


def random_batch(seed: int, binary: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Groups of 1 to 9 rollouts, rows in any order."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(12), np.r_[1, 1, rng.integers(1, 10, 10)]))
    rewards = rng.random(len(group))
    return (rewards < rng.random(12)[group]).astype(float) if binary else rewards, group


# MC-GRPO


def test_mc_grpo_divides_the_distance_from_the_median_by_mad() -> None:
    result = mc_grpo.advantages(*batch([1.0, 0.0, 0.2]), rescale=False)
    assert result.baseline.tolist() == [0.2, 0.2, 0.2]
    np.testing.assert_allclose(result.advantage, [0.8 / 0.201, -0.2 / 0.201, 0.0], rtol=1e-12)


def test_mc_grpo_makes_up_for_the_rollouts_of_advantage_zero() -> None:
    result = mc_grpo.advantages(*batch([1.0, 0.0, 0.2], [0.5, 0.5, 0.5, 0.9, 0.1]), eps=0.05)
    expected = np.array([0.8, -0.2, 0.0]) / 0.25 * 3 / 2
    np.testing.assert_allclose(result.advantage, [*expected, 0, 0, 0, 0.4 / 0.05 * 5 / 2, -0.4 / 0.05 * 5 / 2])


def test_mc_grpo_of_binary_rewards_is_the_minority_over_the_constant() -> None:
    result = mc_grpo.advantages(*batch([1, 1, 0, 1, 1], [0, 0, 1]))
    np.testing.assert_allclose(result.advantage, [0, 0, -5000, 0, 0, 0, 0, 3000])


def test_mc_grpo_takes_the_lower_of_two_middle_rewards() -> None:
    assert mc_grpo.advantages(*batch([1, 0, 1, 0], [0.1, 0.4, 0.2, 0.3])).baseline[[0, 4]].tolist() == [0.0, 0.2]


# QAE


@pytest.mark.parametrize("k", [0.07, 0.3, 0.4, 0.5, 0.6, 0.9])
def test_qae_is_the_gate_of_equation_4_at_every_success_rate(k: float) -> None:
    for size in range(1, 101, 9):
        for successes in range(size + 1):
            rewards, group = batch([1.0] * successes + [0.0] * (size - successes))
            hard = Fraction(successes, size) <= 1 - Fraction(str(k))
            assert qae.advantages(rewards, group, k=k).baseline[0] == (0.0 if hard else 1.0)


def test_qae_reinforces_rare_successes_and_punishes_remaining_failures() -> None:
    result = qae.advantages(*batch([1, 0, 0, 0], [1, 0, 1, 1]), eps=1e-12)
    np.testing.assert_allclose(result.advantage, [2, 0, 0, 0, 0, -2, 0, 0])  # std = sqrt(0.75 / 3)


def test_qae_interpolates_as_torch_quantile() -> None:
    rewards, group = random_batch(3, binary=False)
    result = qae.advantages(rewards, group, k=0.4, interpolate=True)
    for g in range(12):
        expected = torch.quantile(torch.from_numpy(rewards[group == g]), 0.4).item()
        np.testing.assert_allclose(result.baseline[group == g], expected, rtol=1e-12)


# BNPO


def test_bnpo_is_grpo_up_to_a_constant_at_three_halves() -> None:
    # Means 1/4, 1/2, 3/4: variance 1/16, so c = 3, a = b = 3/2 and alpha = beta = 3/2: f = 8/pi sqrt(p (1 - p)).
    rewards, group = batch([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0])
    assert bnpo.normaliser(make_groups(rewards, group)) == pytest.approx((1.5, 1.5))
    p = np.repeat([0.25, 0.5, 0.75], 4)
    result = bnpo.advantages(rewards, group)
    np.testing.assert_allclose(result.advantage, (rewards - p) * math.pi / 8 / np.sqrt(p * (1 - p)), rtol=1e-12)
    np.testing.assert_allclose(result.baseline, p)


def test_bnpo_divides_by_the_fitted_beta_density() -> None:
    rewards, group = batch([1, 0, 0, 0], [1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 0])
    p = np.array([1 / 4, 1 / 3, 1 / 6, 1 / 2])
    m, v = p.mean(), p.var(ddof=1)
    a, b = m * (m * (1 - m) / v - 1), (1 - m) * (m * (1 - m) / v - 1)
    density = stats.beta(1 + a / 3, 1 + b / 3).pdf(p)
    np.testing.assert_allclose(bnpo.advantages(rewards, group).advantage, (rewards - p[group]) / density[group])


def test_bnpo_is_plain_where_the_batch_says_nothing_of_the_spread() -> None:
    for rewards in ([[1, 0, 0, 0]], [[1, 0], [0, 1]], [[1, 1], [0, 0], [1, 0]]):
        outcome, group = batch(*rewards)
        result = bnpo.advantages(outcome, group)
        np.testing.assert_allclose(result.advantage, outcome - result.baseline)


def test_bnpo_bounds_the_weight() -> None:
    rewards, group = batch([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0])
    result = bnpo.advantages(rewards, group, max_weight=0.8)  # of 0.907, 0.785 and 0.907
    np.testing.assert_allclose(result.advantage[[0, 4, 8]], [0.75 * 0.8, 0.5 * math.pi / 4, 0.25 * 0.8])


# HA-DW


def test_ha_dw_raises_successes_on_harder_prompts_than_expected() -> None:
    rewards, group = batch([1, 0, 0, 0], [1, 1, 1, 0])
    anchor = ha_dw.Anchor(0.5, (0.5,))
    _, result = ha_dw.step(anchor, rewards, group, scale=2.0, eps=1e-12)
    up, down = 2 * math.exp(0.25), 2 * math.exp(-0.25)  # std 1/2, centred by 1/4 and 3/4
    expected = [1.5 * up, *[-0.5 * down] * 3, *[0.5 * down] * 3, -1.5 * up]
    np.testing.assert_allclose(result.advantage, expected, rtol=1e-9)
    np.testing.assert_allclose(result.baseline, np.repeat([0.25, 0.75], 4))


def test_ha_dw_measures_the_first_batch_against_itself_and_the_second_against_the_first() -> None:
    rewards, group = batch([1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0])
    anchor, first = ha_dw.step(ha_dw.Anchor(), rewards, group, scale=1.0, eps=1e-12)
    assert anchor.belief == pytest.approx(1 / 3)
    assert first.advantage[0] == pytest.approx(1.5 * math.exp(1 / 3 - 1 / 4))
    after, second = ha_dw.step(anchor, *batch([1, 1]), scale=1.0)
    assert after.belief == pytest.approx((1 / 3 + 1) / 2)
    _, third = ha_dw.step(anchor, *batch([1, 0]), scale=1.0, eps=1e-12)
    assert second.advantage.tolist() == [0, 0]
    assert third.advantage[0] == pytest.approx(0.5 / math.sqrt(0.5) * math.exp(1 / 3 - 1 / 2))


def updates(rates: list[float], window: int, eta: float | None) -> list[float]:
    anchor, beliefs = ha_dw.Anchor(), []
    for rate in rates:
        anchor = anchor.update(rate, window=window, eta=eta)
        beliefs.append(anchor.belief)
    return beliefs


def test_hard_anchor_is_the_mean_of_the_last_batches() -> None:
    assert updates([0.25, 0.75, 0.25, 0.0], 2, None) == pytest.approx([0.25, 0.5, 0.5, 0.125])


def test_kalman_anchor_moves_with_the_spread_of_its_last_beliefs() -> None:
    # Beliefs 0.2 and 0.3 spread by 0.05, 0.3 and 0.4 by as much: gain 4 * 0.05; the gain is at most 1.
    assert updates([0.2, 0.4, 0.8, 0.9], 2, 4.0) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert updates([0.2, 0.4, 0.8], 2, 1000.0) == pytest.approx([0.2, 0.3, 0.8])


@pytest.mark.parametrize("eta", [None, 3.0])
def test_ha_dw_goes_on_from_json_as_if_it_had_not_stopped(eta: float | None) -> None:
    anchor = ha_dw.Anchor()
    for seed in range(4):
        anchor, _ = ha_dw.step(anchor, *random_batch(seed), window=3, eta=eta)
    read = ha_dw.Anchor(**json.loads(json.dumps(asdict(anchor))))
    assert read == anchor
    for start in (anchor, read):
        after, result = ha_dw.step(start, *random_batch(9), window=3, eta=eta)
        assert after.belief != start.belief
        np.testing.assert_array_equal(
            result.advantage, ha_dw.step(anchor, *random_batch(9), window=3, eta=eta)[1].advantage
        )


@pytest.mark.parametrize("fields", [{"belief": 1.5}, {"belief": math.nan}, {"belief": 0.5, "recent": [-0.1]}])
def test_impossible_anchor_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"belief and recent must be in \[0, 1\]"):
        ha_dw.Anchor(**fields)


# James-Stein


def test_two_level_baseline_by_hand() -> None:
    # Variances of the means 1/4, 0, 0. Of the first group's others v = 0: its own. Of the second's v = 1/8, s = 1/16,
    # lambda = 2/3 * 2/3, towards 1/4; of the third's the same towards 3/4.
    result = james_stein.advantages(*batch([1, 0], [1, 1], [0, 0]))
    np.testing.assert_allclose(result.baseline, [0, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3], rtol=1e-12)
    np.testing.assert_allclose(result.advantage, [1, -1, 1 / 3, 1 / 3, -1 / 3, -1 / 3], rtol=1e-12)


def test_two_level_baseline_is_its_definition_in_groups_of_any_size() -> None:
    rewards, group = random_batch(5, binary=False)
    by_group = [rewards[group == g] for g in range(12)]
    baseline = james_stein.advantages(rewards, group).baseline
    for i, row in zip(group, range(len(group)), strict=True):
        others = [r for g, r in enumerate(by_group) if g != i]
        means = [r.mean() for r in others]
        v = np.mean([r.var(ddof=1) / len(r) for r in others if len(r) > 1])
        shrinkage = 11 / 12 * v / (v + np.var(means)) if len(by_group[i]) > 1 else 1.0
        own = np.delete(rewards, [row, *np.flatnonzero(group != i)])
        own_mean = own.mean() if len(own) else 0.0
        assert baseline[row] == pytest.approx((1 - shrinkage) * own_mean + shrinkage * np.mean(means), rel=1e-9)


@pytest.mark.parametrize(("prompts", "rollouts"), [(3, 8), (8, 3)])
def test_two_level_shrinkage_is_the_public_code_s_times_a_factor_of_the_prompts(prompts: int, rollouts: int) -> None:
    rewards = np.random.default_rng(9).random((prompts, rollouts))
    baseline = james_stein.advantages(rewards.ravel(), np.repeat(np.arange(prompts), rollouts)).baseline
    for i, row in enumerate(rewards):
        others = np.delete(rewards, i, axis=0)
        v, s = others.var(axis=1, ddof=1).mean() / rollouts, others.mean(axis=1).var()
        own = (row.sum() - row) / (rollouts - 1)
        shrinkage = (baseline.reshape(rewards.shape)[i] - own) / (others.mean() - own)
        np.testing.assert_allclose(shrinkage, (prompts - 1) / prompts * v / (v + s), rtol=1e-9)


@pytest.mark.parametrize("prompts", [2, 3, 64])
def test_the_factor_of_the_prompts_minimises_the_error_towards_a_mean_of_others(prompts: int) -> None:
    v, s = 0.3, 0.2  # variance of a group's mean, and of the true means between prompts
    shrinkage = np.linspace(0, 1, 100_001)
    error = (1 - shrinkage) ** 2 * v + shrinkage**2 * (s + (s + v) / (prompts - 1))
    assert shrinkage[error.argmin()] == pytest.approx((prompts - 1) / prompts * v / (v + s), abs=1e-5)


def test_two_level_baseline_does_not_see_its_own_reward() -> None:
    rewards, group = random_batch(6)
    for row in range(len(rewards)):
        changed = rewards.copy()
        changed[row] = 1 - changed[row]
        before, after = (james_stein.advantages(r, group).baseline[row] for r in (rewards, changed))
        assert before == pytest.approx(after, rel=1e-12, abs=1e-15)


def test_positive_part_baseline_by_hand() -> None:
    mixed = [[1, 0]] * 3
    result = james_stein.advantages(*batch([0, 0], *mixed, [1, 1]), leave_one_out=False)
    # v = 3/4 / 5, S = 1/2: lambda = 2 * 0.15 / 0.5
    np.testing.assert_allclose(result.baseline[::2], [0.3, 0.5, 0.5, 0.5, 0.7], rtol=1e-12)
    result = james_stein.advantages(*batch(*mixed, [1, 0], [1, 1]), leave_one_out=False)
    np.testing.assert_allclose(result.baseline, 0.6, rtol=1e-12)  # lambda = 2 * 0.2 / 0.2, cut to 1
    result = james_stein.advantages(*batch([0, 0], [1, 0], [1, 1]), leave_one_out=False)
    np.testing.assert_allclose(result.baseline, [0, 0, 0.5, 0.5, 1, 1])  # three groups: not shrunk


# Every estimator


@every
@pytest.mark.parametrize("binary", [True, False])
def test_rows_in_any_order_and_groups_of_any_number_give_the_same(estimator: Callable, binary: bool) -> None:
    rewards, group = random_batch(1, binary)
    rng = np.random.default_rng(2)
    rows, names = rng.permutation(len(group)), rng.permutation(12)
    before, after = estimator(rewards, group), estimator(rewards[rows], names[group[rows]])
    for x, y in zip(before, after, strict=True):
        np.testing.assert_allclose(x[rows], y, rtol=1e-9, atol=1e-12)
    assert np.abs(before.advantage).sum() > 0


@every
def test_torch_and_numpy_agree(estimator: Callable) -> None:
    rewards, group = random_batch(4)
    ours = estimator(rewards, group)
    theirs = estimator(torch.from_numpy(rewards).float(), torch.from_numpy(group))
    for x, y in zip(ours, theirs, strict=True):
        assert y.dtype == torch.float64
        np.testing.assert_allclose(x, y.numpy(), rtol=1e-12, atol=1e-15)


@normalised
def test_a_group_of_one_or_of_equal_rewards_has_no_advantage(estimator: Callable) -> None:
    rewards, group = batch([1], [0, 0, 0], [1, 1], [1, 0, 1], [0])
    result = estimator(rewards, group)
    assert result.advantage[[0, 1, 2, 3, 4, 5, 9]].tolist() == [0] * 7
    assert result.baseline[[0, 1, 4, 9]].tolist() == [1, 0, 1, 0]
    assert np.abs(result.advantage[6:9]).max() > 0


@every
@pytest.mark.parametrize("rewards", [[[1.0]], [[0.0, 0.0]], [[1, 0, 0]], [[1], [0]], [[1, 1], [1, 1]], [[0], [0], [1]]])
def test_the_smallest_batches_are_finite(estimator: Callable, rewards: list) -> None:
    result = estimator(*batch(*rewards))
    assert np.isfinite(result.advantage).all() and np.isfinite(result.baseline).all()


def test_a_single_rollout_has_the_other_prompts_as_its_james_stein_baseline() -> None:
    assert james_stein.advantages(*batch([1], [0, 0, 1, 1], [0])).baseline[[0, 5]].tolist() == [0.25, 0.75]
    assert james_stein.advantages(*batch([1])).advantage.tolist() == [0]
    np.testing.assert_allclose(james_stein.advantages(*batch([1, 0, 0])).baseline, [0, 0.5, 0.5])  # RLOO


@pytest.mark.parametrize("name", ["mc_grpo", "qae", "bnpo", "ha_dw", "james_stein"])
def test_the_scale_of_rewards_is_mapped(name: str) -> None:
    rewards, group = random_batch(8)
    mapped = {"low": -1.0, "high": 1.0} if name in ("bnpo", "ha_dw") else {}
    tiny = {"eps": 1e-12} if name in ("mc_grpo", "qae") else {}
    plain = ESTIMATORS[name](rewards, group, **tiny)
    signed = ESTIMATORS[name](2 * rewards - 1, group, **mapped, **tiny)
    unit = {"james_stein": 2, "mc_grpo": 2}.get(name, 1)  # MAD is 0 here, so that the constant does not scale
    np.testing.assert_allclose(signed.advantage, unit * plain.advantage, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(signed.baseline, 2 * plain.baseline - 1, rtol=1e-12, atol=1e-12)


@every
@pytest.mark.parametrize(
    ("rewards", "group", "message"),
    [
        ([0.0, math.nan], [0, 0], "rewards must be"),
        ([0.0, 1.0], [0, 2], r"every index of 0\.\.2"),
        ([0.0, 1.0], [-1, 0], r"in 0\.\.G-1"),
        ([0.0, 1.0], [0.0, 1.0], "integers; got float64"),
        ([0.0, 1.0], [0], "one shape"),
        ([], np.empty(0, int), "R >= 1"),
    ],
)
def test_rollouts_that_are_none_are_refused(estimator: Callable, rewards: list, group: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(np.array(rewards), np.array(group))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("mc_grpo", {"eps": 0}, "eps must be positive; got 0"),
        ("qae", {"k": 1.0}, r"k must be in \(0, 1\); got 1.0"),
        ("bnpo", {"low": 1.0}, "low must be below high"),
        ("bnpo", {"low": 0.5}, r"rewards must be in \[low, high\] = \[0.5, 1.0\]; got \[0"),
        ("bnpo", {"max_weight": -1}, "max_weight"),
        ("ha_dw", {"high": 0.5}, r"rewards must be in \[low, high\] .* add no penalty"),
        ("ha_dw", {"window": 0}, "window must be at least 1"),
        ("ha_dw", {"window": 1, "eta": 1.0}, "window must be at least 2"),
        ("ha_dw", {"eta": -1.0}, "eta must be positive"),
        ("ha_dw", {"scale": 0.0}, "scale must be positive"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[name](*batch([1, 0, 1], [0, 1]), **parameters)


@every
def test_a_large_batch_takes_milliseconds(estimator: Callable) -> None:
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(16384), 8))
    rewards = rng.random(len(group)).round()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        estimator(rewards, group)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5, "a loop over 131,072 rows would take longer"
