"""Discounted counts of each prompt's own outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from verl_v05.prior.base import Outcome, Query


class PromptCounts:
    """(successes, failures) of each prompt so far, multiplied by ``forgetting`` at each new visit of the prompt.

    The policy has moved on since an old visit, so it counts for less.

    Args:
        forgetting: in [0, 1]; 1 never forgets.
    """

    def __init__(self, forgetting: float):
        self.forgetting = forgetting
        self._counts: dict[str, tuple[float, float]] = {}

    def of(self, queries: Sequence[Query]) -> np.ndarray:
        """Successes and failures of each query's prompt, shape (queries, 2); 0 where it was never seen."""
        return np.array([self._counts.get(q.prompt_id, (0.0, 0.0)) for q in queries]).reshape(-1, 2)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count a step's outcomes."""
        for o in outcomes:
            old = self._counts.get(o.query.prompt_id, (0.0, 0.0))
            self._counts[o.query.prompt_id] = discount(old, o.success * o.k, o.k, self.forgetting)

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return dict(self._counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._counts = {prompt_id: tuple(pair) for prompt_id, pair in state.items()}


def discount(old: tuple[float, float], successes: float, rollouts: float, forgetting: float) -> tuple[float, float]:
    """(successes, failures) with the old ones discounted and the new ones added."""
    return forgetting * old[0] + successes, forgetting * old[1] + rollouts - successes
