"""What enumeration says of the paper's theorems: closed forms against finite sums, and counter-examples by hand.

Fractions and decisions up to 16 rollouts are in test_fusion.py and test_allocation.py; here are true errors, biases,
stopping and the gradient.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import roots_jacobi
from scipy.stats import binom

from benchmarks.exact_policy import enumerate_groups, gradient_moments, make_policy
from benchmarks.theorems import allocation, fusion, gradient
from benchmarks.theorems.__main__ import TEMPLATE, main
from benchmarks.theorems.outcomes import (
    Outcomes,
    fixed,
    gradient_scale,
    left_out_advantages,
    own_reward_advantages,
    squared_error,
    stopped,
)
from benchmarks.theorems.verdicts import Author, Listed, Span, Statement, Verdict, count_verdicts, verdict
from verl_v05 import empirical_mse, fuse, marginal_return, rollout_target, squared_bias

RATES = np.array([0.05, 0.3, 0.5, 0.62, 0.9])
PRIORS = (-0.9, -0.35, 0.0, 0.4, 0.8)
COST = 0.0039
POLICY = make_policy(RATES, responses=4, correct=2, dim=8, seed=1)


def one(values: np.ndarray) -> float:
    (value,) = values
    return float(value)


def stop_by_hand(rewards: np.ndarray, prior: float, cost: float, k_init: int, step: int) -> int:
    """Rollouts that Eq. 12 takes of this sequence of rewards."""
    k = k_init
    while k + step <= len(rewards):
        excess = (rewards[:k].mean() - prior) ** 2 - 1 / k
        if excess <= 0 or k >= 1 / math.sqrt(cost) - 1 / excess:
            break
        k += step
    return k


# Outcomes: what everything below is summed over.


@pytest.mark.parametrize("prior", PRIORS)
def test_stopped_outcomes_equal_all_sequences_of_rewards(prior: float) -> None:
    found = stopped(RATES, prior, cost=COST, k_max=12)
    table = {(k, s): found.probability[:, i] for i, (k, s) in enumerate(zip(found.k, found.successes, strict=True))}
    want = {key: np.zeros(len(RATES)) for key in table}
    for rewards in product((-1, 1), repeat=12):
        k = stop_by_hand(np.array(rewards), prior, COST, 4, 2)
        successes, all_successes = rewards[:k].count(1), rewards.count(1)
        want[k, successes] += RATES**all_successes * (1 - RATES) ** (12 - all_successes)
    assert len({k for k, _ in want}) > 1
    for key, probability in want.items():
        assert np.abs(table[key] - probability).max() < 1e-12, key


def test_stopped_outcomes_end_below_one_over_root_c() -> None:
    for cost in (0.05, COST, 0.0005):
        for step in (1, 2):
            found = stopped(RATES, -0.7, cost=cost, step=step)
            assert found.probability.sum(axis=1) == pytest.approx(1, abs=1e-12)
            assert found.k.max() < 1 / math.sqrt(cost) + step


def test_simulated_groups_have_the_enumerated_risk() -> None:
    rng, (rate, prior) = np.random.default_rng(0), (0.5, 0.9)
    rewards = 2.0 * (rng.random((4000, 46)) < rate) - 1
    sizes = np.array([stop_by_hand(r, prior, 0.0005, 4, 1) for r in rewards])
    means = np.array([r[:k].mean() for r, k in zip(rewards, sizes, strict=True)])
    risks = (fuse(means, sizes, prior).baseline - (2 * rate - 1)) ** 2 + 0.0005 * sizes
    found = stopped(np.array([rate]), prior, cost=0.0005, step=1)
    exact = one(squared_error(found, np.array([rate]), prior)) + 0.0005 * one(found.expect(found.k))
    assert abs(risks.mean() - exact) < 4 * risks.std() / math.sqrt(len(risks))


# 3.1 and A.2: the gradient.


@pytest.mark.parametrize("k", [1, 4, 9])
def test_variance_with_an_independent_baseline_is_theorem_3_1_with_a_signed_last_term(k: int) -> None:
    for prior in PRIORS:
        assert gradient.identity_residual(POLICY, k, prior) < 1e-12


def test_theorem_3_1_needs_its_last_term() -> None:
    """A constant baseline on the wrong side of mu has more variance than the first two terms allow."""
    pieces = gradient.bound(POLICY, 1)
    offset = -0.2 * math.copysign(1, pieces.cross)
    trace = gradient.independent_trace(POLICY, 1, np.array([POLICY.true_mean[1] + offset]), np.ones(1))
    assert trace > pieces.oracle - pieces.gradient_sq + pieces.score * offset**2 + 0.01
    assert trace == pytest.approx(pieces.variance(offset**2, offset), rel=1e-12)


def test_true_mean_is_not_the_baseline_of_least_variance() -> None:
    saved = gradient.best_constant_gain(POLICY)
    for prompt, share in enumerate(saved):
        pieces = gradient.bound(POLICY, prompt)
        assert share == pytest.approx(pieces.cross**2 / pieces.score / (pieces.oracle - pieces.gradient_sq), rel=1e-9)
    assert saved.max() > 0.05


def test_theorem_3_1_fails_for_a_group_that_shares_its_baseline() -> None:
    """Two responses, p = 1/2, V = 0, k = 4, |s| = 1: Var_oracle = 0, and b = mean + V-ish 0 but for s = 0 and 4.

    Then b = +-3/4 with probability 1/8, so MSE = 9/128; a group's ghat is 1 - |b| or 1 in size: 7/8 of them 1, 1/8 1/4.
    """
    policy = make_policy([0.5], responses=2, correct=1, dim=2, seed=0)
    variance = Fraction(7, 8) + Fraction(1, 8) / 16 - (Fraction(7, 8) + Fraction(1, 8) / 4) ** 2
    want = 4 * variance / (Fraction(1, 8) * Fraction(9, 16))
    found = gradient.own_reward_ratio(policy, 0, 4, 0.0)
    assert want == Fraction(7, 2)
    assert found.group == pytest.approx(float(want), rel=1e-12)


@pytest.mark.parametrize("k", [2, 4])
def test_theorem_3_1_holds_for_one_rollout_within_its_own_baseline(k: int) -> None:
    for responses in (2, 3, 4):
        worst = gradient.worst_ratios(k, responses, seeds=(0, 1))
        assert worst.rollout <= 1 and worst.second_moment <= 1


@pytest.mark.parametrize("k", [2, 3, 6])
def test_own_reward_in_the_baseline_scales_the_gradient(k: int) -> None:
    """The factor is 1 - (E[b | r_i = 1] - E[b | r_i = -1]) / 2, the others binomial, whatever the policy."""
    for prompt, rate in enumerate(RATES):
        for prior in PRIORS:
            others = np.arange(k)
            right, wrong = (
                binom.pmf(others, k - 1, rate) @ fuse(2 * (others + own) / k - 1, k, prior).baseline for own in (1, 0)
            )
            factor = 1 - (right - wrong) / 2
            advantage = partial(gradient.own_reward, prior=prior)
            found = gradient_moments(POLICY, prompt, enumerate_groups(POLICY, prompt, k), advantage)
            assert np.abs(found.mean - factor * POLICY.gradients[prompt]).max() < 1e-12
            outcomes = fixed(np.array([rate]), k)
            closed = gradient_scale(outcomes, np.array([rate]), *own_reward_advantages(outcomes, prior))
            assert one(closed) == pytest.approx(factor, abs=1e-12)
            assert factor < 1 or (factor == pytest.approx(1, abs=1e-12) and right == pytest.approx(wrong))


@pytest.mark.parametrize("k", [2, 4, 5])
def test_left_out_baseline_leaves_the_gradient_unbiased_at_fixed_k(k: int) -> None:
    for prompt in range(len(RATES)):
        groups = enumerate_groups(POLICY, prompt, k)
        for prior in PRIORS:
            found = gradient_moments(POLICY, prompt, groups, partial(gradient.left_out, prior=prior))
            assert np.abs(found.bias).max() < 1e-12


@pytest.mark.parametrize(
    ("advantage", "closed"),
    [(gradient.own_reward, own_reward_advantages), (gradient.left_out, left_out_advantages)],
)
def test_adaptive_groups_scale_the_gradient_as_the_closed_form_says(advantage: object, closed: object) -> None:
    factors = []
    for prompt, rate in enumerate(RATES):
        outcomes = stopped(np.array([rate]), 0.4, cost=COST, k_max=10)
        found = gradient.stopped_moments(POLICY, prompt, outcomes, partial(advantage, prior=0.4))
        factor = one(gradient_scale(outcomes, np.array([rate]), *closed(outcomes, 0.4)))
        assert np.abs(found.mean - factor * POLICY.gradients[prompt]).max() < 1e-12
        factors.append(factor)
    assert np.abs(np.array(factors) - 1).max() > 0.05


def test_adaptive_groups_bias_the_gradient_of_a_constant_baseline_by_the_bias_of_their_mean() -> None:
    for prior in PRIORS:
        outcomes = stopped(RATES, prior, cost=COST, k_max=16)
        factor = gradient_scale(
            outcomes, RATES, np.full(len(outcomes.k), 1 - prior), np.full(len(outcomes.k), -1 - prior)
        )
        true = 2 * RATES - 1
        want = 1 - allocation.mean_bias(outcomes, RATES) * (prior + true) / (4 * RATES * (1 - RATES))
        assert np.abs(factor - want).max() < 1e-12
        assert np.abs(factor - 1).max() > 0.01


# 3.2, 3.3: the error at fixed k.


@pytest.mark.parametrize("k", [1, 3, 16, 64])
def test_error_of_a_fixed_weight_splits(k: int) -> None:
    assert fusion.fixed_weight_residual(k) < 1e-12


def test_oracle_weight_minimises_the_enumerated_error() -> None:
    for rate, prior, k in product((0.2, 0.5, 0.9), (-0.5, 0.3, 0.95), (1, 4, 16)):
        outcomes, true = fixed(np.array([rate]), k), 2 * rate - 1

        def error(w: float, outcomes: Outcomes = outcomes, true: float = true, prior: float = prior) -> float:
            return one(outcomes.expect((w * outcomes.mean_reward + (1 - w) * prior - true) ** 2))

        gap_sq, variance = (prior - true) ** 2, 4 * rate * (1 - rate) / k
        found = minimize_scalar(error, bounds=(-1, 2), method="bounded", options={"xatol": 1e-9})
        assert found.x == pytest.approx(gap_sq / (gap_sq + variance), abs=1e-6)
    certain = fixed(np.array([1.0]), 4)  # and V = 1: no error whatever the weight
    assert {one(certain.expect((w * certain.mean_reward + 1 - w - 1) ** 2)) for w in (0, 0.5, 1)} == {0.0}


def test_estimated_weight_is_behind_the_oracle_weight_but_for_the_smallest_groups() -> None:
    """Theorem 3.3 is about weights that do not look at the rewards; one that does may beat them all."""
    for k in (4, 16):
        to_mean, to_oracle = fusion.error_ratios(k)
        assert to_oracle.min() > 1
        assert to_mean.min() < 0.1 and to_mean.max() > 2
    assert fusion.error_ratios(1)[1].min() < 0.5


def test_eq_9_is_worse_than_the_mean_at_every_large_k_if_the_prior_is_wrong() -> None:
    """k (MSE / (sigma^2 / k) - 1) tends to (2 + 1 / sigma^2) / Delta^2."""
    for rate, prior in ((0.5, 0.5), (0.3, 0.4), (0.8, -0.2)):
        for k in (256, 1024, 4096):
            ratio = fusion.error_ratios(k, np.array([rate]), np.array([prior]))[0].item()
            assert ratio > 1
        limit = (2 + 1 / (4 * rate * (1 - rate))) / (prior - 2 * rate + 1) ** 2
        assert k * (ratio - 1) == pytest.approx(limit, rel=0.05)


# A.4, A.8: the test.


def test_false_rejections_equal_rational_enumeration() -> None:
    for k in range(1, 9):
        for prior in (Fraction(0), Fraction(3, 10), Fraction(1, 2), Fraction(4, 5)):
            p = (1 + prior) / 2
            want = sum(
                math.comb(k, s) * p**s * (1 - p) ** (k - s)
                for s in range(k + 1)
                if (Fraction(2 * s, k) - 1 - prior) ** 2 > Fraction(1, k)
            )
            assert one(fusion.false_rejection(k, np.array([float(prior)]))) == pytest.approx(float(want), abs=1e-12)


def test_four_rollouts_do_not_stand_out_in_false_rejections() -> None:
    """At the paper's V = 0.8: 0.1, 1 - 0.81, P(s <= 1 of 3), P(s <= 2 of 4)."""
    found = [one(fusion.false_rejection(k, np.array([0.8]))) for k in (1, 2, 3, 4, 6)]
    assert found[:4] == pytest.approx([0.1, 0.19, 0.028, 0.0523], abs=1e-12)
    assert found[2] < found[3] < found[4]
    means = [fusion.false_rejection(k).mean() for k in range(1, 17)]
    assert abs(means[3] - np.mean(means[2:])) < 0.01 and means[0] > means[1] > means[2]


def test_false_rejection_tends_to_that_of_one_standard_deviation() -> None:
    assert one(fusion.false_rejection(20_000, np.array([0.0]))) == pytest.approx(math.erfc(math.sqrt(0.5)), abs=0.005)


def test_acceptance_region_holds_a_possible_mean_at_every_k_and_two_from_four_on() -> None:
    """A.8's gap: whatever the prior one mean is accepted; two are guaranteed iff k >= 4."""
    for k in range(1, 17):
        means = 2 * np.arange(k + 1) / k - 1
        inner = [v for v in np.arange(-100, 101) / 100 if abs(v) <= 1 - k**-0.5]  # the region is within [-1, 1]
        accepted = [(squared_bias(means, k, v) == 0).sum() for v in inner]
        everywhere = [(squared_bias(means, k, v) == 0).sum() for v in np.arange(-100, 101) / 100]
        assert min(everywhere) >= 1
        assert (min(accepted) >= 2) == (2 / k <= 1 / math.sqrt(k)) or k == 1


# 3.4: the bias.


@pytest.mark.parametrize("k", [1, 2, 4, 9, 16, 64])
def test_bias_bound_is_reached_by_a_certain_reward_one_radius_from_the_prior(k: int) -> None:
    radius = 1 / math.sqrt(k)
    assert one(fusion.bias(np.array([1.0]), k, 1 - radius + 1e-12)) == pytest.approx(-radius, abs=1e-9)
    assert fusion.worst_bias(k)[0] == pytest.approx(1, abs=1e-6)
    assert 0.2 < fusion.worst_bias(k, 0.1)[0] < 0.85


def test_bias_is_within_the_proof_s_2_over_k_delta_from_one_rollout_on() -> None:
    assert 1 < max(fusion.worst_scaled_bias(k) for k in (*range(1, 13), 32)) < 1.25


def test_a_right_prior_has_no_bias_at_zero_and_some_elsewhere() -> None:
    for k in (1, 4, 16):
        found = fusion.right_prior_bias(k)
        assert np.abs(found[[0, 100, 200]]).max() < 1e-12
        assert np.abs(found + found[::-1]).max() < 1e-9
        assert 0.1 < k * np.abs(found).max() < 0.3


# 3.5, 3.6: one step ahead.


def test_envelope_is_below_the_marginal_return_by_a_known_factor() -> None:
    found = allocation.states()
    rejected = found.bias_sq > 1e-12  # not only by rounding
    ratio = marginal_return(found.bias_sq, found.k)[rejected] / allocation.envelope(found.bias_sq, found.k)[rejected]
    want = 1 + found.bias_sq[rejected] / (found.k[rejected] * found.bias_sq[rejected] + 1)
    assert np.abs(ratio - want).max() < 1e-9
    assert ((ratio > 1) & (ratio < 1 + 1 / found.k[rejected])).all()
    accepted = found.bias_sq == 0
    assert accepted.any() and (allocation.envelope(found.bias_sq, found.k)[accepted] == 0).all()


def test_estimate_of_the_error_can_rise_with_the_next_reward() -> None:
    """V = 1/2 and 4 of 4 right: accepted. A fifth right one rejects: 1/20 / (5/20 + 1) = 1/25, probability 5/6."""
    found = allocation.states()
    here = (found.k == 4) & (found.successes == 4) & (found.prior == 0.5)
    assert allocation.expected_drop(found)[here] == pytest.approx(-1 / 30, abs=1e-12)


@pytest.mark.parametrize("cost", [0.05, COST, 0.0005])
def test_eq_12_stops_once_the_estimated_error_is_root_c(cost: float) -> None:
    found = allocation.states(1, 40)
    margin = np.abs(empirical_mse(found.bias_sq, found.k) - math.sqrt(cost)) > 1e-12
    stops = found.k >= rollout_target(found.bias_sq, cost)
    assert (stops == (empirical_mse(found.bias_sq, found.k) <= math.sqrt(cost)))[margin].all()
    assert 0 < stops.mean() < 1


def test_eq_12_takes_a_rollout_that_does_not_pay() -> None:
    """c = 1/64, squared bias 1/2.9, k = 5 < 8 - 2.9, and g = 1 / (7.9 * 8.9) < 1/64: Eq. 40 has k + 1 for k."""
    assert rollout_target(1 / 2.9, 1 / 64) == pytest.approx(5.1)
    assert marginal_return(1 / 2.9, 5) == pytest.approx(1 / (7.9 * 8.9)) and 1 / (7.9 * 8.9) < 1 / 64


def test_a_group_that_stopped_may_want_to_go_on_again() -> None:
    """One-step look-ahead is optimal for rules without such states. V = 0, c = 0.001, so 1/sqrt(c) = 31.6.

    3 of 4: (1/2)^2 = 1/4, accepted; 4 of 5: (3/5)^2 - 1/5 = 4/25, target 25.4. From 2 of 4 no reward rejects, and 4 of
    4 goes on anyway.
    """
    found = allocation.states()
    at = (found.k == 4) & (found.prior == 0)
    assert allocation.reopened(found, 0.001)[at].tolist() == [False, True, False, True, False]


def test_eq_11_takes_an_accepted_prior_for_the_truth() -> None:
    """p = 1/2, V = 0, k = 4: 0 or 4 of 4, probability 1/8, reject and give b = +-3/4, Delta-hat^2 = 3/4."""
    true, estimate, known = (one(x) for x in allocation.error_estimates(np.array([0.5]), 4, 0.0))
    assert (true, estimate, known) == pytest.approx((9 / 128, 3 / 128, 0.0), abs=1e-12)


# A.7: the regret.


def test_curvature_of_the_paper_s_risk_at_its_minimum() -> None:
    for gap_sq, cost in ((0.25, 0.0039), (1.0, 0.0005), (2.0, 0.02)):
        at, h = 1 / math.sqrt(cost) - 1 / gap_sq, 1e-2
        low, mid, high = (allocation.paper_risk(at + d, gap_sq, cost) for d in (-h, 0, h))
        assert (high - low) / (2 * h) == pytest.approx(0, abs=1e-7)
        assert (high - 2 * mid + low) / h**2 == pytest.approx(2 * cost**1.5, rel=1e-3)


def test_variance_of_the_squared_bias_falls_as_one_over_k() -> None:
    for rate, prior in ((0.5, 0.9), (0.3, 0.8)):
        limit = 4 * (prior - 2 * rate + 1) ** 2 * 4 * rate * (1 - rate)
        assert 4096 * allocation.bias_sq_variance(rate, prior, 4096) == pytest.approx(limit, rel=0.01)


def test_regret_of_a_wrong_prior_does_not_fall_with_the_cost() -> None:
    """At p = 1/2, V = 0.9, s of 3 and 4 out of 4 accept V: 5/16, whatever c. Those pay R(4) instead of R(k*)."""
    costs = (1e-3, 1e-4, 1e-5)
    found = [allocation.regret(0.5, 0.9, cost) for cost in costs]
    for regret, cost in zip(found, costs, strict=True):
        assert regret.stops_at_once == pytest.approx(5 / 16, abs=1e-12)
        best = allocation.paper_risk(np.arange(4, 700), 0.81, cost).min()
        assert regret.paper > 5 / 16 * (allocation.paper_risk(4, 0.81, cost) - best) > 0.03
        assert regret.true > 0.2 and regret.literal < 0
    assert found[2].paper / costs[2] > 9 * found[1].paper / costs[1]


def test_regret_of_a_right_prior_is_a_few_rollouts() -> None:
    for rate, prior in allocation.CASES[-2:]:
        assert all(0 <= allocation.regret(rate, prior, cost).paper < 3 * cost + 1e-12 for cost in allocation.FAR_COSTS)


@pytest.mark.parametrize(("strength", "q"), [(2.0, 0.3), (4.0, 0.5), (16.0, 0.8)])
def test_bayes_risk_equals_the_integral_over_success_rates(strength: float, q: float) -> None:
    nodes, weights = roots_jacobi(60, strength * (1 - q) - 1, strength * q - 1)
    rates, weights = (1 + nodes) / 2, weights / weights.sum()
    found = allocation.bayes(strength, q)
    outcomes = stopped(rates, 2 * q - 1, cost=COST, step=1)
    risks = squared_error(outcomes, rates, 2 * q - 1) + COST * outcomes.expect(outcomes.k)
    assert found.osla == pytest.approx(weights @ risks, abs=1e-10)
    assert found.osla_rollouts == pytest.approx(weights @ outcomes.expect(outcomes.k), abs=1e-9)
    every = [weights @ squared_error(fixed(rates, k), rates, 2 * q - 1) + COST * k for k in range(4, 65)]
    assert found.best_fixed == pytest.approx(min(every), abs=1e-10)
    assert found.optimal < found.optimal_stop < min(found.osla, found.best_fixed)


def test_dynamic_program_stops_where_it_should_with_one_rollout_left() -> None:
    """Uniform p, V = 0, at most 2 of at least 1 rollouts; the two cases r = -1, 1 mirror each other."""

    def risk(k: int, s: int) -> float:
        mean = (1 + s) / (2 + k)
        return 4 * mean * (1 - mean) / (k + 3) + (fuse(2 * s / k - 1, k, 0.0).baseline - (2 * mean - 1)) ** 2 + 0.05 * k

    ahead = 2 / 3 * risk(2, 2) + 1 / 3 * risk(2, 1)
    found = allocation.bayes(2.0, 0.5, cost=0.05, k_init=1, k_max=2)
    assert found.optimal_stop == pytest.approx(min(risk(1, 1), ahead), abs=1e-12)


# Optional stopping.


def test_mean_reward_of_an_adaptive_group_is_biased_towards_its_prior() -> None:
    rates = np.array([0.3, 0.5, 0.7])
    found = allocation.mean_bias(stopped(rates, 0.8, cost=COST, k_max=16), rates)
    assert (found > 0.05).all()
    assert np.abs(allocation.mean_bias(fixed(rates, 4), rates)).max() < 1e-12
    mirrored = allocation.mean_bias(stopped(1 - rates, -0.8, cost=COST, k_max=16), 1 - rates)
    assert np.abs(found + mirrored).max() < 1e-12


# The page.


def test_a_statement_holds_everywhere_or_with_a_condition_or_fails() -> None:
    assert (verdict(True).verdict, verdict(True, with_condition=True).verdict) == (Verdict.HOLDS, Verdict.HOLDS)
    assert verdict(False, with_condition=True).verdict == Verdict.WITH_CONDITION
    assert verdict(False).verdict == Verdict.FAILS and f"**{verdict(False)}**" == "**fails**"


def test_a_template_formats_every_number_of_a_list_and_both_ends_of_a_span() -> None:
    assert f"{Listed((1, 2.25)):.1f} {Span([0.5, 3, 0.25]):.2f}" == "1.0, 2.2 0.25 to 3.00"


@cache
def measured() -> dict[str, Statement]:
    """Every statement, by its name in the template."""
    found = {**gradient.measure(), **fusion.measure(), **allocation.measure()}
    return {name: value for name, value in found.items() if isinstance(value, Statement)}


def test_verdicts_follow_from_the_enumerated_numbers() -> None:
    found = measured()
    by_verdict = {
        Verdict.HOLDS: ("rollout_bound", "truncation", "bias_bound", "bias_order", "two_means", "variance"),
        Verdict.WITH_CONDITION: (
            *("variance_bound", "left_out", "error_split", "unique", "right_prior", "envelope", "first_k"),
            "curvature",
        ),
        Verdict.FAILS: (
            *("oracle", "own_reward", "group_bound", "plausible", "rate", "small_groups", "expected_drop", "estimate"),
            *("optimal", "regret", "empirical_regret", "adaptive_mean"),
        ),
    }
    want = {f"verdict_{name}": value for value, names in by_verdict.items() for name in names}
    assert {name: value.verdict for name, value in found.items()} == want


def test_statements_of_the_paper_are_counted_apart_from_ours() -> None:
    found = measured()
    of_paper, ours = (count_verdicts(found.values(), author) for author in (Author.PAPER, Author.OURS))
    assert of_paper == {Verdict.HOLDS: 6, Verdict.WITH_CONDITION: 6, Verdict.FAILS: 11}
    assert ours == {Verdict.WITH_CONDITION: 2, Verdict.FAILS: 1}
    summary = " ".join((Path(__file__).parents[1] / "docs" / "results.md").read_text().split())
    assert f"the paper's {of_paper.total()} statements {of_paper[Verdict.HOLDS]} hold, " in summary
    assert f"{of_paper[Verdict.FAILS]} fail as used ({ours.total()} more on the page are ours)" in summary
    for line in TEMPLATE.read_text().splitlines():
        for name in re.findall(r"\{(verdict_\w+)\}", line):
            assert line.startswith("| (not in the paper) |") == (found[name].author == Author.OURS), line


@pytest.mark.slow
def test_page_is_written(tmp_path: object) -> None:
    main(["--out", str(tmp_path)])
    page = (tmp_path / "README.md").read_text()
    for name in ("gradient_scale", "fusion_error", "regret", "optional_stopping"):
        assert f"({name}.png)" in page and (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert not list(tmp_path.glob("*.partial"))
