"""``fusion=empirical_bayes``: a Beta prior whose mean and strength are fitted on line to what rollouts show.

Formulas of the posterior: :mod:`verl_v05.fusion.beta`; of the fit: :mod:`verl_v05.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from verl_v05.calibration import Calibration, Evidence
from verl_v05.fusion.base import Array, Belief, Fusion, FusionMethod
from verl_v05.fusion.beta import fuse_beta
from verl_v05.prior.counts import PromptCounts


class EmpiricalBayesFusion(FusionMethod):
    """Posterior mean of a Beta prior, calibrated from the provider's probability and each prompt's own history.

    Args:
        forgetting: factor on what earlier steps knew of the calibration's parameters, at each step, in [0, 1].
        history_forgetting: factor on a prompt's own earlier outcomes, at each new visit, in [0, 1].
        history_capacity: prompts whose outcomes are kept, those of the latest visits; None keeps all.
    """

    has_strength = True

    def __init__(self, forgetting: float = 0.9, history_forgetting: float = 0.75, history_capacity: int | None = None):
        self.calibration = Calibration.start(forgetting)
        self.history = PromptCounts(history_forgetting, history_capacity)

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        return cls(settings.calibration.forgetting, settings.calibration.history_forgetting)

    def believe(self, prompt_ids: Sequence[str], probability: np.ndarray) -> Belief:
        return self.calibration.belief(self._evidence(prompt_ids, probability))

    def fuse(self, mean_reward: Array, k: Array, belief: Belief) -> Fusion:
        return fuse_beta(mean_reward, k, belief.prior, belief.strength)

    @property
    def ready(self) -> bool:
        # The parameters before any fit are a guess; rollouts are not spent on its behalf.
        return self.calibration.steps > 0

    def learn(self, prompt_ids: Sequence[str], probability: np.ndarray, successes: np.ndarray, k: np.ndarray) -> Belief:
        # The evidence of before the rollouts: the history must not hold this step's outcomes yet.
        evidence, scored = self._evidence(prompt_ids, probability), k > 0
        if scored.any():
            self.calibration = self.calibration.fit(evidence.of(scored), successes[scored], k[scored])
        belief = self.calibration.belief(evidence)
        # A prompt that was looked at and got no rollouts is counted with none: its history fades.
        self.history.add(prompt_ids, successes, k)
        return belief

    def metrics(self) -> dict[str, float]:
        return self.calibration.metrics()

    def state_dict(self) -> dict[str, Any]:
        return {"calibration": self.calibration.state_dict(), "history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calibration = self.calibration.load_state_dict(state["calibration"])
        self.history.load_state_dict(state["history"])

    def _evidence(self, prompt_ids: Sequence[str], probability: np.ndarray) -> Evidence:
        counts = self.history.of(prompt_ids)
        return Evidence(np.asarray(probability, dtype=np.float64), counts[:, 0], counts[:, 1])
