"""``prior.provider=v0``: the value model, served by replicas beside the policy's ranks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.util.placement_group import PlacementGroup
from safetensors import SafetensorError

from value_model.cache import TextCache
from value_model.checks import require
from value_model.config import DTYPES
from value_model.serving.placement import replica_options
from value_model.serving.pool import ReplicaPool
from verl_v05.prior.base import Prior
from verl_v05.prior.query import Outcome, Query
from verl_v05.prior.support_buffer import is_success

logger = logging.getLogger(__name__)

KEY = "algorithm.v05.prior.kwargs"


class ValueModelPrior(Prior):
    """Asks V0, given a sample of the support buffer; missing while the buffer is too small.

    A prompt's features do not change in a run, so they are kept here, outside the replicas: each prompt is embedded
    once, and a replica that dies takes nothing with it.

    Args:
        model: folder or hub id of the value model; None is the small one of the package.
        backbone: hub id or path of the encoder, where the checkpoint's own name cannot be reached.
        replicas_per_node: copies of the model on each node of the trainer.
        gpu_fraction: share of a GPU that Ray books for a replica, in (0, 1]; verl's workers book a third of it.
        timeout_s: a replica that takes longer for one call is replaced; below ``prior.timeout_s``, which bounds all.
        load_timeout_s: the run does not start if the replicas take longer to load.
        cache_prompts: prompts whose features are kept.
        cache_path: file the features are read from at start and written to with each checkpoint; on storage that all
            nodes see, as any of them may run the allocator.
        device: "auto" or a torch device.
        dtype: of the encoder, "auto" (bfloat16 on a GPU) or one of :data:`value_model.config.DTYPES`.
    """

    def __init__(
        self,
        model: str | None = None,
        backbone: str | None = None,
        replicas_per_node: int = 1,
        gpu_fraction: float = 0.1,
        timeout_s: float = 120.0,
        load_timeout_s: float = 600.0,
        cache_prompts: int = 65536,
        cache_path: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ):
        require(f"{KEY}.replicas_per_node", replicas_per_node, replicas_per_node >= 1, "at least 1")
        require(f"{KEY}.gpu_fraction", gpu_fraction, 0 < gpu_fraction <= 1, "in (0, 1]")
        require(f"{KEY}.timeout_s", timeout_s, timeout_s > 0, "positive")
        require(f"{KEY}.load_timeout_s", load_timeout_s, load_timeout_s > 0, "positive")
        require(f"{KEY}.cache_prompts", cache_prompts, cache_prompts >= 1, "at least 1")
        require(f"{KEY}.dtype", dtype, dtype in ("auto", *DTYPES), f"one of auto, {', '.join(DTYPES)}")
        self._replica = {"model": model, "backbone": backbone, "device": device, "dtype": dtype}
        self._replicas_per_node = replicas_per_node
        self._gpu_fraction = gpu_fraction
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._cache = TextCache(cache_prompts)
        self._cache_path = cache_path
        self._cache_failures = 0
        self._reset_step()

    def start(self, placement_groups: Sequence[PlacementGroup] = ()) -> None:
        """See :class:`Prior`.

        Raises:
            ValueError: ``cache_path`` cannot be written, is damaged, or holds another model's features.
            PoolError: a replica cannot load.
        """
        if self._cache_path is not None:
            _require_writable_folder("cache_path", self._cache_path)
        options = replica_options(placement_groups, self._replicas_per_node, self._gpu_fraction)
        self._pool = ReplicaPool(self._replica, options, self._timeout_s)
        self._cache.identity = self._pool.wait(self._load_timeout_s).identity
        if self._cache_path is not None and os.path.exists(self._cache_path):
            self._cache.load(self._cache_path)

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        started = time.monotonic()
        texts = [q.text for q in queries]
        known = [] if context is None else [o.query.text for o in context]
        try:
            # Without a context there is no answer, but the time while rollouts generate is free for embedding.
            features = np.stack(self._cache.get([*known, *texts], self._embed))
            self._embed_s += time.monotonic() - started
            if context is None:
                return np.full(len(queries), np.nan)
            labels = np.array([is_success(o) for o in context])
            return self._pool.predict(features[: len(known)], labels, features[len(known) :])
        finally:
            self._pool.sleep()
            self._predict_s += time.monotonic() - started

    def state_dict(self) -> dict[str, Any]:
        """Nothing; writes the features to ``cache_path``, where a failure costs no more than embedding them again."""
        if self._cache_path is not None:
            try:
                self._cache.save(self._cache_path)
            except (OSError, SafetensorError):
                logger.exception("features cannot be written to %s", self._cache_path)
                self._cache_failures += 1
        return {}

    def metrics(self) -> dict[str, float]:
        values = {
            "replicas": self._pool.size,
            "replicas_loaded": len(self._pool.infos),
            "restarts": self._pool.restarts,  # since the run started
            "cache_failures": self._cache_failures,  # since the run started
            "embedded": self._cache.misses - self._cache_seen[0],
            "cached": self._cache.hits - self._cache_seen[1],
            "embed_s": self._embed_s,
            "predict_s": self._predict_s,  # embedding included
        }
        self._reset_step()
        return values

    def close(self) -> None:
        self._pool.close()

    def _embed(self, prompts: list[str]) -> list[torch.Tensor]:
        # A row alone would keep the features of its whole batch alive.
        return [row.clone() for row in torch.from_numpy(self._pool.embed(prompts))]

    def _reset_step(self) -> None:
        self._embed_s = 0.0
        self._predict_s = 0.0
        self._cache_seen = (self._cache.misses, self._cache.hits)


def _require_writable_folder(key: str, path: str) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(Path(path).parent, os.W_OK)
    except OSError:
        writable = False
    require(f"{KEY}.{key}", path, writable, "a file in a folder that the allocator's process can write to")
