"""Baselines: what each predicts, what it may look at, and that settings are chosen without a leak."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from value_model.evaluation import baselines
from value_model.evaluation.baselines import Fitted, GlobalMean, KNearest, Logistic, PromptHistory, Ridge, remembered
from value_model.evaluation.metrics import brier, pair_accuracy
from verl_v05.prior import HistoryPrior, Outcome, Query

LEARNERS = [KNearest, Ridge, Logistic]


def embed(texts: Sequence[str]) -> np.ndarray:
    """Vectors that depend on nothing but the text, such as "3.2 -1.0"."""
    return np.array([[float(x) for x in text.split()] for text in texts])


def frame(vectors: np.ndarray, success: Sequence[float], model: str = "a", step: int = 1, n: int = 8) -> pd.DataFrame:
    texts = [" ".join(map(str, v)) for v in vectors]
    score = 2 * np.asarray(success, dtype=np.float64) - 1
    return pd.DataFrame(
        {"model": model, "step": step, "prompt_id": texts, "prompt": texts, "data_source": "s", "score": score, "n": n}
    )


def circle(rows: int, seed: int, noise: float = 0.0) -> pd.DataFrame:
    """Prompts on the unit circle that succeed the more the further they are to the right."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, rows)
    rate = 1 / (1 + np.exp(-3 * np.cos(angle)))
    if noise:
        rate = rng.binomial(4, rate) / 4
    return frame(np.stack([np.cos(angle), np.sin(angle)], axis=1), rate)


def test_global_mean_is_that_of_the_context() -> None:
    context = frame(np.eye(2), [0.25, 1.0])
    assert GlobalMean().predict(context, circle(3, 0)).tolist() == [0.625] * 3


@pytest.mark.parametrize("learner", LEARNERS)
def test_embedding_learners_find_what_the_embedding_tells(learner: type) -> None:
    context, queries = circle(200, 0, noise=1), circle(100, 1)
    p = learner(embed).predict(context, queries)
    mean = GlobalMean().predict(context, queries)
    assert p.shape == (100,) and ((p >= 0) & (p <= 1)).all()
    assert pair_accuracy(queries["score"], p) > 0.9
    assert brier(queries["score"], p) < 0.25 * brier(queries["score"], mean)


@pytest.mark.parametrize("learner", LEARNERS)
def test_embedding_learners_do_not_look_at_the_queries_scores(learner: type) -> None:
    context, queries = circle(60, 0, noise=1), circle(20, 1)
    blind = queries.assign(score=0.0, n=1)
    assert (learner(embed).predict(context, queries) == learner(embed).predict(context, blind)).all()


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("success", [[0.3], [1.0, 1.0], [0.0] * 9, [0.0, 1.0, 1.0, 0.25]])
def test_embedding_learners_answer_to_few_or_equal_rows(learner: type, success: list[float]) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(success), 3))
    queries = frame(np.random.default_rng(1).normal(size=(5, 3)), [0.5] * 5)
    p = learner(embed).predict(frame(vectors, success), queries)
    assert ((p >= min(success) - 1e-9) & (p <= max(success) + 1e-9)).all() or learner is Ridge
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_embedding_learners_fall_back_to_the_mean_when_the_embedding_tells_nothing(learner: type) -> None:
    rng = np.random.default_rng(0)
    context = frame(rng.normal(size=(150, 30)), rng.integers(0, 2, 150))
    p = learner(embed).predict(context, frame(rng.normal(size=(50, 30)), [0.5] * 50))
    assert p == pytest.approx(np.full(50, (context["score"].mean() + 1) / 2), abs=0.25)


def test_k_is_the_one_of_least_left_out_error() -> None:
    context, queries = circle(40, 3, noise=1), circle(15, 4)
    features, rate = embed(context["prompt"]), (context["score"].to_numpy() + 1) / 2
    order = np.argsort(-(features @ features.T) + 9 * np.eye(40), axis=1)[:, :39]  # oneself last
    errors = [np.mean((rate[order[:, :k]].mean(axis=1) - rate) ** 2) for k in range(1, 40)]
    k = 1 + int(np.argmin(errors))
    nearest = np.argsort(-(embed(queries["prompt"]) @ features.T), axis=1)[:, :k]
    assert KNearest(embed).predict(context, queries) == pytest.approx(rate[nearest].mean(axis=1))


def test_a_prompt_measured_often_is_no_neighbour_of_itself() -> None:
    """Otherwise k = 1 would look perfect: every prompt has its own copy at distance zero."""
    rng = np.random.default_rng(0)
    vectors, rates = rng.normal(size=(100, 20)), rng.integers(0, 2, 100)
    rows = pd.concat([frame(vectors, rates, step=s) for s in range(5)])
    once = frame(vectors, rates)
    queries = frame(rng.normal(size=(30, 20)), [0.5] * 30)
    assert KNearest(embed).predict(rows, queries) == pytest.approx(KNearest(embed).predict(once, queries))
    assert KNearest(embed).predict(rows, queries).std() < 0.2


def test_soft_logistic_regression_is_that_of_single_rollouts() -> None:
    context, queries = circle(30, 5, noise=1), circle(10, 6)
    features, rate = embed(context["prompt"]), (context["score"].to_numpy() + 1) / 2
    hits = np.rint(rate * 4).astype(int)
    outcomes = np.concatenate([[1] * h + [0] * (4 - h) for h in hits])
    want = LogisticRegression(C=0.5, tol=1e-8).fit(np.repeat(features, 4, axis=0), outcomes)
    ours = baselines._SoftLogistic(strength=2.0).fit(features, rate, sample_weight=np.full(30, 4.0))
    assert ours.predict(embed(queries["prompt"])) == pytest.approx(
        want.predict_proba(embed(queries["prompt"]))[:, 1], abs=1e-3
    )


def test_history_is_the_tracker_of_verl_v05_but_for_the_mean() -> None:
    rng = np.random.default_rng(0)
    visits = [(step, i) for step in range(1, 7) for i in range(20) if rng.random() < 0.5]
    rows = pd.DataFrame(visits, columns=["step", "i"])
    rows["prompt_id"] = rows["prompt"] = "p" + rows["i"].astype(str)
    rows = rows.assign(model="a", data_source="s", n=rng.integers(1, 17, len(rows)))
    rows["score"] = [2 * rng.binomial(n, 0.6) / n - 1 for n in rows["n"]]
    tracker = HistoryPrior(forgetting=0.75, strength=1.5, min_rollouts=1)
    for step, group in rows[rows["step"] < 6].groupby("step"):
        outcomes = zip(group["prompt_id"], (group["score"] + 1) / 2, group["n"], strict=True)
        tracker.update([Outcome(Query(i, "", ""), s, n) for i, s, n in outcomes], step)
    queries = rows[rows["step"] == 6].sample(frac=1, random_state=0)
    want = tracker.predict([Query(i, "", "") for i in queries["prompt_id"]], None, 6)
    mean = tracker._global[0] / sum(tracker._global)
    other_model = rows.assign(model="b", score=1.0)
    history = PromptHistory(pd.concat([rows, other_model]), forgetting=0.75, strength=1.5)
    assert history.predict(frame(np.eye(1), [mean]), queries) == pytest.approx(want)


def test_history_sees_neither_the_queries_own_step_nor_later_ones() -> None:
    queries = frame(np.eye(2), [0.0, 1.0], step=3)
    history = pd.concat([queries, frame(np.eye(2), [1.0, 1.0], step=4)])
    assert PromptHistory(history).predict(frame(np.eye(1), [0.25]), queries).tolist() == [0.25, 0.25]


def test_history_of_several_groups_keeps_the_queries_order() -> None:
    past = frame(np.eye(2), [0.0, 1.0], step=1, n=1)
    queries = pd.concat([frame(np.eye(2), [0, 0], step=s) for s in (2, 1)], ignore_index=True).iloc[[3, 0, 2, 1]]
    p = PromptHistory(past).predict(frame(np.eye(1), [0.5]), queries)
    assert p.tolist() == [0.5, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("kwargs", [{"forgetting": 1.5}, {"strength": 0.0}])
def test_history_refuses_settings_out_of_range(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="forgetting="):
        PromptHistory(circle(2, 0), **kwargs)


def test_a_fitted_learner_uses_its_rows_and_only_the_level_of_the_context() -> None:
    rows, context, queries = circle(100, 0), frame(np.eye(2), [1.0, 1.0]), circle(10, 1)
    plain, level = Fitted(Ridge(embed), rows, level=False), Fitted(Ridge(embed), rows)
    want = Ridge(embed).predict(rows, queries)
    assert (plain.predict(context, queries) == want).all()
    shift = 1 - (rows["score"].mean() + 1) / 2
    assert level.predict(context, queries) == pytest.approx(np.clip(want + shift, 0, 1))
    assert (plain.name, level.name) == ("ridge, fitted, no level", "ridge, fitted")


def test_a_remembered_text_is_embedded_once() -> None:
    asked: list[str] = []

    def counting(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return embed(texts)

    recall = remembered(counting)
    assert recall(["1", "2", "1"]).tolist() == [[1], [2], [1]] and recall(["3", "2"]).tolist() == [[3], [2]]
    assert asked == ["1", "2", "3"]


def test_without_an_embedding_only_the_mean_is_left() -> None:
    assert [p.name for p in baselines.in_context_baselines(None)] == ["global mean"]
    assert baselines.fitted_baselines(None, circle(5, 0)) == []
    in_context, fitted = baselines.in_context_baselines(embed), baselines.fitted_baselines(embed, circle(20, 0))
    assert len(in_context) == 4 and len(fitted) == 3
