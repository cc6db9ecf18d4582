"""Schedules played with recorded rewards: same decisions, halting, padding, caps, failures, termination."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from verl_v05 import marginal_return, squared_bias
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion
from verl_v05.method import Method
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.schedule import Schedule
from verl_v05.settings import V05Settings

NAN = float("nan")
FAILED = None
Recorded = dict[str, list[float | None]]  # uid -> outcome of its 1st, 2nd, ... rollout


def make_groups(priors: Sequence[float], k_init: int = 4) -> list[Group]:
    return [Group(f"u{i}", Query(f"p{i}", "", "s"), spent=k_init, prior=v) for i, v in enumerate(priors)]


def settings(schedule: str, **changes: object) -> V05Settings:
    """Without the 25 % halt and without padding, unless said otherwise."""
    return V05Settings(schedule=schedule, **{"halt_share": 0.0, "pad_multiple": 1, **changes})


def opened(groups: list[Group], config: V05Settings) -> Schedule:
    method = Method.from_settings(config)
    if isinstance(method.fusion, EmpiricalBayesFusion):
        # Fitted once, so that its beliefs count; the groups' own are set by the tests.
        method.fusion.learn(["p"], np.array([0.5]), np.array([1.0]), np.array([2]))
    return method.open(groups)


def play(groups: list[Group], recorded: Recorded, config: V05Settings, seed: int | None = None) -> Schedule:
    """Play recorded rollouts through a schedule until every group is complete.

    Groups settle in their order, or in random order with a seed. Checks that each settled group gets one answer
    a dispatch, that only waiting groups are answered, and that it ends.
    """
    schedule = opened(groups, config)
    rng = np.random.default_rng(seed)
    by_uid = {g.uid: g for g in groups}
    started = {g.uid: g.spent for g in groups}  # rollouts to settle next
    running, waiting, complete = list(by_uid), set(), set()
    played = dict.fromkeys(by_uid, 0)
    for _ in range(len(groups) * (config.k_max + 1)):
        if not running:
            break
        uid = running.pop(int(rng.integers(len(running))) if seed is not None else 0)
        for session in range(played[uid], played[uid] + started[uid]):
            reward = recorded[uid][session]
            if reward is FAILED:
                by_uid[uid].failed += 1
            else:
                by_uid[uid].rewards[session] = reward
        played[uid] += started[uid]
        waiting.add(uid)
        for released, extra in schedule.settled(uid).items():
            assert extra >= 0
            waiting.remove(released)
            started[released] = extra
            (running.append if extra else complete.add)(released)
    assert complete == set(by_uid) and not waiting and not running
    assert all(g.spent == played[g.uid] == g.k + g.failed for g in groups)
    return schedule


def random_batch(
    rng: np.random.Generator, prompts: int, failure_rate: float = 0.0, missing: float = 0.2
) -> tuple[list[float], Recorded]:
    """(priors, recorded rollouts) with priors of any quality and room for 64 rollouts a prompt."""
    rate = rng.random(prompts)
    prior = np.clip(2 * rate - 1 + rng.normal(0, 0.7, prompts), -1, 1)
    prior[rng.random(prompts) < missing] = NAN
    recorded: Recorded = {}
    for i in range(prompts):
        rewards = np.where(rng.random(64) < rate[i], 1.0, -1.0)
        failed = rng.random(64) < failure_rate
        recorded[f"u{i}"] = [FAILED if f else float(r) for r, f in zip(rewards, failed, strict=True)]
    return prior.tolist(), recorded


def constant(values: Sequence[float | None]) -> Recorded:
    return {f"u{i}": [value] * 64 for i, value in enumerate(values)}


def column(groups: list[Group], name: str) -> list[int]:
    return [getattr(g, name) for g in groups]


def stopped_by_the_rule(group: Group, config: V05Settings) -> bool:
    """Theorem 3.6 at the group's end, or no room for another step."""
    if math.isnan(group.prior) or not group.k:
        return True
    bias_sq = max(0.0, (group.mean_reward - group.prior) ** 2 - 1 / group.k)
    satisfied = bias_sq == 0 or group.k >= 1 / math.sqrt(config.cost) - 1 / bias_sq
    return satisfied or group.spent + (config.rollouts_per_ask or 1) > config.k_max


@pytest.mark.parametrize("failure_rate", [0.0, 0.15])
@pytest.mark.parametrize("step", [2, 3, "to_target"])
def test_streaming_and_rounds_take_the_same_decisions(step: int | str, failure_rate: float) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for batch in range(6):
        priors, recorded = random_batch(rng, 100, failure_rate)
        ends = []
        for schedule, seed in [("rounds", None), ("rounds", batch), ("streaming", None), ("streaming", batch)]:
            groups = make_groups(priors)
            config = settings(schedule, step=step)
            play(groups, recorded, config, seed)
            ends.append([(g.k, g.spent, g.asked, g.dispatches, g.rewards) for g in groups])
            assert all(stopped_by_the_rule(g, config) for g in groups)
        assert all(end == ends[0] for end in ends)
        seen |= {k for k, *_ in ends[0]}
    assert len(seen) >= 5


def test_asking_to_the_target_takes_fewer_dispatches_for_no_fewer_rollouts_in_all() -> None:
    priors, recorded = random_batch(np.random.default_rng(1), 300)
    totals = {}
    for step in (2, "to_target"):
        groups = make_groups(priors)
        play(groups, recorded, settings("streaming", step=step))
        totals[step] = sum(column(groups, "spent")), sum(column(groups, "dispatches"))
    assert totals["to_target"][0] >= totals[2][0] and totals["to_target"][1] < totals[2][1]


def test_contradicted_priors_grow_and_confirmed_or_missing_ones_do_not() -> None:
    groups = make_groups([-1.0, 1.0, NAN, 0.6])
    play(groups, constant([1.0, 1.0, 1.0, 1.0]), settings("streaming"))
    assert column(groups, "k") == [16, 4, 4, 4]
    assert column(groups, "dispatches") == [7, 1, 1, 1]
    assert column(groups, "asked") == [12, 0, 0, 0]


@pytest.mark.parametrize(("asking", "grows"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_round_needs_a_quarter_of_the_prompts(asking: int, grows: bool) -> None:
    groups = make_groups([-1.0] * asking + [1.0] * (8 - asking))
    play(groups, constant([1.0] * 8), settings("rounds", halt_share=0.25))
    assert column(groups, "k") == [16 if grows else 4] * asking + [4] * (8 - asking)


def test_missing_priors_count_among_the_prompts_of_the_halt() -> None:
    groups = make_groups([-1.0] + [NAN] * 4)
    play(groups, constant([1.0] * 5), settings("rounds", halt_share=0.25))
    assert column(groups, "k") == [4] * 5


def test_the_batch_halts_when_later_rounds_fall_below_the_share() -> None:
    # All ask after 4; seven of them then see failures only, and come to agree with V = -0.4.
    recorded = {f"u{i}": [1.0] * 4 + [1.0 if i == 0 else -1.0] * 60 for i in range(8)}
    alone = make_groups([-0.4] * 8)
    play(alone, recorded, settings("rounds"))
    halted = make_groups([-0.4] * 8)
    play(halted, recorded, settings("rounds", halt_share=0.25))
    assert alone[0].k > halted[0].k > 4
    assert column(alone[1:], "k") == column(halted[1:], "k")


@pytest.mark.parametrize("seed", range(8))
def test_padding_goes_to_the_prompts_with_the_largest_marginal_return(seed: int) -> None:
    rng = np.random.default_rng(seed)
    priors, recorded = random_batch(rng, 24, failure_rate=0.1, missing=0.3)
    groups, config = make_groups(priors), settings("rounds", pad_multiple=32)
    schedule = opened(groups, config)
    for group in groups:
        group.rewards = {s: r for s, r in enumerate(recorded[group.uid][:4]) if r is not FAILED}
    bias_sq = squared_bias(
        np.array([g.mean_reward for g in groups]),
        np.array([max(g.k, 1) for g in groups]),
        np.array([g.prior if g.k else NAN for g in groups]),
    )
    released: dict[str, int] = {}
    for group in groups:
        assert not released
        released = schedule.settled(group.uid)
    granted = np.array([released.get(g.uid, 0) for g in groups])
    assert granted.sum() % 32 == 0 and granted.sum() == sum(column(groups, "asked")) + sum(column(groups, "padded")) > 0
    gain = [lambda n, b=b: float(marginal_return(b, n)) for b in bias_sq]
    with_prior = [i for i, g in enumerate(groups) if not math.isnan(g.prior)]
    worst_given = min(gain[i](groups[i].k + granted[i] - 1) for i in with_prior if groups[i].padded)
    best_left = max(gain[i](groups[i].k + granted[i]) for i in with_prior if groups[i].spent < 16)
    assert worst_given >= best_left
    assert all(g.padded == 0 for g in groups if math.isnan(g.prior))


@pytest.mark.parametrize("failure_rate", [0.0, 0.2])
def test_padded_runs_stay_within_k_max_and_never_touch_missing_priors(failure_rate: float) -> None:
    rng = np.random.default_rng(2)
    padded = 0
    for batch in range(30):
        priors, recorded = random_batch(rng, 20, failure_rate)
        groups = make_groups(priors)
        play(groups, recorded, settings("rounds", pad_multiple=32, step=[2, 5, "to_target"][batch % 3]), seed=batch)
        assert max(column(groups, "spent")) <= 16
        assert all(g.spent == 4 and g.padded == 0 for g in groups if math.isnan(g.prior))
        assert all(g.spent == 4 + g.asked + g.padded for g in groups)
        padded += sum(column(groups, "padded"))
    assert padded > 100


def test_a_dispatch_is_smaller_when_no_prompt_has_room_left() -> None:
    groups = make_groups([-1.0, 1.0, NAN])
    play(groups, constant([1.0] * 3), settings("rounds", pad_multiple=32))
    assert column(groups, "spent") == [16, 16, 4] and column(groups, "padded") == [10, 12, 0]


def test_a_halted_batch_is_not_padded() -> None:
    groups = make_groups([1.0] * 4)
    play(groups, constant([1.0] * 4), settings("rounds", pad_multiple=32))
    assert column(groups, "spent") == [4] * 4


@pytest.mark.parametrize("step", [2, "to_target"])
def test_streaming_cap_is_never_exceeded_and_cuts_are_counted(step: int | str) -> None:
    rng = np.random.default_rng(3)
    for cap in (200, 201, 230, 300, 10_000):
        priors, recorded = random_batch(rng, 50)
        free, capped = make_groups(priors), make_groups(priors)
        play(free, recorded, settings("streaming", step=step), seed=cap)
        play(capped, recorded, settings("streaming", step=step, max_rollouts_per_step=cap), seed=cap)
        wanted = sum(column(free, "spent"))
        assert sum(column(capped, "spent")) == min(cap, wanted)
        assert all(g.spent == 4 + g.asked - g.cut and g.cut >= 0 for g in capped)
        assert (sum(column(capped, "cut")) > 0) == (cap < wanted)


def test_a_cap_below_the_first_rollouts_refuses_every_ask() -> None:
    groups = make_groups([-1.0, -1.0])
    play(groups, constant([1.0, 1.0]), settings("streaming", max_rollouts_per_step=3))
    assert column(groups, "spent") == [4, 4] and column(groups, "cut") == [2, 2]


def test_an_ask_may_be_granted_in_part() -> None:
    groups = make_groups([-1.0])
    play(groups, constant([1.0]), settings("streaming", max_rollouts_per_step=9, step="to_target"))
    assert (groups[0].spent, groups[0].dispatches) == (9, 2)
    assert groups[0].asked - groups[0].cut == 5


def test_fixed_never_asks() -> None:
    priors, recorded = random_batch(np.random.default_rng(4), 50, failure_rate=0.1)
    for k_init in (1, 2, 4, 8):
        groups = make_groups(priors, k_init)
        play(groups, recorded, settings("fixed", k_init=k_init, pad_multiple=32), seed=k_init)
        assert set(column(groups, "spent")) == {k_init} and set(column(groups, "dispatches")) == {1}


@pytest.mark.parametrize("schedule", ["rounds", "streaming", "fixed"])
def test_a_group_whose_rollouts_all_failed_is_released(schedule: str) -> None:
    groups = make_groups([0.9, 0.9, -1.0])
    play(groups, constant([FAILED, 1.0, 1.0]), settings(schedule))
    assert (groups[0].k, groups[0].spent, groups[0].failed) == (0, 4, 4)
    assert groups[0].mean_reward == 0 and groups[1].k == 4


@pytest.mark.parametrize("schedule", ["rounds", "streaming"])
def test_failed_rollouts_count_towards_k_max(schedule: str) -> None:
    groups = make_groups([-1.0])
    play(groups, {"u0": [1.0, FAILED] * 32}, settings(schedule))
    assert (groups[0].k, groups[0].failed, groups[0].spent) == (8, 8, 16)


def test_every_schedule_ends_whatever_fails() -> None:
    rng = np.random.default_rng(5)
    for trial in range(150):
        schedule = ["rounds", "streaming", "fixed"][trial % 3]
        prompts, k_init = int(rng.integers(1, 12)), int(rng.integers(1, 6))
        priors, recorded = random_batch(rng, prompts, failure_rate=rng.choice([0.1, 0.5, 0.95, 1.0]))
        config = settings(
            schedule,
            k_init=k_init,
            k_max=k_init + int(rng.integers(0, 13)),
            step=[1, 2, 3, 20, "to_target"][trial % 5],
            halt_share=float(rng.choice([0.0, 0.25, 1.0])),
            pad_multiple=int(rng.choice([1, 8, 32])),
            cost=float(rng.choice([1e-5, 0.0039, 0.1])),
            max_rollouts_per_step=prompts * k_init + 7 if schedule == "streaming" and trial % 2 else None,
        )
        groups = make_groups(priors, k_init)
        play(groups, recorded, config, seed=trial)
        assert max(column(groups, "spent")) <= config.k_max


def test_mean_reward_does_not_depend_on_the_order_of_arrival() -> None:
    rng = np.random.default_rng(6)
    rewards = rng.uniform(-1, 1, 16)
    arrivals = [{s: rewards[s] for s in rng.permutation(16)} for _ in range(50)]
    groups = [Group("u", Query("p", "", "s"), spent=16, rewards=arrival) for arrival in arrivals]
    assert len({group.mean_reward for group in groups}) == 1


def bayes_groups(priors: Sequence[float], strengths: Sequence[float]) -> list[Group]:
    groups = make_groups(priors)
    for group, strength in zip(groups, strengths, strict=True):
        group.strength = strength
    return groups


def bayes(schedule: str, **changes: object) -> V05Settings:
    return settings(schedule, fusion="empirical_bayes", allocation="posterior", **changes)


def posterior_variance_of(group: Group) -> float:
    a = group.strength * (1 + group.prior) / 2 + (group.mean_reward + 1) / 2 * group.k
    b = group.strength + group.k - a
    return 4 * a * b / ((a + b) ** 2 * (a + b + 1))


@pytest.mark.parametrize("step", [2, "to_target"])
def test_posterior_allocation_stops_where_one_more_rollout_does_not_pay(step: int | str) -> None:
    rng = np.random.default_rng(3)
    priors, recorded = random_batch(rng, 200, failure_rate=0.1, missing=0.0)
    ends = []
    for schedule in ("rounds", "streaming"):
        groups = bayes_groups(priors, np.random.default_rng(4).uniform(0.2, 20, 200).tolist())
        config = bayes(schedule, step=step, cost=0.01)
        play(groups, recorded, config, seed=1)
        for g in groups:
            pays = posterior_variance_of(g) / (g.k + g.strength + 1) >= config.cost
            assert not pays or g.spent + (config.rollouts_per_ask or 1) > config.k_max
        ends.append([(g.k, g.spent) for g in groups])
    assert ends[0] == ends[1] and len({k for k, _ in ends[0]}) >= 4


def test_posterior_allocation_asks_nothing_before_there_is_a_belief() -> None:
    groups = make_groups([NAN, NAN])
    play(groups, constant([1.0, -1.0]), bayes("streaming"))
    assert column(groups, "k") == [4, 4]


def test_posterior_allocation_goes_by_the_width_of_the_posterior_not_by_disagreement() -> None:
    recorded = {"u0": [1.0, -1.0] * 32, "u1": [1.0] * 64, "u2": [1.0, -1.0] * 32}
    groups = bayes_groups([0.0, 0.9, 0.0], [1.0, 1.0, 100.0])  # wide; agreed; so sure that a rollout tells nothing
    play(groups, recorded, bayes("streaming"))
    k = column(groups, "k")
    assert k[0] > k[1] and k[2] == 4


@pytest.mark.parametrize("step", [1, 2, "to_target"])
@pytest.mark.parametrize("pad", [1, 16])
def test_a_hard_budget_is_spent_to_the_last_rollout_and_never_exceeded(step: int | str, pad: int) -> None:
    rng = np.random.default_rng(5)
    for budget in (40, 41, 97, 160):
        priors, recorded = random_batch(rng, 10, missing=0.0)
        groups = bayes_groups(np.clip(priors, -0.95, 0.95).tolist(), [2.0] * 10)
        play(groups, recorded, bayes("rounds", step=step, cost=0.0, max_rollouts_per_step=budget, pad_multiple=pad))
        # A step of two can leave one that nobody may ask for alone.
        assert budget - (step == 2) * 10 <= sum(column(groups, "spent")) <= budget


def test_a_hard_budget_goes_where_it_lowers_the_variance_most() -> None:
    groups = bayes_groups([0.0, 0.95, 0.0], [1.0, 8.0, 60.0])
    play(groups, constant([-1.0, 1.0, 1.0]), bayes("rounds", step=1, cost=0.0, max_rollouts_per_step=18))
    # Gains of one more at k = 4: (1 - .8^2) / 6^2 = .0100, (1 - .97^2) / 13^2 = .0004, (1 - .06^2) / 65^2 = .0002; the
    # first one's at k = 9: (1 - .9^2) / 11^2 = .0016.
    assert column(groups, "k") == [10, 4, 4]


def test_a_budget_with_a_cost_is_not_spent_for_too_little() -> None:
    groups = bayes_groups([0.9] * 4, [30.0] * 4)
    play(groups, constant([1.0] * 4), bayes("rounds", max_rollouts_per_step=64))
    assert column(groups, "k") == [4] * 4
