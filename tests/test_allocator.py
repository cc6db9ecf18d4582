"""The allocator as a plain asyncio object: priors asked early, faults that never hang, learning at the close."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.statement import fault
from verl_v05.prior import NoPrior, Outcome, Prior, Query
from verl_v05.rollout.allocator import Allocator
from verl_v05.rollout.record import StepRecord
from verl_v05.settings import PriorSettings, SupportSettings, V05Settings

NAN = float("nan")


class Scripted(Prior):
    """Answers with a function of (queries, context, step) and keeps what it was told."""

    def __init__(self, answer: Callable[..., Any], learn: Callable[..., None] | None = None):
        self.answer = answer
        self.learn = learn
        self.contexts: list[list[Outcome] | None] = []
        self.learned: list[tuple[int, list[Outcome]]] = []

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> Any:
        self.contexts.append(context)
        return self.answer(queries, context, step)

    def update(self, outcomes: Sequence[Outcome], step: int) -> None:
        if self.learn:
            self.learn()
        self.learned.append((step, list(outcomes)))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Event a provider may wait for; set at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


def scripted(answer: Callable[..., Any], learn: Callable[..., None] | None = None, **changes: Any) -> Allocator:
    """Streaming allocator whose prior answers with a function."""
    timeout = changes.pop("timeout_s", 20.0)
    kwargs = {"answer": answer, "learn": learn}
    prior = PriorSettings(provider=f"{__name__}.Scripted", kwargs=kwargs, timeout_s=timeout)
    return Allocator(V05Settings(**{"schedule": "streaming", **changes}, prior=prior))


def always(p: float) -> Callable[..., np.ndarray]:
    return lambda queries, context, step: np.full(len(queries), p)


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    """Run a scenario; one that hangs fails after 20 s."""
    return asyncio.run(asyncio.wait_for(scenario, 20))


def queries(uids: Sequence[str]) -> list[Query]:
    return [Query(f"id {uid}", f"text {uid}", "source") for uid in uids]


async def finish(allocator: Allocator, uid: str, rewards: Sequence[float]) -> int:
    """Settle a group's recorded rollouts until it is complete; returns how many were played."""
    played, extra = 0, 4
    while extra:
        sessions = range(played, played + extra)
        played += extra
        extra = await allocator.settle(uid, {s: rewards[s] for s in sessions}, failed=[])
    return played


async def step(allocator: Allocator, number: int, recorded: dict[str, Sequence[float]]) -> StepRecord:
    """One whole training step of recorded rewards."""
    await allocator.open_batch(number, list(recorded), queries(list(recorded)))
    await asyncio.gather(*(finish(allocator, uid, rewards) for uid, rewards in recorded.items()))
    return await allocator.close_step(number)


def always_right(uids: Sequence[str]) -> dict[str, Sequence[float]]:
    return {uid: [1.0] * 32 for uid in uids}


def test_groups_get_their_prior_and_grow_only_against_it() -> None:
    allocator = scripted(lambda queries, context, step: [0.0, 1.0, NAN])
    record = run(step(allocator, 1, always_right("abc")))
    assert [g.uid for g in record.groups] == ["a", "b", "c"]
    assert record.column("k").tolist() == [16, 4, 4]
    assert record.column("prior").tolist()[:2] == [-1.0, 1.0] and math.isnan(record.groups[2].prior)
    assert record.prior_failures == 0


def test_prior_is_computed_while_the_first_rollouts_run(gate: threading.Event) -> None:
    def answer(queries: Any, context: Any, step: int) -> np.ndarray:
        gate.wait(10)
        return np.zeros(len(queries))

    async def scenario() -> None:
        allocator = scripted(answer)
        await allocator.open_batch(1, ["a"], queries(["a"]))  # returns although the prior is not there yet
        while not allocator.prior.contexts:  # asked before anything was scored
            await asyncio.sleep(0.01)
        settle = asyncio.create_task(allocator.settle("a", dict.fromkeys(range(4), 1.0)))
        await asyncio.sleep(0.05)
        assert not settle.done()
        gate.set()
        assert await settle == 2
        record = await allocator.close_step(1)
        assert 0.04 < record.prior_wait_s < record.prior_latency_s

    run(scenario())


def test_a_prior_that_is_ready_first_adds_nothing_to_the_critical_path() -> None:
    def answer(queries: Any, context: Any, step: int) -> np.ndarray:
        time.sleep(0.2)
        return np.ones(len(queries))

    async def scenario() -> StepRecord:
        allocator = scripted(answer)
        await allocator.open_batch(1, ["a"], queries(["a"]))
        await asyncio.sleep(0.4)
        await allocator.settle("a", dict.fromkeys(range(4), 1.0))
        return await allocator.close_step(1)

    record = run(scenario())
    assert record.prior_wait_s < 0.1 and record.prior_latency_s >= 0.2


def raises(queries: Any, context: Any, step: int) -> Any:
    raise ConnectionError("value model is down")


@fault(
    "a prior raises, or answers nonsense",
    happens="its priors of the batch are missing and counted (`v05/prior/missing`, `v05/prior/failures`)",
    do="see the first failure in the log",
    within_s=30,
)
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(raises, id="raises"),
        pytest.param(always(1.01), id="above 1"),
        pytest.param(always(-0.01), id="below 0"),
        pytest.param(always(math.inf), id="infinite"),
        pytest.param(lambda q, c, s: np.full(len(q) + 1, 0.5), id="too many"),
        pytest.param(lambda q, c, s: np.full(len(q) - 1, 0.5), id="too few"),
        pytest.param(lambda q, c, s: np.full((len(q), 1), 0.5), id="a column"),
        pytest.param(lambda q, c, s: 0.5, id="a scalar"),
        pytest.param(lambda q, c, s: None, id="nothing"),
        pytest.param(lambda q, c, s: ["likely"] * len(q), id="words"),
    ],
)
@pytest.mark.parametrize("schedule", ["streaming", "rounds"])
def test_a_faulty_prior_is_missing_and_counted(answer: Callable[..., Any], schedule: str) -> None:
    record = run(step(scripted(answer, schedule=schedule), 1, always_right("abcd")))
    assert np.isnan(record.column("prior")).all() and record.prior_failures == 1
    assert record.column("k").tolist() == [4] * 4


def test_only_the_prompt_whose_answer_is_out_of_range_loses_its_prior() -> None:
    record = run(step(scripted(lambda q, c, s: [0.5] * (len(q) - 1) + [2.0]), 1, always_right("abc")))
    assert np.isnan(record.column("prior")).tolist() == [False, False, True] and record.prior_failures == 1


def test_a_nan_is_a_missing_prior_and_no_failure() -> None:
    record = run(step(scripted(lambda q, c, s: [NAN, 0.5, None]), 1, always_right("abc")))
    assert np.isnan(record.column("prior")).tolist() == [True, False, True] and record.prior_failures == 0


@fault(
    "a prior hangs",
    happens="its priors are missing until it answers; a step waits `prior.timeout_s`, `prior.timeout_share`",
    do="see the provider's log",
    within_s=30,
)
def test_a_prior_that_hangs_is_missing_until_it_answers_and_blocks_nothing(gate: threading.Event) -> None:
    def answer(queries: Any, context: Any, step: int) -> np.ndarray:
        if step == 1:
            gate.wait(15)
        return np.zeros(len(queries))

    async def scenario() -> list[StepRecord]:
        allocator = scripted(answer, timeout_s=0.5)
        hung = [await step(allocator, number, always_right("ab")) for number in (1, 2)]
        gate.set()
        await asyncio.sleep(0.2)
        return [*hung, await step(allocator, 3, always_right("ab"))]

    started = time.monotonic()
    *hung, recovered = run(scenario())
    assert time.monotonic() - started < 10
    for record in hung:
        # Neither asked nor taught while its thread is busy: predict and update are never concurrent.
        assert np.isnan(record.column("prior")).all() and record.prior_failures == 2
    assert recovered.prior_failures == 0
    assert recovered.column("prior").tolist() == [-1, -1] and recovered.column("k").tolist() == [16, 16]


def test_a_step_waits_for_priors_no_longer_than_a_share_of_the_step_before(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_v05.rollout.allocator.LEAST_TIMEOUT_S", 0.3)

    def answer(queries: Any, context: Any, step: int) -> np.ndarray:
        # The first step has none before it, so its patience is timeout_s.
        gate.wait({1: 1.0, 2: 15.0}[step])
        return np.zeros(len(queries))

    async def scenario() -> list[StepRecord]:
        allocator = scripted(answer, timeout_s=20.0)
        return [await step(allocator, number, always_right("ab")) for number in (1, 2)]

    patient, hung = run(scenario())
    assert patient.prior_failures == 0 and patient.prior_wait_s > 0.9
    assert np.isnan(hung.column("prior")).all() and 0.4 < hung.prior_latency_s < 5


@pytest.mark.parametrize(
    "error",
    [
        StopIteration,
        concurrent.futures.CancelledError,
        asyncio.CancelledError,
        SystemExit,
        torch.OutOfMemoryError,  # of a value model's replica
    ],
)
def test_whatever_a_prior_raises_is_a_missing_prior(error: type[BaseException]) -> None:
    def answer(queries: Any, context: Any, step: int) -> np.ndarray:
        raise error

    record = run(step(scripted(answer, timeout_s=2.0), 1, always_right("ab")))
    assert record.prior_failures == 1 and record.column("k").tolist() == [4, 4]
    assert record.prior_latency_s < 1


def test_another_providers_state_is_left_out_when_missing_state_is_allowed() -> None:
    async def scenario() -> int:
        trained = history()
        await step(trained, 1, always_right("ab"))
        other = Allocator(V05Settings(prior=PriorSettings(provider="none"), allow_missing_state=True))
        await other.load_state_dict(await trained.state_dict())
        return len(other.support)

    assert run(scenario()) == 2


def test_the_cap_bounds_the_step_and_not_each_batch() -> None:
    async def scenario() -> StepRecord:
        allocator = scripted(always(0.0), max_rollouts_per_step=12)
        for uid in "ab":
            await allocator.open_batch(1, [uid], queries([uid]))
        await asyncio.gather(*(finish(allocator, uid, [1.0] * 32) for uid in "ab"))
        return await allocator.close_step(1)

    assert run(scenario()).column("spent").sum() == 12


def test_a_fault_in_one_batch_leaves_the_others_of_the_step() -> None:
    def answer(queries: Sequence[Query], context: Any, step: int) -> np.ndarray:
        if queries[0].prompt_id == "id b":
            raise RuntimeError("once")
        return np.zeros(len(queries))

    async def scenario() -> StepRecord:
        allocator = scripted(answer)
        for uid in "abc":
            await allocator.open_batch(1, [uid], queries([uid]))
        await asyncio.gather(*(finish(allocator, uid, [1.0] * 16) for uid in "abc"))
        return await allocator.close_step(1)

    record = run(scenario())
    assert record.column("k").tolist() == [16, 4, 16] and record.prior_failures == 1


def test_a_prior_that_cannot_learn_is_counted_and_the_step_closes() -> None:
    def learn() -> None:
        raise RuntimeError("cannot learn")

    record = run(step(scripted(always(0.9), learn), 1, always_right("ab")))
    assert record.prior_failures == 1 and record.column("k").tolist() == [4, 4]


@fault(
    "a reward is NaN or out of range",
    happens="the run ends with the prompt's uid, its data source and the value",
    do="repair the reward function",
    within_s=30,
)
def test_problems_stop_the_step_and_name_the_prompt() -> None:
    async def scenario() -> None:
        allocator = scripted(always(0.9))
        await allocator.open_batch(1, ["a", "b"], queries(["a", "b"]))
        problem = "prompt a (data source 'math'): acc=nan is outside"
        assert await allocator.settle("a", {0: 1.0}, [], [problem]) == 0
        await allocator.settle("b", dict.fromkeys(range(4), 1.0))
        with pytest.raises(ValueError, match=r"1 outcome reward\(s\) cannot be used.*\n  prompt a .*'math'.*acc=nan"):
            await allocator.close_step(1)
        assert len(allocator.support) == 0 and not allocator.prior.learned

    run(scenario())


def test_many_problems_are_counted_and_the_first_shown() -> None:
    async def scenario() -> None:
        allocator = scripted(always(0.9))
        await allocator.open_batch(1, ["a"], queries(["a"]))
        await allocator.settle("a", {}, [], [f"prompt a: problem {i}" for i in range(400)])
        with pytest.raises(ValueError, match="400 outcome") as caught:
            await allocator.close_step(1)
        assert "problem 0" in str(caught.value) and len(str(caught.value)) < 500

    run(scenario())


def test_buffer_and_prior_learn_only_when_the_step_closes() -> None:
    async def scenario() -> None:
        allocator = scripted(always(0.9), support=SupportSettings(capacity=8, sample=2))
        recorded = {"a": [1.0] * 16, "b": [-1.0] * 16}
        await allocator.open_batch(1, list(recorded), queries(list(recorded)))
        for uid, rewards in recorded.items():
            await finish(allocator, uid, rewards)
        await allocator.open_batch(1, ["late"], queries(["late"]))
        await finish(allocator, "late", [1.0] * 16)
        assert len(allocator.support) == 0 and not allocator.prior.learned
        record = await allocator.close_step(1)
        assert len(allocator.support) == 3
        assert allocator.prior.learned == [(1, record.outcomes())]
        assert allocator.prior.contexts == [None, None]  # the step's own prompts never came first
        await allocator.open_batch(2, ["c"], queries(["c"]))
        await finish(allocator, "c", [1.0] * 16)
        assert {o.success for o in allocator.prior.contexts[2]} == {0.0, 1.0}

    run(scenario())


def test_batches_of_a_step_get_different_contexts_and_a_rerun_the_same() -> None:
    async def scenario() -> list[list[str]]:
        allocator = scripted(always(0.9), support=SupportSettings(capacity=64, sample=16))
        await step(allocator, 1, {f"u{i}": [1.0 if i % 2 else -1.0] * 16 for i in range(64)})
        for uid in "ab":
            await allocator.open_batch(2, [uid], queries([uid]))
            await finish(allocator, uid, [1.0] * 16)
        return [[o.query.prompt_id for o in context] for context in allocator.prior.contexts[1:]]

    first, again = run(scenario()), run(scenario())
    assert first == again and first[0] != first[1]


def test_failed_groups_are_released_and_teach_nothing() -> None:
    async def scenario() -> None:
        allocator = scripted(always(0.9))
        await allocator.open_batch(1, ["dead", "a"], queries(["dead", "a"]))
        assert await allocator.settle("dead", {}, failed=["it raised"] * 4) == 0
        await finish(allocator, "a", [1.0] * 16)
        record = await allocator.close_step(1)
        assert [(g.k, g.failed) for g in record.groups] == [(0, 4), (4, 0)]
        assert [o.query.prompt_id for o in allocator.prior.learned[0][1]] == ["id a"] and len(allocator.support) == 1

    run(scenario())


def test_closed_steps_leave_nothing_behind() -> None:
    async def scenario() -> None:
        allocator = scripted(always(0.3))
        for number in range(1, 4):
            await step(allocator, number, always_right("ab"))
        assert not (allocator._group_of or allocator._batch_of or allocator._records)

    run(scenario())


def test_predict_and_update_never_overlap() -> None:
    busy = threading.Lock()

    def work(*_: Any) -> None:
        assert busy.acquire(blocking=False), "two calls of the prior at once"
        time.sleep(0.01)
        busy.release()

    def answer(queries: Sequence[Query], context: Any, step: int) -> np.ndarray:
        work()
        return np.ones(len(queries))

    async def scenario() -> list[StepRecord]:
        allocator = scripted(answer, work)
        uids = [str(i) for i in range(5)]
        for number in (1, 2):
            for uid in uids:
                await allocator.open_batch(number, [f"{number}:{uid}"], queries([uid]))
        for number in (1, 2):
            await asyncio.gather(*(finish(allocator, f"{number}:{uid}", [1.0] * 16) for uid in uids))
        return list(await asyncio.gather(allocator.close_step(1), allocator.close_step(2)))

    assert [record.prior_failures for record in run(scenario())] == [0, 0]


def history(schedule: str = "streaming") -> Allocator:
    prior = PriorSettings(provider="history", kwargs={"min_rollouts": 1})
    support = SupportSettings(capacity=16, sample=8, seed=3)
    return Allocator(V05Settings(schedule=schedule, support=support, prior=prior))


def test_state_survives_json_and_the_run_goes_on_alike() -> None:
    rng = np.random.default_rng(0)
    steps = [{f"u{i}": rng.choice([-1.0, 1.0], 32) for i in rng.permutation(20)[:12]} for _ in range(6)]

    def decisions(record: StepRecord) -> list[tuple]:
        return [(g.uid, repr(g.prior), g.k) for g in record.groups]

    async def scenario() -> None:
        allocator = history()
        for number in range(3):
            await step(allocator, number, steps[number])
        state = json.loads(json.dumps(await allocator.state_dict()))
        resumed = history()
        await resumed.load_state_dict(state)
        assert json.dumps(await resumed.state_dict()) == json.dumps(state)
        for number in range(3, 6):
            assert resumed.support.sample(number, 0) == allocator.support.sample(number, 0) is not None
            records = [await step(a, number, steps[number]) for a in (allocator, resumed)]
            assert decisions(records[0]) == decisions(records[1])
            assert not np.isnan(records[0].column("prior")).any()

    run(scenario())


def test_a_state_of_another_provider_is_refused() -> None:
    async def scenario() -> None:
        state = await history().state_dict()
        other = Allocator(V05Settings(prior=PriorSettings(provider="none")))
        assert isinstance(other.prior, NoPrior)
        with pytest.raises(ValueError, match=r"checkpoint's provider is 'history'.*prior.provider is 'none'"):
            await other.load_state_dict(state)
        assert len(other.support) == 0

    run(scenario())


@pytest.mark.parametrize("contradicted", [0, 3000])
def test_three_thousand_groups_wait_for_a_round_at_once(contradicted: int) -> None:
    def answer(queries: Sequence[Query], context: Any, step: int) -> np.ndarray:
        return np.where(np.arange(len(queries)) < contradicted, 0.0, 1.0)

    async def scenario() -> StepRecord:
        allocator = scripted(answer, schedule="rounds")
        return await step(allocator, 1, {f"u{i}": [1.0] * 32 for i in range(3000)})

    started = time.monotonic()
    record = run(scenario())
    # A prompt that was padded by one has 15: another step of 2 would not fit.
    assert set(record.column("k")) == ({15, 16} if contradicted else {4})
    assert time.monotonic() - started < 10


def test_a_round_is_decided_only_when_its_last_group_has_settled() -> None:
    async def scenario() -> None:
        allocator = scripted(always(0.0), schedule="rounds", halt_share=0.0, pad_multiple=1)
        await allocator.open_batch(1, list("abc"), queries("abc"))
        rewards = dict.fromkeys(range(4), 1.0)
        early = [asyncio.create_task(allocator.settle(uid, rewards)) for uid in "ab"]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in early)
        assert await allocator.settle("c", rewards) == 2
        assert await asyncio.gather(*early) == [2, 2]

    run(scenario())


@fault(
    "a prior hangs while a checkpoint is saved",
    happens="the checkpoint is written without its state",
    do="resume from an earlier one, or set `algorithm.v05.allow_missing_state=true`",
    within_s=30,
)
def test_a_checkpoint_is_written_without_the_state_of_a_prior_that_is_stuck(gate: threading.Event) -> None:
    async def scenario() -> None:
        allocator = scripted(lambda *_: gate.wait(15), timeout_s=0.2, support=SupportSettings(capacity=8, sample=2))
        await step(allocator, 1, always_right("ab"))
        state = json.loads(json.dumps(await allocator.state_dict()))
        assert state["prior"] is None and len(state["support"]) == 2
        gate.set()
        await asyncio.sleep(0.1)
        assert (await step(allocator, 2, always_right("ab"))).prior_failures == 2  # the lost state, and the answer True
        with pytest.raises(ValueError, match="without the prior's state.*allow_missing_state=true"):
            await scripted(always(0.5)).load_state_dict(state)
        lenient = scripted(always(0.5), allow_missing_state=True)
        await lenient.load_state_dict(state)
        assert len(lenient.support) == 2

    run(scenario())


def test_metrics_keep_their_names_while_the_prior_does_not_give_them() -> None:
    async def scenario() -> list[dict[str, float]]:
        allocator = scripted(always(0.5))
        answers = iter([{"speed": 2.0}])
        allocator.prior.metrics = lambda: next(answers)  # raises StopIteration from the second step on
        return [(await step(allocator, number, always_right("ab"))).prior_metrics for number in (1, 2)]

    first, second = run(scenario())
    assert first == {"speed": 2.0}
    assert list(second) == ["speed"] and math.isnan(second["speed"])


def test_a_prior_that_is_stuck_does_not_fail_a_run_that_is_over(gate: threading.Event) -> None:
    async def scenario() -> None:
        allocator = scripted(lambda *_: gate.wait(15), timeout_s=0.2)
        await step(allocator, 1, always_right("ab"))
        await allocator.close()
        gate.set()

    run(scenario())


def bayes(answer: Callable[..., Any], **changes: Any) -> Allocator:
    return scripted(answer, **{"fusion": "empirical_bayes", "allocation": "posterior", **changes})


def mixed(uids: Sequence[str]) -> dict[str, Sequence[float]]:
    """Half of the prompts right, half wrong, always."""
    return {uid: [1.0 if i % 2 else -1.0] * 32 for i, uid in enumerate(uids)}


def test_a_beta_prior_is_believed_from_the_second_step_on() -> None:
    async def scenario() -> None:
        allocator = bayes(always(0.5))
        first = await step(allocator, 1, mixed([f"a{i}" for i in range(32)]))
        assert set(first.column("k")) == {4}  # no belief yet, so nobody asks
        assert not np.isnan(first.column("fitted_prior")).any() and (first.column("fitted_strength") > 0).all()
        second = await step(allocator, 2, mixed([f"b{i}" for i in range(32)]))
        # Prompts are all right or all wrong: a prior of one half is worth little, and four equal rollouts settle it.
        assert (second.column("fitted_strength") < 1).all() and second.fusion_metrics["log_strength"] < 0

    run(scenario())


def test_the_belief_before_the_rollouts_knows_earlier_steps_only() -> None:
    async def scenario() -> None:
        ends = []
        for right in (1.0, -1.0):
            allocator = bayes(always(0.5))
            await step(allocator, 1, mixed("abcdefgh"))
            await allocator.open_batch(2, ["x"], queries(["x"]))
            group = allocator._group_of["x"]
            await allocator._batch_of["x"].prior
            before = (group.prior, group.strength)
            await finish(allocator, "x", [right] * 32)
            await allocator.close_step(2)
            assert before == (group.prior, group.strength)  # what allocation went by stays on record
            ends += [before, (group.fitted_prior, group.fitted_strength)]
        assert ends[0] == ends[2] and ends[1] != ends[3]

    run(scenario())


def test_a_prompts_own_history_stands_in_for_a_provider_that_does_not_answer() -> None:
    async def scenario() -> None:
        allocator = bayes(always(NAN), schedule="fixed", allocation="osla")
        for number in range(1, 7):
            record = await step(allocator, number, mixed([f"u{i}" for i in range(16)]))
        assert [np.sign(g.prior) == np.sign(g.mean_reward) for g in record.groups] == [True] * 16
        assert np.abs(record.column("prior")).min() > 0.5
        successes, failures = allocator.method.fusion.history.of(["id u0"])[0]
        assert failures > 10 > successes == 0

    run(scenario())


def test_a_resumed_calibration_takes_the_same_decisions() -> None:
    async def scenario() -> None:
        allocator = bayes(always(0.5))
        rng = np.random.default_rng(0)
        steps = {n: {f"u{i}": rng.choice([-1.0, 1.0], 32) for i in range(12)} for n in range(1, 6)}
        for number in (1, 2, 3):
            await step(allocator, number, steps[number])
        resumed = bayes(always(0.5))
        await resumed.load_state_dict(json.loads(json.dumps(await allocator.state_dict())))
        for number in (4, 5):
            records = [await step(a, number, steps[number]) for a in (allocator, resumed)]
            for name in ("spent", "prior", "strength", "fitted_prior", "fitted_strength"):
                assert (records[0].column(name) == records[1].column(name)).all()

    run(scenario())


def test_a_state_of_another_fusion_is_refused_or_left_out() -> None:
    async def scenario() -> None:
        allocator = bayes(always(0.5))
        await step(allocator, 1, mixed("abcd"))
        state = await allocator.state_dict()
        with pytest.raises(
            ValueError, match="fusion is 'empirical_bayes', the run's algorithm.v05.fusion is 'shrinkage'"
        ):
            await scripted(always(0.5)).load_state_dict(state)
        await scripted(always(0.5), allow_missing_state=True).load_state_dict(state)
        afresh = bayes(always(0.5), allow_missing_state=True)
        await afresh.load_state_dict({**state, "fusion": "shrinkage", "belief": {}})
        assert afresh.method.fusion.calibration.steps == 0

    run(scenario())


def test_a_step_in_which_everything_failed_teaches_the_calibration_nothing() -> None:
    async def scenario() -> None:
        allocator = bayes(always(0.5))
        await allocator.open_batch(1, ["a"], queries(["a"]))
        assert await allocator.settle("a", {}, failed=["it raised"] * 4) == 0
        record = await allocator.close_step(1)
        assert allocator.method.fusion.calibration.steps == 0 and record.fusion_metrics["failed_fits"] == 0

    run(scenario())
