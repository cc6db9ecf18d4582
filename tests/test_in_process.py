"""Training in this process, with which the sparse comparison is made."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.training.compare_sparse import lines, rollouts_until, table
from benchmarks.training.in_process import Line, Run, Task
from recipes.demo.make import Settings, make_demo

ROLLOUTS = 16
FIELD = lines(ROLLOUTS)["field"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in_process") / "task"
    settings = Settings(train_size=64, val_size=16, clean_steps=1, mixed_steps=1, never=4, always=3)
    make_demo(path, settings, Console(stderr=True))
    return path


@pytest.fixture(scope="module")
def small_task(folder: Path) -> Task:
    return Task(folder)


def test_problems_are_those_of_the_made_files(folder: Path, small_task: Task) -> None:
    for split, problems in (("train", small_task.train), ("val", small_task.val)):
        written = pd.read_parquet(folder / f"{split}.parquet")["prompt"]
        assert [p.prompt for p in problems] == [messages[0]["content"] for messages in written]


def test_as_many_digits_are_known_never_and_always_as_asked_for(folder: Path) -> None:
    for digits in json.loads((folder / "demo.json").read_text())["competences"].values():
        assert (digits.count(0.0), digits.count(1.0)) == (4, 3) and len(digits) == 10


@pytest.mark.parametrize("name", ["sparse", "GRPO-16", "GRPO-4", "k = 1, plain history (SPO)"])
def test_every_line_spends_its_rollouts_and_repeats_itself(name: str, small_task: Task) -> None:
    line = FIELD[name] if name != "sparse" else lines(ROLLOUTS)["where it comes from"]["history instead of V0"]
    first, second = (list(Run(small_task, line, seed=1).train(2, every=1)) for _ in range(2))
    assert [m.rollouts for m in first] == [0, ROLLOUTS, 2 * ROLLOUTS]
    assert first == second


def test_the_filter_replaces_groups_of_equal_rewards_and_counts_them(small_task: Task) -> None:
    line = Line(ROLLOUTS, group=4, filtered=True)
    run = Run(small_task, line, seed=0)
    scores = iter([0, 0, 0, 0] * 4 + [0, 1, 0, 1] * 4)  # the first batch's groups teach nothing
    run._roll = lambda problems: ([[1]] * len(problems), np.array([next(scores) for _ in problems]))  # type: ignore[method-assign]
    batch = run._grpo()
    assert batch.rollouts == 2 * ROLLOUTS and len(batch.responses) == ROLLOUTS
    np.testing.assert_allclose(np.abs(batch.advantage), np.sqrt(3) / 2, rtol=1e-5)


def test_a_wrong_label_is_never_rewarded(folder: Path) -> None:
    task = Task(folder, wrong_labels=0.25)
    rewarded = [task.score(problem, problem.response) for problem in task.train]
    assert rewarded == [0.0] * 16 + [1.0] * 48 and task.score(task.val[0], task.val[0].response) == 1


def test_what_an_accuracy_cost_is_interpolated() -> None:
    curve = pd.DataFrame({"rollouts": [0, 100, 200], "accuracy": [0.4, 0.6, 0.5], "tokens": [0, 1000, 3000]})
    assert rollouts_until(curve, 0.5) == pytest.approx(50)
    assert rollouts_until(curve, 0.6, "tokens") == pytest.approx(1000)
    assert rollouts_until(curve, 0.4) == 0
    assert np.isinf(rollouts_until(curve, 0.7))


def test_the_table_compares_with_sparse_by_seed() -> None:
    rows = [
        {"line": line, "seed": seed, "rollouts": n, "tokens": 10 * n, "accuracy": end * n / 300 + seed * 0.01}
        for line, end in (("sparse", 0.6), ("GRPO-16", 0.3))
        for seed in range(3)
        for n in (0, 100, 200, 300)
    ]
    found = table(pd.DataFrame(rows), ["sparse", "GRPO-16"], 300).set_index("line")
    assert found.loc["GRPO-16", "difference to sparse"] == "-0.300 [-0.300, -0.300]"
    # GRPO-16 ends at 0.3 + 0.01 on average, which sparse has after 150 rollouts on average over the seeds.
    assert found.loc["sparse", "rollouts until 0.310"].startswith("150 [")
