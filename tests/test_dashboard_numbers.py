"""Tables and lines of runs whose numbers are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.dashboard.figures import band, shares, spread_apart
from benchmarks.dashboard.method_tables import (
    accuracy_at,
    benchmark_tables,
    common_budget,
    headline_tables,
    interval,
    summary,
)
from benchmarks.dashboard.panels import AXES, GROUP_SIZES
from benchmarks.dashboard.runs import ROLLOUTS, TOKENS, Comparison, read_run, read_runs
from tests.test_dashboard_runs import Step, write_run

ACC = "val-core/amc23/acc/mean@16"


def steps(before: float, after: float, length: float = 10.0, norms: tuple[float, float] = (1.0, 3.0)) -> list[Step]:
    """Two steps of 10 and 30 seconds, validated before and after."""
    spent = {"response_length/mean": length, "actor/entropy": 0.25}
    return [
        (0, {ACC: before}),
        (1, {"timing_s/step": 10.0, "actor/grad_norm": norms[0], **spent}),
        (2, {"timing_s/step": 30.0, "actor/grad_norm": norms[1], ACC: after, **spent}),
    ]


def two_methods(tmp_path: Path, seeds: int = 3) -> Comparison:
    """GRPO-4 spends 64 rollouts in two steps, GRPO-16 twice that and has shorter responses."""
    folders = []
    for seed, (small, large) in enumerate([(0.5, 0.6), (0.6, 0.6), (0.7, 0.9)][:seeds]):
        folders.append(write_run(tmp_path / f"small_{seed}", n=4, seed=seed, steps=steps(0.2, small)))
        large_steps = steps(0.2, large, length=2.0)
        folders.append(write_run(tmp_path / f"large_{seed}", n=16, prompts=4, seed=seed, steps=large_steps))
    return read_runs([str(folder) for folder in folders])


def row(table: pd.DataFrame, method: str, measure: str) -> pd.Series:
    return table[(table["method"] == method) & (table["measure"] == measure)].iloc[0]


def test_accuracy_at_a_cost_lies_between_the_validations_around_it(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", n=4, prompts=8, steps=steps(0.2, 0.6)))  # 64 rollouts at the end
    assert accuracy_at(run, "amc23", ROLLOUTS, 16) == pytest.approx(0.3)
    assert accuracy_at(run, "amc23", ROLLOUTS, 64) == pytest.approx(0.6)
    assert math.isnan(accuracy_at(run, "aime24", ROLLOUTS, 16))
    late = read_run(write_run(tmp_path / "late", n=4, prompts=8, steps=steps(0.2, 0.6)[1:]))
    assert math.isnan(accuracy_at(late, "amc23", ROLLOUTS, 16))  # first validated after 64


def test_the_common_budget_ends_at_the_first_last_validation(tmp_path: Path) -> None:
    unvalidated = (3, {"timing_s/step": 10.0, "response_length/mean": 10.0})
    long = write_run(tmp_path / "long", n=4, prompts=8, steps=[*steps(0.2, 0.6), unvalidated])
    large = write_run(tmp_path / "large", n=16, prompts=8, steps=steps(0.2, 0.6, length=1.0))
    runs = read_runs([str(long), str(large)]).runs
    assert common_budget(runs, ROLLOUTS) == 64  # not the 96 of the third step
    assert common_budget(runs, TOKENS) == 256


def test_summary_over_seeds_by_hand(tmp_path: Path) -> None:
    table = summary(two_methods(tmp_path), "GRPO-16")
    after = row(table, "GRPO-4", "after training")
    assert (after["seeds"], after["mean"], after["sd"]) == (3, pytest.approx(0.6), pytest.approx(0.1))
    # Paired differences -0.1, 0, -0.2: mean -0.1, sd 0.1, t(0.975, 2) = 4.302653.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (after["difference"], after["low"], after["high"]) == pytest.approx((-0.1, -0.1 - half, -0.1 + half))
    # GRPO-16 is half way between 0.2 and 0.6, 0.6, 0.9 at GRPO-4's 64 rollouts; 256 tokens, all of GRPO-16's, are 0.4
    # of GRPO-4's way.
    assert row(table, "GRPO-16", "at 64 rollouts")["mean"] == pytest.approx(0.2 + 0.5 * (0.4 + 0.4 + 0.7) / 3)
    assert row(table, "GRPO-4", "at 256 response tokens")["mean"] == pytest.approx(0.2 + 0.4 * (0.3 + 0.4 + 0.5) / 3)
    costs = {name: row(table, "GRPO-16", name)["mean"] for name in ("rollouts", "response tokens", "steps")}
    assert costs == {"rollouts": 128, "response tokens": 256, "steps": 2}
    assert row(table, "GRPO-16", "seconds a step (median)")["mean"] == 20
    assert row(table, "GRPO-16", "gradient norm, mean over steps")["mean"] == 2
    assert row(table, "GRPO-16", "gradient norm, sd over steps")["mean"] == pytest.approx(math.sqrt(2))
    assert row(table, "GRPO-16", "entropy at the end")["mean"] == 0.25
    assert math.isnan(row(table, "GRPO-16", "after training")["difference"])


def test_tables_show_mean_and_spread(tmp_path: Path) -> None:
    found = dict(headline_tables(two_methods(tmp_path), "GRPO-16"))
    accuracy = found["Validation accuracy: amc23"].set_index("method")
    assert list(accuracy) == ["before training", "after training", "at 64 rollouts", "at 256 response tokens"]
    assert accuracy.loc["GRPO-4", "after training"] == "0.600 ± 0.100"
    difference = found["Difference to GRPO-16: amc23"].set_index("method")
    assert list(difference.index) == ["GRPO-4"]
    assert difference.loc["GRPO-4", "after training"] == "-0.100 [-0.348, +0.148]"
    assert found["Cost and stability"].set_index("method").loc["GRPO-4", ["seeds", "rollouts"]].to_list() == [
        3,
        "64 ± 0",
    ]


def test_two_seeds_have_a_difference_but_no_interval(tmp_path: Path) -> None:
    found = dict(headline_tables(two_methods(tmp_path, seeds=2), "GRPO-16"))
    assert found["Difference to GRPO-16: amc23"]["after training"].to_list() == ["-0.050"]


def test_one_seed_has_no_spread_and_no_reference_no_differences(tmp_path: Path) -> None:
    found = dict(headline_tables(two_methods(tmp_path, seeds=1), None))
    assert list(found) == ["Validation accuracy: amc23", "Cost and stability"]
    assert found["Validation accuracy: amc23"]["after training"].to_list() == ["0.500", "0.600"]


def test_a_benchmark_that_a_method_lacks_is_a_dash(tmp_path: Path) -> None:
    both = [
        (step, {**data, "val-core/aime24/acc/mean@16": 0.1} if ACC in data else data) for step, data in steps(0.2, 0.6)
    ]
    folders = [write_run(tmp_path / "both", n=4, steps=both), write_run(tmp_path / "one", n=16)]
    found = dict(benchmark_tables(read_runs([str(folder) for folder in folders]), None))
    after = found["Validation accuracy after training"].set_index("method")
    assert after.loc["GRPO-4"].to_dict() == {"mean of benchmarks": "0.350", "amc23": "0.600", "aime24": "0.100"}
    assert after.loc["GRPO-16", ["amc23", "aime24"]].to_list() == ["0.600", "-"]


def test_pairs_without_a_value_do_not_count() -> None:
    assert interval([1.0, math.nan, 3.0]) == (
        2.0,
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(math.nan, nan_ok=True),
    )
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert all(map(math.isnan, interval([])))


def test_a_band_covers_the_steps_that_all_seeds_have() -> None:
    first = pd.DataFrame({"x": [0.0, 10.0, 20.0], "y": [1.0, 2.0, 3.0]}, index=[0, 5, 10])
    second = pd.DataFrame({"x": [0.0, 30.0], "y": [3.0, 2.0]}, index=[0, 5])
    found = band([first, second])
    assert list(found.index) == [0, 20] and found["mean"].to_list() == [2, 2]
    assert found["sd"].to_list() == pytest.approx([math.sqrt(2), 0])
    assert band([first])["sd"].isna().all()


def test_shares_are_of_the_steps_prompts_and_leave_out_sizes_that_never_occur(tmp_path: Path) -> None:
    counts = [{4: 3, 10: 1, 6: 0}, {4: 1, 10: 3, 6: 0}]
    folders = [
        write_run(
            tmp_path / str(seed),
            seed=seed,
            steps=[(1, {"timing_s/step": 1.0, **{f"v05/k/prompts_with_{k}": n for k, n in count.items()}})],
        )
        for seed, count in enumerate(counts)
    ]
    found = shares(read_runs([str(folder) for folder in folders]).runs, GROUP_SIZES)
    assert found.to_dict("index") == {1: {"4": 0.5, "10": 0.5}}


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([0.1, 0.5], [0.1, 0.5]),
        ([0.5, 0.5, 0.52], [0.5, 0.6, 0.7]),
        ([0.94, 0.95, 1.0], [0.8, 0.9, 1.0]),
    ],
)
def test_labels_that_would_touch_are_pushed_apart(wanted: list[float], placed: list[float]) -> None:
    np.testing.assert_allclose(spread_apart(wanted, gap=0.1), placed)


def test_time_is_shown_in_minutes_until_a_run_took_two_hours() -> None:
    steps_axis, *_, time = AXES
    assert (time.readable(7199).unit, time.readable(7200).unit) == (60, 3600)
    assert steps_axis.readable(7200) == steps_axis
