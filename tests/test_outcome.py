"""The outcome reward of a reward function's answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from verl_v05.rollout.outcome import OutcomeError, outcome_reward, shaping_reward
from verl_v05.settings import OutcomeSettings


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, True, False, np.float32(1), np.bool_(False), "1", "0.0"])
def test_accuracy_maps_to_minus_one_and_one(value: Any) -> None:
    reward = outcome_reward({"acc": value, "score": 7}, OutcomeSettings())
    assert reward == (1.0 if float(value) else -1.0) and type(reward) is float


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.7), (-3.0, 10.0), (0.0, 100.0)])
def test_the_range_maps_linearly_and_its_ends_exactly(low: float, high: float) -> None:
    settings = OutcomeSettings(key="score", low=low, high=high)
    assert outcome_reward({"score": low}, settings) == -1.0
    assert outcome_reward({"score": high}, settings) == 1.0
    for share in np.linspace(0, 1, 101):
        value = min(low + share * (high - low), high)
        reward = outcome_reward({"score": value}, settings)
        assert -1 <= reward <= 1 and reward == pytest.approx(2 * share - 1, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, 1.00001, -0.5, math.inf, -math.inf, "nan"])
def test_values_outside_the_range_are_refused_with_value_and_range(value: Any) -> None:
    with pytest.raises(OutcomeError, match=rf"acc={float(value)} is outside .*outcome.low, high\] = \[0.0, 1.0\]"):
        outcome_reward({"acc": value}, OutcomeSettings())


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 10.0), (0.0, 100.0)])
def test_rounding_beyond_the_range_counts_as_its_end(low: float, high: float) -> None:
    settings, width = OutcomeSettings(low=low, high=high), high - low
    for share, reward in [(1.0000000000000002, 1.0), (-1e-17, -1.0), (1 + 9e-7, 1.0), (-9e-7, -1.0)]:
        assert outcome_reward({"acc": low + share * width}, settings) == reward
    for share in (1 + 2e-6, -2e-6):
        with pytest.raises(OutcomeError, match="is outside"):
            outcome_reward({"acc": low + share * width}, settings)


def test_a_missing_key_is_refused_with_what_there_is() -> None:
    with pytest.raises(OutcomeError, match=r"no 'acc' \(algorithm.v05.outcome.key\).*\['pred', 'score'\]"):
        outcome_reward({"score": 1.0, "pred": "42"}, OutcomeSettings())
    with pytest.raises(OutcomeError, match=r"no 'acc' .*\[\]"):
        outcome_reward({}, OutcomeSettings())


@pytest.mark.parametrize("value", ["right", None, [1.0, 0.0], {"acc": 1}])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(OutcomeError, match=r"acc=.* is not a number"):
        outcome_reward({"acc": value}, OutcomeSettings())


def test_shaping_is_zero_unless_configured() -> None:
    assert shaping_reward({"acc": 1.0, "overlong_reward": -0.5}, OutcomeSettings()) == 0.0
    assert shaping_reward({}, OutcomeSettings()) == 0.0


def test_shaping_is_taken_as_it_is() -> None:
    settings = OutcomeSettings(shaping_key="overlong_reward")
    for value in (-0.5, 0, 3.0, np.float32(-0.25)):
        assert shaping_reward({"overlong_reward": value}, settings) == float(value)
    assert outcome_reward({"acc": 1.0, "overlong_reward": -0.5}, settings) == 1.0


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"acc": 1.0}, r"no 'overlong_reward' \(algorithm.v05.outcome.shaping_key\)"),
        ({"overlong_reward": math.nan}, "overlong_reward=nan is not finite"),
        ({"overlong_reward": -math.inf}, "overlong_reward=-inf is not finite"),
        ({"overlong_reward": "long"}, "overlong_reward='long' is not a number"),
    ],
)
def test_unusable_shaping_is_refused(info: dict, message: str) -> None:
    with pytest.raises(OutcomeError, match=message):
        shaping_reward(info, OutcomeSettings(shaping_key="overlong_reward"))
