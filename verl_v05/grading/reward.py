"""verl's reward function: `reward.custom_reward_function.path=pkg://verl_v05.grading.reward`, `name=compute_score`."""

import asyncio
import functools
from typing import Any

from verl_v05.grading.pool import GradingPool

# One for all answers of a process; it ends with the process, and its workers with it.
_pool = functools.cache(GradingPool)


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
    """`score` and `acc` (1 right, 0 wrong), `grading_failed` (1: overran or died), `answered` (1: has a final answer).

    verl awaits it, so a slow comparison holds up no other. `workers` (of `reward_kwargs`) are processes of this reward
    worker, started by the first answer that is no plain number; `timeout_s` is CPU time for one comparison.
    """
    verdict = await asyncio.wrap_future(_pool(workers, timeout_s).submit(solution_str, ground_truth))
    return {
        "score": float(verdict.correct),
        "acc": float(verdict.correct),
        "grading_failed": float(verdict.failure in ("timeout", "error")),
        "answered": float(verdict.answer is not None),
    }
