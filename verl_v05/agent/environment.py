"""What a text environment is, and one that speaks for a gymnasium environment.

An environment of your own is a subclass of :class:`Environment`, named by its class path in the agent loop's config.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


class EnvironmentFaultError(RuntimeError):
    """The environment raised, did not answer in time, or answered nonsense; the session has failed."""


@dataclass(frozen=True)
class State:
    """Where a session stands before a turn."""

    text: str  # what the policy reads, and a process-level value model: all that the future depends on, if possible
    key: str  # the same for the same state of the same task; turn estimators compare sessions where they are equal


@dataclass(frozen=True)
class Answer:
    """What became of a turn."""

    state: State  # the next one; where the session is over it is not read
    reward: float  # finite
    done: bool
    success: float | None = None  # outcome of the session, read where it is over; None is the sum of its rewards


class Environment(ABC):
    """One session's environment; made for each session, in a thread of its own, and used by no other.

    Every method may raise: the session has then failed, is counted, and its group goes on.
    """

    @abstractmethod
    def reset(self, session: int) -> State:
        """The first state. ``session`` is the rollout's number in its group, for environments that draw at random."""

    @abstractmethod
    def step(self, action: str) -> Answer:
        """What follows the policy's text; a text that is no action is for the environment to judge."""

    def close(self) -> None:
        """Free what the session held."""


class GymnasiumText(Environment):
    """A gymnasium environment with discrete actions behind :meth:`describe` and a table of action texts.

    Args:
        env: a ``gymnasium.Env``.
        actions: text of each action; surrounding spaces of the policy's text do not count.
        seed: of the environment's own chances; each session of a group has its own.
        illegal_reward: of a text that is no action, which leaves the state as it is.
    """

    def __init__(self, env: Any, actions: tuple[str, ...], seed: int = 0, illegal_reward: float = 0.0):
        self.env, self.actions, self._seed, self._illegal_reward = env, actions, seed, illegal_reward
        self._observation: Any = None

    @abstractmethod
    def describe(self, observation: Any) -> State:
        """The state of an observation."""

    def reset(self, session: int) -> State:
        self._observation, _ = self.env.reset(seed=self._seed + session)
        return self.describe(self._observation)

    def step(self, action: str) -> Answer:
        if action.strip() not in self.actions:
            return Answer(self.describe(self._observation), self._illegal_reward, done=False)
        found = self.env.step(self.actions.index(action.strip()))
        self._observation, reward, terminated, truncated, _ = found
        return Answer(self.describe(self._observation), float(reward), bool(terminated or truncated))

    def close(self) -> None:
        self.env.close()


def checked_state(state: object) -> State:
    """The state, if it is one. EnvironmentFaultError otherwise."""
    if not isinstance(state, State) or not isinstance(state.text, str) or not isinstance(state.key, str):
        raise EnvironmentFaultError(f"the environment gave {state!r:.200} for a state")
    return state


def checked_answer(answer: object) -> Answer:
    """The answer, if it is one. EnvironmentFaultError otherwise."""
    if not isinstance(answer, Answer):
        raise EnvironmentFaultError(f"the environment answered {answer!r:.200}, no verl_v05.agent.environment.Answer")
    for name in ("reward", "success"):
        value = getattr(answer, name)
        if name == "success" and value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise EnvironmentFaultError(f"the environment answered {name}={value!r}, no finite number")
    if not answer.done:
        checked_state(answer.state)
    return answer
