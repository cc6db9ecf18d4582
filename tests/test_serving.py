"""Replicas of the value model on real Ray: splitting, death, hanging, replacement; and the provider on top of them."""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.statement import fault
from value_model import ValueModel
from value_model.serving.pool import PoolError, ReplicaPool
from value_model.serving.replica import Replica, encoder_dtype, release_cuda_memory
from verl_v05.prior import Outcome, Query, make_prior
from verl_v05.prior.value_model import ValueModelPrior
from verl_v05.settings import PriorSettings, SettingsError

pytest_plugins = ("tests.tiny_value_model",)

PATIENCE_S = 240.0
CONTEXT = [f"{i}+{i % 7}=" for i in range(40)]
SCORES = [1.0 if i % 3 else -0.5 for i in range(40)]
PROMPTS = [f"{i}*{i % 5}=" for i in range(23)]


@pytest.fixture(scope="module")
def model_path(tiny_model: ValueModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("v0") / "model"
    tiny_model.save_pretrained(path)
    return str(path)


@pytest.fixture
def pool(small_cluster: None, model_path: str) -> Iterator[ReplicaPool]:
    pool = ReplicaPool({"model": model_path}, [{"num_cpus": 0}] * 2, timeout_s=PATIENCE_S)
    pool.wait(PATIENCE_S)
    yield pool
    pool.close()


def ask(pool: ReplicaPool) -> np.ndarray:
    features = pool.embed([*CONTEXT, *PROMPTS])
    labels = np.array(SCORES) >= 0
    return pool.predict(features[: len(CONTEXT)], labels, features[len(CONTEXT) :])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.2)


def test_answers_are_the_models_own_and_in_order(pool: ReplicaPool, tiny_model: ValueModel) -> None:
    np.testing.assert_allclose(ask(pool), tiny_model.predict(CONTEXT, SCORES, PROMPTS), atol=1e-5)


@fault(
    "a replica of the value model is killed",
    happens="the others answer for it, and it is replaced (`v05/prior/restarts`)",
    do="nothing",
    within_s=120,
)
def test_survivors_answer_for_a_killed_replica_which_is_replaced(pool: ReplicaPool, tiny_model: ValueModel) -> None:
    os.kill(pool.infos[0].pid, signal.SIGKILL)
    np.testing.assert_allclose(ask(pool), tiny_model.predict(CONTEXT, SCORES, PROMPTS), atol=1e-5)
    assert pool.restarts == 1
    until(lambda: len(pool.infos) == 2)
    np.testing.assert_allclose(ask(pool), tiny_model.predict(CONTEXT, SCORES, PROMPTS), atol=1e-5)


@fault(
    "all replicas of the value model are killed",
    happens="priors are missing until they are replaced",
    do="nothing",
    within_s=120,
)
def test_with_all_replicas_killed_it_says_so_at_once_and_recovers(pool: ReplicaPool) -> None:
    before = ask(pool)
    for info in pool.infos:
        os.kill(info.pid, signal.SIGKILL)
    with pytest.raises(PoolError, match="none of 2 value model replicas is loaded; 2 restarts so far"):
        ask(pool)
    started = time.monotonic()
    with pytest.raises(PoolError):  # does not wait for the replacements
        ask(pool)
    assert time.monotonic() - started < 5
    until(lambda: len(pool.infos) == 2)
    np.testing.assert_array_equal(ask(pool), before)


@fault(
    "a replica of the value model is stopped, not dead",
    happens="replaced after `prior.timeout_s`; the others answer for it",
    do="nothing",
    within_s=120,
)
def test_a_replica_that_hangs_is_replaced_after_the_timeout(pool: ReplicaPool, tiny_model: ValueModel) -> None:
    ask(pool)
    pool._timeout_s = 5.0
    os.kill(pool.infos[0].pid, signal.SIGSTOP)
    np.testing.assert_allclose(ask(pool), tiny_model.predict(CONTEXT, SCORES, PROMPTS), atol=1e-5)
    assert pool.restarts == 1


def answer(replica: Replica) -> np.ndarray:
    features = replica.embed([*CONTEXT, *PROMPTS])
    return replica.predict(features[: len(CONTEXT)], np.array(SCORES) >= 0, features[len(CONTEXT) :])


def loaded(model_path: str, device: str, dtype: str = "auto") -> Replica:
    replica = Replica(model_path, device=device, dtype=dtype)
    replica.load()
    return replica


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_answers_after_a_sleep_are_those_from_before(model_path: str, device: str) -> None:
    replica = loaded(model_path, device)
    first = answer(replica)
    replica.sleep()
    np.testing.assert_allclose(answer(replica), first, rtol=0, atol=1e-6 if device == "cpu" else 1e-4)


def test_sleep_drops_the_tensors_of_the_last_context(model_path: str) -> None:
    replica = loaded(model_path, "cpu")
    answer(replica)
    (classifier,) = replica._model.head._classifiers.values()
    kept = weakref.ref(classifier.executor_)
    del classifier
    replica.sleep()
    assert kept() is None


def test_what_cublas_keeps_is_released_before_the_allocators_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("cuBLAS"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("cache"))
    release_cuda_memory()
    assert calls == ["cuBLAS", "cache"]
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    release_cuda_memory()
    assert calls == ["cuBLAS", "cache", "cache"]


@pytest.mark.gpu
def test_on_a_gpu_memory_is_given_back_between_answers(model_path: str) -> None:
    gc.collect()
    release_cuda_memory()  # of the tests before
    replica = loaded(model_path, "cuda:0")
    assert torch.cuda.memory_allocated() == 0
    for _ in range(2):
        answer(replica)
        assert torch.cuda.memory_allocated() > 0
        replica.sleep()
        assert torch.cuda.memory_allocated() < 2**20
        assert torch.cuda.memory_reserved() < 2**22


@pytest.mark.gpu
def test_a_gpu_without_memory_is_an_error_that_leaves_the_replica_as_it_was(model_path: str) -> None:
    replica = loaded(model_path, "cuda:0")
    before = answer(replica)
    replica.sleep()
    gc.collect()
    torch.cuda.set_per_process_memory_fraction(2**19 / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(torch.OutOfMemoryError):
            answer(replica)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        replica.sleep()
    assert torch.cuda.memory_allocated() < 2**20
    np.testing.assert_allclose(answer(replica), before, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_answers_of_a_gpu_are_the_cpus(model_path: str, tiny_model: ValueModel) -> None:
    expected = tiny_model.predict(CONTEXT, SCORES, PROMPTS)
    np.testing.assert_allclose(answer(loaded(model_path, "cuda:0", "float32")), expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(answer(loaded(model_path, "cuda:0")), expected, rtol=0, atol=0.02)  # bfloat16


def test_an_encoder_in_bfloat16_changes_answers_by_less_than_a_hundredth() -> None:
    """What a GPU's default costs, measured where there is none, with the trained model of the package."""

    def answers(dtype: str) -> np.ndarray:
        model = Replica(None, device="cpu", dtype=dtype)
        model.load()
        return answer(model)

    difference = np.abs(answers("bfloat16") - answers("float32"))
    assert 0 < difference.max() < 0.01


def test_the_encoders_dtype_is_part_of_a_models_identity(model_path: str) -> None:
    infos = [Replica(model_path, device="cpu", dtype=dtype).load() for dtype in ("auto", "float32", "bfloat16")]
    assert infos[0].identity == infos[1].identity != infos[2].identity


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [("auto", "cpu", None), ("auto", "cuda:1", "bfloat16"), ("float32", "cuda:0", "float32")],
)
def test_on_a_gpu_the_encoder_is_in_bfloat16_unless_told_otherwise(
    dtype: str, device: str, expected: str | None
) -> None:
    assert encoder_dtype(dtype, device) == expected


def test_an_error_of_the_model_is_raised_and_costs_no_replica(pool: ReplicaPool) -> None:
    features = pool.embed(CONTEXT)
    with pytest.raises(Exception, match="NaN|shape|size|dimension|must match"):
        pool.predict(features, np.array(SCORES) >= 0, features[:, :5])
    assert pool.restarts == 0 and len(pool.infos) == 2


def test_a_model_that_cannot_be_loaded_is_an_error_at_start_with_its_reason(
    small_cluster: None, tmp_path: Path
) -> None:
    pool = ReplicaPool({"model": str(tmp_path)}, [{"num_cpus": 0}], timeout_s=PATIENCE_S)
    with pytest.raises(PoolError, match="cannot load.*no value model"):
        pool.wait(PATIENCE_S)
    pool.close()


def queries(texts: list[str]) -> list[Query]:
    return [Query(text, text, "test") for text in texts]


def context() -> list[Outcome]:
    return [Outcome(q, (score + 1) / 2, 4) for q, score in zip(queries(CONTEXT), SCORES, strict=True)]


@pytest.fixture
def prior(small_cluster: None, model_path: str, tmp_path: Path) -> Iterator[ValueModelPrior]:
    settings = PriorSettings("v0", {"model": model_path, "cache_path": str(tmp_path / "features.safetensors")})
    prior = make_prior(settings)
    prior.start()
    yield prior
    prior.close()


def test_the_provider_answers_as_the_model_does(prior: ValueModelPrior, tiny_model: ValueModel) -> None:
    answered = prior.predict(queries(PROMPTS), context(), step=1)
    np.testing.assert_allclose(answered, tiny_model.predict(CONTEXT, SCORES, PROMPTS), atol=1e-5)


def test_without_a_context_all_is_missing_but_already_embedded(prior: ValueModelPrior) -> None:
    assert np.isnan(prior.predict(queries(PROMPTS), None, step=1)).all()
    assert prior.metrics()["embedded"] == len(PROMPTS)
    prior.predict(queries(PROMPTS), context(), step=2)
    metrics = prior.metrics()
    assert (metrics["embedded"], metrics["cached"]) == (len(CONTEXT), len(PROMPTS))


def test_metrics_have_the_same_keys_at_every_step(prior: ValueModelPrior) -> None:
    first = prior.metrics()
    prior.predict(queries(PROMPTS), context(), step=1)
    assert first.keys() == prior.metrics().keys()


def test_features_survive_in_the_cache_file(prior: ValueModelPrior, model_path: str) -> None:
    answered = prior.predict(queries(PROMPTS), context(), step=1)
    prior.state_dict()
    again = make_prior(PriorSettings("v0", {"model": model_path, "cache_path": prior._cache_path}))
    again.start()
    np.testing.assert_array_equal(again.predict(queries(PROMPTS), context(), step=1), answered)
    assert again.metrics()["embedded"] == 0
    again.close()


def test_a_cache_that_cannot_be_written_is_refused_at_start_and_counted_later(
    prior: ValueModelPrior, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    nowhere = ValueModelPrior(cache_path=str(tmp_path / "file" / "features.safetensors"))
    with pytest.raises(ValueError, match="kwargs.cache_path='.*' is not allowed: it must be a file in a folder"):
        nowhere.start()
    prior._cache_path = nowhere._cache_path
    assert prior.state_dict() == {}
    assert prior.metrics()["cache_failures"] == 1


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"replicas_per_node": 0}, "kwargs.replicas_per_node=0 is not allowed: it must be at least 1"),
        ({"gpu_fraction": 1.5}, r"kwargs.gpu_fraction=1.5 is not allowed: it must be in \(0, 1\]"),
        ({"timeout_s": 0}, "kwargs.timeout_s=0 is not allowed: it must be positive"),
        ({"dtype": "int8"}, "kwargs.dtype='int8' is not allowed: it must be one of auto, float32"),
        ({"replicas": 1}, "replicas"),
    ],
)
def test_impossible_arguments_are_refused_at_launch(kwargs: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_prior(PriorSettings("v0", kwargs))
