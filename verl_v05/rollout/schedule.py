"""Schedules: when a scored group may ask for more rollouts, and what it gets (paper section 4.1.3, step 4).

A schedule is told of each group whose dispatched rollouts have all settled and answers with the groups
it releases: uid -> number of rollouts to start now, 0 meaning the group is complete. It does no waiting
and no I/O, so recorded rewards can be replayed through it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from value_model.checks import require
from verl_v05.allocation import AllocationRule, Gain, extra_rollouts, hand_out
from verl_v05.fusion import Belief, FusionMethod
from verl_v05.registry import Registry, SettingsError
from verl_v05.rollout.group import Group
from verl_v05.settings import KEY, V05Settings

SCHEDULES = Registry(
    key=f"{KEY}.schedule",
    base="verl_v05.rollout.schedule.Schedule",
    names={
        "rounds": "verl_v05.rollout.schedule.Rounds",
        "streaming": "verl_v05.rollout.schedule.Streaming",
        "fixed": "verl_v05.rollout.schedule.Fixed",
        "sparse": "verl_v05.rollout.sparse.Sparse",
    },
)


@dataclass(frozen=True)
class GroupDemand:
    """What G groups would do with more rollouts."""

    k: np.ndarray  # (G,) scored rollouts
    spent: np.ndarray  # (G,) dispatched rollouts
    known: np.ndarray  # (G,) there is a belief that may decide
    target: np.ndarray  # (G,) k to stop at; below k or NaN where nothing more is wanted
    gain: Gain


class Schedule(ABC):
    """Allocation of the groups of one batch: one value of ``algorithm.v05.schedule``.

    Args:
        groups: the batch.
        settings, fusion, allocation: the run's.
        step_groups: all groups of the training step so far, if there are other batches.
        step: number of the training step; with a seed of the settings it seeds what is random.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        settings: V05Settings,
        fusion: FusionMethod,
        allocation: AllocationRule,
        step_groups: Sequence[Group] | None = None,
        step: int = 0,
    ):
        self.groups = {group.uid: group for group in groups}
        self.settings = settings
        self.fusion = fusion
        self.allocation = allocation
        self.step_groups = groups if step_groups is None else step_groups
        self.step = step

    @classmethod
    def takes_cap(cls, allocation: AllocationRule) -> bool:
        """Whether ``max_rollouts_per_step`` may be set."""
        return False

    @classmethod
    def check(cls, settings: V05Settings, allocation: AllocationRule) -> None:
        """Raise :class:`SettingsError` for settings that this schedule cannot go with."""
        k_init, weights, cap = settings.k_init, settings.sparse.importance_weights, settings.max_rollouts_per_step
        require(f"{KEY}.k_init", k_init, k_init >= 1, "at least 1, or 0 with schedule=sparse", SettingsError)
        require(
            f"{KEY}.sparse.importance_weights", weights, not weights, "false without schedule=sparse", SettingsError
        )
        require(
            f"{KEY}.max_rollouts_per_step",
            cap,
            cap is None or cls.takes_cap(allocation),
            "null, or a positive integer with schedule=streaming, or with schedule=rounds and allocation=posterior "
            "(other rounds are bounded by halt_share)",
            SettingsError,
        )
        require(
            f"{KEY}.cost",
            settings.cost,
            settings.cost > 0 or (cap is not None and cls.divides_cap(allocation)),
            "a positive number, or 0 with schedule=rounds, allocation=posterior and max_rollouts_per_step, to spend "
            "just that many",
            SettingsError,
        )

    @classmethod
    def divides_cap(cls, allocation: AllocationRule) -> bool:
        """Whether a cap is a budget that is divided by expected gain, so that a cost is not needed to end."""
        return False

    def open(self) -> dict[str, int]:
        """First rollouts of every group, 0 meaning that it gets none in this step.

        Called once the batch's beliefs are known, and only with ``k_init=0``; otherwise ``k_init`` start at once.
        """
        raise NotImplementedError(f"{type(self).__name__} leaves the first rollouts to k_init")

    @abstractmethod
    def settled(self, uid: str) -> dict[str, int]:
        """All rollouts dispatched for ``uid`` have settled; return the groups released by that."""

    def demand(self, groups: Sequence[Group]) -> GroupDemand:
        """By the run's fusion and allocation, from what was believed before the rollouts."""
        k, spent, prior, strength = (
            np.array([getattr(g, name) for g in groups]) for name in ("k", "spent", "prior", "strength")
        )
        mean_reward = np.array([g.mean_reward for g in groups])
        known = ~np.isnan(prior) & self.fusion.ready
        belief = Belief(np.where(known, prior, np.nan), np.where(known, strength, np.nan))
        target, gain = self.allocation.demand(mean_reward, k, belief, self.fusion)
        return GroupDemand(k, spent, known, target, gain)

    def asks(self, demand: GroupDemand) -> np.ndarray:
        """Rollouts each group asks for."""
        s = self.settings
        return extra_rollouts(demand.k, demand.spent, demand.target, k_max=s.k_max, step=s.rollouts_per_ask)

    def left(self) -> int:
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

    @classmethod
    def takes_cap(cls, allocation: AllocationRule) -> bool:
        return True

    def settled(self, uid: str) -> dict[str, int]:
        group = self.groups[uid]
        asked = int(self.asks(self.demand([group]))[0])
        granted = min(asked, self.left()) if asked else 0
        return {uid: group.grant(granted, cut=asked - granted)}


class Rounds(Schedule):
    """The paper's schedule: all groups finish a round before the next is decided.

    A round is dispatched only if at least ``halt_share`` of the prompts ask; otherwise the batch halts
    and every group is released. Dispatches are padded to ``pad_multiple`` with real rollouts, which go to
    groups with a prior only: without one, more rollouts cannot settle a disagreement.

    Under a cap, what is left of it is planned anew before every round: it goes where the next rollout is expected to
    gain most, and a group asks for no more than its part of the plan.
    """

    @classmethod
    def takes_cap(cls, allocation: AllocationRule) -> bool:
        return cls.divides_cap(allocation)

    @classmethod
    def divides_cap(cls, allocation: AllocationRule) -> bool:
        return allocation.plans_budget

    def __init__(self, groups: Sequence[Group], *args: Any, **kwargs: Any):
        super().__init__(groups, *args, **kwargs)
        self._running = set(self.groups)

    def settled(self, uid: str) -> dict[str, int]:
        self._running.discard(uid)
        return {} if self._running else self._next_round()

    def _next_round(self) -> dict[str, int]:
        groups = list(self.groups.values())
        demand = self.demand(groups)
        asked = self.asks(demand)
        if self.settings.max_rollouts_per_step is not None:
            asked = np.minimum(asked, self._plan(demand))
        if not asked.any() or (asked > 0).sum() < self.settings.halt_share * len(groups):
            return dict.fromkeys(self.groups, 0)
        padded = self._padding(demand, asked)
        granted = {g.uid: g.grant(int(a), padded=int(p)) for g, a, p in zip(groups, asked, padded, strict=True)}
        released = {uid: extra for uid, extra in granted.items() if extra}
        self._running = set(released)
        return released

    def _plan(self, demand: GroupDemand) -> np.ndarray:
        """Division of the rollouts that are left of the cap."""
        room = np.clip(self.settings.k_max - demand.spent, 0, None)
        return hand_out(self.left(), room, demand.gain, at_least=self.settings.cost)

    def _padding(self, demand: GroupDemand, asked: np.ndarray) -> np.ndarray:
        """Rollouts on top of those asked for."""
        missing = -int(asked.sum()) % self.settings.pad_multiple
        room = np.where(demand.known, np.clip(self.settings.k_max - demand.spent - asked, 0, None), 0)
        return hand_out(
            min(missing, self.left() - int(asked.sum())),
            room,
            lambda prompt, nth: demand.gain(prompt, asked[prompt] + nth),
        )
