"""A group: one prompt's rollouts in one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from verl_v05.prior.base import Query


@dataclass
class Group:
    """Mutable record of a prompt's rollouts; sessions are numbered 0.. in the order they were dispatched."""

    uid: str
    query: Query
    spent: int  # rollouts dispatched, failed ones included
    prior: float = float("nan")  # V of the fusion: 2p - 1, or what the calibration makes of p and history; NaN: none
    rewards: dict[int, float] = field(default_factory=dict)  # session -> outcome reward in [-1, 1]
    failed: int = 0
    dispatches: int = 1
    asked: int = 0  # extra rollouts wanted by the allocation
    padded: int = 0  # extra rollouts received as padding of a dispatch
    cut: int = 0  # extra rollouts wanted but refused by the cap
    probability: float = float("nan")  # p of the prior's provider, NaN while missing
    history: tuple[float, float] = (0.0, 0.0)  # the prompt's discounted successes and failures of earlier steps
    strength: float = float("nan")  # m of the empirical-Bayes fusion, in rollouts; NaN: none

    @property
    def k(self) -> int:
        """Scored rollouts."""
        return len(self.rewards)

    @property
    def mean_reward(self) -> float:
        """Mean outcome reward, in [-1, 1]; 0 if nothing was scored."""
        # An exact sum: it must not depend on the order of arrival.
        return math.fsum(self.rewards.values()) / self.k if self.rewards else 0.0

    def grant(self, asked: int, padded: int = 0, cut: int = 0) -> int:
        """Book extra rollouts and return how many to start."""
        self.asked += asked + cut
        self.padded += padded
        self.cut += cut
        extra = asked + padded
        self.spent += extra
        self.dispatches += extra > 0
        return extra
