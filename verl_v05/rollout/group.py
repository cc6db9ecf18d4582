"""A group: one prompt's rollouts in one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from verl_v05.prior.query import Query

NAN = float("nan")


@dataclass
class Group:
    """Mutable record of a prompt's rollouts; sessions are numbered 0.. in the order they were dispatched."""

    uid: str
    query: Query
    spent: int  # rollouts dispatched, failed ones included
    prior: float = NAN  # V, as believed before the rollouts: what allocation goes by; NaN: none
    rewards: dict[int, float] = field(default_factory=dict)  # session -> outcome reward in [-1, 1]
    failed: int = 0
    dispatches: int = 1
    asked: int = 0  # extra rollouts wanted by the allocation
    padded: int = 0  # extra rollouts received as padding of a dispatch
    cut: int = 0  # extra rollouts wanted but refused by the cap
    probability: float = NAN  # p of the prior's provider, NaN while missing
    strength: float = NAN  # rollouts the prior is worth, NaN with a fusion that has no such number
    fitted_prior: float = NAN  # V and its strength again, after the fusion has learnt from the whole step,
    fitted_strength: float = NAN  # this group's rewards among it
    first: int = 0  # rollouts that were started before any outcome was known
    # With credit=turn, of each session: the text before each of its turns, and V of these as believed before the step.
    states: dict[int, list[str]] = field(default_factory=dict)
    state_values: dict[int, list[float]] = field(default_factory=dict)
    expected: float = NAN  # first rollouts it could expect, where a schedule draws them; NaN where they are given

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
