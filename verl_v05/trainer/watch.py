"""The watch: ends a run, by the name of what was lost, when one of its processes dies or no longer answers.

verl waits without a limit for prompts whose worker has died, and for an engine that answers nobody. A thread of the
driver looks at Ray's own table of actors and asks each asynchronous actor for a sign of life, off the step's path: the
table is one call of a millisecond, the sign of life an empty task.

Invariants:
- a death is noticed within ``INTERVAL_S``, whatever the driver waits for; the run ends at most ``GRACE_S`` later;
- the end names the actor, its process and node, and the step; it is written to ``LAST_WORDS`` as well;
- actors that are ended on purpose, or replaced by whoever owns them, end nothing.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray._private import state

from value_model.files import write_text

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
AFTERWARDS_S = 3
GRACE_S = 30.0  # for the driver's own clean-up, which may wait for what was lost
LAST_WORDS = "last_words.txt"
EXIT_CODE = 70
INTENDED = ("RAY_KILL", "REF_DELETED", "OUT_OF_SCOPE")  # reasons in Ray's table of an end that somebody asked for
REPLACED = ("Replica",)  # classes of actors that their owner starts again
# Their methods block, so a sign of life comes after the task at hand: an update may take as long as it takes.
BLOCKING = re.compile(r"WorkerDict|Runner|TrainingWorker|RayWorkerGroup")


class RunLostError(RuntimeError):
    """A process that the run needs is lost; the message names it and what to do."""


class Watch:
    """A context in which a lost process becomes a :class:`RunLostError` in the thread that entered it, the main one.

    Args:
        folder: where the last words go.
        answer_s: how long an actor may leave a sign of life unanswered.
        moment: what the run is doing, for the message.
    """

    def __init__(self, folder: str | Path, answer_s: float, moment: Callable[[], str]):
        self._folder, self._answer_s, self._moment = Path(folder), answer_s, moment
        self._job = ray.get_runtime_context().get_job_id()
        self._dead_before: frozenset[str] = frozenset()
        self._asked: dict[str, tuple[Any, float]] = {}  # actor -> the task that waits for an answer, since when
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
            self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)
        if self._lost is None and isinstance(error, Exception):
            self._lost = self._cause_of_error()
        if self._lost is not None and kind is not None:
            raise self._lost from error

    def _cause_of_error(self) -> RunLostError | None:
        """The death that an error came of, which may be that of a process far from where it was raised."""
        for _ in range(AFTERWARDS_S):  # Ray's table may learn of it later than who was waiting
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
        yield from self._silent({a["Name"]: a for a in actors if a["State"] == "ALIVE" and a["Name"]})

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
        tasks = [task for task, _ in self._asked.values()]
        answered = ray.wait(tasks, num_returns=len(tasks), timeout=0)[0] if tasks else []
        for name in [n for n, (task, _) in self._asked.items() if task in answered or n not in actors]:
            del self._asked[name]
        for name, actor in actors.items():
            if name in self._asked and now - self._asked[name][1] > self._answer_s:
                yield f"{_name(actor)} has not answered for {self._answer_s:.0f} s"
            elif name not in self._asked and not BLOCKING.search(actor["ActorClassName"]):
                if (task := _sign_of_life(name)) is not None:
                    self._asked[name] = (task, now)

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


def _sign_of_life(name: str) -> Any:
    """A task that an actor answers when it is alive, None for an actor that cannot be asked."""
    try:
        handle = ray.get_actor(name)
    except ValueError:  # of another namespace, or just gone
        return None
    # Ray runs its own method beside the actor's event loop; ours is run by that loop, so it tells more.
    return (handle.alive if hasattr(handle, "alive") else handle.__ray_ready__).remote()


def _name(actor: dict[str, Any]) -> str:
    label = f"{actor['ActorClassName']} {actor['Name']}".strip()
    return f"{label} (process {actor['Pid']} on {actor['Address']['IPAddress']})"


def _cause(context: str) -> str:
    found = re.search(r'error_message: "((?:[^"\\]|\\.)*)"', context)
    return found[1].split(". Some common causes")[0] if found else "no reason given"
