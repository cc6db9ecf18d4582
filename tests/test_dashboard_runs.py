"""Runs read from folders written here: labels, seeds, cost, and logs that are torn, empty or missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from benchmarks.dashboard.methods import ConfigError, styles
from benchmarks.dashboard.runs import (
    MEAN_SOURCE,
    ROLLOUTS,
    SECONDS,
    TOKENS,
    Run,
    RunError,
    read_argument,
    read_run,
    read_runs,
)

K_INIT = "${algorithm.v05.k_init}"
Step = tuple[int, dict[str, float | None]]
STOCK: Sequence[Step] = (
    (0, {"val-core/amc23/acc/mean@16": 0.2}),
    (1, {"timing_s/step": 10.0, "response_length/mean": 100.0}),
    (2, {"timing_s/step": 30.0, "response_length/mean": 50.0, "val-core/amc23/acc/mean@16": 0.6}),
)


def write_run(
    folder: Path,
    estimator: str = "grpo",
    n: int | str = 16,
    prompts: int = 8,
    seed: int | None = 0,
    steps: Sequence[Step] = STOCK,
    v05: Mapping[str, object] | None = None,
    filtered: bool = False,
) -> Path:
    """A run's folder as verl leaves it, with a config that holds interpolations nobody here can resolve."""
    algorithm = {"adv_estimator": estimator, "filter_groups": {"enable": filtered}}
    config = {
        "algorithm": algorithm | ({"v05": dict(v05)} if v05 else {}),
        "data": {"train_batch_size": prompts, "seed": seed},
        "actor_rollout_ref": {"rollout": {"n": n, "tool": "${unknown_resolver:a}"}, "model": {"path": "/models/m-4B"}},
    }
    (folder / "hydra/.hydra").mkdir(parents=True)
    (folder / "hydra/.hydra/config.yaml").write_text(yaml.safe_dump(config))
    lines = [json.dumps({"step": step, "data": data}) for step, data in steps]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def totals(run: Run) -> list[tuple[float, float, float]]:
    """Rollouts, tokens and seconds after each step."""
    return list(run.frame[[ROLLOUTS, TOKENS, SECONDS]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"estimator": "v05", "v05": {"schedule": "streaming"}}, "V0.5 OSLA (streaming)"),
        ({"estimator": "v05", "v05": {"schedule": "rounds"}}, "V0.5 OSLA (rounds)"),
        ({"estimator": "v05", "n": K_INIT, "v05": {"schedule": "fixed", "k_init": 2}}, "V0.5 fixed k=2"),
        ({"estimator": "v05", "n": 4, "v05": {"schedule": "fixed", "fusion": "empirical_bayes"}}, "V0.5 fixed k=4 EB"),
        (
            {
                "estimator": "v05",
                "v05": {
                    "schedule": "rounds",
                    "fusion": "empirical_bayes",
                    "allocation": "posterior",
                    "baseline": "leave_one_out",
                },
            },
            "V0.5 posterior (rounds) EB LOO",
        ),
        ({"n": 16}, "GRPO-16"),
        ({"n": 4}, "GRPO-4"),
        ({"n": 16, "filtered": True}, "DAPO"),
        ({"estimator": "gae", "n": 1}, "PPO"),
        ({"estimator": "rloo", "n": 8}, "RLOO-8"),
    ],
)
def test_the_label_comes_from_the_config(tmp_path: Path, config: dict, label: str) -> None:
    assert read_run(write_run(tmp_path / "run", **config)).method == label


def test_interpolations_are_resolved_only_where_they_are_needed(tmp_path: Path) -> None:
    v05 = {"schedule": "rounds", "k_init": 4}
    run = read_run(write_run(tmp_path / "run", "v05", K_INIT, prompts=32, seed=7, v05=v05))
    assert (run.setup.group, run.setup.prompts, run.seed, run.setup.shown["model"]) == (4, 32, 7, "m-4B")


def test_a_config_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", n="${nowhere.at_all}")
    with pytest.raises(ConfigError, match=r"config\.yaml: actor_rollout_ref\.rollout\.n does not resolve"):
        read_run(folder)


def test_a_stock_log_costs_its_rollouts_and_mean_lengths(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", n=16, prompts=8))
    assert totals(run) == [(0, 0, 0), (128, 12800, 10), (256, 12800 + 6400, 40)]


def test_a_stock_log_also_costs_what_group_filtering_threw_away(tmp_path: Path) -> None:
    names = ("training/filter_groups/evicted_samples", "training/filter_groups/discarded_surplus_samples")
    spent = {"timing_s/step": 1.0, "response_length/mean": 10.0}
    steps = [(1, {**spent, names[0]: 3, names[1]: 1}), (2, spent)]
    run = read_run(write_run(tmp_path / "run", n=4, prompts=8, steps=steps, filtered=True))
    assert totals(run) == [(48, 480, 1), (48 + 32, 480 + 320, 2)]


def test_totals_that_the_run_logged_are_kept(tmp_path: Path) -> None:
    logged = {ROLLOUTS: 1000.0, TOKENS: 77.0, SECONDS: 3.5}
    only_validated = {"val-core/amc23/acc/mean@16": 0.5}
    trained = {"timing_s/step": 10.0, "response_length/mean": 1.0, **logged}
    steps = [(0, only_validated), (1, trained), (2, only_validated)]
    run = read_run(write_run(tmp_path / "run", steps=steps))
    assert totals(run) == [(0, 0, 0), (1000, 77, 3.5), (1000, 77, 3.5)]


def test_v05_without_totals_costs_what_it_says_it_spent(tmp_path: Path) -> None:
    steps = [(1, {"timing_s/step": 1.0, "response_length/mean": 2.0, "v05/rollouts/spent": 50.0})]
    folder = write_run(tmp_path / "run", "v05", 4, steps=steps, v05={"schedule": "streaming"})
    assert totals(read_run(folder)) == [(50, 100, 1)]


def test_lines_of_a_step_are_merged_and_nulls_are_not_values(tmp_path: Path) -> None:
    steps = [(1, {"timing_s/step": 1.0, "actor/entropy": None}), (1, {"val-core/a/b/acc/mean@2": 0.5})]
    run = read_run(write_run(tmp_path / "run", steps=steps))
    assert run.steps == 1 and run.metric("actor/entropy").empty
    assert {source: list(values) for source, values in run.accuracy.items()} == {"a/b": [0.5]}


def test_the_mean_of_benchmarks_is_taken_where_all_were_measured(tmp_path: Path) -> None:
    both = {"val-core/aime24/acc/mean@16": 0.2, "val-core/amc23/acc/mean@16": 0.6}
    steps = [(1, {"timing_s/step": 1.0, **both}), (2, {"timing_s/step": 1.0, "val-core/aime24/acc/mean@16": 0.3})]
    accuracy = read_run(write_run(tmp_path / "run", steps=steps)).accuracy
    assert list(accuracy) == [MEAN_SOURCE, "aime24", "amc23"]
    assert accuracy[MEAN_SOURCE].to_dict() == {1: pytest.approx(0.4)}


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step":3,"data":{"timing_s/st')
    assert read_run(folder).steps == 2


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    path.write_text("oops\n" + path.read_text())
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1 is no line of verl's file logger: 'oops'"):
        read_run(folder)


@pytest.mark.parametrize("content", ["", '{"step":0,"data":{"val-core/amc23/acc/mean@16":0.5}}\n'])
def test_a_log_without_a_training_step_is_named(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text(content)
    with pytest.raises(RunError, match="has no training step yet"):
        read_run(folder)


def test_what_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path) -> None:
    good, bare, silent = (write_run(tmp_path / name) for name in ("good", "bare", "silent"))
    (bare / "hydra/.hydra/config.yaml").unlink()
    (silent / "metrics.jsonl").unlink()
    comparison = read_runs([str(good), str(bare), str(silent)])
    assert [run.name for run in comparison.runs] == ["good"]
    assert [("bare has none of" in why, "metrics.jsonl is missing" in why) for why in comparison.left_out] == [
        (True, False),
        (False, True),
    ]
    with pytest.raises(RunError, match="no run to compare:\n.*bare has none of"):
        read_runs([str(bare)])


def test_labels_and_seeds_of_the_command_line_win(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a=b@3", seed=5)
    plain, named, seeded = (read_argument(prefix + str(folder)) for prefix in ("", "no prior=", "no prior@9="))
    assert [(run.method, run.seed) for run in (plain, named, seeded)] == [
        ("GRPO-16", 5),
        ("no prior", 5),
        ("no prior", 9),
    ]


def test_two_runs_of_a_method_and_seed_are_refused(tmp_path: Path) -> None:
    folders = [str(write_run(tmp_path / name, seed=None)) for name in "ab"]  # stock verl's seed is null
    with pytest.raises(RunError, match=r"2 runs of 'GRPO-16' with seed 0: a, b; tell them apart as LABEL@SEED=DIR"):
        read_runs(folders)
    assert len(read_runs([f"@{seed}={folder}" for seed, folder in enumerate(folders)]).runs) == 2


def test_a_method_looks_the_same_whatever_it_is_compared_with() -> None:
    alone, together = styles(["DAPO"]), styles(["mine", "DAPO", "GRPO-16", "V0.5 fixed k=4", "other"])
    assert alone["DAPO"] == together["DAPO"]
    assert list(together) == ["V0.5 fixed k=4", "GRPO-16", "DAPO", "mine", "other"]
    assert len({style.colour for style in together.values()}) == 5
