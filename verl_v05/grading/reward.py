"""verl's reward function: `reward.custom_reward_function.path=pkg://verl_v05.grading.reward`, `name=compute_score`.

Its time limit and number of processes are `reward.custom_reward_function.reward_kwargs.timeout_s` and `.workers`.
"""

import asyncio
import atexit
import functools
import threading
from typing import Any

from verl_v05.grading.pool import GradingPool
from verl_v05.grading.verdict import Verdict

_lock = threading.Lock()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    workers: int = 2,
    timeout_s: float = 5.0,
    **_: Any,
) -> dict[str, float]:
    """Grade one response; verl awaits it, so a slow comparison holds up no other.

    Args:
        data_source: name of the data set; every one is graded alike.
        solution_str: the response.
        ground_truth: the gold as published.
        extra_info: of no influence.
        workers: processes of this reward worker, started by the first answer that is no plain number.
        timeout_s: seconds of CPU time for one comparison.

    Returns:
        `score` and `acc` (1 right, 0 wrong), `grading_failed` (1: overran or died) and `answered` (1: it has a final
        answer).
    """
    with _lock:
        pool = _pool(workers, timeout_s)
    return scores(await asyncio.wrap_future(pool.submit(solution_str, ground_truth)))


def scores(verdict: Verdict) -> dict[str, float]:
    """A verdict as numbers, always under the same keys."""
    return {
        "score": float(verdict.correct),
        "acc": float(verdict.correct),
        "grading_failed": float(verdict.failure in ("timeout", "error")),
        "answered": float(verdict.answer is not None),
    }


@functools.cache
def _pool(workers: int, timeout_s: float) -> GradingPool:
    pool = GradingPool(workers, timeout_s)
    atexit.register(pool.close)
    return pool
