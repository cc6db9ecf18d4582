"""The calibration finds the Beta prior that made the data, degrades gracefully, and goes on from its state."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, gammaln, logit
from scipy.stats import betabinom

from verl_v05 import fuse_beta
from verl_v05.calibration import PARAMETERS, Calibration, Evidence, _log_likelihood

NAN = np.nan


def nothing_known(groups: int) -> Evidence:
    return Evidence(np.full(groups, NAN), np.zeros(groups), np.zeros(groups))


def drawn(rng: np.random.Generator, q: np.ndarray, m: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(successes, k) of prompts with p ~ Beta(m q, m (1 - q))."""
    p = rng.beta(m * q, m * (1 - q))
    return rng.binomial(k, p).astype(float), np.full(len(q), float(k))


def test_likelihood_is_beta_binomial_and_its_gradient_the_numerical_one() -> None:
    rng = np.random.default_rng(0)
    groups = 40
    unknown = rng.random(groups) < 0.3
    evidence = Evidence(
        np.where(unknown, NAN, rng.random(groups)),
        rng.exponential(2, groups) * (rng.random(groups) < 0.5),
        rng.random(groups),
    )
    k = rng.integers(1, 17, groups)
    s = rng.integers(0, k + 1)
    x, z = evidence.mean_features(), evidence.strength_features()
    theta = rng.normal(0, 0.3, len(PARAMETERS))
    value, gradient = _log_likelihood(theta, x, z, s, k)
    q, m = expit(x @ theta[:4]), np.exp(z @ theta[4:])
    log_choose = gammaln(k + 1) - gammaln(s + 1) - gammaln(k - s + 1)  # the constant that is left out
    assert value + log_choose == pytest.approx(betabinom.logpmf(s, k, m * q, m * (1 - q)), abs=1e-9)
    step = 1e-6 * np.eye(len(theta))
    numerical = [
        (_log_likelihood(theta + e, x, z, s, k)[0] - _log_likelihood(theta - e, x, z, s, k)[0]) / 2e-6 for e in step
    ]
    assert np.abs(np.stack(numerical, axis=1) - gradient).max() < 1e-6


def test_finds_the_global_beta_where_nothing_else_is_known() -> None:
    rng = np.random.default_rng(1)
    calibration = Calibration.start()
    for _ in range(5):
        calibration = calibration.fit(nothing_known(2000), *drawn(rng, np.full(2000, 0.7), 3.0, 8))
    prior, strength = calibration.belief(nothing_known(3))
    assert prior == pytest.approx(np.full(3, 0.4), abs=0.03) and strength == pytest.approx(np.full(3, 3.0), rel=0.1)


def test_undoes_a_providers_miscalibration_and_learns_what_it_is_worth() -> None:
    rng = np.random.default_rng(2)
    calibration = Calibration.start()
    for _ in range(10):
        q = rng.uniform(0.05, 0.95, 1000)
        evidence = Evidence(expit(2 * logit(q) + 1), np.zeros(1000), np.zeros(1000))
        calibration = calibration.fit(evidence, *drawn(rng, q, 6.0, 4))
    belief = calibration.belief(evidence)
    assert np.abs(belief.prior - (2 * q - 1)).mean() < 0.03
    assert belief.strength == pytest.approx(np.full(1000, 6.0), rel=0.2)


def test_a_useless_provider_is_ignored() -> None:
    rng = np.random.default_rng(3)
    calibration = Calibration.start()
    for _ in range(10):
        evidence = Evidence(rng.random(1000), np.zeros(1000), np.zeros(1000))
        calibration = calibration.fit(evidence, *drawn(rng, np.full(1000, 0.5), 1.0, 4))
    belief = calibration.belief(Evidence(np.array([0.05, 0.95]), np.zeros(2), np.zeros(2)))
    assert np.abs(belief.prior).max() < 0.1 and belief.strength == pytest.approx(np.ones(2), rel=0.2)


def test_history_sharpens_the_prior_with_its_length() -> None:
    rng = np.random.default_rng(4)
    calibration = Calibration.start()
    for _ in range(10):
        p = rng.beta(0.5, 0.5, 1000)
        visits = rng.choice([0, 4, 16], 1000)
        a = rng.binomial(visits, p).astype(float)
        evidence = Evidence(np.full(1000, NAN), a, visits - a)
        calibration = calibration.fit(evidence, rng.binomial(4, p).astype(float), np.full(1000, 4.0))
    unseen, short, long = (Evidence(np.array([NAN]), np.array([0.75 * n]), np.array([0.25 * n])) for n in (0, 4, 16))
    strengths = [calibration.belief(e).strength[0] for e in (unseen, short, long)]
    assert strengths[0] < strengths[1] < strengths[2]
    assert abs(calibration.belief(unseen).prior[0]) < 0.15 and calibration.belief(long).prior[0] == pytest.approx(
        0.5, abs=0.2
    )


def test_a_prompt_with_an_unanswered_prior_gets_the_global_one() -> None:
    rng = np.random.default_rng(5)
    calibration = Calibration.start()
    for _ in range(10):
        q = rng.uniform(0.1, 0.9, 1000)
        known = rng.random(1000) < 0.7
        evidence = Evidence(np.where(known, q, NAN), np.zeros(1000), np.zeros(1000))
        calibration = calibration.fit(evidence, *drawn(rng, q, 20.0, 4))
    belief = calibration.belief(Evidence(np.array([NAN, 0.5]), np.zeros(2), np.zeros(2)))
    # p given no answer spreads like q, over [0.1, 0.9]; with an answer it is close to that.
    assert np.abs(belief.prior).max() < 0.1 and belief.strength[0] < 5 < belief.strength[1]


@pytest.mark.parametrize(("successes", "k"), [(4.0, 4), (0.0, 4), (1.0, 1), (0.0, 1), (16.0, 16)])
@pytest.mark.parametrize("groups", [1, 256])
def test_one_class_one_prompt_and_one_rollout_stay_finite(successes: float, k: int, groups: int) -> None:
    calibration = Calibration.start(forgetting=1.0)
    evidence = Evidence(np.full(groups, 1.0 if successes else 0.0), np.zeros(groups), np.zeros(groups))
    for _ in range(50):
        calibration = calibration.fit(evidence, np.full(groups, successes), np.full(groups, float(k)))
    belief = calibration.belief(evidence)
    assert calibration.failed_fits == 0 and np.isfinite(calibration.theta).all()
    assert (np.sign(belief.prior) == (1 if successes else -1)).all() and (np.abs(belief.prior) < 1).all()
    fused = fuse_beta(2 * successes / k - 1, k, *belief)
    assert (np.abs(fused.baseline) <= 1).all()


def test_single_rollouts_say_nothing_of_the_strength() -> None:
    rng = np.random.default_rng(6)
    calibration = Calibration.start()
    before = calibration.belief(nothing_known(1)).strength
    calibration = calibration.fit(nothing_known(5000), *drawn(rng, np.full(5000, 0.3), 50.0, 1))
    after = calibration.belief(nothing_known(1))
    assert after.strength == pytest.approx(before, rel=0.02) and after.prior[0] == pytest.approx(-0.4, abs=0.05)


def test_stopping_by_the_outcomes_does_not_bias_the_fit() -> None:
    """Prompts that began with two failures are asked 14 more times: the likelihood does not mind."""
    rng = np.random.default_rng(7)
    calibration = Calibration.start()
    for _ in range(10):
        p = rng.beta(1.2, 0.8, 1000)
        s = rng.binomial(2, p)
        more = s == 0
        k = np.where(more, 16, 2)
        s = s + more * rng.binomial(14, p)
        calibration = calibration.fit(nothing_known(1000), s.astype(float), k.astype(float))
    belief = calibration.belief(nothing_known(1))
    assert belief.prior[0] == pytest.approx(0.2, abs=0.05) and belief.strength[0] == pytest.approx(2.0, rel=0.15)


def test_old_steps_fade_by_the_forgetting_factor() -> None:
    rng = np.random.default_rng(8)
    ends = {}
    for forgetting in (0.5, 1.0):
        calibration = Calibration.start(forgetting)
        for rate in [0.2] * 20 + [0.8] * 5:
            calibration = calibration.fit(nothing_known(200), *drawn(rng, np.full(200, rate), 10.0, 4))
        ends[forgetting] = calibration.belief(nothing_known(1)).prior[0]
    assert ends[0.5] > 0.5 and ends[1.0] < 0.2


def test_small_batches_are_smoothed_over_steps() -> None:
    rng = np.random.default_rng(9)
    calibration, alone = Calibration.start(), []
    smoothed = []
    for step in range(60):
        data = drawn(rng, np.full(16, 0.6), 2.0, 4)
        calibration = calibration.fit(nothing_known(16), *data)
        if step >= 20:
            smoothed.append(calibration.belief(nothing_known(1)).prior[0])
            alone.append(Calibration.start().fit(nothing_known(16), *data).belief(nothing_known(1)).prior[0])
    assert np.std(smoothed) < 0.6 * np.std(alone)


def test_a_batch_that_cannot_be_fitted_leaves_the_parameters_and_is_counted() -> None:
    calibration = Calibration.start()
    after = calibration.fit(nothing_known(2), np.array([NAN, 1.0]), np.array([4.0, 4.0]))
    assert (after.theta == calibration.theta).all() and after.failed_fits == 1 and after.steps == 1
    assert after.metrics()["failed_fits"] == 1


def test_state_goes_through_json_and_the_next_fit_is_the_same() -> None:
    rng = np.random.default_rng(10)
    calibration = Calibration.start(0.8)
    first, second = (drawn(rng, np.full(100, 0.4), 2.0, 4) for _ in range(2))
    calibration = calibration.fit(nothing_known(100), *first)
    resumed = Calibration.start(0.8).load_state_dict(json.loads(json.dumps(calibration.state_dict())))
    want, found = (c.fit(nothing_known(100), *second) for c in (calibration, resumed))
    assert (want.theta == found.theta).all() and (want.precision == found.precision).all() and want.steps == found.steps


def test_forgetting_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="forgetting must be in"):
        Calibration.start(1.5)
