"""schedule=sparse: an exact budget from the first rollout on, given where the belief says that it teaches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.test_settings import composed
from verl_v05.allocation import TRIES, headroom
from verl_v05.fusion import Belief
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion
from verl_v05.method import Method
from verl_v05.prior import Query
from verl_v05.registry import SettingsError
from verl_v05.rollout.allocator import Allocator
from verl_v05.rollout.group import Group
from verl_v05.rollout.sparse import Sparse
from verl_v05.settings import PriorSettings, SparseSettings, SupportSettings, V05Settings, load_settings

PRESET = load_settings(composed("sparse", "algorithm.v05.max_rollouts_per_step=8"))  # its values: test_settings


def settings(**changes: Any) -> V05Settings:
    return replace(PRESET, **changes)


def pool(priors: Sequence[float], sources: Sequence[str] | None = None, strength: float = 8.0) -> list[Group]:
    sources = sources or ["s"] * len(priors)
    return [
        Group(f"u{i}", Query(f"p{i}", "", source), spent=0, prior=prior, strength=strength)
        for i, (prior, source) in enumerate(zip(priors, sources, strict=True))
    ]


def opened(
    groups: list[Group], config: V05Settings, step: int = 1, fitted: bool = True
) -> tuple[Sparse, dict[str, int]]:
    method = Method.from_settings(config)
    if fitted:
        method.fusion.learn(["p"], np.array([0.5]), np.array([1.0]), np.array([2]))
    schedule = method.open(groups, None, step)
    assert isinstance(schedule, Sparse)
    return schedule, schedule.open()


def mean_counts(priors: Sequence[float], config: V05Settings, steps: int = 400) -> np.ndarray:
    counts = [list(opened(pool(priors), config, step)[1].values()) for step in range(steps)]
    return np.mean(counts, axis=0)


@pytest.mark.parametrize("budget", [1, 7, 8, 20, 40])
def test_the_first_rollouts_are_the_budget_exactly(budget: int) -> None:
    groups = pool(np.linspace(-1, 1, 10))
    _, first = opened(groups, settings(max_rollouts_per_step=budget))
    assert sum(first.values()) == budget == sum(g.spent for g in groups) == sum(g.first for g in groups)
    assert max(first.values()) <= 4
    assert sum(g.expected for g in groups) == pytest.approx(budget)
    assert [g.dispatches for g in groups] == [int(count > 0) for count in first.values()]


def test_prompts_that_are_surely_solved_or_hopeless_are_skipped_but_keep_a_chance() -> None:
    found = mean_counts([-0.999, 0.0, 0.999, 0.1], settings(max_rollouts_per_step=2))
    assert found[0] == pytest.approx(0.1, abs=0.05) and found[2] == pytest.approx(0.1, abs=0.05)
    assert found[1] > 0.8 and found[3] > 0.8


def test_before_anything_was_learnt_all_prompts_have_the_same_chance() -> None:
    groups = pool([-0.99, 0.0, 0.5, 0.9])
    opened(groups, settings(), fitted=False)
    assert [g.expected for g in groups] == [2.0] * 4


def test_a_prompt_without_a_belief_expects_what_the_others_do_on_average() -> None:
    groups = pool([0.0, float("nan"), 0.0])
    opened(groups, settings(max_rollouts_per_step=3))
    assert [g.expected for g in groups] == pytest.approx([1, 1, 1])


def test_no_data_source_starves() -> None:
    priors, sources = [-0.999] * 10 + [0.0] * 10, ["hopeless"] * 10 + ["useful"] * 10
    for step in range(50):
        groups = pool(priors, sources)
        opened(groups, settings(max_rollouts_per_step=20, sparse=SparseSettings(explore=0.2)), step)
        assert 2 <= sum(g.spent for g in groups if g.query.data_source == "hopeless") <= 3


def test_the_draw_depends_on_seed_and_step_alone() -> None:
    config = settings(max_rollouts_per_step=5)
    draws = {step: opened(pool(np.linspace(-0.9, 0.9, 12)), config, step)[1] for step in range(6)}
    assert draws[3] == opened(pool(np.linspace(-0.9, 0.9, 12)), config, 3)[1]
    assert len({tuple(d.values()) for d in draws.values()}) > 1
    other = settings(max_rollouts_per_step=5, sparse=SparseSettings(seed=1))
    assert any(opened(pool(np.linspace(-0.9, 0.9, 12)), other, s)[1] != draws[s] for s in draws)


def test_without_a_reserve_a_scored_group_is_complete() -> None:
    groups = pool([0.0, 0.1])
    schedule, _ = opened(groups, settings(max_rollouts_per_step=2))
    assert schedule.settled("u0") == {"u0": 0}


def test_the_reserve_goes_where_the_next_rollout_is_worth_most_when_all_are_scored() -> None:
    groups = pool([0.0, 0.0, 0.0], strength=1.0)
    schedule, first = opened(groups, settings(max_rollouts_per_step=6, sparse=SparseSettings(explore=1, reserve=0.5)))
    assert list(first.values()) == [1, 1, 1]
    for g, reward in zip(groups, (1.0, -1.0, 0.0), strict=True):  # the third is undecided: most variance is left
        g.rewards[0] = reward
    assert schedule.settled("u0") == {} and schedule.settled("u1") == {}
    extra = schedule.settled("u2")
    assert sum(extra.values()) == 3 and extra["u2"] == max(extra.values()) and set(extra) == {"u0", "u1", "u2"}
    assert sum(g.spent for g in groups) == 6
    assert schedule.settled("u2") == {"u2": 0}


def test_failed_rollouts_are_part_of_the_budget() -> None:
    groups = pool([0.0, 0.0])
    schedule, _ = opened(groups, settings(max_rollouts_per_step=4, sparse=SparseSettings(explore=1, reserve=0.5)))
    for g in groups:
        g.failed = g.spent
    schedule.settled("u0")
    assert sum(schedule.settled("u1").values()) == 2
    assert sum(g.spent for g in groups) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_init": 1}, "k_init=1 is not allowed: it must be 0 with schedule=sparse"),
        ({"max_rollouts_per_step": None}, "max_rollouts_per_step=None is not allowed"),
        (
            {"allocation": "osla", "fusion": "shrinkage"},
            "allocation='osla' is not allowed: it must be one that",
        ),
        (
            {"sparse": SparseSettings(importance_weights=True, reserve=0.1)},
            "importance_weights=True is not allowed: it must be false with sparse.reserve",
        ),
        (
            {"sparse": SparseSettings(importance_weights=True), "group_weighting": "per_prompt"},
            "importance_weights=True is not allowed: it must be false with group_weighting=per_prompt",
        ),
        (
            {"schedule": "fixed", "k_init": 1, "sparse": SparseSettings(importance_weights=True)},
            "importance_weights=True is not allowed: it must be false without schedule=sparse",
        ),
        ({"schedule": "streaming"}, "k_init=0 is not allowed: it must be at least 1, or 0 with schedule=sparse"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Method.from_settings(settings(**changes))


# The allocation rules that compare prompts


@pytest.mark.parametrize("rule", ["outcome_variance", "posterior", "product"])
def test_a_rollout_is_worth_most_where_the_outcome_is_open_and_less_each_time(rule: str) -> None:
    method = Method.from_settings(settings(allocation=rule))
    belief = Belief(np.array([-0.9, 0.0, 0.9]), np.array([4.0, 4.0, 4.0]))
    gain = method.allocation.demand(np.zeros(3), np.zeros(3), belief, method.fusion).gain
    first = gain(np.arange(3), np.zeros(3))
    assert first.argmax() == 1 and first[0] == pytest.approx(first[2])
    assert (gain(np.array([1, 1, 1]), np.arange(3)) > gain(np.array([1, 1, 1]), np.arange(1, 4))).all()


def test_outcome_variance_is_the_expected_variance_of_a_reward_under_the_belief() -> None:
    q, m = 0.3, 5.0
    p = np.random.default_rng(0).beta(m * q, m * (1 - q), size=400_000)
    method = Method.from_settings(settings())
    belief = Belief(np.array([2 * q - 1]), np.array([m]))
    gain = method.allocation.demand(np.zeros(1), np.zeros(1), belief, method.fusion).gain
    assert gain(np.array([0]), np.array([0]))[0] == pytest.approx((4 * p * (1 - p)).mean(), abs=2e-3)


def test_headroom_prefers_hard_prompts_to_open_solved_and_hopeless_ones() -> None:
    q = np.array([0.0, 0.001, 0.1, 0.5, 0.99, 1.0])
    hopeless, unlikely, hard, open_, nearly, solved = headroom(2 * q - 1)
    assert hard > open_ > unlikely > nearly > solved == hopeless == 0
    assert hard == pytest.approx(0.9 * (1 - 0.9**TRIES))  # what 32 tries would not find is not counted
    assert np.isnan(headroom(np.array([np.nan]))).all()


@pytest.mark.parametrize("rule", ["outcome_variance", "product", "headroom"])
def test_the_target_is_where_the_gain_falls_below_the_cost(rule: str) -> None:
    method = Method.from_settings(settings(allocation=rule, cost=0.01))
    belief = Belief(np.array([0.2]), np.array([3.0]))
    target, gain = method.allocation.demand(np.zeros(1), np.zeros(1), belief, method.fusion)
    j = int(target[0]) - 1  # rollouts before the last one that is asked for
    assert gain(np.array([0]), np.array([j]))[0] >= 0.01 - 1e-12 > gain(np.array([0]), np.array([j + 1]))[0] - 1e-9


# In the allocator


def allocator(**changes: Any) -> Allocator:
    support = SupportSettings(capacity=4, sample=2)
    return Allocator(settings(prior=PriorSettings(provider="none"), support=support, **changes))


async def one_step(it: Allocator, step: int, uids: Sequence[str], reward: float = 1.0) -> dict[str, int]:
    await it.open_batch(step, uids, [Query(f"prompt {uid[-1]}", "", "s") for uid in uids])
    first = {uid: await it.first_rollouts(uid) for uid in uids}
    for uid, count in first.items():
        if count:
            assert await it.settle(uid, dict.fromkeys(range(count), reward), failed=[]) == 0
    return first


def test_a_step_of_the_allocator_spends_the_budget_and_keeps_the_skipped_prompts_out_of_what_it_learns() -> None:
    async def scenario() -> None:
        it = allocator(max_rollouts_per_step=3)
        first = await one_step(it, 1, ["a0", "a1", "a2", "a3", "a4"])
        record = await it.close_step(1)
        assert sum(first.values()) == 3 == sum(g.k for g in record.groups)
        assert len(record.groups) == 5 and len(record.outcomes()) == sum(count > 0 for count in first.values())

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_is_known_of_a_skipped_prompt_fades() -> None:
    fusion = EmpiricalBayesFusion(history_forgetting=0.5)
    nan, ids = np.array([np.nan]), ["p"]
    fusion.learn(ids, nan, np.array([4.0]), np.array([4]))
    known = [fusion.history.of(ids)[0, 0]]
    for _ in range(2):
        fusion.learn(ids, nan, np.array([0.0]), np.array([0]))
        known.append(fusion.history.of(ids)[0, 0])
    assert known == [4.0, 2.0, 1.0]


def test_a_resumed_allocator_draws_what_the_other_would_have_drawn() -> None:
    async def scenario() -> None:
        ours, uids = allocator(max_rollouts_per_step=3), ["a0", "a1", "a2", "a3", "a4"]
        await one_step(ours, 1, uids)
        await ours.close_step(1)
        theirs = allocator(max_rollouts_per_step=3)
        await theirs.load_state_dict(await ours.state_dict())
        drawn = [await one_step(it, 2, [f"b{i}" for i in range(5)], reward=-1.0) for it in (ours, theirs)]
        assert drawn[0] == drawn[1]

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("reserve", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("k_max", [1, 2, 4])
def test_the_budget_is_spent_with_any_reserve(k_max: int, reserve: float) -> None:
    groups = pool(np.linspace(-0.9, 0.9, 64))
    schedule, first = opened(
        groups, settings(max_rollouts_per_step=32, k_max=k_max, sparse=SparseSettings(reserve=reserve))
    )
    for uid in (started := [uid for uid, count in first.items() if count]):
        groups[int(uid[1:])].rewards = dict.fromkeys(range(first[uid]), 1.0)
    extra = [schedule.settled(uid) for uid in started][-1]
    assert sum(g.spent for g in groups) == 32 and set(extra) == set(started)
    assert max(g.spent for g in groups) <= k_max


def test_an_error_in_the_schedule_is_every_waiting_prompts_and_hangs_none() -> None:
    async def scenario() -> None:
        it = allocator(max_rollouts_per_step=4, sparse=SparseSettings(explore=1, reserve=0.5))
        uids = ["a0", "a1"]
        await it.open_batch(1, uids, [Query(f"prompt {uid}", "", "s") for uid in uids])
        first = {uid: await it.first_rollouts(uid) for uid in uids}
        it._batch_of["a0"].schedule.demand = None  # calling it is a TypeError
        waiting = [it.settle(uid, dict.fromkeys(range(first[uid]), 1.0), failed=[]) for uid in uids]
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in ended] == [TypeError, TypeError]

        await it.open_batch(2, ["b0", "b1"], [Query(f"prompt {uid}", "", "s") for uid in uids])
        it._batch_of["b0"].schedule.open = None
        ended = await asyncio.gather(*(it.first_rollouts(uid) for uid in ("b0", "b1")), return_exceptions=True)
        assert [type(error) for error in ended] == [TypeError, TypeError]

    asyncio.run(asyncio.wait_for(scenario(), 20))
