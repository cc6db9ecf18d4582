"""FrozenLake as text: the map with the position on it; the actions are L, D, R and U."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from verl_v05.agent.environment import GymnasiumText, State

ACTIONS = ("L", "D", "R", "U")  # in gymnasium's order


class FrozenLake(GymnasiumText):
    """A session on one map.

    Args:
        desc: the map's rows, of S, F, H and G.
        slippery: whether a move may go aside.
        seed: of the slips.
    """

    def __init__(self, desc: Sequence[str], slippery: bool = False, seed: int = 0):
        super().__init__(FrozenLakeEnv(desc=list(desc), is_slippery=slippery), ACTIONS, seed)
        self._rows = [str(row) for row in desc]

    def describe(self, observation: Any) -> State:
        row, column = divmod(int(observation), len(self._rows[0]))
        rows = list(self._rows)
        rows[row] = f"{rows[row][:column]}A{rows[row][column + 1 :]}"
        return State("\n".join(rows), str(int(observation)))
