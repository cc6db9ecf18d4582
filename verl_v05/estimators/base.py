"""What an advantage estimator is, apart from verl: rollouts in groups in, advantages out.

A file of this folder registers one for ``algorithm.adv_estimator`` by :func:`estimator`, which takes a function or,
where something is kept from step to step, a subclass of :class:`Estimator`. The parameters are keyword-only arguments
with defaults; they are keys of ``algorithm.NAME`` in verl's config, as ``+algorithm.qae.k=0.6``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeGuard, TypeVar

import numpy as np

from verl_v05.fusion import Array

Registered = TypeVar("Registered", bound=Callable[..., Any])


class GroupAdvantage(NamedTuple):
    """Result of every estimator: float64 arrays of the rewards' namespace. R = rollouts."""

    advantage: Array  # (R,)
    baseline: Array  # (R,) on the rewards' scale; leave-one-out baselines differ within a group


class Estimator(ABC):
    """An estimator with state; a run has one instance, which its trainer saves and restores with each checkpoint."""

    stateful: ClassVar[bool] = True
    # Function whose keyword-only arguments are the parameters, where `advantages` passes them on; else its own are.
    parameters: ClassVar[Callable[..., Any] | None] = None

    @abstractmethod
    def advantages(self, rewards: Array, group: Array, **parameters: Any) -> GroupAdvantage:
        """Advantages of a step's rollouts.

        Args:
            rewards: reward of each rollout, finite, (R,).
            group: index of each rollout's group, in 0..G-1, every group present, (R,).

        Raises:
            ValueError: an argument is out of range.
        """

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            TypeError, ValueError: it is none.
        """


class FunctionEstimator(Estimator):
    """A function of the step alone."""

    stateful = False

    def __init__(self, function: Callable[..., GroupAdvantage]):
        self._function = function

    def advantages(self, rewards: Array, group: Array, **parameters: Any) -> GroupAdvantage:
        return self._function(rewards, group, **parameters)


class TurnEstimator(Estimator):
    """An estimator that credits each turn of a session; its agent loop records the turns (extra field ``turns``)."""

    stateful = False

    def advantages(self, rewards: Array, group: Array, **parameters: Any) -> GroupAdvantage:
        raise TypeError(f"{type(self).__name__} credits turns: call turn_advantages")

    turn_advantages: Callable[..., np.ndarray]  # (TurnRecords, **parameters) -> advantage of each turn, (N,), float64


ESTIMATORS: dict[str, Callable[..., Any]] = {}  # name -> what was registered


def estimator(name: str) -> Callable[[Registered], Registered]:
    """Decorator: register a function or an :class:`Estimator` subclass as ``algorithm.adv_estimator=NAME``."""

    def register(found: Registered) -> Registered:
        ESTIMATORS[name] = found
        return found

    return register


def make_estimator(name: str) -> Estimator:
    """A new instance, with nothing kept yet. KeyError for a name that is not registered."""
    found = ESTIMATORS[name]
    return found() if is_class(found) else FunctionEstimator(found)


def is_class(found: Callable[..., Any]) -> TypeGuard[type[Estimator]]:
    """Whether what was registered is a class with state."""
    return isinstance(found, type)


def parameters_of(name: str) -> list[inspect.Parameter]:
    """Keyword-only arguments of an estimator, its parameters in the config."""
    found = ESTIMATORS[name]
    function = found
    if is_class(found):
        own = found.turn_advantages if issubclass(found, TurnEstimator) else found.advantages
        function = found.parameters or own
    return [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY]
