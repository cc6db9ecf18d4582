"""The bench's queue: order, bounded concurrency, grading beside generation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from benchmarks.bench.engine import Completion
from benchmarks.bench.problems import Problem
from benchmarks.bench.queue import Request, interleave, process_requests, requests, stable_seed
from benchmarks.bench.samples import Sample
from verl_v05.grading import Verdict


def problem(name: str, benchmark: str = "a") -> Problem:
    return Problem(benchmark, name, (("user", name),), gold=f"gold {name}", contaminated=False)


def asked(count: int) -> list[Request]:
    return requests({"a": [problem(str(n)) for n in range(count)]}, samples=1, seed=0)


def prompts(queue: Sequence[Request]) -> dict[Problem, list[int]]:
    return {r.problem: [1] * (1 + int(r.problem.id)) for r in queue}


class ScriptedEngine:
    """Answers with its prompt's length, after as many turns of the event loop as that."""

    def __init__(self, fails_at: int | None = None):
        self.running = self.most = self.answered = 0
        self.fails_at = fails_at

    async def generate(self, ids: Sequence[int], seed: int) -> Completion:
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in ids:
            await asyncio.sleep(0)
        self.running -= 1
        if len(ids) == self.fails_at:
            raise OSError("the engine died")
        self.answered += 1
        return Completion(f"answer {len(ids)}", tokens=len(ids), finish="stop")


def graded(response: str, gold: str) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(Verdict(correct=response == "answer 1", answer=response, failure=None))
    return future


def test_benchmarks_take_turns_in_proportion_to_their_sizes() -> None:
    benchmarks = {"a": [problem(f"a{n}") for n in range(2)], "b": [problem(f"b{n}", "b") for n in range(4)]}
    # Their middles, in shares of the whole: a at 1/4 and 3/4, b at 1/8, 3/8, 5/8 and 7/8.
    assert [p.id for p in interleave(benchmarks)] == ["b0", "a0", "b1", "b2", "a1", "b3"]


def test_every_problem_is_asked_once_before_any_is_asked_twice() -> None:
    queue = requests({"a": [problem("x"), problem("y")], "b": [problem("z", "b")]}, samples=2, seed=0)
    assert [(r.problem.id, r.sample) for r in queue] == [("x", 0), ("z", 0), ("y", 0), ("x", 1), ("z", 1), ("y", 1)]


def test_seeds_belong_to_the_sample_and_not_to_its_place_in_the_queue() -> None:
    alone = requests({"b": [problem("z", "b")]}, samples=2, seed=3)
    among = requests({"a": [problem("x")], "b": [problem("z", "b")]}, samples=3, seed=3)
    assert {r.key: r.seed for r in alone}.items() <= {r.key: r.seed for r in among}.items()
    assert len({r.seed for r in among}) == 6
    assert all(0 <= stable_seed(n) < 2**31 for n in range(1000))


@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_no_more_than_the_limit_is_at_the_engine_and_no_less_while_there_is_work(in_flight: int) -> None:
    engine, kept, queue = ScriptedEngine(), [], asked(10)
    asyncio.run(process_requests(queue, prompts(queue), engine, graded, kept.append, in_flight, session=2))
    assert engine.most == min(in_flight, 10)
    assert sorted(s.key for s in kept) == sorted(r.key for r in queue)


def test_a_sample_holds_what_was_generated_and_judged() -> None:
    kept: list[Sample] = []
    queue = asked(2)
    asyncio.run(process_requests(queue, prompts(queue), ScriptedEngine(), graded, kept.append, 1, session=2))
    first, second = kept
    assert (first.key, first.correct, first.response, first.session) == (("a", "0", 0), True, "answer 1", 2)
    assert (second.correct, second.gold, second.tokens, second.prompt_tokens) == (False, "gold 1", 2, 2)


def test_generation_goes_on_while_answers_are_being_graded() -> None:
    engine, queue, kept = ScriptedEngine(), asked(4), []
    futures: list[Future[Verdict]] = []

    def grade_when_all_are_generated(response: str, gold: str) -> Future[Verdict]:
        futures.append(Future())
        if engine.answered == 4:
            for future in futures:
                future.set_result(Verdict(False, None, "timeout"))
        return futures[-1]

    work = process_requests(queue, prompts(queue), engine, grade_when_all_are_generated, kept.append, 4, session=1)
    asyncio.run(asyncio.wait_for(work, 5))
    assert [s.failure for s in kept] == ["timeout"] * 4


def test_a_failing_engine_ends_the_work_with_its_own_error_and_keeps_what_is_finished() -> None:
    kept: list[Sample] = []
    queue = asked(5)
    with pytest.raises(OSError, match="the engine died"):
        asyncio.run(
            process_requests(queue, prompts(queue), ScriptedEngine(fails_at=4), graded, kept.append, 4, session=1)
        )
    assert [s.id for s in kept] == ["0", "1", "2"]


def test_a_full_disk_ends_the_work_with_its_own_error() -> None:
    def keep(sample: Sample) -> None:
        raise OSError("no space left")

    engine, queue = ScriptedEngine(), asked(50)
    with pytest.raises(OSError, match="no space left"):
        asyncio.run(process_requests(queue, prompts(queue), engine, graded, keep, 2, session=1))
    assert engine.answered < 10
