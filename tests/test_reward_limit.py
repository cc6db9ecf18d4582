"""A reward function that hangs or ends its process costs the calls that it does so in, and no others."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from verl.experimental.reward_loop import RewardLoopWorker

from verl_v05.rollout.reward_limit import RewardError, V05RewardLoopWorker, limited

GRADED = {"solution_str": "3" * 100, "ground_truth": "17", "extra_info": {"index": 42}}
SHOWN = rf"for row 42 with ground truth '17': response '{'3' * 80}'\.\.\."


def grade(how: str = "right", **_: Any) -> float:
    while how == "loops":
        pass
    if how == "exits":
        sys.exit(3)
    if how == "raises":
        raise TimeoutError("the sandbox is busy")
    if how == "hangs":
        time.sleep(1000)
    return 1.0


async def grade_later(how: str = "right", **_: Any) -> float:
    if how == "hangs":
        await asyncio.sleep(1000)
    while how == "clings":
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            how = "right"
            await asyncio.sleep(1000)
    return grade(how)


def call(function: Any, **kwargs: Any) -> Any:
    """As verl's reward managers call it."""
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(**kwargs))
    return function(**kwargs)


@pytest.fixture(params=[grade, grade_later], ids=["in a thread", "awaited"])
def function(request: pytest.FixtureRequest) -> Any:
    return limited(request.param, 0.3)


def test_a_call_in_time_is_the_functions_own(function: Any) -> None:
    assert call(function, **GRADED) == 1.0
    with pytest.raises(TimeoutError, match="the sandbox is busy"):  # not taken for the limit
        call(function, how="raises", **GRADED)


def test_a_call_that_hangs_names_what_it_grades(function: Any) -> None:
    began = time.monotonic()
    with pytest.raises(RewardError, match=rf"no reward in 0.3 s \(algorithm.v05.watch.reward_s\) {SHOWN}"):
        call(function, how="hangs", **GRADED)
    assert time.monotonic() - began < 5


def test_a_call_that_exits_is_an_error_of_its_own(function: Any) -> None:
    with pytest.raises(RewardError, match=rf"raised SystemExit\(3\) {SHOWN}"):
        call(function, how="exits", **GRADED)


def test_an_event_loop_survives_calls_that_hang_exit_or_cannot_be_cancelled() -> None:
    async def several() -> list[Any]:
        calls = [limited(grade_later, 0.3)(how=how, **GRADED) for how in ("clings", "exits", "hangs", "right")]
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # type: ignore[arg-type]
            task.cancel()
        return found

    *failed, right = asyncio.run(several())
    assert [type(error) for error in failed] == [RewardError] * 3 and right == 1.0


def test_a_loop_that_was_left_behind_ends() -> None:
    with pytest.raises(RewardError):
        limited(grade, 0.2)(how="loops")
    until = time.monotonic() + 10
    while any(thread.name == "reward" for thread in threading.enumerate() if not hanging(thread)):
        assert time.monotonic() < until
        time.sleep(0.05)


def hanging(thread: threading.Thread) -> bool:
    """Whether a thread waits in C, as those of other tests here do."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is grade.__code__ and frame.f_locals.get("how") == "hangs"


@pytest.mark.parametrize("given", [{}, {"algorithm": {"v05": {"watch": {"reward_s": 0.2}}}}])
def test_verls_reward_worker_gets_the_limit_of_the_run(given: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Any, config: Any) -> None:
        self.config, self.reward_manager = config, SimpleNamespace(compute_score=grade)

    monkeypatch.setattr(RewardLoopWorker, "__init__", init)
    worker = V05RewardLoopWorker(OmegaConf.create(given))
    assert worker.reward_manager.compute_score.args[1] == (0.2 if given else 600.0)
    assert asyncio.run(worker.alive())
