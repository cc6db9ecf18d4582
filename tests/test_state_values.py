"""Values of states: asked for beside the rollouts, believed before the step, learnt from at its close, and used."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from verl_v05.estimators.v05 import compute_v05_outcome_advantage, step_inputs
from verl_v05.fusion import ShrinkageFusion
from verl_v05.prior import Outcome, Prior, Query
from verl_v05.prior.counts import PromptCounts
from verl_v05.rollout.allocator import Allocator
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import match_rows
from verl_v05.rollout.step_inputs import StepInputs
from verl_v05.settings import ProviderSettings, SettingsError, V05Settings

# A maze of two rooms: who goes left in the first one mostly wins.
START, LEFT, RIGHT = "start", "left", "right"
WINS = {LEFT: 0.9, RIGHT: 0.1}


class StatePrior(Prior):
    """Answers from a table of texts, and keeps what it was asked and told."""

    def __init__(self, table: dict[str, float] | None = None, error: bool = False):
        self.table, self.error = table or {}, error
        self.asked: list[list[str]] = []
        self.learned: list[list[Outcome]] = []

    def predict(self, queries: Sequence[Query], context: Any, step: int) -> np.ndarray:
        self.asked.append([q.text for q in queries])
        if self.error:
            raise RuntimeError("no answer")
        return np.array([self.table.get(q.text, np.nan) for q in queries])

    def update(self, outcomes: Sequence[Outcome], step: int) -> None:
        self.learned.append(list(outcomes))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": len(self.learned)}


def allocator(**kwargs: Any) -> Allocator:
    state_prior = ProviderSettings(provider=f"{__name__}.StatePrior", kwargs=kwargs)
    changes = {"schedule": "fixed", "k_init": 4, "k_max": 4}
    return Allocator(V05Settings(**changes, credit="turn", state_prior=state_prior))


async def play(it: Allocator, step: int, prompts: int, rng: np.random.Generator) -> StepRecord:
    """A step of four sessions a prompt, each of two turns."""
    uids = [f"{step}-{i}" for i in range(prompts)]
    await it.open_batch(step, uids, [Query(f"p{i}", START, "maze") for i in range(prompts)])
    for uid in uids:
        rooms = [LEFT if go else RIGHT for go in rng.random(4) < 0.5]
        rewards = {s: 1.0 if rng.random() < WINS[room] else -1.0 for s, room in enumerate(rooms)}
        states = {s: [START, room] for s, room in enumerate(rooms)}
        assert await it.settle(uid, rewards, states=states) == 0
        await asyncio.sleep(0)
    return await it.close_step(step)


def play_all(it: Allocator, steps: int, prompts: int = 16, seed: int = 0) -> list[StepRecord]:
    async def scenario() -> list[StepRecord]:
        rng = np.random.default_rng(seed)
        return [await play(it, step, prompts, rng) for step in range(1, steps + 1)]

    return asyncio.run(asyncio.wait_for(scenario(), 60))


def values_of(record: StepRecord) -> dict[str, set[float]]:
    """Values by text."""
    found: dict[str, set[float]] = {}
    for group in record.groups:
        for session, texts in group.states.items():
            for text, value in zip(texts, group.state_values[session], strict=True):
                found.setdefault(text, set()).add(value)
    return found


def test_a_text_is_asked_for_once_a_step_and_has_one_value() -> None:
    it = allocator(table={START: 0.5, LEFT: 0.9, RIGHT: 0.1})
    (record,) = play_all(it, 1)
    asked = [text for call in it.states.prior.asked for text in call]  # type: ignore[union-attr]
    assert sorted(asked) == [LEFT, RIGHT, START]
    values = values_of(record)
    assert {text: len(found) for text, found in values.items()} == {START: 1, LEFT: 1, RIGHT: 1}
    # Before any step the calibration takes the provider's word.
    assert values[LEFT].pop() == pytest.approx(0.8) and values[RIGHT].pop() == pytest.approx(-0.8)


def test_values_and_weight_are_those_believed_before_the_step() -> None:
    first = play_all(allocator(), 2, seed=1)
    other = play_all(allocator(), 1, seed=2)
    assert values_of(first[0]) == values_of(other[0])  # other outcomes, the same values
    assert first[0].turn_weight == 0.0


def test_the_states_own_history_is_learnt_and_earns_turn_credit_its_weight() -> None:
    records = play_all(allocator(), 8)
    last = values_of(records[-1])
    assert max(last[RIGHT]) < -0.5 < 0.5 < min(last[LEFT])
    weights = [record.turn_weight for record in records]
    assert weights[:2] == [0.0, 0.0]  # nothing tells the states apart before the first step's outcomes
    assert weights[-1] > 0.7
    assert records[-1].state_metrics["mse"] < records[-1].state_metrics["mse_of_prompt"]


def test_useless_values_lose_their_weight() -> None:
    """The provider tells the states apart, but the other way around; the calibration turns that within some steps."""
    records = play_all(allocator(table={START: 0.5, LEFT: 0.1, RIGHT: 0.9}), 3)
    assert records[1].turn_weight == 0.0


def test_a_provider_that_raises_is_counted_and_the_calibration_stands_in() -> None:
    records = play_all(allocator(error=True), 6)
    assert all(record.state_metrics["failures"] >= 1 for record in records)
    assert records[-1].state_metrics["unanswered"] == 1.0
    assert records[-1].turn_weight > 0.5


def test_the_provider_learns_each_states_outcomes_a_session_counted_once() -> None:
    it = allocator()

    async def scenario() -> None:
        await it.open_batch(1, ["a"], [Query("p", START, "maze")])
        await it.settle("a", {0: 1.0, 1: -1.0}, ["it raised"], states={0: [START, LEFT, START], 1: [START], 2: [RIGHT]})
        await it.close_step(1)

    asyncio.run(scenario())
    (learned,) = it.states.prior.learned  # type: ignore[union-attr]
    assert {o.query.text: (o.success, o.k) for o in learned} == {START: (0.5, 2), LEFT: (1.0, 1)}


def test_a_resumed_run_goes_on_with_the_same_values_and_weight() -> None:
    first = allocator(table={LEFT: 0.7})
    play_all(first, 3)
    state = asyncio.run(first.state_dict())
    second = allocator(table={LEFT: 0.7})
    asyncio.run(second.load_state_dict(state))
    (there,), (here,) = (play_all(it, 1, seed=5) for it in (first, second))
    assert values_of(there) == values_of(here) and there.turn_weight == here.turn_weight > 0


def test_a_checkpoint_without_states_is_refused_unless_that_is_allowed() -> None:
    state = asyncio.run(Allocator(V05Settings()).state_dict())
    assert "states" not in state
    with pytest.raises(ValueError, match="credit=outcome.*allow_missing_state"):
        asyncio.run(allocator().load_state_dict(state))
    lenient = allocator()
    lenient.settings.allow_missing_state = True
    asyncio.run(lenient.load_state_dict(state))


def test_a_state_prior_of_another_provider_is_refused() -> None:
    state = asyncio.run(allocator().state_dict())
    other = Allocator(V05Settings(credit="turn", state_prior=ProviderSettings(provider="history")))
    with pytest.raises(ValueError, match=r"algorithm\.v05\.state_prior\.provider"):
        asyncio.run(other.load_state_dict(state))


def test_an_unknown_state_provider_is_refused_by_its_own_key() -> None:
    with pytest.raises(SettingsError, match=r"algorithm\.v05\.state_prior\.provider='nobody'"):
        Allocator(V05Settings(credit="turn", state_prior=ProviderSettings(provider="nobody")))
    with pytest.raises(SettingsError, match=r"algorithm\.v05\.credit='turns' .*outcome, turn"):
        V05Settings(credit="turns")


def test_kept_histories_are_those_of_the_latest_visits() -> None:
    counts = PromptCounts(0.5, capacity=2)
    counts.add(["a", "b"], [1, 1], [1, 1])
    counts.add(["a", "c"], [1, 0], [1, 1])
    assert list(counts.state_dict()) == ["a", "c"]
    assert counts.of(["a", "b", "c"]).tolist() == [[1.5, 0.0], [0.0, 0.0], [0.0, 1.0]]


def inputs_of(record: StepRecord, weight: float) -> tuple[StepInputs, list[str]]:
    keys = [f"{g.uid}_{s}_0" for g in record.groups for s in g.rewards]
    rows = match_rows(keys, [False] * len(keys), record)
    return StepInputs(rows, 0.0, V05Settings(credit="turn"), ShrinkageFusion(), weight), keys


def estimated(inputs: StepInputs, keys: list[str], mask: torch.Tensor) -> torch.Tensor:
    index = np.array([key.rsplit("_", 2)[0] for key in keys], dtype=object)
    with step_inputs(inputs):
        return compute_v05_outcome_advantage(torch.zeros(mask.shape, dtype=torch.float64), mask, index)[0]


def test_turn_credit_reaches_the_turns_tokens_and_sums_to_the_outcomes() -> None:
    record = play_all(allocator(), 4)[-1]
    inputs, keys = inputs_of(record, weight=0.6)
    mask = torch.tensor([1, 0, 1]).repeat(len(keys), 1)
    token = estimated(inputs, keys, mask)
    outcome = torch.as_tensor(inputs.result.advantage)
    assert torch.allclose(token.sum(dim=1), 2 * outcome) and (token[:, 1] == 0).all()
    assert (token[:, 0] - token[:, 2]).abs().max() > 0.1


def test_without_weight_it_is_outcome_credit_bit_for_bit() -> None:
    record = play_all(allocator(), 4)[-1]
    mask = torch.tensor([1, 0, 1]).repeat(len(record.groups) * 4, 1)
    with_states = estimated(*inputs_of(record, weight=0.0), mask)
    for group in record.groups:
        group.states, group.state_values = {}, {}
    assert torch.equal(with_states, estimated(*inputs_of(record, weight=0.0), mask))


def test_turns_that_the_agent_loop_has_not_recorded_are_an_error() -> None:
    record = play_all(allocator(), 3)[-1]
    inputs, keys = inputs_of(record, weight=0.5)
    with pytest.raises(RuntimeError, match="has 1 turns in its rows and 2 states"):
        estimated(inputs, keys, torch.ones(len(keys), 3, dtype=torch.int64))
