"""Synthetic tasks and the training of a head on them: seeds, shapes, resuming, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tabpfn import TabPFNClassifier

from value_model.head import load_network
from value_model.pretrain_head import REPORT, TRAINING, WEIGHTS, main, pretrain
from value_model.pretraining import initialisation, synthetic_tasks
from value_model.pretraining.head_metrics import evaluate_head
from value_model.pretraining.settings import PretrainError, PretrainSettings
from value_model.pretraining.synthetic_tasks import sample_tasks
from value_model.pretraining.trainer import (
    HeadTrainer,
    draw_tasks,
    learning_rate,
    logits,
    new_network,
    predict,
    soft_loss,
)

TINY = PretrainSettings(
    steps=4, width=16, layers=2, thinking_rows=2, cells=400, min_context=8, max_context=12, queries=4, features=5,
    min_features=3, max_features=6, wide_features=8, warmup=1, save_every=2, measured_tasks=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("batch", "rows", "features"), [(3, 40, 7), (1, 2, 1), (2, 20, 100)])
def test_tasks_have_the_shape_asked_for_and_are_finite(batch, rows, features):
    tasks = sample_tasks(rng(), batch, rows, features)
    assert tasks.x.shape == (batch, rows, features)
    assert tasks.probability.shape == tasks.success_rate.shape == tasks.labels.shape == (batch, rows)
    assert tasks.x.dtype == tasks.probability.dtype == np.float32 and tasks.labels.dtype == bool
    assert all(np.isfinite(part).all() for part in tasks)


def test_tasks_repeat_with_the_seed_only():
    ours, again, other = (sample_tasks(rng(seed), 2, 30, 6) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(ours, again, strict=True))
    assert not np.array_equal(ours.x, other.x)


def test_success_rates_are_means_of_up_to_sixteen_rollouts_of_the_true_probability():
    tasks = sample_tasks(rng(), 200, 50, 4)
    assert 0 < tasks.probability.min() and tasks.probability.max() < 1
    assert 0 <= tasks.success_rate.min() and tasks.success_rate.max() <= 1
    assert abs((tasks.success_rate - tasks.probability).mean()) < 0.01
    distinct = [len(np.unique(rates)) for rates in tasks.success_rate]
    assert min(distinct) <= 2 and 10 < max(distinct) <= synthetic_tasks.MAX_ROLLOUTS + 1


def test_tasks_cover_low_and_high_base_rates_and_u_shapes():
    probability = sample_tasks(rng(), 200, 100, 4).probability
    assert probability.mean(1).min() < 0.15 and probability.mean(1).max() > 0.85
    extreme = ((probability < 0.05) | (probability > 0.95)).mean(1)
    assert (extreme > 0.6).any() and (extreme < 0.1).any()


@pytest.mark.parametrize("response", dict.fromkeys(synthetic_tasks.RESPONSES), ids=lambda response: response.__name__)
@pytest.mark.parametrize("structure", synthetic_tasks.STRUCTURES, ids=lambda structure: structure.__name__)
def test_every_response_varies_with_every_structure(structure, response):
    factors = structure(rng(3), 60)
    values = response(rng(4), factors)
    assert values.shape == (60,) and np.isfinite(values).all() and values.std() > 0


@pytest.mark.parametrize("view", synthetic_tasks.VIEWS, ids=lambda view: view.__name__)
@pytest.mark.parametrize("count", [1, 9])
def test_every_view_gives_the_columns_asked_for(view, count):
    assert view(rng(), rng(1).standard_normal((30, 4)), count).shape == (30, count)


def test_token_rows_are_one_hot_in_each_slot():
    tokens = synthetic_tasks._tokens(rng(), 50)
    assert set(np.unique(tokens)) == {0.0, 1.0}
    assert len(np.unique(tokens.sum(1))) == 1 and tokens.sum(1)[0] >= 2


@pytest.mark.parametrize("size", [{"batch": 0}, {"rows": 1}, {"features": 0}])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"{next(iter(size))}="):
        sample_tasks(rng(), **{"batch": 1, "rows": 4, "features": 2, **size})


def test_steps_stay_within_their_bounds():
    settings = replace(TINY, cells=2000)
    for seed in range(100):
        tasks, context = draw_tasks(rng(seed), settings)
        batch, rows, features = tasks.x.shape
        assert settings.min_context <= context <= settings.max_context
        assert settings.min_features <= features <= settings.wide_features
        assert rows == context + settings.queries
        assert batch * rows * (-(-features // settings.features_per_group) + 1) <= settings.cells


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = replace(TINY, steps=100, warmup=10)
    rates = np.array([learning_rate(step, settings) for step in range(100)])
    assert rates.argmax() == 9 or rates.argmax() == 10
    assert rates.max() == pytest.approx(settings.learning_rate)
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 0.01 * settings.learning_rate


def test_the_loss_is_least_at_the_true_probability():
    probability = np.array([[0.2, 0.7]], dtype=np.float32)
    truth = torch.tensor([[[0.8, 0.2], [0.3, 0.7]]]).log()
    best = soft_loss(truth, probability)
    assert best == pytest.approx(-np.mean([p * np.log(p) + (1 - p) * np.log(1 - p) for p in (0.2, 0.7)]), rel=1e-5)
    assert soft_loss(truth * 0.9, probability) > best and soft_loss(truth * 1.1, probability) > best


def test_every_parameter_learns_from_the_first_step():
    training = HeadTrainer(TINY)
    training.advance()
    unmoved = [name for name, parameter in training.network.named_parameters() if not parameter.grad.any()]
    assert not unmoved


@pytest.mark.parametrize("features", [4, 12])
def test_an_untrained_head_already_ranks_rows(features):
    """With the initial weights the coordinate of the row's estimate tells likely from unlikely rows."""
    network = new_network(replace(TINY, width=64, layers=3, features_per_group=6)).eval()
    ranked = []
    for seed in range(12):
        x = rng(seed).standard_normal((1, 96, features)).astype(np.float32)
        success = (x[..., 0] > 0).astype(np.float32)
        with torch.no_grad():
            rows = network(*_inputs(x, success[:, :64]), only_return_standard_out=False)["test_embeddings"]
        votes = rows[:, 0, initialisation.ROW_ESTIMATE].numpy()
        ranked.append(roc_auc_score(success[0, 64:], votes))
    assert np.mean(ranked) > 0.6


def _inputs(x: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(x).transpose(0, 1), torch.from_numpy(labels).T


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    HeadTrainer(TINY).advance()
    assert torch.equal(torch.rand(1), expected)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path):
    unbroken, broken = HeadTrainer(TINY), HeadTrainer(TINY)
    losses = [unbroken.advance() for _ in range(4)]
    for _ in range(2):
        broken.advance()
    broken.save(tmp_path / TRAINING)
    resumed = HeadTrainer(TINY)
    resumed.load(tmp_path / TRAINING)
    assert [resumed.advance() for _ in range(2)] == losses[2:]
    assert_same(weights(resumed.network), weights(unbroken.network))


def test_another_seed_gives_another_head():
    ours, other = HeadTrainer(TINY), HeadTrainer(replace(TINY, seed=1))
    assert ours.advance() != other.advance()


def test_training_of_other_settings_is_not_resumed(tmp_path: Path):
    HeadTrainer(TINY).save(tmp_path / TRAINING)
    with pytest.raises(PretrainError, match="learning_rate"):
        pretrain(replace(TINY, learning_rate=0.5), tmp_path)


def test_nothing_half_written_replaces_a_checkpoint(tmp_path: Path, monkeypatch):
    training = HeadTrainer(TINY)
    training.save(tmp_path / TRAINING)
    before = (tmp_path / TRAINING).read_bytes()

    def fail(state, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        training.save(tmp_path / TRAINING)
    assert (tmp_path / TRAINING).read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"steps": 0}, "steps"), ({"min_features": 9}, "min_features"), ({"min_context": 99}, "min_context"),
     ({"learning_rate": -1.0}, "learning_rate"), ({"width": 18}, "width"),
     ({"layers": 1}, "layers")],
)  # fmt: skip
def test_impossible_settings_are_named(wrong, named):
    with pytest.raises(PretrainError, match=named):
        replace(TINY, **wrong)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What the command leaves behind, with large weights so that predictions differ."""
    out = tmp_path_factory.mktemp("head")
    changed = {name: value for name, value in vars(TINY).items() if value != getattr(PretrainSettings(), name)}
    flags = [part for name, value in changed.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    main(["--out", str(out), "--learning-rate", "0.05", *flags])
    return out


def test_the_command_writes_weights_and_a_report(trained: Path):
    assert {path.name for path in trained.iterdir()} == {WEIGHTS, REPORT, TRAINING}
    report = json.loads((trained / REPORT).read_text())
    assert report["settings"]["steps"] == TINY.steps and report["settings"]["learning_rate"] == 0.05
    rows = {(row["context"], row["predictor"]): row for row in report["measured"]}
    assert {name for _, name in rows} == {"head", "logistic", "base_rate", "truth"}
    for (context, _), row in rows.items():
        assert row["log_loss"] >= rows[context, "truth"]["log_loss"] and row["brier"] >= 0


def test_reloaded_weights_give_identical_logits(trained: Path):
    training = HeadTrainer(replace(TINY, learning_rate=0.05))
    training.load(trained / TRAINING)
    network, architecture = load_network(trained / WEIGHTS)
    assert architecture == training.settings.architecture()
    tasks = sample_tasks(rng(), 2, 12, 5)
    ours, theirs = (logits(net.eval(), tasks, 8).detach() for net in (training.network, network))
    assert torch.equal(ours, theirs) and ours.std() > 0


def test_tabpfns_own_loader_reads_the_weights(trained: Path):
    tasks = sample_tasks(rng(8), 1, 40, 5)
    x, labels = tasks.x[0], tasks.labels[0].copy()
    labels[:2] = [False, True]
    classifier = TabPFNClassifier(model_path=str(trained / WEIGHTS), device="cpu", n_estimators=1)
    predicted = classifier.fit(x[:30], labels[:30]).predict_proba(x[30:])
    assert predicted.shape == (10, 2) and predicted.sum(1) == pytest.approx(1, abs=1e-4)


def test_tabpfn_shows_the_head_what_training_showed_it(trained: Path):
    """One estimator without shuffling is the bare network: nothing is added, rescaled or sharpened on the way."""
    tasks = sample_tasks(rng(8), 1, 40, 5)
    tasks.success_rate[0, :2] = [0.0, 1.0]
    plain = {"FEATURE_SHIFT_METHOD": None, "CLASS_SHIFT_METHOD": None}
    classifier = TabPFNClassifier(
        model_path=str(trained / WEIGHTS), device="cpu", n_estimators=1, inference_config=plain,
        inference_precision=torch.float32,
    )  # fmt: skip
    predicted = classifier.fit(tasks.x[0, :30], tasks.labels[0, :30]).predict_proba(tasks.x[0, 30:])
    network, _ = load_network(trained / WEIGHTS)
    assert predicted == pytest.approx(logits(network.eval(), tasks, 30)[0].softmax(-1).detach().numpy(), abs=1e-4)


def test_a_finished_run_is_not_trained_again(trained: Path):
    before = (trained / WEIGHTS).read_bytes()
    pretrain(replace(TINY, learning_rate=0.05), trained)
    assert (trained / WEIGHTS).read_bytes() == before


def test_measuring_repeats_and_ranks_what_is_known():
    sizes = {"features": 4, "queries": 16, "tasks": 6, "contexts": (40,)}
    measured = evaluate_head(lambda task, context: task.probability[0, context:], **sizes)
    assert measured == evaluate_head(lambda task, context: task.probability[0, context:], **sizes)
    rows = {row["predictor"]: row for row in measured}
    scores = {name: {key: row[key] for key in ("log_loss", "brier", "auc")} for name, row in rows.items()}
    assert scores["head"] == scores["truth"]
    assert rows["truth"]["brier"] == 0 and rows["base_rate"]["auc"] == 0.5
    assert rows["truth"]["log_loss"] < min(rows["logistic"]["log_loss"], rows["base_rate"]["log_loss"])


def test_a_context_of_one_class_is_measured_too():
    never = evaluate_head(lambda task, context: np.zeros(4), features=2, queries=4, tasks=8, contexts=(2,))
    assert {row["predictor"] for row in never} == {"head", "logistic", "base_rate", "truth"}


@pytest.mark.slow
def test_a_short_training_learns_from_the_context():
    """Ten seconds on tasks of few features: better than the base rate, which no context of unseen tasks gives away."""
    settings = replace(
        TINY, steps=200, width=32, cells=2000, min_context=32, max_context=64, queries=32, features=4,
        min_features=3, max_features=4, wide_features=4, warmup=20, learning_rate=2e-3,
    )  # fmt: skip
    training = HeadTrainer(settings)
    for _ in range(settings.steps):
        training.advance()
    rows = evaluate_head(partial(predict, training.network), features=4, queries=64, tasks=100, contexts=(64,))
    measured = {row["predictor"]: row for row in rows}
    assert measured["head"]["auc"] > 0.54
    assert measured["head"]["log_loss"] < measured["base_rate"]["log_loss"]
