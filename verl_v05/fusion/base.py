"""What a fusion is: a belief about each prompt before its rollouts, and the baseline that both make together.

Arrays are numpy arrays or torch tensors; formulas compute in float64 and return the namespace they were given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

Array = Any  # numpy.ndarray or torch.Tensor


class Belief(NamedTuple):
    """What is believed of the mean rewards of G prompts."""

    prior: Array  # (G,) expected mean reward V, in [-1, 1]; NaN where there is none
    strength: Array  # (G,) rollouts the prior is worth, m > 0; NaN with a fusion that has no such number


class Fusion(NamedTuple):
    """Fused baselines; all fields have the broadcast shape of the inputs."""

    baseline: Array  # mu-hat*, in [-1, 1]
    weight: Array  # w-hat of the mean reward, in [0, 1]; 0 = prior accepted, 1 = prior ignored
    bias_sq: Array  # squared bias of the prior, Delta-hat^2, in [0, 4]


class FusionMethod(ABC):
    """One value of ``algorithm.v05.fusion``: stateful, learning from each step after its rollouts.

    Invariants the caller keeps: a step's prompts are believed before any of their rewards is known, :meth:`learn` is
    called once a step, in order, and the two are never called at the same time.
    """

    has_strength: ClassVar[bool] = False  # beliefs carry a strength, so there is a posterior variance

    @classmethod
    def from_settings(cls, settings: Any) -> Self:
        """The fusion of a run.

        Args:
            settings: :class:`verl_v05.settings.V05Settings`; not imported, so that the maths needs no config library.

        Raises:
            SettingsError: it does not go with the other settings.
        """
        return cls()

    @abstractmethod
    def believe(self, prompt_ids: Sequence[str], probability: np.ndarray) -> Belief:
        """Belief about prompts that have no rollouts yet, a function of earlier steps and of ``probability`` only.

        Args:
            prompt_ids: (G,), the same for the same prompt in every step.
            probability: the prior provider's p, in [0, 1], NaN where missing, (G,).
        """

    @abstractmethod
    def fuse(self, mean_reward: Array, k: Array, belief: Belief) -> Fusion:
        """Baseline of prompts whose k >= 1 rewards have the mean ``mean_reward``, in [-1, 1].

        Raises:
            ValueError: a value out of range.
        """

    @property
    def ready(self) -> bool:
        """Whether beliefs may decide on further rollouts; False for a fusion that has not learnt from any step yet."""
        return True

    def learn(self, prompt_ids: Sequence[str], probability: np.ndarray, successes: np.ndarray, k: np.ndarray) -> Belief:
        """Learn from a step, and return the belief about its prompts that results.

        Args:
            prompt_ids, probability: as given to :meth:`believe`.
            successes: successes among the rollouts of each prompt, in [0, k], (G,).
            k: scored rollouts of each prompt, >= 0, (G,).
        """
        return self.believe(prompt_ids, probability)

    def metrics(self) -> dict[str, float]:
        """Logged as ``v05/calibration/...``, the same keys at every step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


def as_float64(*values: Array | float) -> tuple[Any, list[Array]]:
    """Return the array namespace shared by ``values`` (numpy if none is an array) and float64 copies."""
    arrays: list[Any] = [v for v in values if is_array_api_obj(v)]
    xp = array_namespace(*arrays) if arrays else array_namespace(np.empty(0))
    device = {"device": arrays[0].device} if arrays else {}
    return xp, [xp.asarray(v, dtype=xp.float64, **device) for v in values]


def check(ok: bool, message: str, value: Array) -> None:
    """Raise ``ValueError`` with the message and the value unless ``ok``."""
    if not ok:
        raise ValueError(f"{message}; got {value}")
