"""The project's own schedule over a workload's prompts, asked as the allocator asks it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.schedules.workload import Workload
from value_model.conversions import reward_of_success
from verl_v05.method import Method
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.settings import V05Settings


class Decisions:
    """Groups of the workload's prompts, uid = the prompt's index, and the configured schedule over them.

    Args:
        past: prompts of an earlier step, of which a fusion that calibrates the prior has learnt.
    """

    def __init__(self, workload: Workload, settings: V05Settings, past: Workload):
        self.workload = workload
        method = Method.from_settings(settings)
        earlier = _groups(past, settings, "earlier-")
        method.believe(earlier)
        for prompt, group in enumerate(earlier):
            _score(group, past, prompt, range(settings.k_init))
        method.learn(earlier)
        self.groups = _groups(workload, settings)
        method.believe(self.groups)
        self.schedule = method.open(self.groups)

    def settled(self, prompt: int, sessions: Sequence[int]) -> dict[int, int]:
        """All rollouts dispatched for the prompt are graded; returns prompt -> rollouts to start, 0 when complete."""
        _score(self.groups[prompt], self.workload, prompt, sessions)
        return {int(uid): extra for uid, extra in self.schedule.settled(str(prompt)).items()}


def _groups(workload: Workload, settings: V05Settings, prefix: str = "") -> list[Group]:
    return [
        Group(uid := f"{prefix}{i}", Query(uid, "", "simulation"), spent=settings.k_init, probability=float(p))
        for i, p in enumerate(workload.probability)
    ]


def _score(group: Group, workload: Workload, prompt: int, sessions: Sequence[int]) -> None:
    group.rewards.update({s: reward_of_success(float(workload.correct[prompt, s])) for s in sessions})
