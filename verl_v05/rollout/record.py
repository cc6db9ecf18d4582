"""What a step measured: the closed groups with their priors, rewards and costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from value_model.conversions import success_of_reward
from verl_v05.prior.query import Outcome
from verl_v05.rollout.group import Group


@dataclass
class StepRecord:
    """All groups of one training step, in batch order."""

    step: int
    groups: list[Group] = field(default_factory=list)
    prior_latency_s: float = 0.0  # from asking for the priors to having them, summed over the step's batches
    prior_wait_s: float = 0.0  # longest time a scored group waited for them: its share of the critical path
    prior_metrics: dict[str, float] = field(default_factory=dict)  # the provider's own
    fusion_metrics: dict[str, float] = field(default_factory=dict)  # the fusion's own
    prior_failures: int = 0  # calls of the provider that raised, timed out or answered nonsense
    turn_weight: float = 0.0  # of turn credit, in [0, 1], from the steps before
    # With credit=turn, of the states that sessions passed through:
    state_metrics: dict[str, float] = field(default_factory=dict)
    state_outcomes: list[Outcome] = field(default_factory=list)  # mean success of the sessions of each

    @property
    def scored(self) -> list[Group]:
        """Groups with at least one reward."""
        return [g for g in self.groups if g.k]

    def outcomes(self) -> list[Outcome]:
        """Mean success of each scored group, for the support buffer and the prior."""
        return [Outcome(g.query, success_of_reward(g.mean_reward), g.k) for g in self.scored]

    def column(self, name: str) -> np.ndarray:
        """One attribute of every group, shape (groups,)."""
        return np.array([getattr(g, name) for g in self.groups])
