"""verl's own estimators in the bench: called as they are, with what is known of their gradients."""

from __future__ import annotations

import pytest

from benchmarks.estimators import advantage_gradients as gradient
from benchmarks.estimators import speed
from benchmarks.estimators.baselines import GROUP_MEAN
from benchmarks.estimators.verl_advantages import VERL_METHODS


def test_verls_estimators_have_the_gradients_their_formulas_have() -> None:
    methods = VERL_METHODS | {GROUP_MEAN: gradient.METHODS[GROUP_MEAN + gradient.NOT_NORMALISED]}
    found = gradient.run([0.2, 0.5, 0.9], methods, sizes=(4,), draws=400)
    found = found[found["prior"] != gradient.USELESS].set_index("method")
    assert found.loc[["verl rloo", "verl remax"], "scale"].to_list() == pytest.approx([1, 1])
    figures = ["scale", "cosine", "relative_noise", "norm"]
    # OPO weighs rewards by length, and all have one token; RLOO is the group mean times k / (k - 1).
    assert found.loc["verl opo", figures].to_list() == pytest.approx(found.loc[GROUP_MEAN, figures].to_list())
    assert found.loc["verl rloo", "norm"] == pytest.approx(found.loc[GROUP_MEAN, "norm"] * 4 / 3)
    batch_wide = found.loc[["verl reinforce_plus_plus_baseline", "verl gae, the prior as critic"]]
    assert (batch_wide["scale_error"] > 0).all()
    assert ((batch_wide["cosine"] - 1).abs() < 4 * batch_wide["cosine_error"] + 0.01).all()


def test_the_timed_step_is_one_that_the_registered_estimator_takes() -> None:
    step, index = speed.step_of(200, seed=0)
    sizes = [g.k for g in step.groups]
    assert min(sizes) >= 4 and max(sizes) <= 16
    assert len(index) == sum(sizes) == len(step.rewards)
    assert len(speed.advantage_times(200, speed.FEW_TOKENS, repeats=1, seed=0)) == 5
    assert len(speed.decision_times(repeats=1, seed=0)) == 6
