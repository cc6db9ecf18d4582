"""Engines behind verl's load balancer: a request goes to the engine with the fewest in flight, ties at random."""

from __future__ import annotations

import heapq
import math
import random

from benchmarks.schedules.simulated_engine import Engine, Speed


class Cluster:
    """Discrete events of several engines.

    verl's balancer keeps the turns of one conversation at one engine; a rollout is a single turn, so nothing sticks.

    Attributes:
        admitted: request -> time at which it got its slot.
    """

    def __init__(self, speed: Speed, engines: int, seed: int):
        self.admitted: dict[int, float] = {}
        self._random = random.Random(seed)
        self._engines = [Engine(speed, self.admitted) for _ in range(engines)]
        self._touched: set[int] = set()  # engines whose next finish is not in the heap yet
        # heapq cannot remove from the middle: outdated entries stay in both heaps and are skipped when they come first.
        self._finishes: list[tuple[float, int]] = []
        self._next_finish = [math.inf] * engines
        self._in_flight = [0] * engines
        self._least: list[tuple[int, float, int]] = []
        self._count_anew()

    def submit(self, now: float, request: int, tokens: int) -> None:
        """Start a request of ``tokens`` >= 1; ``now`` never decreases and is not after the next finish."""
        while self._least[0][0] != self._in_flight[self._least[0][2]]:
            heapq.heappop(self._least)
        engine = self._least[0][2]
        self._count(engine, 1)
        self._engines[engine].submit(now, request, tokens)
        self._touched.add(engine)

    def next_finish(self) -> float:
        """When the next request finishes; inf if none runs."""
        for engine in self._touched:
            time = self._next_finish[engine] = self._engines[engine].next_finish()
            if time < math.inf:
                heapq.heappush(self._finishes, (time, engine))
        self._touched.clear()
        while self._finishes and self._finishes[0][0] != self._next_finish[self._finishes[0][1]]:
            heapq.heappop(self._finishes)
        return self._finishes[0][0] if self._finishes else math.inf

    def finish(self) -> list[int]:
        """Advance to :meth:`next_finish`; returns the requests of one engine that finish then."""
        self.next_finish()
        engine = heapq.heappop(self._finishes)[1]
        finished = self._engines[engine].finish()
        self._count(engine, -len(finished))
        self._next_finish[engine] = math.inf
        self._touched.add(engine)
        return finished

    def _count(self, engine: int, change: int) -> None:
        self._in_flight[engine] += change
        heapq.heappush(self._least, (self._in_flight[engine], self._random.random(), engine))
        if len(self._least) > 16 * len(self._engines):
            self._count_anew()

    def _count_anew(self) -> None:
        self._least = [(count, self._random.random(), engine) for engine, count in enumerate(self._in_flight)]
        heapq.heapify(self._least)
