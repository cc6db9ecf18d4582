"""``agent_name=environment``: an agent loop that plays sessions of turns in a text environment.

A session is a chat: the state's text from the environment, the policy's answer, the next state's text, and so on. Its
class and arguments come from the loop's config and from ``extra_info.environment`` of the prompt's row.

Invariants:
- a session ends: with the environment, after ``max_turns``, or where a row has no room for another turn;
- rows hold whole turns; with ``turns_per_row`` a new row begins with the state alone, the history before it is cut;
- each row's extra field ``turns`` names the state, its text and the reward of each of its turns;
- an environment that raises, hangs for ``step_s`` or answers nonsense fails its session, with the reason, and no other.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.profiler import simple_timer

from value_model.checks import require
from verl_v05.agent.environment import Environment, EnvironmentFaultError, State, checked_answer, checked_state
from verl_v05.registry import Registry
from verl_v05.rollout.turns import TURNS

KEY = "agent loop"
ENVIRONMENTS = Registry(key=f"{KEY}: environment", base="verl_v05.agent.environment.Environment", names={})


class EnvironmentLoop(AgentLoopBase):
    """See the module. Arguments besides verl's are keys of its entry in ``rollout.agent.agent_loop_config_path``.

    Args:
        environment: class path of an :class:`Environment`; a row's ``extra_info.environment`` has its arguments.
        max_turns: of a session; one that ends there has what it was rewarded so far.
        turns_per_row: turns after which the history is cut and another row begins; 0 keeps a session in one row.
        turn_tokens: most tokens of the policy in a turn.
        step_s: limit of each call of the environment, in seconds.
    """

    def __init__(
        self,
        *args: Any,
        environment: str,
        max_turns: int,
        turns_per_row: int = 0,
        turn_tokens: int = 256,
        step_s: float = 60.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        require(f"{KEY}: max_turns", max_turns, max_turns >= 1, "at least 1")
        require(f"{KEY}: turns_per_row", turns_per_row, turns_per_row >= 0, "at least 0")
        require(f"{KEY}: turn_tokens", turn_tokens, turn_tokens >= 1, "at least 1")
        require(f"{KEY}: step_s", step_s, step_s > 0, "a positive number of seconds")
        self._make: type[Environment] = ENVIRONMENTS.resolve(environment)
        self._max_turns, self._turns_per_row = max_turns, turns_per_row
        self._turn_tokens, self._step_s = turn_tokens, step_s

    async def run(  # type: ignore[override]  # verl takes a list of rows too
        self, sampling_params: dict[str, Any], *, session_id: int = 0, extra_info: Any = None, **kwargs: Any
    ) -> list[AgentLoopOutput]:
        """Play one session.

        Raises:
            EnvironmentFaultError: the environment raised, was late or answered nonsense.
        """
        arguments = dict((extra_info or {}).get("environment") or {})
        env: Environment = await self._call("its start", lambda: self._make(**arguments))
        try:
            return await self._play(env, dict(sampling_params), int(session_id))
        finally:
            # Not waited for: what is over needs nothing of it.
            threading.Thread(target=_quietly, args=(env.close,), daemon=True).start()

    async def _play(self, env: Environment, sampling: dict[str, Any], session: int) -> list[AgentLoopOutput]:
        state = checked_state(await self._call("reset", lambda: env.reset(session)))
        rows: list[_Row] = []
        total, outcome, done = 0.0, None, False
        for turn in range(self._max_turns):
            if not rows or (self._turns_per_row and len(rows[-1].turns) == self._turns_per_row):
                rows.append(await self._new_row(state))
            elif not await self._extend(rows[-1], state):
                break
            row = rows[-1]
            text = await self._generate(row, sampling)
            answer = checked_answer(await self._call(f"step {turn + 1}", partial(env.step, text)))
            row.turns.append({"state": state.key, "text": state.text, "reward": float(answer.reward)})
            total, outcome, done = total + float(answer.reward), answer.success, answer.done
            if done:
                break
            state = answer.state
        score = float(outcome) if done and outcome is not None else total
        return [row.output(score, self._response_length) for row in rows if row.turns]

    @property
    def _response_length(self) -> int:
        return self.rollout_config.response_length

    async def _new_row(self, state: State) -> _Row:
        messages = [{"role": "user", "content": state.text}]
        return _Row(messages, await self.ct_build_initial_tokens(messages))

    async def _extend(self, row: _Row, state: State) -> bool:
        """Add the state's text to a row; False, and nothing added, where no room is left for an answer to it."""
        messages = [*row.messages, {"role": "user", "content": state.text}]
        merged, mask, log_probs = await self.ct_merge_context_msg(
            row.messages, messages, row.token_ids, row.mask, row.log_probs or None
        )
        if len(mask) + self._turn_tokens > self._response_length:
            return False
        row.messages, row.token_ids, row.mask, row.log_probs = messages, merged.token_ids, mask, log_probs or []
        return True

    async def _generate(self, row: _Row, sampling: dict[str, Any]) -> str:
        """The policy's answer, added to the row."""
        room = min(self._turn_tokens, self._response_length - len(row.mask))
        with simple_timer("generate_sequences", row.metrics):
            found = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=row.token_ids, sampling_params={**sampling, "max_new_tokens": room}
            )
        row.keep(found.extra_fields)
        merged, row.mask, log_probs = await self.ct_merge_assistant_token(
            row.token_ids,
            found.token_ids,
            row.mask,
            row.log_probs if (row.log_probs or found.log_probs) else None,
            assistant_logprobs=found.log_probs or None,
        )
        row.token_ids, row.log_probs = merged.token_ids, log_probs or []
        text: str = self.tokenizer.decode(found.token_ids, skip_special_tokens=True)  # type: ignore[attr-defined]
        row.messages = [*row.messages, {"role": "assistant", "content": text}]
        return text

    async def _call(self, what: str, function: Callable[[], Any]) -> Any:
        """Call the environment in a thread of its own, which is left behind where it does not come back."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            try:
                found, error = function(), None
            except BaseException as raised:  # sys.exit too is the session's end, not the worker's
                found, error = None, raised
            with suppress(RuntimeError):  # the worker has ended before a late environment came back
                loop.call_soon_threadsafe(_settle, answer, found, error)

        threading.Thread(target=run, name="environment", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, self._step_s)
        except TimeoutError:
            raise EnvironmentFaultError(
                f"the environment has not answered {what} in step_s={self._step_s:g} s"
            ) from None
        except EnvironmentFaultError:
            raise
        except _RaisedError as error:
            raise EnvironmentFaultError(f"the environment raised {error.cause!r} in {what}") from error.cause


class _RaisedError(Exception):
    """Carries what an environment raised; asyncio lets no future hold a SystemExit or StopIteration."""

    def __init__(self, cause: BaseException):
        super().__init__(str(cause))
        self.cause = cause


def _settle(answer: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    if answer.done():  # it was late
        return
    if error is None:
        answer.set_result(found)
    else:
        answer.set_exception(error if isinstance(error, EnvironmentFaultError) else _RaisedError(error))


def _quietly(function: Callable[[], None]) -> None:
    with suppress(BaseException):
        function()


class _Row:
    """A row as it grows."""

    def __init__(self, messages: list[dict[str, Any]], prompt_ids: list[int]):
        self.messages, self.token_ids = messages, list(prompt_ids)
        self.prompt_tokens = len(prompt_ids)
        self.mask: list[int] = []
        self.log_probs: list[float] = []
        self.turns: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.extra_fields: dict[str, Any] = {}

    def keep(self, extra_fields: dict[str, Any]) -> None:
        """What the engine says of an answer; the policy's oldest step of the row stays, the newest is replaced."""
        oldest = self.extra_fields.get("min_global_steps", extra_fields.get("min_global_steps"))
        self.extra_fields |= extra_fields
        if oldest is not None:
            self.extra_fields["min_global_steps"] = oldest

    def output(self, score: float, length: int) -> AgentLoopOutput:
        """The row as verl takes it."""
        # The prompt is what was there before the row's own tokens, as verl's merging may have changed its end.
        start = len(self.token_ids) - len(self.mask)
        extra = {**self.extra_fields, TURNS: self.turns, "reward_extra_info": {"acc": score, "score": score}}
        return AgentLoopOutput(
            prompt_ids=self.token_ids[:start],
            response_ids=self.token_ids[start:][:length],
            response_mask=self.mask[:length],
            response_logprobs=self.log_probs[:length] or None,
            reward_score=score,
            num_turns=len(self.messages),
            metrics=AgentLoopMetrics.model_validate(self.metrics),
            extra_fields={"turn_scores": [], "tool_rewards": [], **extra},
        )
