"""The demo's tasks: what is asked, how it is answered and graded, and what a warmed-up policy knows of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from recipes.demo import calculation
from recipes.demo import task as arithmetic
from recipes.demo.make import SETTINGS, is_made, make_demo
from recipes.demo.policy import build_model, build_tokenizer, sampled_success, success_probabilities
from recipes.demo.reward import compute_score
from recipes.demo.task import TaskProblem, slip, write_parquet

TASKS = {"arithmetic": arithmetic, "calculation": calculation}
TRAIN, VAL = 8192, 256


@pytest.fixture(scope="module")
def splits() -> tuple[list[calculation.Problem], list[calculation.Problem]]:
    return calculation.split_problems(np.random.default_rng(0), TRAIN, VAL)


@pytest.mark.parametrize("name", TASKS)
def test_training_and_validation_prompts_are_distinct(name: str) -> None:
    settings = SETTINGS[name]
    train, val = TASKS[name].split_problems(np.random.default_rng(0), settings.train_size, settings.val_size)
    prompts = [problem.prompt for problem in (*train, *val)]
    assert len(prompts) == len({*prompts}) == settings.train_size + settings.val_size


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_draws_the_same_problems_competences_and_batches(name: str) -> None:
    def drawn(seed: int) -> str:
        rng = np.random.default_rng(seed)
        competences = TASKS[name].draw_competences(rng)
        problems = TASKS[name].split_problems(rng, 64, 64)
        return repr((competences, problems, next(TASKS[name].warm_up_batches(competences, rng, 8))))

    assert drawn(1) == drawn(1) != drawn(2)


def test_levels_have_equal_shares_of_the_calculations(splits: Sequence[Sequence[calculation.Problem]]) -> None:
    for problems in splits:
        counts = Counter(problem.level for problem in problems)
        assert len(counts) == len(calculation.LEVELS) and max(counts.values()) - min(counts.values()) <= 1


def test_a_calculation_is_written_out_from_left_to_right() -> None:
    problem = calculation.Problem("two_steps", 37, (("+", 48), ("-", 15)))
    assert (problem.prompt, problem.response, problem.answer) == ("37+48-15=", "37+48=85,85-15=70,70", 70)
    assert problem.features == {"level": "two_steps", "skills": "+8 -5"}


def test_a_slip_changes_one_result_and_the_calculation_goes_on_from_it() -> None:
    assert [slip(result) for result in (85, 89, 10)] == [86, 80, 11]
    problem = calculation.Problem("two_steps", 37, (("+", 48), ("-", 15)))
    assert problem.response_with([True, False]) == "37+48=86,86-15=71,71"
    assert problem.response_with([False, True]) == "37+48=85,85-15=71,71"


def test_every_slip_makes_the_answer_wrong(splits: Sequence[Sequence[calculation.Problem]]) -> None:
    for problem in splits[1]:
        n = len(problem.steps)
        for code in range(1, 2**n):
            response = problem.response_with([bool(code >> step & 1) for step in range(n)])
            assert score(problem, response) == 0.0


def score(problem: TaskProblem, response: str) -> float:
    return compute_score(problem.data_source, response, str(problem.answer))["score"]


@pytest.mark.parametrize("name", TASKS)
def test_true_responses_are_rewarded_and_fit_the_vocabulary_and_the_training_settings(name: str) -> None:
    tokenizer, settings = build_tokenizer(), SETTINGS[name]
    limits = dict(line.split("=") for line in TASKS[name].TRAINING)
    longest = {
        "prompt": int(limits.get("data.max_prompt_length", 12)),
        "response": int(limits.get("data.max_response_length", 6)),
    }
    for problem in TASKS[name].split_problems(np.random.default_rng(0), settings.train_size, settings.val_size)[1]:
        assert score(problem, problem.response) == 1.0
        ids = tokenizer(problem.prompt + problem.response)["input_ids"]
        assert tokenizer.decode(ids) == problem.prompt + problem.response and len(ids) == len(tokenizer.decode(ids))
        assert len(problem.prompt) <= longest["prompt"] and len(problem.response) < longest["response"]


def test_calculations_have_20_to_80_tokens_and_results_of_two_digits(
    splits: Sequence[Sequence[calculation.Problem]],
) -> None:
    for problem in splits[0]:
        assert 20 <= len(problem.response) <= 80
        assert all(10 <= int(result) <= 99 for result in re.findall(r"=(\d+),", problem.response))


def test_only_what_follows_the_last_comma_of_a_calculation_is_graded() -> None:
    problem = calculation.Problem("two_steps", 37, (("+", 48), ("-", 15)))
    responses = {"70": 1.0, "1=2,70": 1.0, "1=2, 70\n": 1.0, "37+48=85,85-15=70,71": 0.0, "70,": 0.0, "": 0.0}
    assert {response: score(problem, response) for response in responses} == responses
    assert compute_score(arithmetic.DATA_SOURCE, "1,70", "70")["score"] == 0.0


def true_success(problems: Sequence[calculation.Problem], seed: int) -> np.ndarray:
    """What the warm-up aims at."""
    known = calculation.draw_competences(np.random.default_rng(seed))
    return np.array([calculation.aimed_success(problem, known) for problem in problems])


@pytest.mark.parametrize("seed", range(10))
def test_success_rates_cover_the_range_and_fall_with_the_steps(
    seed: int, splits: Sequence[Sequence[calculation.Problem]]
) -> None:
    success = true_success(splits[0], seed)
    counts = np.histogram(success, bins=5, range=(0, 1))[0] / TRAIN
    assert 0.35 < success.mean() < 0.5
    assert (counts > 0.08).all() and (success < 0.1).mean() > 0.03 < (success > 0.8).mean()
    by_steps = pd.Series(success).groupby([len(p.steps) for p in splits[0]]).mean()
    assert by_steps.is_monotonic_decreasing


def test_policies_of_different_seeds_know_different_things(splits: Sequence[Sequence[calculation.Problem]]) -> None:
    known = np.array([true_success(splits[1], seed) for seed in range(10)])
    # Of prompts with the same number of steps: that number makes a prompt hard for every policy.
    steps = np.array([len(p.steps) for p in splits[1]])
    between = [np.corrcoef(known[:, steps == n])[np.triu_indices(10, 1)].mean() for n in (2, 3, 4, 6)]
    assert max(between) < 0.3


def test_slips_of_the_warm_up_are_as_frequent_as_the_competences_ask() -> None:
    competences = {operation: np.full(10, 0.7) for operation in "+-*"}
    batch = next(calculation.warm_up_batches(competences, np.random.default_rng(0), 2000))
    steps = re.findall(r"(\d+)([-+*])(\d+)=(-?\d+),", " ".join(batch.responses))
    apply = arithmetic.OPERATIONS
    right = [apply[operation](int(a), int(b)) == int(result) for a, operation, b, result in steps]
    assert abs(np.mean(right) - 0.7) < 0.02 and batch.weights == [1.0] * 2000


def test_parquet_rows_name_the_task(tmp_path: Path, splits: Sequence[Sequence[calculation.Problem]]) -> None:
    write_parquet(splits[1], "val", tmp_path / "val.parquet")
    table = pd.read_parquet(tmp_path / "val.parquet")
    assert {*table["data_source"]} == {calculation.DATA_SOURCE}
    row, problem = table.iloc[3], splits[1][3]
    assert row["prompt"][0]["content"] == problem.prompt
    assert row["reward_model"]["ground_truth"] == str(problem.answer)
    assert row["extra_info"] == {"split": "val", "index": 3, **problem.features}


def test_sampled_success_agrees_with_the_exact_probabilities() -> None:
    """Of one-character answers, where nothing else is right."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).eval()
    problems = [arithmetic.Problem("add_1_1", f"{left}+0=", left, 0) for left in range(10)]
    with torch.no_grad():  # towards digits that are followed by the end
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids([*"0123456789", "<eos>"])] *= 3
    exact = success_probabilities(model, tokenizer, problems)
    sampled = sampled_success(model, tokenizer, problems, samples=400, max_tokens=4)
    error = np.sqrt(exact * (1 - exact) / 400)
    assert (np.abs(sampled - exact) < 4 * error + 1e-3).all()


def test_a_calculation_demo_is_made_with_its_training_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.demo.make.CHECKED_SAMPLES", 2)
    short = {"train_size": 40, "val_size": 64, "clean_steps": 21, "mixed_steps": 21, "clean_problems_per_step": 2}
    settings = replace(SETTINGS["calculation"], **short, mixed_problems_per_step=2)
    record = make_demo(tmp_path / "task", settings, Console(stderr=True))
    assert (tmp_path / "task" / "overrides.txt").read_text().splitlines() == list(calculation.TRAINING)
    assert record["settings"]["task"] == "calculation" and 1e6 < record["parameters"] < 3e6
    assert len(record["train"]["success_probabilities"]) == record["train"]["prompts"] == 40
    assert (record["sampled"]["prompts"], record["sampled"]["samples"]) == (64, 2)


def test_a_demo_can_start_from_another_ones_policy_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.demo.make.CHECKED_SAMPLES", 1)
    short = {"train_size": 8, "val_size": 8, "clean_steps": 21, "mixed_steps": 21, "mixed_problems_per_step": 1}
    first = replace(SETTINGS["calculation"], **short, clean_problems_per_step=1)
    make_demo(tmp_path / "first", first, Console(stderr=True))
    second = replace(first, seed=1, start=str(tmp_path / "first" / "policy"))
    made = make_demo(tmp_path / "second", second, Console(stderr=True))
    assert made["competences"] != json.loads((tmp_path / "first" / "demo.json").read_text())["competences"]
    assert is_made(tmp_path / "second", second) and not is_made(tmp_path / "second", replace(second, start=None))
