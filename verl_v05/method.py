"""The method of one run: the choices of ``algorithm.v05``, resolved and checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from value_model.conversions import success_of_reward
from verl_v05.allocation import ALLOCATIONS, AllocationRule
from verl_v05.fusion import FUSIONS, FusionMethod
from verl_v05.rollout.group import Group
from verl_v05.rollout.schedule import SCHEDULES, Schedule
from verl_v05.settings import V05Settings


@dataclass(frozen=True)
class Method:
    """What is believed of a prompt, what its next rollout is worth, and when it may have it."""

    settings: V05Settings
    fusion: FusionMethod  # stateful: one instance of a run learns, in the allocator
    allocation: AllocationRule
    schedule: type[Schedule]

    @classmethod
    def from_settings(cls, settings: V05Settings) -> Method:
        """Resolve every choice, with nothing learnt yet.

        Raises:
            SettingsError: a choice is unknown, or two of them do not go together.
        """
        fusion = FUSIONS.resolve(settings.fusion).from_settings(settings)
        allocation = ALLOCATIONS.resolve(settings.allocation).from_settings(settings, fusion)
        schedule = SCHEDULES.resolve(settings.schedule)
        schedule.check(settings, allocation)
        return cls(settings, fusion, allocation, schedule)

    def open(self, groups: Sequence[Group], step_groups: Sequence[Group] | None = None, step: int = 0) -> Schedule:
        """The schedule of one batch; ``step_groups`` are all groups of the step so far, if there are other batches."""
        return self.schedule(groups, self.settings, self.fusion, self.allocation, step_groups, step)

    def believe(self, groups: Sequence[Group]) -> None:
        """Set what is believed of groups whose probability has just come."""
        for group, prior, strength in zip(groups, *self.fusion.believe(*_asked(groups)), strict=True):
            group.prior, group.strength = float(prior), float(strength)

    def learn(self, groups: Sequence[Group]) -> None:
        """Learn from a step's groups, then set what is believed of them afterwards."""
        k = np.array([g.k for g in groups])
        # Rounding may leave the interval by an ulp.
        successes = np.clip(k * success_of_reward(np.array([g.mean_reward for g in groups])), 0, k)
        for group, prior, strength in zip(groups, *self.fusion.learn(*_asked(groups), successes, k), strict=True):
            group.fitted_prior, group.fitted_strength = float(prior), float(strength)


def _asked(groups: Sequence[Group]) -> tuple[list[str], np.ndarray]:
    return [g.query.prompt_id for g in groups], np.array([g.probability for g in groups])
