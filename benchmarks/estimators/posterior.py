"""Exact posterior moments after any outcome, and the optimal stopping time."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from benchmarks.estimators.populations import GRID
from value_model.conversions import reward_of_success


class Posterior:
    """Moments of theta = 2p - 1 of each prompt after s successes in k rollouts, for every s and k up to ``k_max``.

    Args:
        density: P(p | evidence) on the grid, (n, G).
        k_max: most rollouts.
    """

    def __init__(self, density: np.ndarray, k_max: int):
        self.n, self.k_max = len(density), k_max
        size = k_max + 3  # second moments after k_max rollouts are chances of two more successes
        k, s = np.divmod(np.arange(size**2), size)
        chance = np.where(s <= k, GRID[:, None] ** s * (1 - GRID[:, None]) ** np.maximum(k - s, 0), 0.0)
        self._sequence = (density @ chance).reshape(self.n, size, size)  # P(a sequence with s successes in k)

    @cached_property
    def success(self) -> np.ndarray:
        """P(the next rollout succeeds | s of k), 0 where s of k cannot happen; (n, k_max + 1, k_max + 1) by k and s."""
        return self._moment(1)

    @cached_property
    def mean(self) -> np.ndarray:
        """E(theta | s of k): the baseline of least squared error; indexed as ``success``."""
        return reward_of_success(self.success)

    @cached_property
    def variance(self) -> np.ndarray:
        """Var(theta | s of k), its expected squared error; indexed as ``success``."""
        return np.maximum(4 * (self._moment(2) - self.success**2), 0.0)

    def stop_or_go(self, cost: float, k_init: int) -> np.ndarray:
        """Whether one more rollout is worth it after s of k, by dynamic programming; indexed as ``success``.

        It minimises E(squared error of the posterior mean + cost * rollouts) from ``k_init`` on, exactly.
        """
        go = np.zeros((self.n, self.k_max + 1, self.k_max + 1), dtype=bool)
        value = self.variance[:, self.k_max]
        for k in range(self.k_max - 1, k_init - 1, -1):
            q = self.success[:, k, : k + 1]
            further = cost + q * value[:, 1 : k + 2] + (1 - q) * value[:, : k + 1]
            go[:, k, : k + 1] = further < self.variance[:, k, : k + 1]
            value = np.minimum(further, self.variance[:, k, : k + 1])
        return go

    def _moment(self, order: int) -> np.ndarray:
        """E(p ** order | s of k)."""
        end = self.k_max + 1
        before = self._sequence[:, :end, :end]
        after = self._sequence[:, order : end + order, order : end + order]
        return np.divide(after, before, out=np.zeros_like(before), where=before > 0)
