"""Agent-loop worker whose groups grow: verl's sessions, scoring and storage, our number of them.

Overrides two private methods of verl's worker (pinned in ``verl_v05.compat.contract``): ``_run_prompt``, whose body
has a comment on where n may be made dynamic, and ``_agent_loop_postprocess``, to hand the outcome reward back.

Invariants:
- validation prompts take verl's own path;
- a prompt's terminal status is published only after all of its sessions, extra ones included, have settled;
- a failed session never stops its group: the group goes on with the rewards it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any, NamedTuple

import numpy as np
import ray
import transfer_queue as tq
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ, apply_greedy_sampling_params

from verl_v05.compat.contract import check_contract
from verl_v05.compat.fingerprint import fingerprint
from verl_v05.rollout.outcome import OutcomeError, outcome_reward, shaping_reward
from verl_v05.rollout.turns import TURNS, turn_starts
from verl_v05.settings import TURN, load_settings

logger = logging.getLogger(__name__)

TRIES = 3  # to publish how a prompt ended

# verl exports the actor class only; Ray keeps the class it was made of here.
_VerlWorker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]


class SessionResult(NamedTuple):
    """What the allocator is told of a session."""

    reward: float  # outcome reward in [-1, 1]
    states: list[str]  # text before each of its turns, with credit=turn


class V05AgentLoopWorker(_VerlWorker):
    """``AgentLoopWorkerTQ`` with dynamic sampling (section 4.1.3, steps 2 and 4)."""

    def __init__(self, *args: Any, **kwargs: Any):
        check_contract()
        super().__init__(*args, **kwargs)
        self.settings = load_settings(self.config)
        self.allocator: Any = None  # handle of the actor, from attach()

    async def alive(self) -> bool:
        """A sign of life of the event loop that runs the sessions, for the watch."""
        return True

    def attach(self, allocator: ray.actor.ActorHandle) -> str:
        """Give the worker the run's allocator; returns the identity of the code it runs."""
        self.allocator = allocator
        return fingerprint()

    async def _run_prompt(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False) -> None:
        uid, validate = prompt["uid"], trajectory["validate"]
        try:
            if validate:
                await super()._run_prompt(prompt, sampling_params, trajectory, trace)
                return
            await self._tell(uid, "train", "running")
            failed = await self._run_group(prompt, sampling_params, trajectory, trace)
        except Exception:
            # The allocator or TransferQueue is gone. The trainer's own call to it raises, and that error ends the run;
            # a group that never reached a terminal status would keep the trainer from making the call.
            logger.exception("prompt %s has failed", uid)
            failed = 1
        await self._tell_the_end(uid, "val" if validate else "train", "failure" if failed else "finished")

    async def _tell(self, uid: str, partition: str, status: str) -> None:
        put = tq.async_kv_put(key=uid, partition_id=partition, tag={"status": status})
        await asyncio.wait_for(put, self.settings.watch.answer_s)

    async def _tell_the_end(self, uid: str, partition: str, status: str) -> None:
        """Publish the status that the trainer waits for, without a limit of its own."""
        for _ in range(TRIES):
            try:
                return await self._tell(uid, partition, status)
            except Exception:
                logger.exception("prompt %s has ended as %s, which TransferQueue does not take", uid, status)
        sys.stderr.flush()
        os._exit(1)  # the watch ends the run by this worker's name

    async def _run_group(self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool) -> int:
        """Run a prompt's sessions, and those that it is granted; returns how many failed."""
        uid, watch = prompt["uid"], self.settings.watch
        prompt.pop("__rollout_n__", None)
        if not prompt.pop("__do_sample__", True):
            sampling_params = dict(sampling_params)
            apply_greedy_sampling_params(sampling_params)
        # The allocator answers when the priors are there, and the sessions of other prompts over.
        patience_s = self.settings.prior.timeout_s + watch.session_s + watch.answer_s
        failed, first, extra = 0, 0, self.settings.k_init
        if not extra:
            extra = await asyncio.wait_for(self.allocator.first_rollouts.remote(uid), patience_s)
        while extra:
            sessions = range(first, first + extra)
            ended, problems, errors = await self._run_sessions(sessions, prompt, sampling_params, trajectory, trace)
            failed += len(errors)
            first += extra
            rewards = {session: result.reward for session, result in ended.items()}
            states = {session: result.states for session, result in ended.items() if result.states}
            settled = self.allocator.settle.remote(uid, rewards, errors, problems, states)
            extra = await asyncio.wait_for(settled, patience_s)
        return failed

    async def _run_sessions(
        self, sessions: range, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool
    ) -> tuple[dict[int, SessionResult], list[str], list[str]]:
        """Run sessions to the end; returns (session -> result, unusable rewards, why sessions failed)."""
        limit = self.settings.watch.session_s
        loops = (
            self._run_agent_loop(sampling_params, trajectory=trajectory, trace=trace, session_id=s, **prompt)
            for s in sessions
        )
        # A session that is cancelled stores nothing: what it had is left out like that of one that raised.
        results = await asyncio.gather(*(asyncio.wait_for(loop, limit) for loop in loops), return_exceptions=True)
        ended, problems, failed = {}, [], []
        where = f"prompt {prompt['uid']} (data source {prompt.get('data_source')!r})"
        for session, result in zip(sessions, results, strict=True):
            if isinstance(result, OutcomeError):
                problems.append(f"{where}: {result}")
            elif isinstance(result, TimeoutError):
                failed.append(f"session {session} of {where}: no answer in {limit:g} s (algorithm.v05.watch.session_s)")
                logger.error(failed[-1])
            elif isinstance(result, BaseException):
                failed.append(f"session {session} of {where}: {_last_line(result)}")
                logger.error("session %d of %s failed", session, where, exc_info=result)
            elif result is None:
                failed.append(f"session {session} of {where}: the agent loop returned nothing")
            else:
                ended[session] = result
        return ended, problems, failed

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> SessionResult | None:
        """Store the output as verl does; return what the allocator is told, None for validation or an empty output."""
        await super()._agent_loop_postprocess(output, validate, **kwargs)
        outputs = output if isinstance(output, list) else [output]
        if validate or not outputs:
            return None
        info = outputs[-1].extra_fields.get("reward_extra_info", {})
        shaping_reward(info, self.settings.outcome)  # raises now, with the prompt's name, rather than in the trainer
        states = self._states(outputs) if self.settings.credit == TURN else []
        return SessionResult(outcome_reward(info, self.settings.outcome), states)

    def _states(self, outputs: list[Any]) -> list[str]:
        """Text before each turn of a session: as its agent loop has recorded it, else what the policy had read."""
        states: list[str] = []
        for output in outputs:
            recorded = output.extra_fields.get(TURNS)
            if recorded is not None:
                states.extend(str(turn["text"]) for turn in recorded)
                continue
            for start in turn_starts(np.array(output.response_mask)):
                read = list(output.prompt_ids) + list(output.response_ids[:start])
                states.append(self.tokenizer.decode(read, skip_special_tokens=True))
        return states


def _last_line(error: BaseException) -> str:
    """What was raised, without the traceback that Ray puts into the message of an error of another process."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else ''}"
