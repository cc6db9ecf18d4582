"""A small policy on FrozenLake (:mod:`recipes.agent.lake`) in this process: a network on the map and the position.

It is warmed up by imitation and plays many sessions at once; its success rates and values are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from recipes.agent.lake import ACTIONS, FEATURES, MOST_TURNS, STATES, Lakes

TOKENS = 2  # of a turn: the action, and its end


@dataclass(frozen=True)
class Sessions:
    """N turns of S sessions, session by session in order."""

    session: np.ndarray  # (N,)
    state: np.ndarray  # (N,) cell before the turn
    action: np.ndarray  # (N,)
    lake: np.ndarray  # (S,) its map
    reward: np.ndarray  # (S,) outcome, -1 or 1

    @property
    def turns(self) -> np.ndarray:
        """Of each session, (S,)."""
        return np.bincount(self.session, minlength=len(self.lake))

    @property
    def last(self) -> np.ndarray:
        """Whether each turn is the last one of its session, (N,)."""
        return np.append(self.session[1:] != self.session[:-1], True)


class Policy(torch.nn.Module):
    """Logits of the actions; also, with one output, a critic."""

    def __init__(self, outputs: int = ACTIONS, width: int = 128):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, outputs),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)

    def everywhere(self, lakes: Lakes, chosen: np.ndarray) -> np.ndarray:
        """Probability of each action in every state of some maps, float64, (L, STATES, ACTIONS)."""
        grid = lakes.features(np.repeat(chosen, STATES), np.tile(np.arange(STATES), len(chosen)))
        with torch.no_grad():
            return torch.softmax(self(grid).double(), -1).numpy().reshape(len(chosen), STATES, ACTIONS)

    def play(self, lakes: Lakes, lake: np.ndarray, rng: np.random.Generator) -> Sessions:
        """A session from the start of each map, (S,)."""
        state, alive = np.zeros(len(lake), dtype=int), np.ones(len(lake), dtype=bool)
        turns = []
        for _ in range(MOST_TURNS):
            here = np.flatnonzero(alive)
            if not len(here):
                break
            with torch.no_grad():
                chance = torch.softmax(self(lakes.features(lake[here], state[here])).double(), -1).numpy()
            action = (rng.random((len(here), 1)) > chance.cumsum(1)).sum(1).clip(0, ACTIONS - 1)
            turns.append(np.stack([here, state[here], action]))
            state[here] = lakes.next[lake[here], state[here], action]
            alive[here] = ~lakes.ends[lake[here], state[here]]
        session, before, action = np.concatenate(turns, axis=1)
        order = np.argsort(session, kind="stable")
        reward = np.where(lakes.goal[lake, state], 1.0, -1.0)
        return Sessions(session[order], before[order], action[order], lake, reward)


@dataclass(frozen=True)
class LakeTask:
    """Training and validation maps, and the first policy of every run."""

    train: int = 512
    validation: int = 256
    seed: int = 0

    @cached_property
    def lakes(self) -> Lakes:
        """Training maps first."""
        return Lakes(self.train + self.validation, self.seed)

    @cached_property
    def start(self) -> Policy:
        """Imitates a teacher that prefers good actions, with a temperature, until it succeeds in about a fifth."""
        torch.manual_seed(self.seed)
        rng, policy = np.random.default_rng(self.seed), Policy()
        optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
        taught = 5.0 * self.lakes.best_values(np.arange(self.train))
        for _ in range(150):
            lake, state = rng.integers(self.train, size=256), rng.integers(STATES, size=256)
            target = torch.softmax(torch.from_numpy(taught[lake, state]), -1).float()
            loss = torch.nn.functional.cross_entropy(policy(self.lakes.features(lake, state)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return policy

    def success(self, policy: Policy) -> float:
        """Exact success rate on the validation maps."""
        value, _ = self.lakes.values(policy, np.arange(self.train, self.train + self.validation))
        return float((value[:, 0].mean() + 1) / 2)
