"""What the fusion believes of a group before its rollouts: the provider's answer as it is, or a calibrated Beta prior.

Invariants:
- before a step's rollouts are scored, a belief is a function of earlier steps and the provider's answer only;
- when the step is closed it learns from it, and the belief that the step's baselines use is the one it then has;
- while nothing was learnt yet there is no belief, and so nobody asks for more rollouts on its behalf.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from verl_v05.calibration import PARAMETERS, Calibration, Evidence
from verl_v05.prior.counts import PromptCounts
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.settings import EMPIRICAL_BAYES, V05Settings


class BeliefModel(ABC):
    """Turns a group's probability into the prior, and the strength, that fusion and allocation use."""

    @abstractmethod
    def open(self, groups: Sequence[Group]) -> None:
        """Set the belief of groups whose probability has just come."""

    @abstractmethod
    def close(self, record: StepRecord) -> None:
        """Learn from a step, then set the belief that its baselines use."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Logged as ``v05/calibration/...``."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class AsAnswered(BeliefModel):
    """V = 2p - 1 (Eq. 9)."""

    def open(self, groups: Sequence[Group]) -> None:
        for group in groups:
            group.prior = 2 * group.probability - 1

    def close(self, record: StepRecord) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return dict.fromkeys((*PARAMETERS, "failed_fits"), 0.0)


class Calibrated(BeliefModel):
    """Beta prior of :class:`verl_v05.calibration.Calibration` from probability and the prompt's own history."""

    def __init__(self, forgetting: float, history_forgetting: float):
        self.calibration = Calibration.start(forgetting)
        self.history = PromptCounts(history_forgetting)

    def open(self, groups: Sequence[Group]) -> None:
        for group, counts in zip(groups, self.history.of([g.query for g in groups]), strict=True):
            group.history = tuple(counts.tolist())
        if self.calibration.steps:
            self._believe(groups)

    def close(self, record: StepRecord) -> None:
        outcomes = record.outcomes()
        if outcomes:
            k = np.array([o.k for o in outcomes])
            successes = k * np.array([o.success for o in outcomes])
            self.calibration = self.calibration.fit(_evidence(record.scored), np.clip(successes, 0, k), k)
        self._believe(record.groups)
        self.history.add(outcomes)

    def metrics(self) -> dict[str, float]:
        return self.calibration.metrics()

    def state_dict(self) -> dict[str, Any]:
        return {"calibration": self.calibration.state_dict(), "history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calibration = self.calibration.load_state_dict(state["calibration"])
        self.history.load_state_dict(state["history"])

    def _believe(self, groups: Sequence[Group]) -> None:
        for group, prior, strength in zip(groups, *self.calibration.belief(_evidence(groups)), strict=True):
            group.prior, group.strength = float(prior), float(strength)


def make_belief(settings: V05Settings) -> BeliefModel:
    """The one of ``algorithm.v05.fusion``."""
    if settings.fusion == EMPIRICAL_BAYES:
        return Calibrated(settings.calibration.forgetting, settings.calibration.history_forgetting)
    return AsAnswered()


def _evidence(groups: Sequence[Group]) -> Evidence:
    history = np.array([g.history for g in groups]).reshape(-1, 2)
    return Evidence(np.array([g.probability for g in groups]), history[:, 0], history[:, 1])
