"""The replicas of a run: work is split over them, a dead or stuck one is replaced, survivors take over its share."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from value_model.serving.replica import Replica, ReplicaInfo

logger = logging.getLogger(__name__)

EMBED_AT_ONCE = 256  # prompts a call: timeout_s must suffice for so many, however large the step
ATTEMPTS = 3  # a call that so many replicas are lost with is given up: it may be what kills them


class PoolError(RuntimeError):
    """The replicas cannot load, or none answers a call."""


@dataclass
class _Slot:
    """A place for a replica; ``info`` is None until the one that is in it has loaded."""

    options: dict[str, Any]
    actor: ray.actor.ActorHandle
    loading: ray.ObjectRef
    info: ReplicaInfo | None = None


class ReplicaPool:
    """Splits calls over replicas.

    Invariants: a call goes to loaded replicas only, so it never waits for a replacement to load; what a lost replica
    did not answer is asked of the others; an error the model itself raises is raised, not retried.

    Args:
        replica: arguments of :class:`Replica`.
        options: Ray actor options, one entry a replica (:func:`value_model.serving.placement.replica_options`).
        timeout_s: a replica that takes longer for one call is replaced.
    """

    def __init__(self, replica: dict[str, Any], options: Sequence[dict[str, Any]], timeout_s: float):
        self._replica = replica
        self._timeout_s = timeout_s
        self._identity: str | None = None  # of the weights that the run started with
        self.restarts = 0
        self._slots = [self._open(o) for o in options]

    @property
    def size(self) -> int:
        """Replicas there should be."""
        return len(self._slots)

    @property
    def infos(self) -> list[ReplicaInfo]:
        """Of the replicas that are loaded now."""
        return [slot.info for slot in self._loaded() if slot.info is not None]

    def wait(self, timeout_s: float) -> ReplicaInfo:
        """Wait for all replicas to load.

        Args:
            timeout_s: for all of them together.

        Raises:
            PoolError: one did not, with its reason, or they loaded different weights.
        """
        deadline = time.monotonic() + timeout_s
        for slot in self._slots:
            try:
                slot.info = ray.get(slot.loading, timeout=max(deadline - time.monotonic(), 0))
            except RayTaskError as error:
                raise PoolError(f"a value model replica cannot load: {error.cause or error}") from error
            except TimeoutError as error:
                raise PoolError(
                    f"a value model replica did not load in {timeout_s:g} s: raise load_timeout_s, or lower "
                    "gpu_fraction if `ray status` says that Ray has no room for it"
                ) from error
            except RayError as error:
                raise PoolError(f"a value model replica ended while it loaded: {error}") from error
        infos = self.infos
        identities = {info.identity for info in infos}
        if len(identities) != 1:
            raise PoolError(f"replicas loaded different weights ({', '.join(sorted(identities))}): same files needed")
        self._identity = infos[0].identity
        logger.info("value model replicas: %s", ", ".join(f"{info.host} {info.device}" for info in infos))
        return infos[0]

    def embed(self, prompts: Sequence[str]) -> np.ndarray:
        """Features of each prompt, (P, F)."""
        chunks = self._chunks(len(prompts), -(-len(prompts) // EMBED_AT_ONCE))
        return np.concatenate(self._map("embed", [([prompts[i] for i in chunk],) for chunk in chunks]))

    def predict(self, context_cf: np.ndarray, labels_c: np.ndarray, queries_qf: np.ndarray) -> np.ndarray:
        """Success probabilities, (Q,)."""
        context = ray.put(context_cf)  # sent once a node, not once a replica
        calls = [(context, labels_c, queries_qf[chunk]) for chunk in self._chunks(len(queries_qf))]
        return np.concatenate(self._map("predict", calls))

    def sleep(self) -> None:
        """Tell every replica to give its accelerator's memory back; does not wait."""
        for slot in self._loaded():
            slot.actor.sleep.remote()

    def close(self) -> None:
        """End every replica."""
        for slot in self._slots:
            ray.kill(slot.actor)

    def _chunks(self, count: int, least: int = 1) -> list[np.ndarray]:
        """Indices in equal parts: one a replica, or ``least`` if that is more."""
        parts = np.array_split(np.arange(count), max(len(self._loaded()), least, 1))
        return [part for part in parts if len(part)]

    def _map(self, method: str, calls: Sequence[tuple]) -> list[np.ndarray]:
        """One answer a call, in order; calls of a lost replica are asked of the others.

        Raises:
            PoolError: no replica is loaded, or calls are still unanswered after ``ATTEMPTS``.
        """
        answers: dict[int, np.ndarray] = {}
        for _ in range(ATTEMPTS):
            loaded = self._loaded()
            if not loaded:
                raise PoolError(f"none of {self.size} value model replicas is loaded; {self.restarts} restarts so far")
            self._round(answers, method, calls, loaded)
            if len(answers) == len(calls):
                return [answers[i] for i in range(len(calls))]
        raise PoolError(f"{method}: replicas were lost in each of {ATTEMPTS} attempts; {self.restarts} restarts so far")

    def _round(self, answers: dict[int, np.ndarray], method: str, calls: Sequence[tuple], loaded: list[_Slot]) -> None:
        """Ask the unanswered calls of the loaded replicas, in turn."""
        open_calls = [i for i in range(len(calls)) if i not in answers]
        asked = [(n, i, loaded[n % len(loaded)]) for n, i in enumerate(open_calls)]
        refs = [(n, i, slot, getattr(slot.actor, method).remote(*calls[i])) for n, i, slot in asked]
        started = time.monotonic()
        for n, i, slot, ref in refs:
            queued = n // len(loaded)  # calls that the replica answers before this one
            self._collect(answers, i, slot, ref, started + (queued + 1) * self._timeout_s)

    def _collect(
        self, answers: dict[int, np.ndarray], index: int, slot: _Slot, ref: ray.ObjectRef, deadline: float
    ) -> None:
        if slot.info is None:
            return  # lost with an earlier call of this round
        try:
            answers[index] = ray.get(ref, timeout=max(deadline - time.monotonic(), 0))
        except RayTaskError as error:
            if not isinstance(error.cause, torch.AcceleratorError):
                raise error.as_instanceof_cause() from error
            self._replace(slot, error)  # a process that has seen one cannot use its GPU again
        except RayError as error:  # died, stuck, or its answer was lost with its node
            self._replace(slot, error)

    def _loaded(self) -> list[_Slot]:
        """Slots that can be asked now; takes note of replicas that finished loading, replaces those that failed."""
        for slot in self._slots:
            if slot.info is None and ray.wait([slot.loading], timeout=0)[0]:
                try:
                    slot.info = self._checked(ray.get(slot.loading))
                except (RayError, PoolError) as error:
                    self._replace(slot, error)
        return [slot for slot in self._slots if slot.info is not None]

    def _checked(self, info: ReplicaInfo) -> ReplicaInfo:
        """A replacement must be the same model: features of the first one are kept, and priors must not change."""
        if self._identity not in (None, info.identity):
            raise PoolError(f"a replacement loaded other weights ({info.identity}) than the run's ({self._identity})")
        return info

    def _replace(self, slot: _Slot, error: Exception) -> None:
        logger.error("value model replica is lost (%s: %s); starting another", type(error).__name__, error)
        ray.kill(slot.actor)
        self.restarts += 1
        new = self._open(slot.options)
        slot.actor, slot.loading, slot.info = new.actor, new.loading, None

    def _open(self, options: dict[str, Any]) -> _Slot:
        actor = ray.remote(Replica).options(**options).remote(**self._replica)
        return _Slot(options, actor, actor.load.remote())
