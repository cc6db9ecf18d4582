"""The difficulty: its formulas written a second time, its fit by brute force, on disk, and after a training run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny_value_model import build_model
from value_model.checkpoint import CheckpointError
from value_model.config import AdapterConfig, ConfigError, ValueModelConfig
from value_model.difficulty import HEAD_ALONE, POOLINGS, Difficulty, combination_terms, kernel
from value_model.model import ValueModel
from value_model.training.difficulty import RIDGES, WIDTHS, excess_success, fit_combination, fit_kernel

pytest_plugins = ("tests.tiny_value_model",)

CONTEXT = [f"{a} + {b} =" for a in range(6) for b in (3, 41)]
SCORES = [1.0, -1.0, 0.5, -0.25, 0.0, -1.0, 1.0, 0.75, -0.5, 1.0, -1.0, 0.25]
PROMPTS = ["12+5=", "héllo", "what is 3?", "0 + 3 ="]


def drawn(combination: tuple[float, ...] = (0.1, 0.5, 0.8, 0.3), pooling: str = "mean", width: int = 32) -> Difficulty:
    generator = torch.Generator().manual_seed(5)
    return Difficulty(
        pooling,
        centres=torch.nn.functional.normalize(torch.randn(7, width, generator=generator), dim=1),
        weights=torch.randn(7, generator=generator),
        gamma=torch.tensor(1.5),
        combination=torch.tensor(combination),
    )


def with_difficulty(model: ValueModel, difficulty: Difficulty) -> ValueModel:
    config = replace(model.config, difficulty=difficulty.pooling)
    return ValueModel(config, model.backbone, model.adapter, model.head, difficulty)


def ask(model: ValueModel) -> np.ndarray:
    return model.predict(CONTEXT, SCORES, PROMPTS)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_difficulty_is_the_formula(pooling: str) -> None:
    difficulty, states = drawn(pooling=pooling), torch.randn(3, 5, 32)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    for row, found in enumerate(difficulty(states, mask)):
        real = states[row][mask[row]]
        pooled = real.mean(0) if pooling == "mean" else real[-1]
        x = (pooled / pooled.norm()).double().numpy()
        centres, weights = difficulty.centres.double().numpy(), difficulty.weights.double().numpy()
        expected = 4 * sum(w * np.exp(-1.5 * ((x - c) ** 2).sum()) for w, c in zip(weights, centres, strict=True))
        assert float(found) == pytest.approx(expected, abs=1e-4)


def test_the_prediction_is_the_combination_of_head_difficulty_and_level(fresh_model: Callable[..., ValueModel]) -> None:
    plain = fresh_model()
    p, difficulty = ask(plain), drawn()
    model = with_difficulty(plain, difficulty)
    d = model.features([*CONTEXT, *PROMPTS])[:, -1].double().numpy()
    share = (sum(score >= 0 for score in SCORES) + 0.5) / (12 + 1)
    terms = np.log(p / (1 - p)), d[12:] - d[:12].mean(), np.log(share / (1 - share))
    b = difficulty.combination.double().numpy()
    expected = 1 / (1 + np.exp(-(b[0] + b[1] * terms[0] + b[2] * terms[1] + b[3] * terms[2])))
    np.testing.assert_allclose(ask(model), expected, atol=1e-5)
    assert model.features(PROMPTS).shape == (len(PROMPTS), model.width) == (len(PROMPTS), plain.width + 1)


def test_a_difficulty_without_weight_changes_no_prediction(fresh_model: Callable[..., ValueModel]) -> None:
    plain = fresh_model()
    np.testing.assert_allclose(ask(with_difficulty(plain, drawn(HEAD_ALONE))), ask(plain), atol=1e-6)


def test_the_kernel_fit_has_the_smallest_leave_one_out_error() -> None:
    rng = np.random.default_rng(0)
    points = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(14, 3))), dim=1)
    target, rows = points[:, 0].numpy() + 0.3 * rng.normal(size=14), rng.integers(1, 4, 14).astype(float)
    scale = float((2 - 2 * points @ points.T).median())

    def weights(kept: np.ndarray, gamma: float, ridge: float) -> torch.Tensor:
        gram = kernel(points[kept], points[kept], torch.tensor(gamma)) + torch.diag(
            torch.from_numpy(ridge / rows[kept])
        )
        return torch.linalg.solve(gram, torch.from_numpy(target[kept]))

    def error(gamma: float, ridge: float) -> float:
        total = 0.0
        for i in range(14):
            kept = np.arange(14) != i
            found = kernel(points[[i]], points[kept], torch.tensor(gamma)) @ weights(kept, gamma, ridge)
            total += rows[i] * (float(found) - target[i]) ** 2
        return total

    gamma, ridge = min(((w / scale, r) for w in WIDTHS for r in RIDGES), key=lambda pair: error(*pair))
    found, found_gamma = fit_kernel(points, target, rows)
    assert found_gamma == pytest.approx(gamma)
    np.testing.assert_allclose(found.numpy(), weights(np.arange(14) >= 0, gamma, ridge).numpy(), atol=1e-5)


def test_the_combination_weights_what_predicts_and_nothing_negatively() -> None:
    rng = np.random.default_rng(0)
    difficulty, head = rng.normal(size=(2, 4000))
    rate = 1 / (1 + np.exp(-(0.2 + 1.3 * difficulty - 0.5 * head)))
    terms = np.stack([np.ones(4000), head, difficulty, np.zeros(4000)], axis=1)
    found = fit_combination(terms, rate)
    assert found[1] == 0 and found[2] == pytest.approx(1.3, abs=0.15)
    assert fit_combination(terms[:0], rate[:0]) == pytest.approx(HEAD_ALONE)


def test_the_terms_are_finite_in_a_context_of_one_class() -> None:
    terms = combination_terms(torch.zeros(2, 2), torch.ones(3, dtype=torch.bool), torch.zeros(3), torch.ones(2))
    assert torch.isfinite(terms).all() and torch.equal(terms[:, 2], torch.ones(2))


def test_the_level_of_a_policy_is_not_taken_for_ease() -> None:
    rows = [("strong", 1, "a", 1.0), ("strong", 1, "b", 0.6), ("weak", 1, "c", -0.6), ("weak", 1, "d", -1.0)]
    table = pd.DataFrame(rows, columns=["model", "step", "prompt", "score"])
    assert excess_success(table)["excess"].to_dict() == pytest.approx({"a": 0.1, "b": -0.1, "c": 0.1, "d": -0.1})
    again = excess_success(pd.concat([table, table.assign(step=2)]))
    assert again["rows"].tolist() == [2] * 4 and len(excess_success(table, most=3)) == 3


def test_a_saved_difficulty_predicts_the_same(fresh_model: Callable[..., ValueModel], tmp_path: Path) -> None:
    model = with_difficulty(fresh_model(), drawn(pooling="last_token"))
    model.save_pretrained(tmp_path / "model")
    again = ValueModel.from_pretrained(tmp_path / "model")
    assert again.config == model.config and again.identity == model.identity
    np.testing.assert_array_equal(ask(again), ask(model))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["difficulty"] == "last_token"


def test_a_model_without_one_is_written_as_before(fresh_model: Callable[..., ValueModel], tmp_path: Path) -> None:
    model = fresh_model(AdapterConfig("mean"))
    model.save_pretrained(tmp_path / "model")
    assert "difficulty" not in (tmp_path / "model" / "config.json").read_text()
    assert not (tmp_path / "model" / "difficulty.safetensors").exists()
    assert ValueModel.from_pretrained(tmp_path / "model").difficulty is None


def test_a_difficulty_that_is_missing_or_does_not_fit_is_refused(encoder: Path, tmp_path: Path) -> None:
    model = with_difficulty(build_model(encoder), drawn())
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "difficulty.safetensors"
    with_difficulty(model, drawn(width=16)).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / file.name).rename(file)
    with pytest.raises(CheckpointError, match="difficulty.safetensors does not fit: its centres have width 16"):
        ValueModel.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "adapter.safetensors").rename(file)
    with pytest.raises(CheckpointError, match="missing or damaged|does not fit"):
        ValueModel.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected centres \(M, D\)"):
        Difficulty("mean", **{**dict(drawn().named_buffers()), "weights": torch.zeros(3)})


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"difficulty='max'.*null or one of mean, last_token"):
        ValueModelConfig(difficulty="max")
