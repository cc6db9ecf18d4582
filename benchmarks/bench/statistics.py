"""mean@k, pass@k and their uncertainty; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, permutation_test

LEVEL = 0.95
RESAMPLES = 9999


def mean_of_means(*groups: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean over groups, each weighing the same, of their means over ``axis``."""
    return np.mean([group.mean(axis=axis) for group in groups], axis=0)


def interval(groups: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % bootstrap interval (BCa) of ``mean_of_means``, problems drawn anew within each group.

    None where it would carry no information: all problems of every group score alike, or a group has fewer than two.

    Args:
        groups: a score in [0, 1], or a difference in [-1, 1], of each problem; (n,) each.
    """
    if any(len(group) < 2 for group in groups) or all(np.ptp(group) == 0 for group in groups):
        return None
    found = bootstrap(
        tuple(groups),
        mean_of_means,
        n_resamples=resamples,
        batch=256,
        vectorized=True,
        confidence_level=LEVEL,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def pass_at_k(correct: np.ndarray, n: int, k: int) -> np.ndarray:
    """Unbiased estimate that one of k responses is right, of ``correct`` right ones among ``n`` (Chen et al. 2021).

    Args:
        correct: counts in [0, n], any shape.
        k: in [1, n].
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be in [1, {n}], the number of responses")
    right = np.asarray(correct, dtype=np.int64)
    # C(n - right, k) / C(n, k) as the product of 1 - k / i for the ``right`` largest i up to n, in logarithms: the
    # binomials themselves overflow, C(2048, 1024) is above the largest float.
    factors = np.log1p(-k / np.arange(n, k, -1))
    all_wrong = np.concatenate([[0.0], np.cumsum(factors)])
    return np.where(right > n - k, 1.0, 0.0 - np.expm1(all_wrong[np.minimum(right, n - k)]))


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to ``n``."""
    return [2**e for e in range(n.bit_length())]


def sign_flip(groups: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value that paired differences are as likely to have the other sign.

    Exact where the number of sign patterns is at most ``resamples``.

    Args:
        groups: the differences, (n,) each; the statistic is ``mean_of_means``.
    """
    differences = np.concatenate([group / len(group) / len(groups) for group in groups])
    if not differences.any():
        return 1.0
    return float(
        permutation_test(
            (differences,),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=256,
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the given order."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return corrected[np.argsort(order)].tolist()
