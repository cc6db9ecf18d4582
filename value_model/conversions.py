"""Conversions between the quantities of the method; numpy arrays, torch tensors, pandas columns or plain numbers.

======================  =================  ==========================================================
quantity                range              meaning
======================  =================  ==========================================================
success s               [0, 1]             outcome of a rollout, or mean outcome of several
reward r (also: score)  [-1, 1]            the same as the paper's +-1 reward, r = 2 s - 1
probability p           [0, 1]             predicted success probability, the expectation of s
value V                 [-1, 1]            predicted mean reward, the expectation of r, V = 2 p - 1
======================  =================  ==========================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def reward_of_success(success: Any) -> Any:
    """r = 2 s - 1."""
    return 2 * success - 1


def success_of_reward(reward: Any) -> Any:
    """s = (r + 1) / 2."""
    return (reward + 1) / 2


def hard_label(reward: ArrayLike) -> np.ndarray:
    """Whether each mean reward counts as a success, r >= 0, where a class is needed: in-context head, AUC. Bool."""
    return np.asarray(reward, dtype=np.float64) >= 0


# Expectations follow the same two maps.
value_of_probability = reward_of_success
probability_of_value = success_of_reward
