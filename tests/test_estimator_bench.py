"""The bench of estimators: its exact posteriors, its risks, its allocations, and that its page can be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, chi2

from benchmarks.estimators import __main__ as bench
from benchmarks.estimators import advantage_gradients as gradient
from benchmarks.estimators import allocations as rules
from benchmarks.estimators import catalogue, estimators_page, selection_page
from benchmarks.estimators import selection_gradients as selection
from benchmarks.estimators.baselines import BAYES, EMPIRICAL_BAYES, GROUP_MEAN
from benchmarks.estimators.error_simulation import run
from benchmarks.estimators.populations import (
    GRID,
    POINTS,
    Constant,
    NoisyLogit,
    Visited,
    auc,
    beta_rates,
    measured_rates,
    predicted,
    sigma_of,
)
from benchmarks.estimators.posterior import Posterior
from benchmarks.estimators.priors import PRIORS
from verl_v05.fusion import Belief
from verl_v05.method import Method
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.settings import V05Settings

UNIFORM = beta_rates(1, 1)


def two_points(low: int, high: int, weight: float) -> np.ndarray:
    """A distribution on two points of the grid."""
    density = np.zeros(POINTS)
    density[[low, high]] = 1 - weight, weight
    return density


def test_bayes_risk_of_two_points_equals_brute_force() -> None:
    density = two_points(80, 300, 0.3)
    posterior = Posterior(density[None], 4)
    k, risk = 3, 0.0
    for s in range(k + 1):
        joint = {at: density[at] * binom.pmf(s, k, GRID[at]) for at in (80, 300)}
        mean = sum(w * (2 * GRID[at] - 1) for at, w in joint.items()) / sum(joint.values())
        variance = sum(w * (2 * GRID[at] - 1 - mean) ** 2 for at, w in joint.items()) / sum(joint.values())
        assert posterior.mean[0, k, s] == pytest.approx(mean)
        assert posterior.variance[0, k, s] == pytest.approx(variance)
        risk += sum(joint.values()) * variance
    chance = [sum(density[at] * binom.pmf(s, k, GRID[at]) for at in (80, 300)) for s in range(k + 1)]
    assert posterior.variance[0, k, : k + 1] @ chance == pytest.approx(risk)


def test_outcomes_that_cannot_happen_leave_no_nan() -> None:
    posterior = Posterior(two_points(0, POINTS - 1, 0.5)[None], 4)
    assert np.isfinite(posterior.mean).all()
    assert posterior.variance[0, 1, :2] == pytest.approx(0.0, abs=1e-12)


def test_best_stopping_takes_the_hand_made_decision() -> None:
    # One rollout settles which of 0 and 1 it is, and is worth the whole variance of 1; the second is worth nothing.
    posterior = Posterior(two_points(0, POINTS - 1, 0.5)[None], 4)
    assert posterior.stop_or_go(0.99, 0)[0, 0, 0]
    assert not posterior.stop_or_go(1.01, 0)[0, 0, 0]
    assert not posterior.stop_or_go(0.01, 0)[0, 1, :2].any()


def test_best_stopping_looks_further_than_one_rollout() -> None:
    # Brute force over all stopping rules of two more rollouts, of which the first alone is not worth its cost.
    density, cost = two_points(80, 380, 0.01), 0.003
    posterior = Posterior(density[None], 2)
    q, v = posterior.success[0], posterior.variance[0]
    after = {s: min(v[1, s], cost + q[1, s] * v[2, s + 1] + (1 - q[1, s]) * v[2, s]) for s in (0, 1)}
    go = cost + q[0, 0] * after[1] + (1 - q[0, 0]) * after[0] < v[0, 0]
    assert posterior.stop_or_go(cost, 0)[0, 0, 0] == go
    assert go != (cost + q[0, 0] * v[1, 1] + (1 - q[0, 0]) * v[1, 0] < v[0, 0])


def test_grid_moments_of_a_beta_are_those_of_the_formula() -> None:
    for a, b in catalogue.BETAS:
        density = beta_rates(a, b)
        mean = density @ GRID
        assert density.sum() == pytest.approx(1)
        assert mean == pytest.approx(a / (a + b), abs=1e-4)
        assert density @ GRID**2 - mean**2 == pytest.approx(a * b / (a + b) ** 2 / (a + b + 1), abs=1e-4)


def test_noise_gives_the_auc_asked_for_and_none_that_cannot_be() -> None:
    sigma = sigma_of(UNIFORM, 0.75)
    assert sigma is not None
    rng = np.random.default_rng(0)
    batch = NoisyLogit(UNIFORM, sigma).sample(rng, 4000)
    solved = rng.random(4000) < batch.p
    sampled = (batch.prior[solved][:, None] > batch.prior[~solved]).mean()
    assert auc(UNIFORM, sigma) == pytest.approx(0.75)
    assert sampled == pytest.approx(0.75, abs=0.03)
    assert sigma_of(UNIFORM, 0.84) is None  # p itself reaches 5/6


@pytest.mark.parametrize(
    "population",
    [
        Constant(UNIFORM),
        NoisyLogit(beta_rates(0.5, 2), 1.0),
        Visited(UNIFORM, 4),
        Visited(UNIFORM, 4, sigma=1.0),
        predicted(np.linspace(0.2, 0.9, 30), np.arange(30) // 3, 10),
    ],
    ids=["constant", "noisy", "visited", "visited and noisy", "predicted"],
)
def test_stated_posteriors_are_calibrated(population: object) -> None:
    batch = population.sample(np.random.default_rng(0), 20_000)
    n, at = np.arange(20_000), np.searchsorted(GRID, batch.p)
    above = batch.density.cumsum(axis=1)[n, at]
    rank = above - np.random.default_rng(1).random(20_000) * batch.density[n, at]
    # The rank of the truth in its own posterior is uniform: tenths of 20,000 within 4.5 standard errors.
    tenths = np.histogram(rank, 10, (0, 1))[0]
    assert np.abs(tenths - 2000).max() < 4.5 * np.sqrt(2000 * 0.9)


def test_measured_rates_recover_the_distribution_they_came_from() -> None:
    rng = np.random.default_rng(0)
    true = beta_rates(0.5, 0.5)
    counts = rng.binomial(10, GRID[rng.choice(POINTS, 20_000, p=true)])
    assert np.abs(measured_rates(counts, 10).cumsum() - true.cumsum()).max() < 0.02


def test_group_mean_has_its_exact_squared_error_and_bayes_the_least() -> None:
    cells = []
    for name, population in {
        "constant": Constant(UNIFORM),
        "noisy": NoisyLogit(beta_rates(0.5, 0.5), 1.0),
        "both": Visited(UNIFORM, 4, sigma=1.0),
    }.items():
        found = run(population, name, bench.ALLOCATIONS, prompts=128, batches=3, sequences=3)
        cells.append(found.assign(population=name))
        spread = population.marginal @ (4 * GRID * (1 - GRID))
        for k in rules.FIXED:
            mse = found.loc[(found["allocation"] == f"k = {k}") & (found["estimator"] == GROUP_MEAN), "mse"]
            assert abs(mse.mean() - spread / k) < 4 * mse.sem() + 1e-12  # exact at k = 1
    table = pd.concat(cells)
    assert (table["mse"] >= table["bayes"] - 1e-12).all()
    best = table[table["estimator"] == BAYES]
    np.testing.assert_allclose(best["mse"], best["bayes"])
    np.testing.assert_allclose(best["bias"], 0, atol=1e-12)


def test_expected_squared_error_is_that_against_the_true_rate() -> None:
    rng = np.random.default_rng(0)
    found = rules.draw(rng, NoisyLogit(UNIFORM, 1.0).sample(rng, 20_000))
    s, true = found.counts[:, 4], 2 * found.batch.p - 1
    mean, variance = (x[np.arange(20_000), 4, s] for x in (found.posterior.mean, found.posterior.variance))
    group_mean = 2 * s / 4 - 1
    gap = (group_mean - true) ** 2 - ((group_mean - mean) ** 2 + variance)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


@pytest.mark.parametrize("population", [Constant(UNIFORM), NoisyLogit(UNIFORM, 1.0)], ids=["constant", "noisy"])
def test_no_allocation_has_a_lower_risk_than_the_best_one_at_as_many_rollouts(population: object) -> None:
    found = run(population, "x", bench.ALLOCATIONS, prompts=2048, batches=2, sequences=2)
    risk = found[found["estimator"] == BAYES].groupby("allocation")[["bayes", "rollouts"]].mean()
    best, equal = risk.loc[rules.BAYES_EQUAL], risk.loc[[rules.OSLA, rules.POSTERIOR_EQUAL]]
    assert (equal["bayes"] > best["bayes"] * 0.995).all()
    assert (equal["rollouts"] >= best["rollouts"]).all()
    assert best["rollouts"] == pytest.approx(equal["rollouts"].iloc[0], rel=1e-3)
    cost = risk["bayes"] + rules.COST * risk["rollouts"]
    assert cost.idxmin() == rules.BAYES


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (rules.OSLA, {"schedule": "streaming"}),
        (rules.OSLA_TO_TARGET, {"schedule": "streaming", "step": "to_target"}),
        (rules.OSLA_ROUNDS, {"schedule": "rounds"}),
        (rules.POSTERIOR, {"schedule": "streaming", "fusion": "empirical_bayes", "allocation": "posterior"}),
        (
            rules.POSTERIOR_EQUAL,
            {
                "schedule": "rounds",
                "fusion": "empirical_bayes",
                "allocation": "posterior",
                "max_rollouts_per_step": 400,
                "halt_share": 0.0,
                "pad_multiple": 1,
                "cost": 0.0,
            },
        ),
    ],
)
def test_allocations_are_those_of_the_projects_schedules(name: str, changes: dict) -> None:
    rng = np.random.default_rng(0)
    found = rules.draw(rng, NoisyLogit(beta_rates(0.5, 0.5), 1.0).sample(rng, 64))
    settings = V05Settings(**changes)
    prior, strength = 2 * found.batch.prior - 1, np.full(64, 3.0)
    groups = [
        Group(f"u{i}", Query(f"p{i}", "", "s"), spent=rules.K_INIT, prior=prior[i], strength=strength[i])
        for i in range(64)
    ]
    outcome = np.diff(found.counts, axis=1)
    method = Method.from_settings(settings)
    if method.fusion.has_strength:
        method.fusion.calibration = replace(method.fusion.calibration, steps=1)  # so that its beliefs decide
    schedule = method.open(groups)
    running = list(groups)
    while running:
        group = running.pop(0)
        group.rewards |= {s: 2.0 * outcome[groups.index(group), s] - 1 for s in range(group.spent)}
        answers = schedule.settled(group.uid)
        running += [g for g in groups if answers.get(g.uid)]
    cap = {"max_rollouts_per_step": settings.max_rollouts_per_step}
    k = rules.by_schedule(found.counts, Belief(prior, strength), replace(rules.SCHEDULED[name], **cap))
    assert k.tolist() == [g.k for g in groups]


def test_runs_repeat_by_seed_and_differ_between_seeds_and_names() -> None:
    def once(name: str, seed: int) -> pd.DataFrame:
        return run(Constant(UNIFORM), name, [rules.POSTERIOR], prompts=16, batches=2, sequences=2, seed=seed)

    pd.testing.assert_frame_equal(once("a", 0), once("a", 0))
    assert not once("a", 0)["mse"].equals(once("a", 1)["mse"])
    assert not once("a", 0)["mse"].equals(once("b", 0)["mse"])


def test_empirical_bayes_learns_from_batch_to_batch() -> None:
    found = run(Constant(beta_rates(4, 1)), "learning", ["k = 4"], prompts=256, batches=3, sequences=4)
    excess = (found["mse"] / found["bayes"])[found["estimator"] == EMPIRICAL_BAYES]
    by_batch = excess.groupby(found["batch"]).mean()
    assert by_batch[0] > by_batch[2]
    assert by_batch[2] < 1.02


def test_an_advantage_against_the_true_mean_is_unbiased_and_a_group_mean_shrinks_it() -> None:
    methods = {name: gradient.METHODS[name] for name in (gradient.TRUE_MEAN, GROUP_MEAN + gradient.NOT_NORMALISED)}
    found = gradient.run([0.2, 0.5, 0.9], methods, sizes=(4,)).set_index("method")
    assert found.loc[gradient.TRUE_MEAN, ["scale", "cosine"]].to_list() == pytest.approx([1, 1])
    assert found.loc[GROUP_MEAN + gradient.NOT_NORMALISED, "scale"] == pytest.approx(3 / 4)


def test_leave_one_out_without_a_normaliser_is_unbiased_for_every_prior() -> None:
    methods = {
        name: method
        for name, method in gradient.METHODS.items()
        if name.endswith(gradient.LEFT_OUT + gradient.NOT_NORMALISED)
    }
    found = gradient.run([0.2, 0.5, 0.9], methods, sizes=(2, 4))
    assert len(found) == 8
    assert found["scale"].to_list() == pytest.approx([1.0] * 8)


def test_the_page_can_be_made_from_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "BETAS", ((1.0, 1.0),))
    monkeypatch.setattr(catalogue, "AUCS", (0.71,))
    rng = np.random.default_rng(0)
    score = rng.binomial(10, rng.beta(0.5, 0.5, 120)) / 5 - 1
    rows = pd.DataFrame({"model": "m", "step": 1, "score": score, "n": 10})
    predictions = rows.assign(**{name: np.clip((score + 1) / 2 + rng.normal(0, 0.3, 120), 0, 1) for name in PRIORS})
    size = bench.Size(
        prompts=32,
        warm_up=1,
        sequences=2,
        real_batches=1,
        real_sequences=2,
        learning_batches=2,
        learning=((8, 2),),
        draws=10,
        gradient_sizes=(4,),
    )
    estimators_page.write(tmp_path, bench.measure(rows, predictions, gradient.METHODS, size, seed=0))
    text = (tmp_path / "README.md").read_text()
    assert "nan" not in text.lower()
    assert {p.name for p in tmp_path.iterdir()} == {
        "README.md",
        "cells.csv",
        "learning.csv",
        "gradients.csv",
        "by_rollouts.png",
        "to_bayes.png",
        "learning.png",
    }
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert (cells["mse"] > cells["bayes"] * 0.999).all()


@pytest.fixture(scope="module")
def setting() -> selection.Setting:
    return selection.make_setting("extreme", seed=0)


def chance_of(error: np.ndarray) -> float:
    """The sum of squared standard scores of a mean error that should be 0, (steps, d), over its 99.9 % quantile."""
    scores = error.mean(axis=0) / (error.std(axis=0, ddof=1) / np.sqrt(len(error)))
    return float((scores**2).sum() / chi2.ppf(0.999, len(scores)))


@pytest.mark.parametrize(
    "line",
    [
        replace(selection.ALONE, sigma_floor=1.0),
        replace(selection.SPARSE, explore=1.0, sigma_floor=1.0),
        replace(selection.SPARSE, prior=selection.EXACT, weights=True, sigma_floor=1.0),
    ],
    ids=["one rollout each", "drawn, all alike", "drawn by belief, weighted"],
)
def test_one_rollout_each_all_alike_and_importance_weights_estimate_the_plain_gradient(
    setting: selection.Setting, line: selection.Line
) -> None:
    assert chance_of(selection.draw(setting, line, 2000, seed=3).estimates - setting.policy.gradient) < 1


def test_a_selection_by_belief_ascends_its_own_objective_and_not_the_plain_one(setting: selection.Setting) -> None:
    found = selection.draw(setting, replace(selection.SPARSE, prior=selection.EXACT), 2000, seed=3)
    scale = found.estimates.mean(axis=0) @ setting.policy.gradient / (setting.policy.gradient @ setting.policy.gradient)
    assert chance_of(found.estimates - found.own) < 1 < chance_of(found.estimates / scale - setting.policy.gradient)


def test_every_line_of_the_selection_spends_the_same_rollouts(setting: selection.Setting) -> None:
    rng = np.random.default_rng(0)
    for line in selection.LINES:
        counts = selection.selected(line, setting.known[line.prior], 3, rng)[1]
        assert (counts.sum(axis=1) == selection.BUDGET).all()


def test_the_bias_of_a_direction_is_measured_without_its_noise() -> None:
    gradient, noise = np.array([2.0, 0.0, 0.0]), np.random.default_rng(0).normal(size=(400, 3))
    assert abs(selection.bias_sq(gradient + noise, gradient)) < 0.01
    turned = np.array([2.0, 1.0, 0.0])
    assert selection.bias_sq(turned + noise, gradient) == pytest.approx(0.25, abs=0.1)


def test_the_page_of_selections_can_be_made_from_a_tiny_run(tmp_path: Path) -> None:
    selection_page.main(["--out", str(tmp_path), "--steps", "20", "--seeds", "2"])
    assert "nan" not in (tmp_path / "selection.md").read_text().lower()
    assert len(pd.read_csv(tmp_path / "selection.csv")) == 2 * 2 * len(selection.LINES)
