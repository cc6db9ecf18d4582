"""FrozenLake maps in arrays: what a state is as text, and exact values of a policy by dynamic programming.

Maps and rules are gymnasium's (4 x 4, not slippery, a map a prompt); a session ends at the goal, in a hole or after
``MOST_TURNS``.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

SIZE, ACTIONS, MOST_TURNS = 4, 4, 16
STATES = SIZE * SIZE
FEATURES = 2 * STATES


class TabularPolicy(Protocol):
    """What values are asked of."""

    def everywhere(self, lakes: Lakes, chosen: np.ndarray) -> np.ndarray:
        """Probability of each action in every state of some maps, (L, STATES, ACTIONS)."""


class Lakes:
    """M random maps.

    Args:
        count: of maps.
        seed: of them; a larger count only adds to the same ones.
        frozen: share of cells that are no hole.
    """

    def __init__(self, count: int, seed: int, frozen: float = 0.75):
        rules = [
            FrozenLakeEnv(desc=generate_random_map(SIZE, frozen, seed=seed * 1_000_003 + i), is_slippery=False)
            for i in range(count)
        ]
        cells = np.array([np.asarray(r.desc).astype(str) for r in rules])  # (M, rows, columns)
        flat = cells.reshape(count, STATES)
        self.text = ["\n".join("".join(row) for row in lake) for lake in cells]
        self.hole, self.goal = flat == "H", flat == "G"
        self.ends = self.hole | self.goal
        self.next = np.array([[[r.P[s][a][0][1] for a in range(ACTIONS)] for s in range(STATES)] for r in rules])

    def state_text(self, lake: int, state: int) -> str:
        """What a value model reads: the map with the position on it."""
        at = state + state // SIZE  # line ends
        text = self.text[lake]
        return f"{text[:at]}A{text[at + 1 :]}"

    def features(self, lake: np.ndarray, state: np.ndarray) -> torch.Tensor:
        """Holes and position, one-hot, (N, FEATURES)."""
        position = np.eye(STATES, dtype=np.float32)[state]
        return torch.from_numpy(np.hstack([self.hole[lake].astype(np.float32), position]))

    def values(self, policy: TabularPolicy, lakes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact V of each state, (L, STATES), and Q of each action, (L, STATES, ACTIONS), in [-1, 1].

        Of the policy with ``MOST_TURNS`` turns to go.
        """
        chance, after = policy.everywhere(self, lakes), self.next[lakes]
        row = np.arange(len(lakes))[:, None, None]
        win = self.goal[lakes].astype(float)
        for _ in range(MOST_TURNS):
            by_action = win[row, after]
            win = np.where(self.ends[lakes], self.goal[lakes], (chance * by_action).sum(-1))
        return 2 * win - 1, 2 * by_action - 1

    def best_values(self, lakes: np.ndarray) -> np.ndarray:
        """Optimal action values, discounted by 0.9 a turn so that short ways are better, (L, STATES, ACTIONS)."""
        row, after = np.arange(len(lakes))[:, None, None], self.next[lakes]
        win = self.goal[lakes].astype(float)
        for _ in range(2 * STATES):
            by_action = 0.9 * win[row, after]
            win = np.where(self.ends[lakes], self.goal[lakes], by_action.max(-1))
        return by_action
