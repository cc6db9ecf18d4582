"""Meta-tasks: what may be in a context, and that a task depends on its number alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from value_model.training.meta_tasks import MetaTask, MetaTaskError, MetaTasks, MetaTaskSettings
from value_model.training.settings import load_settings
from value_model.training.trainer import _number_of_updates

PAPER = Path(__file__).parents[1] / "recipes/value_model/paper.yaml"
SAME_STEP = MetaTaskSettings(context_min=4, context_max=8, pairs=2)
BEFORE = replace(SAME_STEP, window=2, own_step=False)
AS_THEY_COME = replace(BEFORE, balanced=False)
ALL = (SAME_STEP, BEFORE, AS_THEY_COME, replace(SAME_STEP, window=3))


def rows(model: str, step: int, scores: dict[str, float]) -> pd.DataFrame:
    frame = pd.DataFrame({"prompt": list(scores), "score": list(scores.values())})
    return frame.assign(model=model, step=step, prompt_id=frame["prompt"], data_source="test", n=4)


def random_table(models: int = 3, steps: int = 6, prompts: int = 40, per_step: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for model in range(models):
        for step in range(1, steps + 1):
            names = [f"prompt {i}" for i in rng.choice(prompts, per_step, replace=False)]
            scores = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], per_step)
            parts.append(rows(f"m{model}", step, dict(zip(names, scores.tolist(), strict=True))))
    return pd.concat(parts, ignore_index=True)


def all_of(tasks: MetaTasks, epoch: int = 0) -> list[MetaTask]:
    return [tasks.draw(epoch, i) for i in range(len(tasks))]


def content(task: MetaTask) -> tuple:
    return (task.model, task.step, tuple(task.context_prompts), tuple(task.prompts), tuple(task.scores))


def test_a_task_is_a_function_of_seed_epoch_and_index() -> None:
    table = random_table()
    once, again = MetaTasks(table, SAME_STEP, seed=3), MetaTasks(table, SAME_STEP, seed=3)
    backwards = [again.draw(1, i) for i in reversed(range(len(again)))]
    assert [content(t) for t in all_of(once, 1)] == [content(t) for t in reversed(backwards)]


@pytest.mark.parametrize(("seed", "epoch"), [(4, 1), (3, 2)])
def test_another_seed_or_epoch_gives_other_tasks(seed: int, epoch: int) -> None:
    table = random_table()
    first = {content(t) for t in all_of(MetaTasks(table, SAME_STEP, seed=3), 1)}
    assert not first & {content(t) for t in all_of(MetaTasks(table, SAME_STEP, seed=seed), epoch)}


def test_an_epoch_visits_every_model_and_step_as_often_as_it_says() -> None:
    tasks = all_of(MetaTasks(random_table(), replace(SAME_STEP, repeats=2)))
    visits = pd.Series([(t.model, t.step) for t in tasks]).value_counts()
    assert len(visits) == 18 and set(visits) == {2}


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("epoch", [0, 1])
def test_without_a_number_of_repeats_an_epoch_passes_over_every_query(balanced: bool, epoch: int) -> None:
    table = pd.concat(
        [
            rows("m", 1, {f"1:{i}": -0.5 if i < 7 else 0.5 for i in range(30)}),
            rows("m", 2, {f"2:{i}": 0.5 if i < 5 else -0.5 for i in range(12)}),
        ]
    )
    tasks = MetaTasks(table, replace(SAME_STEP, repeats=None, balanced=balanced))
    drawn = all_of(tasks, epoch)
    # Pairs: 23 and 7, two a task. As they come: 30 and 12 queries, four a task.
    assert len(tasks) == (12 + 4 if balanced else 8 + 3)
    asked = pd.Series([prompt for task in drawn for prompt in task.prompts]).value_counts()
    assert set(asked.index) == set(table["prompt"])
    if balanced:
        assert {asked[f"1:{i}"] for i in range(7, 30)} <= {1, 2} and {asked[f"1:{i}"] for i in range(7)} <= {3, 4}
    else:
        assert asked.max() <= 2
    assert all(len(set(task.prompts)) == 4 and not set(task.prompts) & set(task.context_prompts) for task in drawn)
    assert [content(t) for t in drawn] != [content(t) for t in all_of(tasks, epoch + 1)]


def test_the_papers_recipe_passes_over_all_pairs_in_an_epoch() -> None:
    settings = load_settings(PAPER)
    scores = {f"{i}": 0.5 if i < 700 else -0.5 for i in range(1250)}  # 20,000 rollouts a checkpoint, 16 a prompt
    tasks = MetaTasks(pd.concat([rows("m", step, scores) for step in (1, 2)]), settings.tasks)
    assert len(tasks) == 2 * 700 / settings.tasks.pairs
    assert {len(task.pairs) for task in (tasks.draw(0, i) for i in range(10))} == {4}
    assert {len(task.context_prompts) for task in (tasks.draw(0, i) for i in range(10))} == {256}
    # 424,000 pairs, four a task, 256 tasks an update, 50 epochs.
    assert _number_of_updates(settings.optimizer, 424_000 // settings.tasks.pairs) == 20_703


@pytest.mark.parametrize("settings", ALL)
def test_a_context_has_both_classes_the_size_asked_for_and_no_query(settings: MetaTaskSettings) -> None:
    for task in all_of(MetaTasks(random_table(), settings)):
        assert 0 < task.labels.sum() < len(task.labels)
        assert 4 <= len(task.context_prompts) <= 8 == settings.context_max
        assert len(set(task.context_prompts)) == len(task.context_prompts)
        assert not set(task.context_prompts) & set(task.prompts)


def test_the_contexts_size_is_drawn_from_its_range() -> None:
    tasks = MetaTasks(random_table(), SAME_STEP)
    assert {len(t.context_prompts) for e in range(5) for t in all_of(tasks, e)} == {4, 5, 6, 7, 8}


def test_balanced_queries_are_pairs_of_a_success_and_a_failure() -> None:
    for task in all_of(MetaTasks(random_table(), SAME_STEP)):
        assert task.pairs.shape == (2, 2) and sorted(task.pairs.flatten()) == [0, 1, 2, 3]
        assert (task.scores[task.pairs[:, 0]] >= 0).all() and (task.scores[task.pairs[:, 1]] < 0).all()


def test_queries_as_they_come_keep_their_base_rate() -> None:
    frames = []
    for step in (1, 2):
        scores = {f"p{step} {i}": 1.0 if i % 10 else -1.0 for i in range(100)}
        frames.append(rows("m", step, scores))
    settings = MetaTaskSettings(context_min=20, context_max=20, pairs=20, window=1, own_step=False, balanced=False)
    tasks = MetaTasks(pd.concat(frames), settings)
    share = np.mean([(tasks.draw(e, 0).scores >= 0).mean() for e in range(50)])
    assert share == pytest.approx(0.9, abs=0.03)


def test_the_window_counts_measured_steps_and_keeps_the_newest_outcome() -> None:
    table = pd.concat(
        [
            rows("m", 10, {"old": 1.0, "a": 1.0, "b": -1.0}),
            rows("m", 20, {"a": -1.0, "c": 1.0}),
            rows("m", 70, {"q": 1.0, "r": -1.0}),
            rows("other", 60, {"d": 1.0, "e": -1.0}),
        ]
    )
    settings = MetaTaskSettings(context_min=2, context_max=9, pairs=1, window=2, own_step=False)
    (task,) = (t for t in all_of(MetaTasks(table, settings)) if t.step == 70)
    known = dict(zip(task.context_prompts, task.context_scores, strict=True))
    assert known.items() <= {"old": 1.0, "a": -1.0, "b": -1.0, "c": 1.0}.items()
    nearer = MetaTasks(table, replace(settings, window=1))
    assert {(t.model, t.step, *sorted(t.context_prompts)) for t in all_of(nearer)} >= {("m", 70, "a", "c")}


def test_the_own_step_is_in_the_context_only_if_asked_for() -> None:
    table = pd.concat([rows("m", s, {f"{s}:{i}": float(i % 2) - 0.5 for i in range(12)}) for s in (1, 2)])
    (before,) = all_of(MetaTasks(table, replace(BEFORE, window=1)))
    assert before.step == 2 and {p.split(":")[0] for p in before.context_prompts} == {"1"}
    for task in all_of(MetaTasks(table, SAME_STEP)):
        assert {p.split(":")[0] for p in task.context_prompts} == {str(task.step)}


def test_queries_older_outcomes_are_not_in_the_context() -> None:
    scores = {f"p{i}": float(i % 2) - 0.5 for i in range(12)}
    table = pd.concat([rows("m", 1, scores), rows("m", 2, scores)])
    for task in all_of(MetaTasks(table, BEFORE)):
        assert not set(task.context_prompts) & set(task.prompts)


def test_groups_without_both_classes_or_enough_context_are_skipped_and_counted() -> None:
    good = {f"p{i}": float(i % 2) - 0.5 for i in range(12)}
    table = pd.concat(
        [rows("m", 1, good), rows("m", 2, dict.fromkeys(good, 1.0)), rows("m", 3, {"p0": -1.0, "p1": 1.0})]
    )
    tasks = MetaTasks(table, SAME_STEP)
    assert (len(tasks), tasks.skipped) == (1, 2)


def test_fewer_pairs_are_asked_for_where_the_context_would_lose_a_class() -> None:
    table = rows("m", 1, {"good": 1.0, "fine": 0.5, **{f"bad{i}": -1.0 for i in range(10)}})
    tasks = MetaTasks(table, replace(SAME_STEP, pairs=4))
    assert all(len(tasks.draw(e, 0).pairs) == 1 for e in range(20))


def test_a_table_without_any_task_says_what_to_change() -> None:
    with pytest.raises(MetaTaskError, match="context_min=256.*window=0"):
        MetaTasks(random_table(), MetaTaskSettings())


def test_only_the_named_prompts_are_asked_for() -> None:
    asked = {f"prompt {i}" for i in range(10)}
    tasks = all_of(MetaTasks(random_table(), AS_THEY_COME, query_prompts=asked))
    assert {p for t in tasks for p in t.prompts} <= asked
    assert {p for t in tasks for p in t.context_prompts} - asked


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context_min": 1}, "context_min=1"),
        ({"context_min": 9, "context_max": 8}, "context_max=8"),
        ({"pairs": 0}, "pairs=0"),
        ({"repeats": 0}, "repeats=0.*null or at least 1"),
        ({"window": 0, "own_step": False}, "own_step=False"),
    ],
)
def test_impossible_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(MetaTaskError, match=message):
        MetaTaskSettings(**values)
