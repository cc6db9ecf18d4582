"""The simulated rollout phase: by hand on one engine, conservation, barriers, what is and is not true of streaming."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.schedules import ScheduleError, validate
from benchmarks.schedules.__main__ import main
from benchmarks.schedules.cluster import Cluster
from benchmarks.schedules.compared_schedules import LINES, REFERENCE, SCALED, compare
from benchmarks.schedules.decisions import Decisions
from benchmarks.schedules.lengths import Lengths, load_lengths, published
from benchmarks.schedules.measures import busy, measures
from benchmarks.schedules.simulated_engine import MEASURED, Engine, Speed, fit_step
from benchmarks.schedules.simulation import Fleet, Run, at_once, play, simulate
from benchmarks.schedules.training_step import Setting, Step
from benchmarks.schedules.workload import Rates, Workload, draw_workload, fit_rates
from verl_v05.settings import V05Settings

FLAT = Speed(base=1.0, each=0.0, prefill=0.0, slots=10**6)  # a token a second, whoever else runs


def run_engine(speed: Speed, arrivals: list[tuple[float, int]]) -> tuple[dict[int, float], dict[int, float]]:
    """(request -> admitted, request -> finished) of requests (time, tokens) at one engine."""
    admitted: dict[int, float] = {}
    engine, finished = Engine(speed, admitted), {}
    for request, (now, tokens) in enumerate([*arrivals, (math.inf, 0)]):
        while (time := engine.next_finish()) < now:
            finished |= dict.fromkeys(engine.finish(), time)
        if tokens:
            engine.submit(now, request, tokens)
    return admitted, finished


def workload(rate: float | list[float], tokens: list[list[int]], probability: list[float] | None = None) -> Workload:
    """Prompts whose every rollout is right (rate 1) or wrong (rate 0), with these lengths."""
    lengths = np.array(tokens)
    rates = np.broadcast_to(rate, len(lengths))
    prior = np.full(len(lengths), 0.5) if probability is None else np.array(probability)
    return Workload(prior, np.repeat(rates[:, None] > 0, lengths.shape[1], axis=1), lengths)


def random_workload(seed: int, prompts: int = 12, noise: float = 2.0) -> Workload:
    lengths = Lengths("", np.array([1.0, 20.0]), np.array([5.0, 64.0]), longest=64, within_prompt=0.3)
    return draw_workload(prompts, 16, Rates(0.46, 0.37), lengths, noise, seed)


def settings(schedule: str, **changes: object) -> V05Settings:
    return V05Settings(schedule=schedule, **{"halt_share": 0.0, "pad_multiple": 1, **changes})


def run(
    work: Workload, config: V05Settings, speed: Speed = FLAT, engines: int = 1, grading: float = 0.0, seed: int = 0
) -> Run:
    return simulate(work, config, Fleet(speed, engines, grading), work, seed)


def test_the_first_token_is_the_prefills_and_the_others_take_a_step_each():
    assert run_engine(Speed(2.0, 0.5, 3.0, slots=4), [(1.0, 1), (20.0, 4)])[1] == {0: 4.0, 1: 23.0 + 3 * 2.5}


def test_two_requests_share_their_steps_and_the_rest_is_decoded_alone():
    # Steps of 2 take 1 + 2 * 0.5 = 2 s: 2 of them for 3 tokens; then 2 steps of 1.5 s.
    _, finished = run_engine(Speed(1.0, 0.5, 0.0, slots=4), [(0.0, 3), (0.0, 5)])
    assert finished == {0: 4.0, 1: 4.0 + 2 * 1.5}


def test_who_comes_during_a_step_is_admitted_at_its_end_and_stops_the_others_for_its_prefill():
    # Prefilled until 0.25, then alone: steps end at 1.75 and 3.25; there the second is prefilled, until 3.5.
    admitted, finished = run_engine(Speed(1.0, 0.5, 0.25, slots=4), [(0.0, 5), (2.0, 3)])
    assert admitted == {0: 0.0, 1: 3.25}
    assert finished == {0: 3.5 + 2 * 2.0, 1: 3.5 + 2 * 2.0}


def test_beyond_its_slots_an_engine_makes_requests_wait_in_order():
    # One slot, 1 s a step: 3 tokens, then 2, then 4.
    admitted, finished = run_engine(Speed(1.0, 0.0, 0.0, slots=1), [(0.0, 4), (0.0, 3), (0.5, 5)])
    assert admitted == {0: 0.0, 1: 3.0, 2: 5.0}
    assert finished == {0: 3.0, 1: 5.0, 2: 9.0}


def test_requests_go_to_the_engine_with_the_fewest_in_flight():
    cluster = Cluster(Speed(1.0, 0.0, 0.0, slots=1), engines=3, seed=0)
    for request, tokens in enumerate([11, 21, 31]):
        cluster.submit(0.0, request, tokens)
    assert cluster.admitted == {0: 0.0, 1: 0.0, 2: 0.0}
    assert (cluster.next_finish(), cluster.finish()) == (10.0, [0])
    cluster.submit(10.0, 3, 5)
    assert cluster.admitted[3] == 10.0


def test_ties_of_the_balancer_are_broken_at_random():
    def order(seed: int) -> list[int]:
        cluster = Cluster(Speed(1.0, 0.0, 0.0, slots=1), engines=8, seed=seed)
        for request in range(16):
            cluster.submit(0.0, request, 1 + request)
        return [request for _ in range(16) for request in cluster.finish()]

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_every_request_of_many_finishes_once():
    cluster = Cluster(Speed(1.0, 0.0, 0.0, slots=2), engines=4, seed=0)
    rng = np.random.default_rng(0)
    now, sent, done = 0.0, 0, 0
    while done < 2000:
        if sent < 2000 and sent - done < 24:
            cluster.submit(now, sent, int(rng.integers(1, 20)))
            sent += 1
            assert sum(cluster._in_flight) == sent - done
        else:
            now = cluster.next_finish()
            done += len(cluster.finish())
    assert cluster.next_finish() == math.inf and cluster._in_flight == [0] * 4


def test_a_group_that_its_prior_predicts_is_complete_after_the_first_rollouts():
    work = workload(1, [[3, 5, 4, 6] + [9] * 12], probability=[0.999])
    result = run(work, settings("streaming"), grading=0.5)
    assert result.tokens.tolist() == [3, 5, 4, 6]
    assert result.makespan == 5.5  # 6 tokens are 5 steps


def test_rounds_wait_for_every_group_and_streaming_does_not():
    # Prompt 0 contradicts its prior and asks; prompt 1 agrees, and takes long.
    long = workload([0, 1], [[2] * 16, [101] * 16], probability=[0.999, 0.999])
    to_target = {"step": "to_target", "k_max": 6}
    rounds, streaming = (run(long, settings(s, **to_target)) for s in ("rounds", "streaming"))
    assert rounds.rollouts(2).tolist() == streaming.rollouts(2).tolist() == [6, 4]
    assert streaming.makespan == 100.0
    assert streaming.admitted[8:].tolist() == [1.0, 1.0]
    assert rounds.admitted[8:].tolist() == [100.0, 100.0]
    assert rounds.makespan == 101.0


def test_step_to_target_asks_once_where_step_2_asks_again_and_again():
    work = workload(0, [[11] * 16], probability=[0.999])
    twos, once = (run(work, settings("streaming", step=step)) for step in (2, "to_target"))
    assert len(np.unique(twos.admitted)) == 7  # 4, then six times 2
    assert len(np.unique(once.admitted)) < 7
    assert twos.makespan == 70.0


def test_halting_leaves_every_group_at_its_first_rollouts():
    work = random_workload(0)
    halted = run(work, settings("rounds", halt_share=1.0))
    assert (halted.rollouts(12) == 4).all()


@pytest.mark.parametrize("name", LINES)
def test_nothing_is_lost_or_made_twice(name):
    work = LINES[name].of(random_workload(3, prompts=40))
    config = V05Settings(**LINES[name].settings)
    result = run(work, config, Speed(1.0, 0.1, 0.2, slots=8), engines=3, grading=1.5)
    counts = result.rollouts(len(work.tokens))
    expected = Counter((p, s) for p, count in enumerate(counts.tolist()) for s in range(count))
    assert Counter(zip(result.prompt.tolist(), result.session.tolist(), strict=True)) == expected
    assert (counts >= config.k_init).all() and (counts <= config.k_max).all()
    assert result.tokens.sum() == sum(work.tokens[p, :count].sum() for p, count in enumerate(counts))
    least = (result.tokens - 1) * result.fleet.speed.step(1) + 0.2  # prefill
    assert (result.finished - result.admitted >= least - 1e-9).all()
    assert result.makespan == pytest.approx(result.finished.max() + 1.5)
    assert busy(result)[1].max() <= 3 * 8 and busy(result)[1][-1] == 0


@pytest.mark.parametrize("schedule", ["fixed", "rounds", "streaming"])
def test_a_run_is_determined_by_its_seeds(schedule):
    speed = Speed(1.0, 0.1, 0.2, slots=8)
    first, second = (run(random_workload(5), settings(schedule), speed, engines=3, seed=1) for _ in range(2))
    assert first.finished.tolist() == second.finished.tolist()
    assert random_workload(5).tokens.tolist() != random_workload(6).tokens.tolist()


def test_streaming_is_never_slower_than_rounds_where_rollouts_do_not_slow_each_other():
    """With a slot for everybody and steps that cost the same, each group starts each dispatch no later."""
    faster = 0
    for seed in range(40):
        work = random_workload(seed)
        rounds, streaming = (run(work, settings(s, step="to_target")) for s in ("rounds", "streaming"))
        assert rounds.rollouts(12).tolist() == streaming.rollouts(12).tolist()
        assert streaming.makespan <= rounds.makespan
        faster += streaming.makespan < rounds.makespan
    assert faster > 10


def test_streaming_can_be_slower_than_rounds_where_rollouts_queue():
    """Not a theorem on real engines: the order in which work reaches a queue may be worse without the barrier."""
    speed = Speed(base=1.0, each=0.05, prefill=0.0, slots=4)
    pairs = [
        [run(random_workload(seed), settings(s, step="to_target"), speed, engines=2) for s in ("rounds", "streaming")]
        for seed in range(40)
    ]
    assert all((a.rollouts(12) == b.rollouts(12)).all() for a, b in pairs)
    ratios = np.array([streaming.makespan / rounds.makespan for rounds, streaming in pairs])
    assert (ratios > 1).any()
    assert ratios.mean() < 1


def test_the_same_rollouts_at_once_are_the_same_rollouts():
    work = random_workload(1)
    asked = run(work, settings("streaming"))
    same = at_once(work, asked.rollouts(12), asked.fleet, seed=0)
    assert sorted(zip(same.prompt, same.session, strict=True)) == sorted(zip(asked.prompt, asked.session, strict=True))
    assert same.makespan == asked.tokens.max() - 1
    assert asked.makespan > same.makespan


def test_measures_of_a_run_by_hand():
    # Ten slots; one request of 10 s, nine of 1 s; 2 s of grading.
    work = workload(1, [[11] + [2] * 9])
    result = play(work, np.array([10]), lambda *_: {0: 0}, Fleet(Speed(1.0, 0.0, 0.0, 10), 1, 2.0), seed=0)
    found = measures(result)
    assert found["makespan"] == 12.0 and found["rollouts"] == 10 and found["tokens"] == 29
    assert found["slots"] == pytest.approx((10 + 9) / 120)
    assert found["rate"] == pytest.approx(29 / 120)
    assert found["idle"] == pytest.approx(2 / 12)  # one of ten is not under a tenth
    assert found["tail"] == pytest.approx(1 - np.quantile([1] * 9 + [10], 0.95) / 12)


def test_ratios_are_over_the_reference_and_over_the_same_rollouts_at_once():
    work = random_workload(2)
    table, runs = compare(work, work, Fleet(FLAT, 1, 0.0), ["fixed 4", REFERENCE, "streaming, step 2"], seed=0)
    assert table.loc["fixed 4", "rollouts_ratio"] == 0.25
    assert table.loc[REFERENCE, ["makespan_ratio", "tokens_ratio", "over_at_once"]].tolist() == [1, 1, 1]
    streaming = runs["streaming, step 2"]
    assert table.loc["streaming, step 2", "over_at_once"] == streaming.makespan / (streaming.tokens.max() - 1)


def test_lengths_follow_the_quantiles_of_their_outcome_and_correlate_within_a_prompt():
    lengths = Lengths("", np.array([0.0, 100.0]), np.array([100.0, 300.0]), longest=250, within_prompt=0.6)
    correct = np.zeros((20_000, 2), bool)
    correct[:10_000] = True
    tokens = lengths.draw(correct, np.random.default_rng(0))
    assert tokens[:10_000].min() == 1 and tokens[:10_000].max() <= 100 and tokens.max() == 250
    assert np.median(tokens[:10_000]) == pytest.approx(50, abs=2)
    assert (tokens[10_000:] == 250).mean() == pytest.approx(0.25, abs=0.02)
    # Correlation 0.6 of normal scores is 6 / pi * asin(0.3) of ranks.
    assert np.corrcoef(tokens[:10_000].T)[0, 1] == pytest.approx(6 / math.pi * math.asin(0.3), abs=0.02)


def test_shipped_lengths_have_their_sources_and_longer_wrong_responses():
    for name in published():
        lengths = load_lengths(name, longest=16384, within_prompt=0.0)
        assert "https://" in lengths.source
        assert (np.diff(lengths.correct) >= 0).all() and (np.diff(lengths.wrong) >= 0).all()
        assert (lengths.wrong >= lengths.correct).mean() > 0.9


def test_own_lengths_are_read_from_a_table(tmp_path: Path):
    path = tmp_path / "own.csv"
    pd.DataFrame({"tokens": [10, 20, 30, 40], "correct": [1, 1, 0, 0]}).to_csv(path, index=False)
    own = load_lengths(str(path), longest=35, within_prompt=0.0)
    assert (own.correct[[0, -1]].tolist(), own.wrong[[0, -1]].tolist()) == ([10, 20], [30, 40])
    assert own.draw(np.zeros((50, 1), bool), np.random.default_rng(0)).max() <= 35


def test_lengths_that_cannot_be_read_are_refused_by_name(tmp_path: Path):
    with pytest.raises(ScheduleError, match="--lengths=nowhere.csv: no such file, nor one of sky-t1-math500"):
        load_lengths("nowhere.csv", 4096, 0.0)
    path = tmp_path / "bad.csv"
    path.write_text("length\n3\n")
    with pytest.raises(ScheduleError, match="needs rows with a column 'tokens', has \\['length'\\]"):
        load_lengths(str(path), 4096, 0.0)
    path.write_text("tokens,correct\n3,1\n")
    with pytest.raises(ScheduleError, match="both kinds"):
        load_lengths(str(path), 4096, 0.0)


def test_step_times_are_fitted_within_a_tenth_of_every_measurement():
    measured = pd.read_csv(MEASURED, comment="#")
    for row in measured.itertuples():
        base, each = fit_step(row.context)
        assert 1000 * (base + each * row.running) == pytest.approx(row.median_ms, rel=0.1)


def test_fitted_rates_recover_the_beta_that_made_the_counts():
    rng = np.random.default_rng(0)
    successes = rng.binomial(10, rng.beta(0.5, 1.5, 20_000))
    assert fit_rates(successes) == pytest.approx((0.5, 1.5), rel=0.05)


def test_rates_given_measured_prompts_are_their_posterior():
    drawn = Rates(1.0, 1.0, np.array([10])).draw(20_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(11 / 12, abs=0.002)


def test_noise_of_the_prior_lowers_its_auc():
    exact, noisy = (random_workload(0, prompts=2000, noise=n).prior_auc for n in (0.0, 2.0))
    assert exact[0] > noisy[0] + 0.05 and exact[1] > noisy[1] + 0.05 and noisy[1] > 0.8


def test_tensor_parallelism_trades_engines_for_faster_ones():
    lengths = load_lengths("qwen3-8b-gpqa", longest=16384, within_prompt=0.4)
    one, two = (Step(lengths, Rates(0.46, 0.37), Setting(tp=tp)) for tp in (1, 2))
    assert two.speed.slots == 2 * one.speed.slots
    assert two.speed.base == one.speed.base / 2
    assert one.speed.slots == int(415_000 / one.context)  # the cache is the limit, not max_running


class FakeSglang:
    """Answers after a moment that grows with the response."""

    def __init__(self):
        self.engine = self
        self.tokens: list[int] = []

    async def async_generate(self, input_ids: list[int], sampling_params: dict) -> dict:
        tokens = sampling_params["max_new_tokens"]
        await asyncio.sleep(tokens * 1e-5)
        self.tokens.append(tokens)
        return {"meta_info": {"completion_tokens": tokens}}


@pytest.mark.parametrize("schedule", ["rounds", "streaming"])
def test_the_validation_makes_a_real_engine_generate_the_rollouts_that_are_simulated(schedule):
    work, config, engine = random_workload(4), settings(schedule), FakeSglang()
    settled = Decisions(work, config, work).settled
    seconds, rollouts = asyncio.run(validate.play(engine, work, np.zeros((12, 4), int), config.k_init, settled))
    simulated = run(work, config)
    assert sorted(engine.tokens) == sorted(simulated.tokens.tolist())
    assert rollouts == len(simulated.tokens) > 48 and seconds > 0


def test_the_command_writes_tables_and_figures_for_every_line(tmp_path: Path):
    options = "--prompts 24 --gpus 1 --gpus-shown 2 --prompts-per-gpu 8 --seeds 0 1 --out"
    main([*options.split(), str(tmp_path)])
    page = (tmp_path / "README.md").read_text()
    assert all(page.count(f"| {name} ") == (6 if name in SCALED else 2) for name in LINES)
    assert re.search(r"\| fixed 4 +\| 0\.\d\d ± 0\.\d\d \|", page)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "busy.png", "makespan.png"}


def test_the_command_refuses_unknown_lengths(tmp_path: Path):
    with pytest.raises(SystemExit, match="schedules: --lengths=none: no such file"):
        main(["--lengths", "none", "--out", str(tmp_path)])
