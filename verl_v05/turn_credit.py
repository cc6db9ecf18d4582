"""Credit of each turn of a session by the values of its states, besides the session's outcome.

N = turns, S = sessions. A session's turns are next to each other and in order; ``turn_session`` says whose each is.
With the states' values V_0..V_{T-1}, of which V_0 is the session's baseline b, and V_T = r, its outcome, turn t has
the credit

    A_t = (r - b) + weight (V_{t+1} - V_t - (r - b) / T),        sum over t = T (r - b)

The change in value is what the turn has won or lost; less its mean over the session's turns, which telescopes to
(r - b) / T, it moves credit between turns and leaves the session's own as it was. With exact values and sessions of
one length the expected gradient is that of outcome credit times 1 + weight (1 - 1 / T).

Other mixtures were tried: ``(1 - weight) (r - b) + weight T (V_{t+1} - V_t)`` is as good with exact values and far
worse with learnt ones, since a change in value that V misses is credited to a later turn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Evidence(NamedTuple):
    """What sessions showed of the values' use, summed over prompts.

    x = V_t - V_0 is how far a later state's value is from the first one's, y how far the outcome is from what was
    believed of the prompt. Sums of the prompts' sums of x y and x x, their squares and products: sessions of one prompt
    are not independent.
    """

    xy: float = 0.0
    xx: float = 0.0
    xy_xy: float = 0.0
    xy_xx: float = 0.0
    xx_xx: float = 0.0

    def then(self, new: Evidence, forgetting: float) -> Evidence:
        """With a later step's evidence; ``forgetting`` in [0, 1] is the factor on the old one's."""
        return Evidence(*(forgetting * old + late for old, late in zip(self, new, strict=True)))

    @property
    def weight(self) -> float:
        """Weight of turn credit, in [0, 1]; 0 before any evidence.

        The slope of y over x is 1 for exact values and 0 for values that say nothing of the outcome. It is shrunk
        towards 0 by its own error, clustered by prompt: slope (1 - error^2 / slope^2), 0 where that is negative.
        """
        if self.xx <= 0 or self.xy <= 0:
            return 0.0
        slope = self.xy / self.xx
        error_sq = max(0.0, self.xy_xy - 2 * slope * self.xy_xx + slope**2 * self.xx_xx) / self.xx**2
        return float(np.clip(slope, 0.0, 1.0) * max(0.0, 1.0 - error_sq / slope**2))


def evidence(
    values: np.ndarray, turn_session: np.ndarray, rewards: np.ndarray, believed: np.ndarray, group: np.ndarray
) -> Evidence:
    """Evidence of a step, for the weight of the steps after it.

    Args:
        values: value of each turn's state, believed before the step, in [-1, 1], (N,).
        turn_session: session of each turn, (N,).
        rewards: outcome of each session, in [-1, 1], (S,).
        believed: expected outcome of each session, made without the session and without these values, (S,): an error
            of V_0 that was in x and in y would look like use.
        group: index of each session's prompt, (S,).
    """
    start = _starts(turn_session)
    first = np.zeros(len(rewards))
    first[turn_session[start]] = values[start]
    x = values - first[turn_session]
    y = (rewards - believed)[turn_session]
    prompt = group[turn_session]
    xy, xx = np.bincount(prompt, weights=x * y), np.bincount(prompt, weights=x * x)
    return Evidence(*(float(total.sum()) for total in (xy, xx, xy * xy, xy * xx, xx * xx)))


def turn_credit(
    values: np.ndarray, turn_session: np.ndarray, outcome: np.ndarray, baseline: np.ndarray, weight: float
) -> np.ndarray:
    """Credit A_t of each turn before any normaliser, (N,).

    Args:
        values: value of each turn's state, (N,); that of a session's first turn is not used.
        turn_session: session of each turn, nondecreasing, (N,).
        outcome: reward of each session, r, (S,).
        baseline: what each session is measured against, b, (S,).
        weight: in [0, 1]; with 0 the credit is r - b, bit for bit.

    Raises:
        ValueError: the turns are out of order, or the weight is out of range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of turn credit must be in [0, 1]; got {weight}")
    if (np.diff(turn_session) < 0).any():
        raise ValueError("the turns of a session must be next to each other, sessions in order")
    whole = (outcome - baseline)[turn_session]
    if weight == 0:
        return whole
    start = _starts(turn_session)
    before = np.where(start, baseline[turn_session], values)
    last = np.append(start[1:], True)
    after = np.where(last, outcome[turn_session], np.append(before[1:], 0.0))
    turns = np.bincount(turn_session, minlength=len(outcome))[turn_session]
    return whole + weight * (after - before - whole / turns)


def _starts(turn_session: np.ndarray) -> np.ndarray:
    """Whether each turn is the first one of its session, (N,)."""
    return np.append(True, np.diff(turn_session) != 0)[: len(turn_session)]
