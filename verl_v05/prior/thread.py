"""The thread that a prior's provider runs in: one call at a time, each with a limit, whatever it raises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from verl_v05.prior.base import Prior
from verl_v05.prior.query import Outcome, Query

logger = logging.getLogger(__name__)


class PriorError(RuntimeError):
    """The provider raised, or is still busy with a call that timed out."""


class ProviderThread:
    """Calls of one provider, in one thread: they are never concurrent, and a slow one does not block the event loop.

    Args:
        name: of the thread.
        timeout_s: after which a call is given up, unless :meth:`call` is told otherwise.
    """

    def __init__(self, name: str, timeout_s: float):
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._timed_out: Future | None = None

    async def call_unlimited(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function`` as long as it takes; raises what it raises. For a start, which has limits of its own."""
        return await asyncio.wrap_future(self._pool.submit(function, *args))

    async def call(self, function: Callable[..., Any], *args: Any, timeout_s: float | None = None) -> Any:
        """Run ``function`` within ``timeout_s`` seconds, by default the thread's limit.

        Raises:
            PriorError: it raised anything, or the thread is still busy with a call that was given up.
            TimeoutError: it takes longer. A thread cannot be cancelled: the call goes on, and its result is dropped.
        """
        if self._timed_out is not None and not self._timed_out.done():
            raise PriorError("the prior is still busy with a call that timed out")
        call = self._pool.submit(_caught, function, *args)
        try:
            limit = self._timeout_s if timeout_s is None else timeout_s
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(call)), limit)
        except TimeoutError:
            self._timed_out = call
            raise

    async def ask(
        self, prior: Prior, queries: Sequence[Query], context: list[Outcome] | None, step: int, timeout_s: float
    ) -> tuple[np.ndarray, int]:
        """:meth:`Prior.predict`, whose errors make priors missing rather than end the run.

        Returns:
            probabilities, (queries,), in [0, 1], NaN where missing; how many failures there were: a call that raised,
            took longer than ``timeout_s`` or answered another shape, and an answer with values that are none.
        """
        try:
            answer = await self.call(prior.predict, queries, context, step, timeout_s=timeout_s)
            probability = np.asarray(answer, dtype=np.float64)
            if probability.shape != (len(queries),):
                raise ValueError(f"prior answered shape {probability.shape} to {len(queries)} prompts")
        except Exception:
            logger.exception("prior of step %d failed; its %d prompts count as missing", step, len(queries))
            return np.full(len(queries), np.nan), 1
        out_of_range = ~np.isnan(probability) & ~((probability >= 0) & (probability <= 1))
        if not out_of_range.any():
            return probability, 0
        logger.error("prior answered %s, no probability; such prompts count as missing", probability[out_of_range])
        return np.where(out_of_range, np.nan, probability), 1


def _caught(function: Callable[..., Any], *args: Any) -> Any:
    """Turn whatever a user's provider raises, StopIteration and SystemExit included, into one kind of error."""
    try:
        return function(*args)
    except BaseException as error:
        raise PriorError(f"{type(error).__name__}: {error}") from error
