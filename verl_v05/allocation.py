"""One-step-look-ahead (OSLA) allocation of rollouts (paper section 3.4, Eq. 11-12 and 36).

Numpy, torch or plain numbers in; arrays of the same namespace out. ``bias_sq`` is the squared
bias of :func:`verl_v05.fusion.fuse`; it is 0 both where the prior was accepted and where it is
missing, so neither asks for more rollouts.
"""

from __future__ import annotations

import math

import numpy as np

from verl_v05.fusion import Array, as_float64


def empirical_mse(bias_sq: Array, k: Array) -> Array:
    """Estimated mean squared error of the fused baseline after ``k`` rollouts (Eq. 11)."""
    _, (bias_sq, k) = as_float64(bias_sq, k)
    return bias_sq / (k * bias_sq + 1)


def marginal_return(bias_sq: Array, k: Array) -> Array:
    """Expected drop of :func:`empirical_mse` from one more rollout, g(k) (Eq. 36)."""
    _, (bias_sq, k) = as_float64(bias_sq, k)
    return bias_sq**2 / ((k * bias_sq + 1) * ((k + 1) * bias_sq + 1))


def rollout_target(bias_sq: Array, cost: float) -> Array:
    """Number of rollouts at which a prompt should stop (Eq. 12): 1/sqrt(cost) - 1/bias_sq.

    Minus infinity where ``bias_sq`` is 0. ``cost`` is the price of one rollout in units of squared error, > 0.
    """
    if not cost > 0:
        raise ValueError(f"cost must be positive; got {cost}")
    xp, (bias_sq,) = as_float64(bias_sq)
    biased = bias_sq > 0
    safe = xp.where(biased, bias_sq, xp.ones_like(bias_sq))
    return xp.where(biased, 1 / math.sqrt(cost) - 1 / safe, xp.full_like(bias_sq, -math.inf))


def extra_rollouts(
    k: np.ndarray, spent: np.ndarray, bias_sq: np.ndarray, *, cost: float, k_max: int, step: int | None
) -> np.ndarray:
    """Rollouts each prompt asks for next (section 4.1.3, step 4).

    Args:
        k: scored rollouts of each prompt, shape (prompts,).
        spent: rollouts already dispatched for it, failed ones included; >= k. ``k_max`` bounds this one.
        bias_sq: squared bias of its prior.
        cost: marginal cost c of a rollout.
        k_max: largest number of rollouts of a prompt.
        step: rollouts asked for at a time; None asks at once for all that is missing to the target.

    Returns:
        int64 counts, shape (prompts,); 0 where k has reached its target or fewer than ``step`` are left.
    """
    target = rollout_target(bias_sq, cost)
    wants = k < target
    if step is None:
        gap = np.where(wants, np.ceil(np.where(wants, target, 0.0)) - k, 0)
        return np.minimum(gap, k_max - np.asarray(spent)).astype(np.int64)
    return np.where(wants & (np.asarray(spent) + step <= k_max), step, 0).astype(np.int64)


def pad_dispatch(
    asked: np.ndarray, k: np.ndarray, spent: np.ndarray, bias_sq: np.ndarray, *, multiple: int, k_max: int
) -> np.ndarray:
    """Extra rollouts that bring a dispatch up to a multiple of ``multiple`` (section 4.1.3, step 4).

    They are real rollouts, handed one by one to the prompt with the largest marginal return g(k)
    that is under ``k_max`` (ties: the earlier prompt). If none is left the dispatch is smaller.

    Args:
        asked: rollouts already asked for in this dispatch, shape (prompts,).
        k, spent, bias_sq: as in :func:`extra_rollouts`.

    Returns:
        int64 counts to add to ``asked``, shape (prompts,).
    """
    padding = int(-asked.sum() % multiple)
    room = np.clip(k_max - spent - asked, 0, None)
    prompt = np.repeat(np.arange(len(asked)), room)
    # The n-th extra rollout of a prompt comes after the n-1 before it: g falls with k, so ranking all
    # candidates at once hands them out exactly as one-by-one picking would.
    nth = np.arange(len(prompt)) - np.repeat(np.cumsum(room) - room, room)
    gain = marginal_return(bias_sq[prompt], k[prompt] + asked[prompt] + nth)
    chosen = prompt[np.lexsort((nth, prompt, -gain))[:padding]]
    return np.bincount(chosen, minlength=len(asked)).astype(np.int64)
