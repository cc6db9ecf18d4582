"""One inference engine with continuous batching: its running requests advance together, a token a step."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

MEASURED = Path(__file__).parent / "latency.csv"


@dataclass(frozen=True)
class Speed:
    """Seconds of an engine's work, and how many requests it runs at a time.

    A decode step of n running requests takes ``base + each * n``. Each admitted request adds ``prefill``, during which
    no request decodes and which makes its first token.
    """

    base: float
    each: float
    prefill: float
    slots: int

    def step(self, running: int) -> float:
        """Seconds of a decode step."""
        return self.base + self.each * running

    @property
    def peak(self) -> float:
        """Tokens a second with every slot busy."""
        return self.slots / self.step(self.slots)


class Engine:
    """Requests run to their known length, first come, first served.

    A request is admitted at the end of the decode step during which it came or a slot became free. ``clock`` is the
    time of the last such end that was computed. Requests are ordered by the step they finish at, so the simulation only
    computes when a request arrives or finishes.

    Args:
        admitted: receives each request's time of admission; engines may share it.
    """

    def __init__(self, speed: Speed, admitted: dict[int, float]):
        self.speed = speed
        self.admitted = admitted
        self.clock = 0.0
        self._step = 0
        self._running: list[tuple[int, int]] = []  # (step it finishes at, request)
        self._waiting: deque[tuple[int, int]] = deque()  # (request, tokens)

    def submit(self, now: float, request: int, tokens: int) -> None:
        """Add a request of ``tokens`` >= 1; ``now`` never decreases and is not after the next finish."""
        if not self._running:
            self.clock = max(self.clock, now)
        elif now > self.clock:
            seconds = self.speed.step(len(self._running))
            steps = math.ceil((now - self.clock) / seconds - 1e-9)
            self._step += steps
            self.clock += steps * seconds
        self._waiting.append((request, tokens))
        self._admit()

    def next_finish(self) -> float:
        """When the next running request finishes; inf if there is none."""
        if not self._running:
            return math.inf
        return self.clock + (self._running[0][0] - self._step) * self.speed.step(len(self._running))

    def finish(self) -> list[int]:
        """Advance to the next finish; returns the requests that finish then."""
        self.clock = self.next_finish()
        self._step = self._running[0][0]
        finished = []
        while self._running and self._running[0][0] == self._step:
            finished.append(heapq.heappop(self._running)[1])
        self._admit()
        return finished

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.speed.slots:
            request, tokens = self._waiting.popleft()
            heapq.heappush(self._running, (self._step + tokens - 1, request))
            self.admitted[request] = self.clock
            self.clock += self.speed.prefill


def fit_step(context: float, measured: Path = MEASURED) -> tuple[float, float]:
    """(base, each) in seconds for requests of ``context`` tokens, from measured decode steps.

    The model is base + (weights + cache * context) * running, by least squares of relative errors: reading the
    weights once a step, some work for each request, and reading each one's key-value cache.
    """
    table = pd.read_csv(measured, comment="#")
    seconds = table.median_ms.to_numpy() / 1000
    terms = np.column_stack([np.ones(len(table)), table.running, table.running * table.context])
    (base, weights, cache), *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(table)), rcond=None)
    return float(base), float(weights + cache * context)
