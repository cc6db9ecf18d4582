"""History prior, support buffer and the choice of a provider."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes.data.rows import verl_rows
from verl_v05.prior import HistoryPrior, NoPrior, Outcome, Prior, Query, make_prior
from verl_v05.prior.query import make_query
from verl_v05.prior.support_buffer import SupportBuffer, is_success
from verl_v05.settings import PriorSettings, SettingsError


class Constant(Prior):
    """A provider of somebody else's."""

    def __init__(self, value: float = 0.5):
        self.value = value

    def predict(self, queries: Any, context: Any, step: int) -> np.ndarray:
        return np.full(len(queries), self.value)


def query(name: str) -> Query:
    return Query(name, f"text of {name}", "source")


def outcome(name: str, success: float, k: int = 4) -> Outcome:
    return Outcome(query(name), success, k)


def ask(prior: Prior, *names: str) -> list[float]:
    return prior.predict([query(n) for n in names], None, 1).tolist()


def names(sample: list[Outcome]) -> list[str]:
    return [o.query.prompt_id for o in sample]


def test_a_value_model_reads_the_problem_without_the_template_and_the_id_stays() -> None:
    chat = [{"role": "system", "content": "Reason step by step."}, {"role": "user", "content": "1 + 1? In \\boxed{}."}]
    bare = make_query(chat, "aime24", {"problem": "1 + 1?", "question": "one and one"}, "problem")
    assert (bare.text, bare.data_source) == ("1 + 1?", "aime24")
    other_key = make_query(chat, "aime24", {"problem": "1 + 1?", "question": "one and one"}, "question")
    assert (other_key.text, other_key.prompt_id) == ("one and one", bare.prompt_id)


@pytest.mark.parametrize(
    ("extra_info", "text_key"),
    [
        (None, "problem"),
        ({}, "problem"),
        ({"problem": None}, "problem"),
        ({"problem": ""}, "problem"),
        ({"problem": 3}, "problem"),
        ({"problem": "1 + 1?"}, None),
        ("problem", "problem"),
    ],
)
def test_without_the_problem_alone_a_value_model_reads_the_users_turns(
    extra_info: object, text_key: str | None
) -> None:
    chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "3"}]
    asked = make_query([*chat, {"role": "user", "content": "Again."}], "aime24", extra_info, text_key)
    assert asked.text == "1 + 1?\nAgain."


def test_rows_of_the_data_recipe_are_read_without_its_template() -> None:
    problems = pd.DataFrame({"id": ["a-1"], "problem": ["Find $x$."], "answer": ["2"]})
    (row,) = verl_rows(problems, "a", "train", ()).to_pylist()
    asked = make_query(row["prompt"], row["data_source"], row["extra_info"], PriorSettings().text_key)
    assert asked.text == "Find $x$." != row["prompt"][0]["content"]


def test_history_is_missing_until_enough_rollouts_were_seen() -> None:
    prior = HistoryPrior(min_rollouts=8)
    assert np.isnan(ask(prior, "a", "b")).all()
    prior.update([outcome("a", 1.0, 4), outcome("b", 0.0, 3)], 1)
    assert np.isnan(ask(prior, "a", "new")).all()
    prior.update([outcome("c", 0.0, 1)], 2)
    assert not np.isnan(ask(prior, "a", "new")).any()


def test_history_gives_unseen_prompts_the_global_mean() -> None:
    prior = HistoryPrior(min_rollouts=1)
    prior.update([outcome("a", 1.0, 4), outcome("b", 0.25, 8)], 1)
    assert ask(prior, "new", "newer") == pytest.approx([0.5, 0.5])


def test_history_shrinks_a_prompts_own_rate_towards_the_global_mean() -> None:
    for strength in (0.5, 2.0, 100.0):
        prior = HistoryPrior(strength=strength, min_rollouts=1)
        prior.update([outcome("a", 1.0, 4), outcome("b", 0.0, 4)], 1)
        want = [(4 + strength / 2) / (4 + strength), strength / 2 / (4 + strength)]
        assert ask(prior, "a", "b") == pytest.approx(want)


def test_history_forgets_a_prompts_past_at_each_of_its_visits() -> None:
    prior = HistoryPrior(forgetting=0.5, strength=1.0, min_rollouts=1)
    prior.update([outcome("a", 1.0, 4), outcome("b", 0.5, 4)], 1)  # a: 4 of 4; all: 6 of 8
    prior.update([outcome("a", 0.0, 4)], 2)  # a: 2 of 6; all: 3 of 8
    assert ask(prior, "a", "b", "new") == pytest.approx([(2 + 0.375) / 7, (2 + 0.375) / 5, 0.375])


def test_history_without_forgetting_weighs_all_visits_alike() -> None:
    prior = HistoryPrior(forgetting=1.0, min_rollouts=1, strength=1e-9)
    for success in (1.0, 0.0, 0.0, 1.0, 1.0):
        prior.update([outcome("a", success)], 1)
    assert ask(prior, "a") == pytest.approx([0.6])


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_history_stays_a_probability_when_everything_fails_or_succeeds(rate: float) -> None:
    prior = HistoryPrior(min_rollouts=1, forgetting=0.7, strength=0.3)
    for step in range(50):
        prior.update([outcome(f"p{i}", rate, 3 + i) for i in range(7)], step)
        assert ask(prior, "p0", "p6", "new") == pytest.approx([rate] * 3) and max(ask(prior, "p0", "new")) <= 1


def test_history_of_no_prompts_is_empty() -> None:
    prior = HistoryPrior(min_rollouts=1)
    prior.update([outcome("a", 1.0)], 1)
    assert ask(prior) == []


def test_history_state_survives_json() -> None:
    prior = HistoryPrior(min_rollouts=8)
    rng = np.random.default_rng(0)
    for step in range(5):
        prior.update([outcome(f"p{i}", rng.random(), int(rng.integers(1, 17))) for i in range(10)], step)
    restored = HistoryPrior(min_rollouts=8)
    restored.load_state_dict(json.loads(json.dumps(prior.state_dict())))
    everyone = [f"p{i}" for i in range(10)] + ["new"]
    assert ask(restored, *everyone) == ask(prior, *everyone)
    for one in (prior, restored):
        one.update([outcome("p3", 0.5)], 6)
    assert ask(restored, *everyone) == ask(prior, *everyone)


def test_history_state_keeps_how_much_was_seen() -> None:
    prior = HistoryPrior(min_rollouts=8)
    prior.update([outcome("a", 1.0, 7)], 1)
    restored = HistoryPrior(min_rollouts=8)
    restored.load_state_dict(json.loads(json.dumps(prior.state_dict())))
    assert np.isnan(ask(restored, "a")).all()
    restored.update([outcome("a", 1.0, 1)], 2)
    assert ask(restored, "a") == [1.0]


@pytest.mark.parametrize("kwargs", [{"forgetting": 1.1}, {"forgetting": -0.1}, {"strength": 0.0}, {"strength": -1}])
def test_history_refuses_impossible_parameters(kwargs: dict) -> None:
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{name}={value} is not allowed: it must be"):
        HistoryPrior(**kwargs)


def test_labels_are_hard_at_one_half() -> None:
    assert [is_success(outcome("a", s)) for s in (0.0, 0.499, 0.5, 1.0)] == [False, False, True, True]


def test_buffer_keeps_the_newest() -> None:
    buffer = SupportBuffer(capacity=4, sample_size=4, seed=0)
    buffer.add([outcome(f"p{i}", i % 2) for i in range(7)])
    assert len(buffer) == 4
    assert sorted(names(buffer.sample(0))) == ["p3", "p4", "p5", "p6"]


def test_buffer_replaces_a_prompt_measured_again_and_makes_it_the_newest() -> None:
    buffer = SupportBuffer(capacity=3, sample_size=3, seed=0)
    buffer.add([outcome("a", 0.0), outcome("b", 1.0), outcome("c", 0.0)])
    buffer.add([outcome("a", 1.0, 9), outcome("d", 0.0)])
    kept = {o.query.prompt_id: o for o in buffer.sample(0)}
    assert sorted(kept) == ["a", "c", "d"] and kept["a"] == outcome("a", 1.0, 9)


def test_buffer_samples_are_a_function_of_seed_and_draw() -> None:
    def filled(seed: int) -> SupportBuffer:
        buffer = SupportBuffer(capacity=100, sample_size=20, seed=seed)
        buffer.add([outcome(f"p{i}", i % 3 / 2) for i in range(100)])
        return buffer

    buffer = filled(0)
    first = buffer.sample(3, 0)
    buffer.sample(4, 0)
    assert buffer.sample(3, 0) == first == filled(0).sample(3, 0)
    others = [buffer.sample(3, 1), buffer.sample(4, 0), filled(1).sample(3, 0)]
    assert all(names(other) != names(first) for other in others)


def test_buffer_samples_are_distinct_and_hold_both_classes() -> None:
    buffer = SupportBuffer(capacity=200, sample_size=16, seed=0)
    buffer.add([outcome(f"p{i}", 0.0) for i in range(199)] + [outcome("the only success", 0.5)])
    for draw in range(200):
        sample = buffer.sample(draw)
        assert len(set(names(sample))) == 16
        assert {is_success(o) for o in sample} == {True, False}


def test_buffer_draws_all_of_its_content_over_time() -> None:
    buffer = SupportBuffer(capacity=30, sample_size=10, seed=0)
    buffer.add([outcome(f"p{i}", i % 2) for i in range(30)])
    counts = np.zeros(30)
    for draw in range(300):
        counts[[int(n[1:]) for n in names(buffer.sample(draw))]] += 1
    assert counts.sum() == 3000 and counts.min() > 60 and counts.max() < 145


def test_buffer_gives_nothing_while_too_small_or_of_one_class() -> None:
    buffer = SupportBuffer(capacity=10, sample_size=4, seed=0)
    assert buffer.sample(0) is None
    buffer.add([outcome("a", 0.0), outcome("b", 1.0), outcome("c", 1.0)])
    assert buffer.sample(0) is None
    buffer.add([outcome("d", 1.0)])
    assert len(buffer.sample(0)) == 4
    buffer.add([outcome("a", 1.0)])
    assert buffer.sample(0) is None
    buffer.add([outcome(n, 0.25) for n in "abcd"])
    assert buffer.sample(0) is None


@pytest.mark.parametrize("capacity", [50, 500])
def test_buffer_state_survives_json_and_gives_the_same_samples(capacity: int) -> None:
    buffer = SupportBuffer(capacity, sample_size=10, seed=7)
    rng = np.random.default_rng(0)
    for _ in range(6):
        buffer.add([outcome(f"p{i}", rng.random(), int(rng.integers(4, 17))) for i in rng.integers(0, 80, 20)])
    restored = SupportBuffer(capacity, sample_size=10, seed=7)
    restored.add([outcome("left over", 1.0)])
    restored.load_state_dict(json.loads(json.dumps(buffer.state_dict())))
    assert len(restored) == len(buffer)
    assert all(restored.sample(step, 0) == buffer.sample(step, 0) for step in range(10))
    for one in (buffer, restored):
        one.add([outcome(f"q{i}", i % 2) for i in range(30)])
    assert all(restored.sample(step, 0) == buffer.sample(step, 0) for step in range(10))


def test_buffer_state_fits_a_smaller_capacity() -> None:
    buffer = SupportBuffer(capacity=10, sample_size=4, seed=0)
    buffer.add([outcome(f"p{i}", i % 2) for i in range(10)])
    smaller = SupportBuffer(capacity=4, sample_size=4, seed=0)
    smaller.load_state_dict(buffer.state_dict())
    assert sorted(names(smaller.sample(0))) == ["p6", "p7", "p8", "p9"]


def test_no_prior_knows_nothing() -> None:
    assert np.isnan(ask(NoPrior(), "a", "b")).all()


def test_providers_are_found_by_name_and_by_class_path() -> None:
    history = make_prior(PriorSettings(provider="history", kwargs={"strength": 3.0}))
    assert isinstance(history, HistoryPrior) and history.strength == 3.0
    assert isinstance(make_prior(PriorSettings(provider="none")), NoPrior)
    constant = make_prior(PriorSettings(provider=f"{__name__}.Constant", kwargs={"value": 0.25}))
    assert ask(constant, "a", "b") == [0.25, 0.25]


@pytest.mark.parametrize(
    ("provider", "kwargs", "message"),
    [
        (
            "histori",
            {},
            "'histori' is not allowed: it must be one of history, none, v0, http, or the path of",
        ),
        (
            "no.such.module.Prior",
            {},
            "'no.such.module.Prior' is not allowed: .*No module named 'no'",
        ),
        (
            "verl_v05.prior.NoSuchPrior",
            {},
            "'verl_v05.prior.NoSuchPrior' is not allowed: .*NoSuchPrior",
        ),
        (
            "verl_v05.prior.Query",
            {},
            "Query' is not a verl_v05.prior.Prior subclass; it must be one of history",
        ),
        ("verl_v05.prior.make_prior", {}, "is not a verl_v05.prior.Prior subclass"),
        ("verl_v05.prior.Prior", {}, "abstract"),
        ("history", {"forgeting": 0.5}, r"prior.kwargs=\{'forgeting': 0.5\} for HistoryPrior: .*forgeting"),
        ("history", {"forgetting": 2}, "forgetting=2 is not allowed: it must be in"),
        ("none", {"strength": 1}, "for NoPrior"),
    ],
)
def test_unusable_providers_are_refused_with_what_is_allowed(provider: str, kwargs: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_prior(PriorSettings(provider=provider, kwargs=kwargs))


def test_history_survives_an_empty_step() -> None:
    prior = HistoryPrior(forgetting=0.0, min_rollouts=1)
    prior.update([Outcome(Query("a", "", "s"), 1.0, 4)], 1)
    prior.update([], 2)
    assert np.isnan(prior.predict([Query("b", "", "s")], None, 3)).all()


def test_history_needs_at_least_one_rollout() -> None:
    with pytest.raises(ValueError, match="min_rollouts=0 is not allowed: it must be at least 1"):
        HistoryPrior(min_rollouts=0)
