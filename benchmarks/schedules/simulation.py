"""The rollout phase of one step: groups of rollouts on a cluster, under a schedule."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.schedules.cluster import Cluster
from benchmarks.schedules.decisions import Decisions
from benchmarks.schedules.simulated_engine import Speed
from benchmarks.schedules.workload import Workload
from verl_v05.settings import V05Settings

# (prompt, sessions that are graded) -> prompt -> rollouts to start now, 0 when it is complete
Settled = Callable[[int, range], dict[int, int]]


@dataclass(frozen=True)
class Fleet:
    """``engines`` engines of one ``speed``, and the seconds from a group's last token to the schedule's answer."""

    speed: Speed
    engines: int
    grading: float


@dataclass(frozen=True)
class Run:
    """What happened; arrays over rollouts in the order of their dispatch, times in seconds since the first."""

    fleet: Fleet
    prompt: np.ndarray
    session: np.ndarray
    tokens: np.ndarray
    admitted: np.ndarray
    finished: np.ndarray
    makespan: float  # until the last answer

    def rollouts(self, prompts: int) -> np.ndarray:
        """(prompts,) rollouts each got."""
        return np.bincount(self.prompt, minlength=prompts)


def simulate(workload: Workload, settings: V05Settings, fleet: Fleet, past: Workload, seed: int) -> Run:
    """A step under the project's schedule of these settings; ``seed`` breaks the balancer's ties."""
    counts = np.full(len(workload.tokens), settings.k_init)
    return play(workload, counts, Decisions(workload, settings, past).settled, fleet, seed)


def at_once(workload: Workload, counts: np.ndarray, fleet: Fleet, seed: int) -> Run:
    """The first ``counts`` (P,) rollouts of each prompt, all dispatched at the start."""
    return play(workload, counts, lambda prompt, sessions: {prompt: 0}, fleet, seed)


def play(workload: Workload, counts: np.ndarray, settled: Settled, fleet: Fleet, seed: int) -> Run:
    """Dispatch ``counts`` (P,) rollouts at time 0, then what each answer of ``settled`` asks for."""
    cluster = Cluster(fleet.speed, fleet.engines, seed)
    rollouts: list[tuple[int, int]] = []  # request -> (prompt, session)
    finished: list[float] = []
    started = [0] * len(counts)
    unfinished = [0] * len(counts)
    latest = [range(0)] * len(counts)
    graded: deque[tuple[float, int]] = deque()  # (time, prompt), in order as grading takes equally long for all
    tokens = workload.tokens.tolist()

    def dispatch(now: float, prompt: int, extra: int) -> None:
        latest[prompt] = range(started[prompt], started[prompt] + extra)
        started[prompt] += extra
        unfinished[prompt] = extra
        for session in latest[prompt]:
            cluster.submit(now, len(rollouts), tokens[prompt][session])
            rollouts.append((prompt, session))
            finished.append(np.nan)

    for prompt, count in enumerate(counts.tolist()):
        dispatch(0.0, prompt, count)
    now = 0.0
    while (finish := cluster.next_finish()) < np.inf or graded:
        if graded and graded[0][0] < finish:
            now, prompt = graded.popleft()
            for other, extra in settled(prompt, latest[prompt]).items():
                if extra:
                    dispatch(now, other, extra)
            continue
        for request in cluster.finish():
            finished[request] = finish
            prompt = rollouts[request][0]
            unfinished[prompt] -= 1
            if not unfinished[prompt]:
                graded.append((finish + fleet.grading, prompt))
    prompts, sessions = np.array(rollouts).T
    admitted = np.array([cluster.admitted[r] for r in range(len(rollouts))])
    lengths = workload.tokens[prompts, sessions]
    return Run(fleet, prompts, sessions, lengths, admitted, np.array(finished), makespan=now)
