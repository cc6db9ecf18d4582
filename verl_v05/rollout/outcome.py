"""The outcome reward of one agent-loop output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from value_model.conversions import reward_of_success
from verl_v05.settings import OutcomeSettings

ROUNDING = 1e-6  # of the range: outcomes that a reward function averages in floating point miss its ends by that


class OutcomeError(ValueError):
    """The reward function's answer holds no usable outcome."""


def outcome_reward(reward_extra_info: Mapping[str, Any], settings: OutcomeSettings) -> float:
    """Map the configured entry of the reward function's extra info to [-1, 1]; by ``ROUNDING`` outside is its end.

    Raises:
        OutcomeError: the entry is absent, no number, NaN, or further outside [low, high].
    """
    value = _number(reward_extra_info, settings.key, "outcome.key")
    rounding = ROUNDING * (settings.high - settings.low)
    if not settings.low - rounding <= value <= settings.high + rounding:
        raise OutcomeError(
            f"{settings.key}={value} is outside [algorithm.v05.outcome.low, high] = [{settings.low}, {settings.high}]"
        )
    value = min(max(value, settings.low), settings.high)
    return reward_of_success((value - settings.low) / (settings.high - settings.low))


def shaping_reward(reward_extra_info: Mapping[str, Any], settings: OutcomeSettings) -> float:
    """The configured shaping term, 0 if none is configured."""
    if settings.shaping_key is None:
        return 0.0
    value = _number(reward_extra_info, settings.shaping_key, "outcome.shaping_key")
    if not math.isfinite(value):
        raise OutcomeError(f"{settings.shaping_key}={value} is not finite")
    return value


def _number(reward_extra_info: Mapping[str, Any], key: str, setting: str) -> float:
    if key not in reward_extra_info:
        raise OutcomeError(
            f"the reward function returned no {key!r} (algorithm.v05.{setting}), only {sorted(reward_extra_info)}"
        )
    try:
        return float(reward_extra_info[key])
    except (TypeError, ValueError) as error:
        raise OutcomeError(f"{key}={reward_extra_info[key]!r} is not a number") from error
