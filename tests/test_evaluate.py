"""Evaluation of predictors: contexts, tables, paired differences and the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from value_model import ValueModel
from value_model import evaluate as command
from value_model.evaluation import metrics
from value_model.evaluation.baselines import GlobalMean, Predictor
from value_model.evaluation.predictions import Predictions, ValueModelPredictor, predict_all
from value_model.evaluation.summary import METRICS, bootstrap, differences, evaluate, summary
from value_model.evaluation.tasks import EvalTask, read_tasks, tasks_from
from value_model.trajectories import read_trajectories, split_by_prompt, write_splits

pytest_plugins = ["tests.tiny_value_model"]

FRACTIONS = {"train": 0.7, "validation": 0.3}


def table(prompts: int = 60, models: Sequence[str] = ("a", "b"), steps: int = 3, seed: int = 0) -> pd.DataFrame:
    """Prompts of a difficulty that their text states, so that a test's predictor can know the truth."""
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0, 1, prompts).round(4)
    keys = [(m, s, i) for m in models for s in range(1, steps + 1) for i in range(prompts)]
    rows = pd.DataFrame(keys, columns=["model", "step", "i"])
    text = pd.Series([f"prompt {i} of rate {r}" for i, r in enumerate(rate)])
    rows["prompt_id"], rows["prompt"] = "id" + rows["i"].astype(str), rows["i"].map(text)
    score = 2 * rng.binomial(4, rate[rows["i"]]) / 4 - 1
    return rows.assign(data_source="s", score=score, n=4).drop(columns="i")


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    frames = split_by_prompt(rows, FRACTIONS, seed=0)
    return frames["train"], frames["validation"]


def rate_in(prompt: str) -> float:
    return float(prompt.rsplit(" ", 1)[1])


class Oracle(Predictor):
    """The test's predictor that reads the true rate off the text."""

    name = "oracle"

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        return queries["prompt"].map(rate_in).to_numpy()


class Constant(Predictor):
    """The test's predictor of one value, or of whatever is wrong with it."""

    def __init__(self, answer: object, name: str = "constant"):
        self.answer = answer
        self.name = name

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        return self.answer if isinstance(self.answer, np.ndarray) else np.full(len(queries), self.answer)


class OracleModel:
    """The test's value model, with the interface of the real one."""

    def predict(self, context_prompts: list[str], context_scores: np.ndarray, prompts: list[str]) -> np.ndarray:
        assert len(context_prompts) == len(context_scores)
        return np.array([rate_in(prompt) for prompt in prompts])

    def features(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 2 * rate_in(prompt) - 1] for prompt in prompts])


def test_a_task_for_each_group_with_contexts_of_other_prompts() -> None:
    train, held_out = split(table())
    tasks = tasks_from(train, held_out, context_size=20, seed=0)
    assert [(t.model, t.step) for t in tasks] == [(m, s) for m in "ab" for s in (1, 2, 3)]
    for task in tasks:
        assert len(task.context) == task.context["prompt_id"].nunique() == 20
        for frame in (task.context, task.queries):
            assert set(frame["model"]) == {task.model} and set(frame["step"]) == {task.step}
        assert not set(task.context["prompt"]) & set(task.queries["prompt"])
        assert 0 < metrics.hard_label(task.context["score"]).mean() < 1
    assert sum(len(t.queries) for t in tasks) == len(held_out)


def test_contexts_are_of_the_seed_and_the_group_alone() -> None:
    train, held_out = split(table())
    one, again, other = (tasks_from(train, held_out, 20, seed) for seed in (0, 0, 1))
    alone = tasks_from(train, held_out[held_out["model"] == "b"], 20, 0)
    ids = [[tuple(t.context["prompt_id"]) for t in tasks] for tasks in (one, again, other, alone)]
    assert ids[0] == ids[1] != ids[2] and ids[0][3:] == ids[3]
    assert len(set(ids[0])) == 6


def test_a_small_step_is_topped_up_from_the_newest_earlier_steps() -> None:
    train, held_out = split(table(models=("a",), steps=4))
    own = train["prompt_id"].nunique()
    small = train[(train["step"] < 3) | (train.groupby("step").cumcount() < 5)]  # five rows in steps 3 and 4
    tasks = tasks_from(small, held_out, context_size=own, seed=0)
    steps = [task.context["step"].value_counts().to_dict() for task in tasks]
    assert steps == [{1: own}, {2: own}, {3: 5, 2: own - 5}, {4: 5, 2: own - 5}]
    assert all(task.context["prompt_id"].is_unique for task in tasks)
    assert [len(t.context) for t in tasks_from(train, held_out, context_size=10_000, seed=0)] == [own] * 4


def test_a_rare_class_is_always_in_the_context() -> None:
    train, held_out = split(table())
    train = train.assign(score=np.where(train["prompt_id"] == train["prompt_id"].iloc[0], 1.0, -1.0))
    for seed in range(10):
        for task in tasks_from(train, held_out, 3, seed):
            assert metrics.hard_label(task.context["score"]).sum() == 1


def test_groups_without_both_classes_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    train, held_out = split(table())
    failing = train.assign(score=np.where(train["model"] == "a", -1.0, train["score"]))
    assert {t.model for t in tasks_from(failing, held_out, 10, 0)} == {"b"}
    assert "('a', 1)" in caplog.text
    with pytest.raises(ValueError, match="both classes"):
        tasks_from(train.assign(score=1.0), held_out, 10, 0)


def test_a_prompt_on_both_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="are in train and in held_out"):
        tasks_from(table(), table(), 10, 0)


def test_the_table_holds_every_metric_with_its_interval() -> None:
    tasks = tasks_from(*split(table(200)), 50, 0)
    result = evaluate([Oracle(), GlobalMean(), Constant(1.0)], tasks, draws=100)
    assert result.index.tolist() == ["oracle", "global mean", "constant"]
    queries = pd.concat([t.queries for t in tasks])
    p = queries["prompt"].map(rate_in)
    group = queries["model"] + queries["step"].astype(str)
    oracle = result.loc["oracle"]
    assert oracle["auc"] == pytest.approx(metrics.auc(queries["score"] >= 0, p))
    assert oracle["grouped_auc"] == pytest.approx(metrics.grouped_auc(queries["score"] >= 0, p, group))
    assert oracle["pair_accuracy"] == pytest.approx(metrics.pair_accuracy(queries["score"], p, group))
    assert oracle["value_mse"] == pytest.approx(np.mean((2 * p - 1 - queries["score"]) ** 2))
    assert oracle["value_mse_unbiased_low"] <= 0 <= oracle["value_mse_unbiased_high"]  # it knows the truth
    assert result.loc["constant", "brier"] == pytest.approx(np.mean((1 - queries["score"]) ** 2 / 4))
    for name in METRICS:
        assert (result[f"{name}_low"] <= result[name] + 0.03).all(), name
        assert (result[name] <= result[f"{name}_high"] + 0.03).all(), name
    assert (result["seconds_per_query"] > 0).all()
    assert (result["auc"] > 0.8).tolist() == [True, False, False]


def test_differences_are_paired() -> None:
    """A predictor and its slightly worse copy: the intervals of both overlap, that of the difference is off zero."""
    predictions = predict_all([Oracle(), Constant(0.5)], tasks_from(*split(table(100)), 30, 0))
    worse = (predictions.p["oracle"] * 0.9 + 0.02).rename("worse")
    predictions = Predictions(predictions.queries, predictions.p.assign(worse=worse), {})
    draws = bootstrap(predictions, draws=200)
    each = summary(predictions, draws)
    gaps = differences(predictions, draws, "oracle")
    assert gaps.index.tolist() == ["constant", "worse"]
    assert each.loc["worse", "brier_low"] < each.loc["oracle", "brier_high"]
    assert 0 < gaps.loc["worse", "brier_low"] <= gaps.loc["worse", "brier"] <= gaps.loc["worse", "brier_high"]
    assert gaps.loc["worse", ["auc", "auc_low", "auc_high"]].tolist() == [0, 0, 0]
    assert gaps.loc["constant", "auc"] == pytest.approx(0.5 - each.loc["oracle", "auc"])
    with pytest.raises(ValueError, match=r"reference='no' is none of the predictors \['oracle'"):
        differences(predictions, draws, "no")


@pytest.mark.parametrize(
    ("answer", "message"), [(1.5, "constant answered 1.5 in a, step 1"), (np.nan, "nan"), (np.ones(1), r"shape \(1,\)")]
)
def test_answers_that_are_no_probabilities_are_refused(answer: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_all([Constant(answer)], tasks_from(*split(table()), 20, 0))


def test_predictors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="names of their own"):
        predict_all([Constant(0.1), Constant(0.2)], tasks_from(*split(table()), 20, 0))


def test_a_value_model_is_asked_with_prompts_and_scores() -> None:
    asked = []

    class Recorder:
        def predict(self, *question: Sequence) -> np.ndarray:
            asked.append(question)
            return np.full(len(question[2]), 0.5)

    rows = table(4, ("a",), 1)
    task = EvalTask("a", 1, rows.head(3), rows.tail(1))
    predictions = predict_all([ValueModelPredictor(Recorder(), "mine")], [task])
    prompts, scores, queries = asked[0]
    assert prompts == rows["prompt"].to_list()[:3] and queries == rows["prompt"].to_list()[3:]
    assert np.asarray(scores).tolist() == rows["score"].to_list()[:3] and list(predictions.p) == ["mine"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    frames = split_by_prompt(table(80, ("a", "b", "c")), FRACTIONS, 0, holdout_models=["c"])
    write_splits(frames, tmp_path / "data", {"fractions": FRACTIONS, "seed": 0})
    return tmp_path / "data"


def run(data: Path, out: Path, *more: str) -> dict:
    command.main(["--data", str(data), "--out", str(out), "--context-size", "30", "--draws", "20", *more])
    return json.loads((out / "evaluation.json").read_text())


@pytest.mark.parametrize("content", ["{}", '{"settings": {"seed": 0}}', "[]", "{", "[" * 200_000])
def test_damaged_splits_are_refused_by_name(data: Path, content: str) -> None:
    (data / "splits.json").write_text(content)
    with pytest.raises(ValueError, match="splits.json is damaged .*split the trajectories again"):
        read_tasks(data, 30, 0)


def test_command_line_compares_the_model_with_every_baseline(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_load_model", lambda name: OracleModel())
    written = run(data, tmp_path / "out")
    assert list(written["sets"]) == ["held-out prompts", "held-out models"]
    for tables in written["sets"].values():
        rows = {row["predictor"]: row for row in tables["predictors"]}
        assert len(rows) == 9 and rows["value model"]["brier"] < rows["global mean"]["brier"]
        assert rows["prompt history"]["brier"] < rows["global mean"]["brier"]
        assert len(tables["differences"]) == 8
    report = (tmp_path / "out/evaluation.md").read_text()
    assert "## Held-out models" in report and "| ridge, fitted |" in report
    assert (tmp_path / "out/reliability.png").stat().st_size > 10_000


def test_command_line_without_a_model_or_an_encoder_has_the_plain_baselines(data: Path, tmp_path: Path) -> None:
    written = run(data, tmp_path / "out", "--model", "none", "--reference", "prompt history")
    names = [row["predictor"] for row in written["sets"]["held-out prompts"]["predictors"]]
    assert names == ["global mean", "prompt history"]
    assert written["settings"]["reference"] == "prompt history"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "no/such/model/here"), "neither a local folder nor a hub id"),
        (("--model", "none", "--data", "nothing"), "nothing/train.parquet: no such file"),
    ],
)
def test_what_cannot_be_read_ends_the_command_without_a_traceback(
    data: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(data, tmp_path / "out", *more)


def test_held_out_models_get_contexts_of_their_own(data: Path) -> None:
    sets = read_tasks(data, 30, 0)
    train = read_trajectories([data / "train.parquet"])
    for task in sets["held-out models"]:
        assert set(task.context["model"]) == {"c"}
        assert set(task.context["prompt"]) <= set(train["prompt"])
        assert not set(task.queries["prompt"]) & set(train["prompt"])


def test_the_real_value_model_can_be_evaluated(tiny_model: ValueModel) -> None:
    tasks = tasks_from(*split(table(40, ("a",), 2)), 16, 0)
    result = evaluate([ValueModelPredictor(tiny_model), GlobalMean()], tasks, draws=5)
    assert result["brier"].between(0, 1).all()
