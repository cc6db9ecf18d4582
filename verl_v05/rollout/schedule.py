"""Schedules: when a scored group may ask for more rollouts, and what it gets (paper section 4.1.3, step 4).

A schedule is told of each group whose dispatched rollouts have all settled and answers with the groups
it releases: uid -> number of rollouts to start now, 0 meaning the group is complete. It does no waiting
and no I/O, so recorded rewards can be replayed through it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from verl_v05.allocation import extra_rollouts, hand_out
from verl_v05.rollout.demand import Demand, make_demand
from verl_v05.rollout.group import Group
from verl_v05.settings import V05Settings


class Schedule(ABC):
    """Allocation of the groups of one batch.

    Args:
        groups: the batch.
        step_groups: all groups of the training step so far, if there are other batches.
    """

    def __init__(self, groups: Sequence[Group], settings: V05Settings, step_groups: Sequence[Group] | None = None):
        self.groups = {group.uid: group for group in groups}
        self.settings = settings
        self.step_groups = groups if step_groups is None else step_groups

    @abstractmethod
    def settled(self, uid: str) -> dict[str, int]:
        """All rollouts dispatched for ``uid`` have settled; return the groups released by that."""

    def _asks(self, demand: Demand) -> np.ndarray:
        """Rollouts each group asks for."""
        s = self.settings
        return extra_rollouts(demand.k, demand.spent, demand.target, k_max=s.k_max, step=s.rollouts_per_ask)

    def _left(self) -> int:
        """Rollouts the step may still start."""
        cap = self.settings.max_rollouts_per_step
        return sys.maxsize if cap is None else max(0, cap - sum(g.spent for g in self.step_groups))


class Fixed(Schedule):
    """k_init rollouts for every prompt, never more (Figure 5)."""

    def settled(self, uid: str) -> dict[str, int]:
        return {uid: 0}


class Streaming(Schedule):
    """Each group decides as soon as it is scored; an optional cap bounds the rollouts of the step.

    Under a cap, who is cut depends on the order in which groups finish.
    """

    def settled(self, uid: str) -> dict[str, int]:
        group = self.groups[uid]
        asked = int(self._asks(make_demand([group], self.settings))[0])
        granted = min(asked, self._left()) if asked else 0
        return {uid: group.grant(granted, cut=asked - granted)}


class Rounds(Schedule):
    """The paper's schedule: all groups finish a round before the next is decided.

    A round is dispatched only if at least ``halt_share`` of the prompts ask; otherwise the batch halts
    and every group is released. Dispatches are padded to ``pad_multiple`` with real rollouts, which go to
    groups with a prior only: without one, more rollouts cannot settle a disagreement.

    Under a cap, what is left of it is planned anew before every round: it goes where the next rollout is expected to
    gain most, and a group asks for no more than its part of the plan.
    """

    def __init__(self, groups: Sequence[Group], settings: V05Settings, step_groups: Sequence[Group] | None = None):
        super().__init__(groups, settings, step_groups)
        self._running = set(self.groups)

    def settled(self, uid: str) -> dict[str, int]:
        self._running.discard(uid)
        return {} if self._running else self._next_round()

    def _next_round(self) -> dict[str, int]:
        groups = list(self.groups.values())
        demand = make_demand(groups, self.settings)
        asked = self._asks(demand)
        if self.settings.max_rollouts_per_step is not None:
            asked = np.minimum(asked, self._plan(demand))
        if not asked.any() or (asked > 0).sum() < self.settings.halt_share * len(groups):
            return dict.fromkeys(self.groups, 0)
        padded = self._padding(demand, asked)
        granted = {g.uid: g.grant(int(a), padded=int(p)) for g, a, p in zip(groups, asked, padded, strict=True)}
        released = {uid: extra for uid, extra in granted.items() if extra}
        self._running = set(released)
        return released

    def _plan(self, demand: Demand) -> np.ndarray:
        """Division of the rollouts that are left of the cap."""
        room = np.clip(self.settings.k_max - demand.spent, 0, None)
        return hand_out(self._left(), room, demand.gain, at_least=self.settings.cost)

    def _padding(self, demand: Demand, asked: np.ndarray) -> np.ndarray:
        """Rollouts on top of those asked for."""
        missing = -int(asked.sum()) % self.settings.pad_multiple
        room = np.where(demand.known, np.clip(self.settings.k_max - demand.spent - asked, 0, None), 0)
        return hand_out(
            min(missing, self._left() - int(asked.sum())),
            room,
            lambda prompt, nth: demand.gain(prompt, asked[prompt] + nth),
        )


SCHEDULES: dict[str, type[Schedule]] = {"rounds": Rounds, "streaming": Streaming, "fixed": Fixed}


def make_schedule(
    groups: Sequence[Group], settings: V05Settings, step_groups: Sequence[Group] | None = None
) -> Schedule:
    """The configured schedule over the groups of one batch."""
    return SCHEDULES[settings.schedule](groups, settings, step_groups)
