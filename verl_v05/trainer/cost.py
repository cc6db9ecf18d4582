"""What a run has spent so far: the axes that accuracy is compared over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

# Groups, as verl's replay buffer counts them, that were generated and then not trained on.
DISCARDED = ("training/filter_groups/evicted_samples", "training/filter_groups/discarded_surplus_samples")


@dataclass(frozen=True)
class Cost:
    """Totals since a run's first step, over all its resumptions; ``asdict`` of it is JSON.

    ``rollouts`` and ``response_tokens`` count what was generated for training, whether trained on or discarded;
    ``seconds`` is the time of training steps, without validation.
    """

    rollouts: int = 0
    response_tokens: float = 0.0
    seconds: float = 0.0

    def spend(self, rollouts: int, response_tokens: float) -> Cost:
        """Add a step's rollouts."""
        return replace(self, rollouts=self.rollouts + rollouts, response_tokens=self.response_tokens + response_tokens)

    def wait(self, seconds: float) -> Cost:
        """Add time."""
        return replace(self, seconds=self.seconds + seconds)

    def metrics(self) -> dict[str, float]:
        """``v05/total/*``."""
        return {f"v05/total/{name}": float(value) for name, value in asdict(self).items()}


def discarded_rollouts(metrics: Mapping[str, Any], group_size: int) -> int:
    """Rollouts of the groups that dynamic filtering threw away in a step, from verl's metrics of it."""
    return group_size * int(sum(metrics.get(name, 0) for name in DISCARDED))
