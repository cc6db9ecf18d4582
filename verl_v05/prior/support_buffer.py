"""Support buffer: the newest prompts' mean outcomes, the context of an in-context value model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from verl_v05.prior.query import Outcome, Query

LABEL_THRESHOLD = 0.5  # a prompt is labelled a success from this mean on


def is_success(outcome: Outcome) -> bool:
    """Hard label of an outcome for the value model's head."""
    return outcome.success >= LABEL_THRESHOLD


class SupportBuffer:
    """Bounded, newest last; a prompt measured again replaces its older entry.

    Sampling is a function of (seed, draw), so it needs no random state in a checkpoint.
    """

    def __init__(self, capacity: int, sample_size: int, seed: int):
        self.capacity = capacity
        self.sample_size = sample_size
        self.seed = seed
        self._outcomes: OrderedDict[str, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outcomes)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Append a step's outcomes, dropping the oldest beyond the capacity."""
        for outcome in outcomes:
            self._outcomes[outcome.query.prompt_id] = outcome
            self._outcomes.move_to_end(outcome.query.prompt_id)
        while len(self._outcomes) > self.capacity:
            self._outcomes.popitem(last=False)

    def sample(self, *draw: int) -> list[Outcome] | None:
        """``sample_size`` distinct outcomes with both classes among them; None if the buffer cannot give that.

        Args:
            draw: integers that name this draw, such as (step, batch); the same draw gives the same sample.
        """
        outcomes = list(self._outcomes.values())
        labels = np.array([is_success(o) for o in outcomes], dtype=bool)
        if len(outcomes) < self.sample_size or labels.all() or not labels.any():
            return None
        rng = np.random.default_rng([self.seed, *draw])
        chosen = rng.choice(len(outcomes), self.sample_size, replace=False)
        if self.sample_size > 1 and labels[chosen].min() == labels[chosen].max():
            chosen[-1] = rng.choice(np.flatnonzero(labels != labels[chosen[0]]))
        return [outcomes[i] for i in chosen]

    def state_dict(self) -> list[dict[str, Any]]:
        """JSON-serialisable content, oldest first."""
        return [{**vars(o.query), "success": o.success, "k": o.k} for o in self._outcomes.values()]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore :meth:`state_dict`."""
        self._outcomes.clear()
        self.add([Outcome(Query(s["prompt_id"], s["text"], s["data_source"]), s["success"], s["k"]) for s in state])
