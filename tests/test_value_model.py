"""Value model: probabilities from prompts and outcomes, each prompt embedded once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from value_model.config import AdapterConfig
from value_model.model import ContextError, Task, ValueModel, hard_labels

pytest_plugins = ("tests.tiny_value_model",)

CONTEXT = [f"{a} + {b} =" for a in range(6) for b in (3, 41)]
SCORES = [1.0, -1.0, 0.5, -0.25, 0.0, -1.0, 1.0, 0.75, -0.5, 1.0, -1.0, 0.25]
PROMPTS = ["12+5=", "héllo", "", "what is 3?", "12+5=", "数学", "0 + 3 ="]


def ask(model: ValueModel, context: Any = CONTEXT, scores: Any = SCORES, prompts: Any = PROMPTS) -> np.ndarray:
    return model.predict(context, scores, prompts)


def refusal(model: ValueModel, *args: Any) -> str:
    with pytest.raises(ContextError) as error:
        ask(model, *args)
    return str(error.value)


def count_embedded(model: ValueModel) -> list[int]:
    """A list that each forward pass of the encoder adds its number of prompts to."""
    sizes: list[int] = []
    model.backbone.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


def test_predictions_are_probabilities_in_the_order_of_the_prompts(tiny_model: ValueModel) -> None:
    predictions = ask(tiny_model)
    assert predictions.shape == (len(PROMPTS),) and predictions.dtype == np.float64
    assert ((predictions > 0) & (predictions < 1)).all()
    np.testing.assert_allclose(ask(tiny_model, prompts=PROMPTS[::-1])[::-1], predictions, atol=1e-6)
    alone = [ask(tiny_model, prompts=[prompt])[0] for prompt in PROMPTS]
    np.testing.assert_allclose(alone, predictions, atol=1e-6)


def test_predictions_depend_on_prompts_context_and_scores(tiny_model: ValueModel) -> None:
    predictions = ask(tiny_model)
    assert len(np.unique(predictions.round(6))) == len(set(PROMPTS))
    flipped = ask(tiny_model, scores=[-score or -1.0 for score in SCORES])
    others = ask(tiny_model, context=[prompt + " ?" for prompt in CONTEXT])
    for changed in (flipped, others):
        assert np.abs(changed - predictions).max() > 1e-5


def test_equal_prompts_get_equal_predictions(tiny_model: ValueModel) -> None:
    predictions = ask(tiny_model)
    assert predictions[0] == predictions[4]


def test_a_prompt_of_the_context_may_be_asked_for(tiny_model: ValueModel) -> None:
    assert np.isfinite(ask(tiny_model, prompts=CONTEXT)).all()


def test_a_context_may_hold_a_prompt_twice_and_disagree_with_itself(tiny_model: ValueModel) -> None:
    assert np.isfinite(ask(tiny_model, ["a", "a", "b", "b"], [1.0, -1.0, 1.0, 1.0])).all()


def test_no_prompts_are_no_predictions(tiny_model: ValueModel) -> None:
    assert ask(tiny_model, prompts=[]).shape == (0,)
    assert tiny_model.features([]).shape == (0, tiny_model.adapter.width)
    assert tiny_model.predict_batch([]) == []


def test_a_batch_of_tasks_gives_what_each_task_gives(tiny_model: ValueModel) -> None:
    tasks = [
        Task(CONTEXT, SCORES, PROMPTS),
        Task(CONTEXT, SCORES, PROMPTS[:1]),
        Task(CONTEXT[:4], SCORES[:4], []),
        Task(["x", "y"], [1.0, -1.0], CONTEXT),
    ]
    answers = tiny_model.predict_batch(tasks)
    assert [len(answer) for answer in answers] == [len(task.prompts) for task in tasks]
    for task, answer in zip(tasks, answers, strict=True):
        alone = tiny_model.predict(task.context_prompts, task.context_scores, task.prompts)
        np.testing.assert_array_equal(answer, alone)


def test_one_context_for_many_queries_is_many_tasks_of_one_query(tiny_model: ValueModel) -> None:
    many = tiny_model.predict_batch([Task(CONTEXT, SCORES, [prompt]) for prompt in PROMPTS])
    np.testing.assert_allclose(np.concatenate(many), ask(tiny_model), atol=1e-6)


def test_a_wrong_task_is_refused_before_anything_is_embedded(fresh_model: Callable[..., ValueModel]) -> None:
    model = fresh_model()
    sizes = count_embedded(model)
    with pytest.raises(ContextError):
        model.predict_batch([Task(CONTEXT, SCORES, PROMPTS), Task(["a"], [1.0], PROMPTS)])
    assert sizes == []


@pytest.mark.parametrize(
    ("context", "scores", "said"),
    [
        ([], [], "context of 0 prompts is empty"),
        (["a", "b"], [1.0, 0.0], "context of 2 prompts is all success"),
        (["a", "b"], [-1.0, -0.1], "context of 2 prompts is all failure"),
        (["a", "b", "c"], [1.0, -1.0], "3 context prompts have 2 scores"),
        (["a"], [1.0, -1.0], "1 context prompts have 2 scores"),
        (["a", "b"], [[1.0, -1.0]], "2 context prompts"),
        (["a", "b"], [1.0, float("nan")], "nan of 'b' is not in [-1, 1]"),
        (["a", "b"], [1.0, None], "nan of 'b' is not in [-1, 1]"),
        (["a", "b"], [-1.5, 1.0], "-1.5 of 'a' is not in [-1, 1]"),
        (["a", "b", "c"], [-1.0, 1.0, float("inf")], "inf of 'c' is not in [-1, 1]"),
        (["a", "b"], [-1.0, 1.0001], "1.0001 of 'b' is not in [-1, 1]"),
        (["a", "a"], [-1.0, 1.0], "same features"),
    ],
)
def test_a_context_that_teaches_nothing_is_refused(
    tiny_model: ValueModel, context: list, scores: list, said: str
) -> None:
    assert said in refusal(tiny_model, context, scores)


@pytest.mark.parametrize("labels", [[], [True, True], [False, False]])
def test_one_class_is_refused_from_features_too_and_leaves_no_trace(
    fresh_model: Callable[..., ValueModel], labels: list[bool]
) -> None:
    model = fresh_model()
    features = model.features(CONTEXT)
    with pytest.raises(ContextError, match="both classes"):
        model.probabilities(features[: len(labels)], np.array(labels, dtype=bool), features)
    other = fresh_model()
    other.features(CONTEXT)
    np.testing.assert_array_equal(ask(model), ask(other))


def test_scores_become_labels_at_zero(tiny_model: ValueModel) -> None:
    assert hard_labels("abcdef", [-1, -1e-9, -0.0, 0.0, 1e-9, 1]).tolist() == [False, False, True, True, True, True]
    signs = [1.0 if score >= 0 else -1.0 for score in SCORES]
    np.testing.assert_array_equal(ask(tiny_model, scores=signs), ask(tiny_model))


@pytest.mark.parametrize(
    "kind", [tuple, np.array, lambda values: pd.Series(values, index=range(100, 100 + len(values)))]
)
def test_any_sequence_will_do(tiny_model: ValueModel, kind: Callable[[list], Any]) -> None:
    given = ask(tiny_model, kind(CONTEXT), kind(SCORES), kind(PROMPTS))
    np.testing.assert_array_equal(given, ask(tiny_model))
    assert "'12+5=' is not in" in refusal(tiny_model, kind(PROMPTS), kind([2.0] * len(PROMPTS)), kind(["x"]))


def test_features_are_float32_on_the_cpu_without_gradient(tiny_model: ValueModel) -> None:
    features = tiny_model.features(PROMPTS)
    assert features.shape == (len(PROMPTS), tiny_model.adapter.width) and features.dtype == torch.float32
    assert features.device.type == "cpu" and not features.requires_grad and not features.is_inference()
    assert torch.equal(features[0], features[4])


def test_each_prompt_is_embedded_once(fresh_model: Callable[..., ValueModel]) -> None:
    model = fresh_model()
    sizes = count_embedded(model)
    ask(model)
    assert sum(sizes) == len({*CONTEXT, *PROMPTS})
    ask(model, context=CONTEXT[::-1], scores=SCORES[::-1])
    model.features(PROMPTS)
    assert sum(sizes) == len({*CONTEXT, *PROMPTS})
    ask(model, prompts=["new", *PROMPTS])
    assert sum(sizes) == len({*CONTEXT, *PROMPTS}) + 1


def test_a_full_cache_costs_time_and_nothing_else(
    fresh_model: Callable[..., ValueModel], tiny_model: ValueModel
) -> None:
    model = fresh_model(cache_prompts=3)
    for _ in range(2):
        np.testing.assert_allclose(ask(model), ask(tiny_model), atol=1e-5)
        assert len(model.cache) == 3


def test_features_do_not_depend_on_what_they_were_embedded_with(fresh_model: Callable[..., ValueModel]) -> None:
    together = fresh_model().features([*CONTEXT, *PROMPTS, "x" * 300])[: len(CONTEXT)]
    alone = torch.cat([fresh_model().features([prompt]) for prompt in CONTEXT[:2]])
    torch.testing.assert_close(together[:2], alone, rtol=1e-4, atol=1e-5)


def test_a_model_in_training_still_answers_in_evaluation(fresh_model: Callable[..., ValueModel]) -> None:
    model = fresh_model(AdapterConfig(queries=6, bottleneck=16, dropout=0.9))
    expected = model.features(PROMPTS)
    model.cache.clear()
    model.adapter.train()
    assert torch.equal(model.features(PROMPTS), expected)
    assert all(part.training for part in model.adapter.modules())  # the trainer's mode is not touched
    assert not model.backbone.training


@pytest.mark.parametrize("adapter", [None, AdapterConfig("last_token"), AdapterConfig("mean", features=5)])
def test_any_adapter_makes_a_model(fresh_model: Callable[..., ValueModel], adapter: AdapterConfig | None) -> None:
    predictions = ask(fresh_model(adapter))
    assert ((predictions > 0) & (predictions < 1)).all() and predictions.std() > 0


def test_a_model_is_frozen_and_in_evaluation(tiny_model: ValueModel) -> None:
    assert not any(parameter.requires_grad for parameter in tiny_model.parameters())
    assert not any(module.training for module in tiny_model.modules())
    parts = [tiny_model.backbone.encoder, tiny_model.adapter, tiny_model.head.network]
    held = {id(p) for p in tiny_model.parameters()}
    assert held == {id(p) for part in parts for p in part.parameters()}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter(
    fresh_model: Callable[..., ValueModel], mode: Callable[[], Any]
) -> None:
    model = fresh_model()
    with mode():
        predictions = ask(model)
    np.testing.assert_array_equal(predictions, ask(fresh_model()))
    # What was cached in that mode can be trained on afterwards.
    features = model.features(CONTEXT) + torch.zeros(model.adapter.width, requires_grad=True)
    features.retain_grad()
    labels = torch.from_numpy(hard_labels(CONTEXT, SCORES))
    model.logits(features, labels, features)[:, 1].sum().backward()
    assert features.grad.any()


def test_logits_are_the_predictions(tiny_model: ValueModel) -> None:
    labels = torch.from_numpy(hard_labels(CONTEXT, SCORES))
    logits = tiny_model.logits(tiny_model.features(CONTEXT), labels, tiny_model.features(PROMPTS))
    np.testing.assert_allclose(logits.softmax(-1)[:, 1].numpy(), ask(tiny_model), atol=1e-6)


def test_changed_weights_are_used_at_once(fresh_model: Callable[..., ValueModel]) -> None:
    model = fresh_model()
    before = ask(model)
    with torch.no_grad():
        for parameter in model.head.network.parameters():
            parameter.mul_(1.2)
    changed = ask(model)
    assert np.abs(changed - before).max() > 1e-2
    model.head._classifiers.clear()
    np.testing.assert_array_equal(ask(model), changed)


def test_many_queries_are_answered_as_few_are(tiny_model: ValueModel) -> None:
    numbers = [str(i) for i in range(1500)]
    predictions = ask(tiny_model, prompts=numbers * 3)
    assert predictions.shape == (4500,) and np.isfinite(predictions).all()
    np.testing.assert_array_equal(predictions[:1500], predictions[3000:])
    np.testing.assert_allclose(ask(tiny_model, prompts=numbers[700:703]), predictions[700:703], atol=1e-6)


def test_the_order_of_the_context_does_not_matter(tiny_model: ValueModel) -> None:
    order = np.random.default_rng(0).permutation(len(CONTEXT))
    permuted = ask(tiny_model, [CONTEXT[i] for i in order], [SCORES[i] for i in order])
    np.testing.assert_allclose(permuted, ask(tiny_model), atol=1e-5)


def test_identity_tells_models_apart_and_equal_loads_alike(fresh_model: Callable[..., ValueModel]) -> None:
    model = fresh_model()
    first = model.identity
    assert first == fresh_model().identity == model.identity
    assert first != fresh_model(AdapterConfig("mean")).identity
    with torch.no_grad():
        model.adapter.static_queries[0, 0, 0] += 0.5
    assert model.identity != first


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, value_model; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_has_no_other_names() -> None:
    import value_model

    assert value_model.ValueModel is ValueModel and value_model.ContextError is ContextError
    with pytest.raises(AttributeError, match="colour"):
        value_model.colour  # noqa: B018
