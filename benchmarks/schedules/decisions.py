"""The project's own schedule over a workload's prompts, asked as the allocator asks it."""

from __future__ import annotations

from collections.abc import Sequence

from verl_v05.rollout.belief import make_belief

from benchmarks.schedules.workload import Workload
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.schedule import make_schedule
from verl_v05.settings import V05Settings


class Decisions:
    """Groups of the workload's prompts, uid = the prompt's index, and the configured schedule over them.

    Args:
        past: prompts of an earlier step, of which a fusion that calibrates the prior has learnt.
    """

    def __init__(self, workload: Workload, settings: V05Settings, past: Workload):
        self.workload = workload
        earlier = _groups(past, settings, "earlier-")
        for prompt, group in enumerate(earlier):
            _score(group, past, prompt, range(settings.k_init))
        self.groups = _groups(workload, settings)
        belief = make_belief(settings)
        belief.open(earlier)
        belief.close(StepRecord(0, earlier))
        belief.open(self.groups)
        self.schedule = make_schedule(self.groups, settings)

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
    group.rewards.update({s: 2.0 * workload.correct[prompt, s] - 1 for s in sessions})
