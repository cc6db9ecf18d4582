"""What the pool does about replicas, on real Ray with replicas that load at once and do as they are told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from value_model.serving.pool import EMBED_BATCH, PoolError, ReplicaPool
from value_model.serving.replica import ReplicaInfo, assigned_device

PATIENCE_S = 240.0


class Scripted:
    """In place of :class:`value_model.serving.replica.Replica`; its weights are what the file ``weights`` holds."""

    def __init__(self, weights: str, load_s: float = 0.0):
        self.weights = Path(weights)
        self.load_s = load_s

    def load(self) -> ReplicaInfo:
        time.sleep(self.load_s)
        return ReplicaInfo(self.weights.read_text(), "cpu", "here", os.getpid())

    def embed(self, prompts: list[str]) -> np.ndarray:
        """A prompt is how many seconds it takes; a negative one is a broken GPU, or one without memory left."""
        if "-1" in prompts:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        if "-2" in prompts:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        time.sleep(sum(float(p) for p in prompts))
        return np.array([[float(p)] for p in prompts])

    def sleep(self) -> None: ...


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("value_model.serving.pool.Replica", Scripted)
    (tmp_path / "weights").write_text("first")
    return tmp_path / "weights"


def make(weights: Path, replicas: int, timeout_s: float, **scripted: float) -> ReplicaPool:
    return ReplicaPool({"weights": str(weights), **scripted}, [{"num_cpus": 0}] * replicas, timeout_s)


def test_a_call_that_every_replica_gets_stuck_in_is_given_up(small_cluster: None, weights: Path) -> None:
    pool = make(weights, 2, timeout_s=2.0)
    pool.wait(PATIENCE_S)
    with pytest.raises(PoolError, match="embed: replicas were lost in each of 3 attempts|none of 2"):
        pool.embed(["1000", "0"])
    pool.close()


def test_a_survivor_has_time_for_each_of_the_calls_it_takes_over(small_cluster: None, weights: Path) -> None:
    pool = make(weights, 3, timeout_s=3.0)
    pool.wait(PATIENCE_S)
    for info in pool.infos[:2]:
        os.kill(info.pid, signal.SIGKILL)
    # Three calls of 2 s each end up with one replica, or with it and a replacement.
    np.testing.assert_array_equal(pool.embed(["2", "2", "2"]), [[2.0]] * 3)
    assert pool.restarts == 2
    pool.close()


def test_a_replacement_with_other_weights_is_not_asked(small_cluster: None, weights: Path) -> None:
    pool = make(weights, 2, timeout_s=PATIENCE_S)
    pool.wait(PATIENCE_S)
    weights.write_text("second")
    os.kill(pool.infos[0].pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while pool.restarts < 2 and time.monotonic() < deadline:
        np.testing.assert_array_equal(pool.embed(["0", "0.1"]), [[0.0], [0.1]])
    assert pool.restarts >= 2, "the first replacement must have been refused"
    assert {info.identity for info in pool.infos} == {"first"}
    pool.close()


def test_all_replicas_together_have_the_time_to_load(small_cluster: None, weights: Path) -> None:
    pool = make(weights, 3, timeout_s=PATIENCE_S, load_s=1000.0)
    started = time.monotonic()
    with pytest.raises(PoolError, match=r"did not load in 1 s: raise load_timeout_s, or lower gpu_fraction"):
        pool.wait(1.0)
    assert time.monotonic() - started < 2.5
    pool.close()


@pytest.mark.parametrize(
    ("assigned", "seen", "listed", "device"),
    [
        ([], 8, None, "cpu"),  # an actor without a GPU on a node that does not hide them
        (["7"], 0, None, "cpu"),  # Ray counts logical GPUs, there is none
        (["7"], 1, "7", "cuda:0"),  # hidden by Ray
        (["7"], 8, None, "cuda:7"),  # not hidden
        (["5"], 4, "4,5,6,7", "cuda:1"),
        (["1"], 3, "1, 2, 3", "cuda:0"),
        (["GPU-b"], 2, "GPU-a,GPU-b", "cuda:1"),
    ],
)
def test_a_replica_computes_on_the_gpu_that_ray_booked(
    assigned: list[str], seen: int, listed: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(monkeypatch, assigned, seen, listed)
    assert assigned_device() == device


def test_a_gpu_that_is_not_visible_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, ["0"], 2, "2,3")
    with pytest.raises(RuntimeError, match="assigned GPU '0', which is not in CUDA_VISIBLE_DEVICES='2,3'"):
        assigned_device()


def see(monkeypatch: pytest.MonkeyPatch, assigned: list[str], seen: int, listed: str | None) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": assigned})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)


def test_a_replica_whose_gpu_fails_is_replaced(small_cluster: None, weights: Path) -> None:
    pool = make(weights, 2, timeout_s=PATIENCE_S)
    pool.wait(PATIENCE_S)
    with pytest.raises(PoolError):
        pool.embed(["-1"])
    assert pool.restarts >= 2
    pool.close()


def test_a_replica_that_runs_out_of_memory_raises_and_stays(small_cluster: None, weights: Path) -> None:
    """The error ends in the provider's thread, as missing priors; the next step may have the memory."""
    pool = make(weights, 2, timeout_s=PATIENCE_S)
    pool.wait(PATIENCE_S)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        pool.embed(["-2"])
    assert pool.restarts == 0
    np.testing.assert_array_equal(pool.embed(["0"]), [[0.0]])
    pool.close()


def test_a_large_step_is_embedded_in_calls_of_bounded_size(small_cluster: None, weights: Path) -> None:
    pool = make(weights, 1, timeout_s=PATIENCE_S)
    pool.wait(PATIENCE_S)
    assert max(len(chunk) for chunk in pool._chunks(1000, -(-1000 // EMBED_BATCH))) <= EMBED_BATCH
    np.testing.assert_array_equal(pool.embed([f"0.0000{i:04}" for i in range(600)])[:, 0], np.arange(600) / 1e8)
    pool.close()
