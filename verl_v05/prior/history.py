"""Beta tracker of each prompt's own past outcomes, with the global mean for prompts not seen yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from value_model.checks import require
from verl_v05.prior.base import Prior
from verl_v05.prior.counts import PromptCounts, discount
from verl_v05.prior.query import Outcome, Query


class HistoryPrior(Prior):
    """p = (a + strength * g) / (a + b + strength).

    a and b are the prompt's successes and failures so far, multiplied by ``forgetting`` at each new
    visit because the policy has moved on since; g is the success rate over all prompts, forgotten at the
    same rate per step. A prompt never seen gets g.

    Args:
        forgetting: factor on old counts at each visit, in [0, 1]; 1 never forgets.
        strength: pseudo-rollouts the global mean is worth, > 0.
        min_rollouts: until this many rollouts were seen in all, every prior is missing.
    """

    def __init__(self, forgetting: float = 0.75, strength: float = 1.0, min_rollouts: int = 64):
        key = "algorithm.v05.prior.kwargs"
        require(f"{key}.forgetting", forgetting, 0 <= forgetting <= 1, "in [0, 1]")
        require(f"{key}.min_rollouts", min_rollouts, min_rollouts >= 1, "at least 1")
        require(f"{key}.strength", strength, strength > 0, "positive")
        self.forgetting = forgetting
        self.strength = strength
        self.min_rollouts = min_rollouts
        self._counts = PromptCounts(forgetting)
        self._global = (0.0, 0.0)
        self._rollouts_seen = 0

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        success, failure = self._global
        if self._rollouts_seen < self.min_rollouts or success + failure == 0:
            return np.full(len(queries), np.nan)
        global_mean = success / (success + failure)
        counts = self._counts.of([q.prompt_id for q in queries])
        return (counts[:, 0] + self.strength * global_mean) / (counts.sum(axis=1) + self.strength)

    def update(self, outcomes: Sequence[Outcome], step: int) -> None:
        successes, rollouts = [o.success * o.k for o in outcomes], sum(o.k for o in outcomes)
        self._counts.add([o.query.prompt_id for o in outcomes], successes, [o.k for o in outcomes])
        self._global = discount(self._global, sum(successes), rollouts, self.forgetting)
        self._rollouts_seen += rollouts

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts.state_dict(), "global": self._global, "rollouts_seen": self._rollouts_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counts.load_state_dict(state["counts"])
        self._global = tuple(state["global"])
        self._rollouts_seen = state["rollouts_seen"]
