"""A limit on each call of the reward function, in verl's reward workers.

verl waits for the function without a limit, and one that calls ``sys.exit`` ends the event loop of its worker, which
then answers nobody. Here both are an error of that one call, hence a failed session; the worker goes on.

What this cannot end: a function that keeps the interpreter to itself (a regular expression that backtracks) or, if it
is asynchronous, the event loop. Its worker gives no sign of life then, for which the watch ends the run by name. And
verl's ``remote`` reward manager has handed the function to processes of its own, where the limit is
``watch.session_s``.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from functools import partial
from typing import Any

from verl.experimental.reward_loop import RewardLoopWorker

from verl_v05.settings import KEY, load_watch_settings

LIMIT = f"{KEY}.watch.reward_s"
SHOWN = 80  # characters of a response


class RewardError(RuntimeError):
    """A call of the reward function gave no reward; the message names the key and what was graded."""


class V05RewardLoopWorker(RewardLoopWorker):
    """verl's reward worker with a limit on its reward function, of whichever reward manager."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        function = self.reward_manager.compute_score
        if function is not None:  # None where a reward manager of the user's own has no such function
            self.reward_manager.compute_score = limited(function, load_watch_settings(self.config).reward_s)

    async def alive(self) -> bool:
        """A sign of life of the event loop that hands out the calls, for the watch."""
        return True


def limited(function: Callable[..., Any], limit_s: float) -> Callable[..., Any]:
    """The function, asynchronous if it was, whose calls raise :class:`RewardError` after ``limit_s`` seconds.

    So do those that raise what is no Exception, SystemExit above all. Other errors pass.
    """
    if inspect.iscoroutinefunction(function):
        return partial(_awaited, function, limit_s)
    return partial(_called, function, limit_s)


def _called(function: Callable[..., Any], limit_s: float, /, *args: Any, **kwargs: Any) -> Any:
    # In a thread of its own, which can be left behind: the caller's is one of the few that all calls share.
    answer: futures.Future[Any] = futures.Future()
    call = partial(function, *args, **kwargs)
    thread = threading.Thread(target=_answer, args=(answer, call), name="reward", daemon=True)
    thread.start()
    futures.wait([answer], limit_s)
    if not answer.done():
        # Ends a loop in Python, at its next instruction; what waits in C is left to wait.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise _late(limit_s, kwargs)
    error = answer.exception()
    if error is not None and not isinstance(error, Exception):
        raise _ended(error, kwargs) from error
    return answer.result()


def _answer(answer: futures.Future[Any], call: Callable[[], Any]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)


async def _awaited(function: Callable[..., Any], limit_s: float, /, *args: Any, **kwargs: Any) -> Any:
    # A task of its own: the function may not let itself be cancelled.
    task = asyncio.ensure_future(_guarded(function, args, kwargs))
    try:
        await asyncio.wait([task], timeout=limit_s)
        if not task.done():
            raise _late(limit_s, kwargs)
        return task.result()
    finally:
        task.cancel()


async def _guarded(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        return await function(*args, **kwargs)
    except (SystemExit, KeyboardInterrupt) as error:  # these would end the event loop, not the task
        raise _ended(error, kwargs) from error


def _late(limit_s: float, graded: Mapping[str, Any]) -> RewardError:
    return RewardError(f"no reward in {limit_s:g} s ({LIMIT}) for {_shown(graded)}")


def _ended(error: BaseException, graded: Mapping[str, Any]) -> RewardError:
    return RewardError(f"the reward function raised {error!r} for {_shown(graded)}")


def _shown(graded: Mapping[str, Any]) -> str:
    """What a call was about, in one line; ``graded`` are the arguments that verl gives a reward function."""
    row = (graded.get("extra_info") or {}).get("index")
    response = str(graded.get("solution_str"))
    cut = "..." if len(response) > SHOWN else ""
    return f"row {row} with ground truth {graded.get('ground_truth')!r}: response {response[:SHOWN]!r}{cut}"
