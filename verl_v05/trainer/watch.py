"""The watch: ends a run, by the name of what was lost, when one of its processes dies or no longer answers.

verl waits without a limit for prompts whose worker has died, and for an engine that answers nobody. A thread of the
driver looks at Ray's own table of actors and asks each named actor for a sign of life, off the step's path: the table
is one call of a millisecond, the sign of life an empty task. Servers of sglang pass the question on to its scheduler.

Invariants:
- a death is noticed within ``INTERVAL_S``, whatever the driver waits for; the run ends at most ``GRACE_S`` later;
- the end names the actor, its process and node, and the step; it is written to ``LAST_WORDS`` as well;
- an actor that is stopped, not dead, is noticed after the silence that is allowed to its kind;
- actors that are ended on purpose, or replaced by whoever owns them, end nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray._private import state

from value_model.files import write_text
from verl_v05.settings import KEY, WatchSettings

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LOOK_S = 10.0  # for a look that is under way at the end, which may wait for Ray
AFTERWARDS_S = 3.0
UNAVAILABLE_S = 90.0  # until Ray has given up a node that answers no more; whose calls fail at once
GRACE_S = 30.0  # for the driver's own clean-up, which may wait for what was lost
LAST_WORDS = "last_words.txt"
EXIT_CODE = 70
INTENDED = ("RAY_KILL", "REF_DELETED", "OUT_OF_SCOPE")  # reasons in Ray's table of an end that somebody asked for
REPLACED = ("Replica",)  # classes of actors that their owner starts again
# Their methods block, so a sign of life comes after the task at hand, which may be an update.
BLOCKING = re.compile(r"WorkerDict|Runner|TrainingWorker|RayWorkerGroup")
NAMESPACES = (None, "transfer_queue")  # of the actors: the run's own, and that of TransferQueue's controller
# Classes of actors with a scheduler behind them, a process that is no actor. sglang itself ends one whose batch takes
# longer than 300 s, by a thread of the scheduler.
ENGINES = ("SGLangHttpServer",)


class RunLostError(RuntimeError):
    """A process that the run needs is lost; the message names it and what to do."""


def answered(task: Any, who: str, limit_s: float) -> Any:
    """The result of an actor's task.

    Raises:
        RunLostError: there is none after ``limit_s`` seconds, ``watch.update_s``; the message begins with ``who``.
    """
    try:
        return ray.get(task, timeout=limit_s)
    except ray.exceptions.GetTimeoutError:
        raise RunLostError(f"{who} {_silence(limit_s, 'update_s')}") from None


@dataclass
class _Question:
    """A task that waits for an actor's sign of life."""

    task: Any
    since: float  # by the monotonic clock


class Watch:
    """A context in which a lost process becomes a :class:`RunLostError` in the thread that entered it, the main one.

    Args:
        folder: where the last words go.
        settings: how long an actor may leave a sign of life unanswered.
        moment: what the run is doing, for the message.
    """

    def __init__(self, folder: str | Path, settings: WatchSettings, moment: Callable[[], str]):
        self._folder, self._settings, self._moment = Path(folder), settings, moment
        self._job = ray.get_runtime_context().get_job_id()
        self._dead_before: frozenset[str] = frozenset()
        self._asked: dict[str, _Question] = {}  # by the actor's id, as the next
        self._handles: dict[str, Any] = {}
        self._lost: RunLostError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._dead_before = frozenset(a["ActorID"] for a in self._actors() if a["State"] == "DEAD")
        self._before = signal.signal(signal.SIGUSR1, self._interrupt)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        if self._lost is None:
            self._thread.join(LOOK_S)
        signal.signal(signal.SIGUSR1, self._before)
        if self._lost is None and isinstance(error, RunLostError):
            self._lost = self._written(str(error))
        elif self._lost is None and isinstance(error, Exception):
            self._lost = self._cause_of_error(UNAVAILABLE_S if _is_unavailable(error) else AFTERWARDS_S)
        if self._lost is not None and kind is not None:
            raise self._lost from error

    def _cause_of_error(self, patience_s: float) -> RunLostError | None:
        """The death that an error came of, which may be that of a process far from where it was raised."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:  # Ray's table may learn of it later than who was waiting
            try:
                found = next(self._deaths(self._actors()), None)
            except Exception:
                return None
            if found is not None:
                return self._written(found)
            time.sleep(1)
        return None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # The one exception that ray.get lets through while it waits.
        raise KeyboardInterrupt

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            try:
                found = next(self._losses(), None)
            except Exception:  # Ray's table cannot be read: its own errors end the run
                logger.exception("the watch cannot read Ray's table of actors")
                continue
            if found is not None:
                return self._end(found)

    def _losses(self) -> Iterator[str]:
        actors = self._actors()
        yield from self._deaths(actors)
        yield from self._silent({a["ActorID"]: a for a in actors if a["State"] == "ALIVE" and a["Name"]})

    def _deaths(self, actors: Sequence[dict[str, Any]]) -> Iterator[str]:
        for actor in actors:
            if actor["ActorID"] in self._dead_before:
                continue
            cause = str(actor["DeathCause"])  # a protobuf message
            if actor["State"] == "DEAD" and not any(f"reason: {reason}" in cause for reason in INTENDED):
                yield f"{_name(actor)} has died: {_cause(cause)}"

    def _actors(self) -> list[dict[str, Any]]:
        found = state.actors(job_id=ray.JobID.from_hex(self._job)).values()
        return [actor for actor in found if actor["ActorClassName"] not in REPLACED]

    def _silent(self, actors: dict[str, dict[str, Any]]) -> Iterator[str]:
        now = time.monotonic()
        tasks = [question.task for question in self._asked.values()]
        answered = set(ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]) if tasks else set()
        for found in [i for i, question in self._asked.items() if question.task in answered or i not in actors]:
            task = self._asked.pop(found).task
            actor = actors.get(found)
            if actor and actor["ActorClassName"] in ENGINES and _seconds(task) > self._settings.answer_s:
                yield f"the scheduler of {_name(actor)} {_silence(self._settings.answer_s, 'answer_s')}"
        for found, actor in actors.items():
            asked = self._asked.get(found)
            if asked is None:
                if (task := self._sign_of_life(actor)) is not None:
                    self._asked[found] = _Question(task, now)
                continue
            key = "update_s" if BLOCKING.search(actor["ActorClassName"]) else "answer_s"
            if now - asked.since > (limit_s := getattr(self._settings, key)):
                yield f"{_name(actor)} {_silence(limit_s, key)}"

    def _sign_of_life(self, actor: dict[str, Any]) -> Any:
        """A task that an actor answers when it is alive, None for an actor that cannot be asked."""
        handle = self._handles.get(actor["ActorID"]) or _handle(actor["Name"])
        if handle is None:
            return None
        self._handles[actor["ActorID"]] = handle
        if actor["ActorClassName"] in ENGINES:
            return handle.__ray_call__.remote(scheduler_silence)
        # Ray runs its own method beside the actor's event loop; ours is run by that loop, so it tells more.
        return (handle.alive if hasattr(handle, "alive") else handle.__ray_ready__).remote()

    def _written(self, loss: str) -> RunLostError:
        words = (
            f"{loss}; {self._moment()}. What it had in flight is lost: see its log in Ray's session folder "
            f"(logs/, by its pid), and start the run again, which resumes from its last checkpoint."
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / LAST_WORDS, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}\n")
        return RunLostError(words)

    def _end(self, loss: str) -> None:
        self._lost = self._written(loss)
        if not self._over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
        # A daemon thread: it is gone before that where the driver ends by itself.
        time.sleep(GRACE_S)
        print(f"verl-v05: {self._lost}", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)


def _handle(name: str) -> Any:
    for namespace in NAMESPACES:
        try:
            return ray.get_actor(name, namespace=namespace)
        except ValueError:  # not there, or just gone
            continue
    return None


def scheduler_silence(server: Any) -> float:
    """Seconds for which sglang's scheduler has left a question unanswered; called in the server's process.

    The question is for its state, which it answers between two batches, asleep or awake, without the model. It is asked
    by the server's own event loop. Servers of a replica's other nodes have none.
    """
    manager = getattr(server, "tokenizer_manager", None)
    asked: tuple[Future[Any], float] | None = getattr(server, "_v05_asked", None)
    if asked is not None and not asked[0].done():
        return time.monotonic() - asked[1]
    if manager is not None and manager.event_loop is not None:  # before its first request there is none
        state = asyncio.run_coroutine_threadsafe(manager.get_internal_state(), manager.event_loop)
        server._v05_asked = state, time.monotonic()
    return 0.0


def _silence(limit_s: float, key: str) -> str:
    return f"has not answered for {limit_s:g} s ({KEY}.watch.{key})"


def _seconds(task: Any) -> float:
    try:
        return ray.get(task, timeout=0)
    except Exception:  # it died meanwhile, which the next look finds
        return 0.0


def _name(actor: dict[str, Any]) -> str:
    label = f"{actor['ActorClassName']} {actor['Name']}".strip()
    return f"{label} (process {actor['Pid']} on {actor['Address']['IPAddress']})"


def _cause(context: str) -> str:
    found = re.search(r'error_message: "((?:[^"\\]|\\.)*)"', context)
    return found[1].split(". Some common causes")[0] if found else "no reason given"


def _is_unavailable(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is Ray's for an actor that cannot be reached for now."""
    while error is not None:
        if isinstance(error, ray.exceptions.ActorUnavailableError):
            return True
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return False
