"""The replicas of a run: work is split over them, a dead or stuck one is replaced, survivors take over its share."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from value_model.serving.replica import Replica, ReplicaInfo

logger = logging.getLogger(__name__)


class PoolError(RuntimeError):
    """No replica answers; replacements are on their way."""


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

        Raises:
            PoolError: one did not, with its reason.
        """
        for slot in self._slots:
            try:
                slot.info = ray.get(slot.loading, timeout=timeout_s)
            except RayTaskError as error:
                raise PoolError(f"a value model replica cannot load: {error.cause or error}") from error
            except (RayActorError, GetTimeoutError) as error:
                raise PoolError(f"a value model replica did not load in {timeout_s:g} s: {error}") from error
        identities = {info.identity for info in self.infos}
        if len(identities) != 1:
            raise PoolError(f"replicas loaded different weights ({', '.join(sorted(identities))}): same files needed")
        return self.infos[0]

    def embed(self, prompts: Sequence[str]) -> np.ndarray:
        """Features of each prompt, (P, F)."""
        parts = self._map("embed", [([prompts[i] for i in chunk],) for chunk in self._chunks(len(prompts))])
        return np.concatenate(parts)

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

    def _chunks(self, count: int) -> list[np.ndarray]:
        parts = np.array_split(np.arange(count), max(len(self._loaded()), 1))
        return [part for part in parts if len(part)]

    def _map(self, method: str, calls: Sequence[tuple]) -> list[np.ndarray]:
        """One answer a call, in order; calls of a lost replica are asked of the others."""
        answers: dict[int, np.ndarray] = {}
        while len(answers) < len(calls):
            loaded = self._loaded()
            if not loaded:
                raise PoolError(f"none of {self.size} value model replicas is loaded; {self.restarts} restarts so far")
            open_calls = [i for i in range(len(calls)) if i not in answers]
            asked = [(i, loaded[n % len(loaded)]) for n, i in enumerate(open_calls)]
            refs = [(i, slot, getattr(slot.actor, method).remote(*calls[i])) for i, slot in asked]
            deadline = time.monotonic() + self._timeout_s
            for i, slot, ref in refs:
                self._collect(answers, i, slot, ref, deadline)
        return [answers[i] for i in range(len(calls))]

    def _collect(
        self, answers: dict[int, np.ndarray], index: int, slot: _Slot, ref: ray.ObjectRef, deadline: float
    ) -> None:
        if slot.info is None:
            return  # lost with an earlier call of this round
        try:
            answers[index] = ray.get(ref, timeout=max(deadline - time.monotonic(), 0))
        except RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except (RayActorError, GetTimeoutError) as error:
            self._replace(slot, error)

    def _loaded(self) -> list[_Slot]:
        """Slots that can be asked now; takes note of replicas that finished loading, replaces those that failed."""
        for slot in self._slots:
            if slot.info is None and ray.wait([slot.loading], timeout=0)[0]:
                try:
                    slot.info = ray.get(slot.loading)
                except (RayTaskError, RayActorError) as error:
                    self._replace(slot, error)
        return [slot for slot in self._slots if slot.info is not None]

    def _replace(self, slot: _Slot, error: Exception) -> None:
        logger.error("value model replica is lost (%s: %s); starting another", type(error).__name__, error)
        ray.kill(slot.actor)
        self.restarts += 1
        new = self._open(slot.options)
        slot.actor, slot.loading, slot.info = new.actor, new.loading, None

    def _open(self, options: dict[str, Any]) -> _Slot:
        actor = ray.remote(Replica).options(**options).remote(**self._replica)
        return _Slot(options, actor, actor.load.remote())
