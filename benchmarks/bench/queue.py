"""One queue over all benchmarks and samples, kept full at the engine while answers are graded elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from benchmarks.bench.engine import Completion, Engine
from benchmarks.bench.problems import Problem
from benchmarks.bench.samples import Key, Sample


class Verdict(Protocol):
    """What is used of ``verl_v05.grading.Verdict``."""

    correct: bool
    answer: str | None
    failure: str | None


Grade = Callable[[str, str], "Future[Verdict]"]  # of a response and the gold answer


@dataclass(frozen=True)
class Request:
    """One response to be generated; ``sample`` counts a problem's responses from 0."""

    problem: Problem
    sample: int
    seed: int

    @property
    def key(self) -> Key:
        return self.problem.benchmark, self.problem.id, self.sample


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on nothing but ``parts``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def interleave(benchmarks: Mapping[str, Sequence[Problem]]) -> list[Problem]:
    """All problems, the benchmarks taking turns in proportion to their sizes."""
    ranked = [
        ((rank + 0.5) / len(problems), turn, problem)
        for turn, problems in enumerate(benchmarks.values())
        for rank, problem in enumerate(problems)
    ]
    return [problem for _, _, problem in sorted(ranked, key=lambda entry: entry[:2])]


def requests(benchmarks: Mapping[str, Sequence[Problem]], samples: int, seed: int) -> list[Request]:
    """Everything to be asked, in order: each problem's first response comes before any second one.

    Wherever the queue has got to, what is done is a fair sample of the whole.
    """
    problems = interleave(benchmarks)
    return [Request(p, n, stable_seed(seed, p.benchmark, p.id, n)) for n in range(samples) for p in problems]


async def process_requests(
    queue: Sequence[Request],
    prompts: Mapping[Problem, Sequence[int]],
    engine: Engine,
    grade: Grade,
    keep: Callable[[Sample], None],
    in_flight: int,
    session: int,
) -> None:
    """Generate and grade all requests, at most ``in_flight`` generating and as many being graded at a time.

    Args:
        prompts: token ids.
        keep: called with each finished sample.
        session: number of this start, from 1.

    Raises:
        Exception: the first of the engine, the graders or ``keep``; what was kept before stays kept.
    """
    started = time.perf_counter()
    waiting = iter(queue)
    unfinished = asyncio.Semaphore(2 * in_flight)

    async def finish(request: Request, completion: Completion, seconds: float) -> None:
        verdict = await asyncio.wrap_future(grade(completion.text, request.problem.gold))
        unfinished.release()
        keep(sample_of(request, len(prompts[request.problem]), completion, verdict, session, seconds))

    async def ask(graders: asyncio.TaskGroup) -> None:
        for request in waiting:  # one iterator for all askers: each request goes to the next free one
            await unfinished.acquire()
            completion = await engine.generate(prompts[request.problem], request.seed)
            seconds = time.perf_counter() - started
            graders.create_task(finish(request, completion, seconds))

    broken: ExceptionGroup | None = None
    try:
        async with asyncio.TaskGroup() as graders:
            try:
                async with asyncio.TaskGroup() as askers:
                    for _ in range(min(in_flight, len(queue))):
                        askers.create_task(ask(graders))
            except ExceptionGroup as failures:  # held back until what is generated is graded and kept
                broken = failures
    except ExceptionGroup as failures:
        broken = failures
    if broken:
        raise broken.exceptions[0]


def sample_of(
    request: Request, prompt_tokens: int, completion: Completion, verdict: Verdict, session: int, seconds: float
) -> Sample:
    """What is kept of a request."""
    return Sample(
        benchmark=request.problem.benchmark,
        id=request.problem.id,
        sample=request.sample,
        session=session,
        seconds=round(seconds, 3),
        prompt_tokens=prompt_tokens,
        tokens=completion.tokens,
        finish=completion.finish,
        gold=request.problem.gold,
        answer=verdict.answer,
        correct=verdict.correct,
        failure=verdict.failure,
        response=completion.text,
    )
