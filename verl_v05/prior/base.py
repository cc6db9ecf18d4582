"""What a prior is: a batch of prompts in, a success probability or "missing" for each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from verl_v05.prior.query import Outcome, Query

if TYPE_CHECKING:  # importing ray takes a second, and the pure counts of this package need none of it
    from ray.util.placement_group import PlacementGroup


class Prior(ABC):
    """Predicts success probabilities before any rollout of the step is scored.

    Invariants the caller keeps: ``predict`` and ``update`` are never called at the same time, a step's
    outcomes arrive only after all of its predictions, and steps come in order.
    """

    @abstractmethod
    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        """Success probability of each query, shape (queries,), in [0, 1]; NaN where there is none.

        Args:
            queries: the prompts.
            context: sample of the support buffer, both classes present; None while the buffer is too small.
            step: training step the prompts belong to.
        """

    def start(self, placement_groups: Sequence[PlacementGroup] = ()) -> None:
        """Begin work, once, in the process that will call the rest, before the first step.

        Args:
            placement_groups: the trainer's, one a node, for a provider that runs beside the policy.

        Raises:
            Exception: the provider cannot work; the run then ends before its first step.
        """

    def update(self, outcomes: Sequence[Outcome], step: int) -> None:
        """Learn from what the step measured."""

    def metrics(self) -> dict[str, float]:
        """Of the time since the last call: the same keys every time, logged as ``v05/prior/...``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""

    def close(self) -> None:
        """End processes the provider started."""


class NoPrior(Prior):
    """No prediction: every prior is missing, so the baseline is the group mean."""

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        return np.full(len(queries), np.nan)
