"""Discounted counts of each prompt's own outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np


class PromptCounts:
    """(successes, failures) of each prompt so far, multiplied by ``forgetting`` at each new visit of the prompt.

    The policy has moved on since an old visit, so it counts for less.

    Args:
        forgetting: in [0, 1]; 1 never forgets.
        capacity: prompts that are kept, those of the latest visits; None keeps all.
    """

    def __init__(self, forgetting: float, capacity: int | None = None):
        self.forgetting = forgetting
        self._capacity = capacity
        self._counts: dict[str, tuple[float, float]] = {}  # in the order of the latest visit, if some are dropped

    def of(self, prompt_ids: Sequence[str]) -> np.ndarray:
        """Successes and failures of each prompt, shape (prompts, 2); 0 where it was never seen."""
        return np.array([self._counts.get(name, (0.0, 0.0)) for name in prompt_ids]).reshape(-1, 2)

    def add(self, prompt_ids: Sequence[str], successes: Iterable[float], rollouts: Iterable[int]) -> None:
        """Count a visit of each prompt: its successes among its rollouts."""
        for name, success, k in zip(prompt_ids, successes, rollouts, strict=True):
            old = self._counts.get(name, (0.0, 0.0))
            if self._capacity is not None:
                self._counts.pop(name, None)
            self._counts[name] = discount(old, float(success), int(k), self.forgetting)
        if self._capacity is not None:
            for name in list(islice(self._counts, max(0, len(self._counts) - self._capacity))):
                del self._counts[name]

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return dict(self._counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._counts = {prompt_id: tuple(pair) for prompt_id, pair in state.items()}


def discount(old: tuple[float, float], successes: float, rollouts: float, forgetting: float) -> tuple[float, float]:
    """(successes, failures) with the old ones discounted and the new ones added."""
    return forgetting * old[0] + successes, forgetting * old[1] + rollouts - successes
