"""The replicas of a run: calls are split over them; a crashed or hanging one is replaced and its calls are retried.

Shape suffixes: C context prompts, Q queries, F features; P prompts.
"""

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

EMBED_BATCH = 256  # prompts per call, so that the time of a call does not grow with the batch and stays below timeout_s
ATTEMPTS = 3  # a call that failed with this many replicas may itself be the cause of the failures


class PoolError(RuntimeError):
    """The replicas cannot load, or a call failed on all attempts."""


@dataclass
class _Slot:
    """A replica, and the options to start its replacement; ``info`` is None until it has loaded."""

    options: dict[str, Any]
    actor: ray.actor.ActorHandle
    loading: ray.ObjectRef
    info: ReplicaInfo | None = None


class ReplicaPool:
    """Splits calls over replicas.

    Invariants: calls go to loaded replicas only, so they never wait for a replacement to load; unfinished calls of a
    failed replica are retried on the others; an error raised by the model itself is not retried.

    Args:
        replica: arguments of :class:`Replica`.
        options: Ray actor options, one entry per replica (:func:`value_model.serving.placement.replica_options`).
        timeout_s: a replica that needs longer for one call is replaced.
    """

    def __init__(self, replica: dict[str, Any], options: Sequence[dict[str, Any]], timeout_s: float):
        self._replica = replica
        self._timeout_s = timeout_s
        self._identity: str | None = None  # of the weights that the run started with
        self.restarts = 0
        self._slots = [self._start_replica(o) for o in options]

    @property
    def size(self) -> int:
        """Configured number of replicas, loaded or not."""
        return len(self._slots)

    @property
    def infos(self) -> list[ReplicaInfo]:
        """Infos of the replicas that are currently loaded."""
        return [slot.info for slot in self._loaded_slots() if slot.info is not None]

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
        chunks = self._chunks(len(prompts), -(-len(prompts) // EMBED_BATCH))
        return np.concatenate(self._call_replicas("embed", [([prompts[i] for i in chunk],) for chunk in chunks]))

    def predict(self, context_cf: np.ndarray, labels_c: np.ndarray, queries_qf: np.ndarray) -> np.ndarray:
        """Success probabilities, (Q,)."""
        context = ray.put(context_cf)  # transferred once per node instead of once per replica
        calls = [(context, labels_c, queries_qf[chunk]) for chunk in self._chunks(len(queries_qf))]
        return np.concatenate(self._call_replicas("predict", calls))

    def sleep(self) -> None:
        """Make every replica release its accelerator memory; does not wait."""
        for slot in self._loaded_slots():
            slot.actor.sleep.remote()

    def close(self) -> None:
        """Kill every replica."""
        for slot in self._slots:
            ray.kill(slot.actor)

    def _chunks(self, count: int, least: int = 1) -> list[np.ndarray]:
        """Indices in equal parts: one per loaded replica, but at least ``least``."""
        parts = np.array_split(np.arange(count), max(len(self._loaded_slots()), least, 1))
        return [part for part in parts if len(part)]

    def _call_replicas(self, method: str, calls: Sequence[tuple]) -> list[np.ndarray]:
        """One result per call, in order; calls of a failed replica are retried on the others.

        Raises:
            PoolError: no replica is loaded, or calls are unfinished after ``ATTEMPTS``.
        """
        answers: dict[int, np.ndarray] = {}
        for _ in range(ATTEMPTS):
            loaded = self._loaded_slots()
            if not loaded:
                raise PoolError(f"none of {self.size} value model replicas is loaded; {self.restarts} restarts so far")
            self._ask_replicas(answers, method, calls, loaded)
            if len(answers) == len(calls):
                return [answers[i] for i in range(len(calls))]
        raise PoolError(f"{method}: replicas were lost in each of {ATTEMPTS} attempts; {self.restarts} restarts so far")

    def _ask_replicas(
        self, answers: dict[int, np.ndarray], method: str, calls: Sequence[tuple], loaded: list[_Slot]
    ) -> None:
        """Send the unfinished calls to the loaded replicas, round robin, and wait for the results."""
        open_calls = [i for i in range(len(calls)) if i not in answers]
        asked = [(n, i, loaded[n % len(loaded)]) for n, i in enumerate(open_calls)]
        refs = [(n, i, slot, getattr(slot.actor, method).remote(*calls[i])) for n, i, slot in asked]
        started = time.monotonic()
        for n, i, slot, ref in refs:
            queued = n // len(loaded)  # calls that the replica executes before this one
            self._receive(answers, i, slot, ref, started + (queued + 1) * self._timeout_s)

    def _receive(
        self, answers: dict[int, np.ndarray], index: int, slot: _Slot, ref: ray.ObjectRef, deadline: float
    ) -> None:
        if slot.info is None:
            return  # failed with an earlier call of this round
        try:
            answers[index] = ray.get(ref, timeout=max(deadline - time.monotonic(), 0))
        except RayTaskError as error:
            if not isinstance(error.cause, torch.AcceleratorError):
                raise error.as_instanceof_cause() from error
            self._replace(slot, error)  # after a CUDA error, the process cannot use its GPU again
        except RayError as error:  # crashed, timed out, or the node with the result failed
            self._replace(slot, error)

    def _loaded_slots(self) -> list[_Slot]:
        """Slots that can be called. Records which replicas have loaded, and replaces those that failed to load."""
        for slot in self._slots:
            if slot.info is None and ray.wait([slot.loading], timeout=0)[0]:
                try:
                    slot.info = self._checked_identity(ray.get(slot.loading))
                except (RayError, PoolError) as error:
                    self._replace(slot, error)
        return [slot for slot in self._slots if slot.info is not None]

    def _checked_identity(self, info: ReplicaInfo) -> ReplicaInfo:
        """A replacement must have the same weights: features of the first are cached, and priors must not change."""
        if self._identity not in (None, info.identity):
            raise PoolError(f"a replacement loaded other weights ({info.identity}) than the run's ({self._identity})")
        return info

    def _replace(self, slot: _Slot, error: Exception) -> None:
        logger.error("value model replica is lost (%s: %s); starting another", type(error).__name__, error)
        ray.kill(slot.actor)
        self.restarts += 1
        new = self._start_replica(slot.options)
        slot.actor, slot.loading, slot.info = new.actor, new.loading, None

    def _start_replica(self, options: dict[str, Any]) -> _Slot:
        # Any: Ray's stubs give a class that is not decorated itself neither options() nor methods with remote().
        actor_class: Any = ray.remote(Replica)
        actor = actor_class.options(**options).remote(**self._replica)
        return _Slot(options, actor, actor.load.remote())
