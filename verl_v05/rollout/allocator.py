"""The allocator: one actor a run that holds the prior, the support buffer and every open group.

Invariants:
- priors are asked for when a batch opens, so they are computed while its first rollouts generate;
- a group gets its answer (0 = complete) exactly once per settled dispatch, and is never left waiting:
  a prior that raises, times out or answers nonsense is missing, and counted;
- the support buffer, the prior and the fusion learn from a step only when the step is closed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.util.placement_group import PlacementGroup

from verl_v05.compat.fingerprint import fingerprint
from verl_v05.method import Method
from verl_v05.prior import Outcome, Prior, Query, make_prior
from verl_v05.prior.support_buffer import SupportBuffer
from verl_v05.prior.thread import ProviderThread
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.state_values import StateValues
from verl_v05.settings import TURN, V05Settings

logger = logging.getLogger(__name__)

SHOWN_FAILURES = 5
LEAST_TIMEOUT_S = 10.0  # of a batch's priors, however short the steps are


class Batch:
    """The groups of one ``generate_sequences`` call and the answers they wait for."""

    def __init__(self, groups: Sequence[Group], record: StepRecord, method: Method, prior: asyncio.Task[None]):
        self.record = record
        self.schedule = method.open(groups, record.groups, record.step)
        self.prior = prior
        self._opened: asyncio.Task[dict[str, int]] | None = None
        self._answers: dict[str, asyncio.Future[int]] = {}

    async def first_rollouts(self, uid: str) -> int:
        """Wait for the beliefs, then for the schedule's decision on a prompt's first rollouts."""
        # One task for all prompts, so that an error in the schedule is each one's, and raised once.
        self._opened = self._opened or asyncio.create_task(self._open())
        return (await asyncio.shield(self._opened))[uid]

    async def _open(self) -> dict[str, int]:
        await self.believed()
        return self.schedule.open()

    async def believed(self) -> None:
        """Wait for the groups' beliefs; the longest wait is the priors' share of the critical path."""
        asked_at = time.monotonic()
        await self.prior
        self.record.prior_wait_s = max(self.record.prior_wait_s, time.monotonic() - asked_at)

    async def settled(self, group: Group) -> int:
        """Wait for the schedule's answer to a group whose rollouts have settled."""
        answer = self._answers[group.uid] = asyncio.get_running_loop().create_future()
        try:
            for uid, extra in self.schedule.settled(group.uid).items():
                self._answers.pop(uid).set_result(extra)
        except Exception as error:
            # The groups that wait would wait for ever: no other dispatch of theirs is out that could release them.
            for waiting in self._answers.values():
                waiting.set_exception(error)
            self._answers.clear()
        return await answer


class Allocator:
    """Async Ray actor (a plain class here; the manager makes it remote)."""

    def __init__(self, settings: V05Settings):
        self.settings = settings
        self.prior: Prior = make_prior(settings.prior)
        self.method = Method.from_settings(settings)
        self.states = StateValues(settings) if settings.credit == TURN else None
        self.support = SupportBuffer(settings.support.capacity, settings.support.sample, settings.support.seed)
        self._batch_of: dict[str, Batch] = {}
        self._group_of: dict[str, Group] = {}
        self._records: dict[int, StepRecord] = {}
        self._problems: list[str] = []
        self._failures: list[str] = []  # of the step's sessions, the first ones
        self._thread = ProviderThread("prior", settings.prior.timeout_s)
        self._opened_at: dict[int, float] = {}
        self._step_s = math.inf  # from a step's opening to its close, of the last one
        self._lost_states = 0  # checkpoints without the prior's state, counted in the next step
        self._metric_names: list[str] = []

    def fingerprint(self) -> str:
        """Identity of the code this process runs, to be compared with the driver's."""
        return fingerprint()

    async def start(self, placement_groups: Sequence[PlacementGroup]) -> None:
        """Start the prior's provider; an error in it ends the run before the first step."""
        # Not under prior.timeout_s: loading a value model has its own limit, and cannot be missed.
        await self._thread.call_unlimited(self.prior.start, placement_groups)
        if self.states is not None:
            await self.states.start(placement_groups)

    async def close(self) -> None:
        """End what the provider started; a provider that cannot be ended does not fail a run that is over."""
        try:
            await self._thread.call(self.prior.close)
            if self.states is not None:
                await self.states.close()
        except Exception:
            logger.exception("the prior's provider did not close; its processes end with this one")

    async def open_batch(self, step: int, uids: Sequence[str], queries: Sequence[Query]) -> None:
        """Register a batch's groups and start asking for their priors."""
        k_init = self.settings.k_init
        groups = [Group(uid, query, spent=k_init, first=k_init) for uid, query in zip(uids, queries, strict=True)]
        record = self._records.setdefault(step, StepRecord(step))
        self._opened_at.setdefault(step, time.monotonic())
        context = self.support.sample(step, len(record.groups))
        record.groups.extend(groups)
        task = asyncio.create_task(self._ask_prior(groups, context, record))
        batch = Batch(groups, record, self.method, task)
        self._group_of |= {g.uid: g for g in groups}
        self._batch_of |= dict.fromkeys(uids, batch)

    async def first_rollouts(self, uid: str) -> int:
        """How many rollouts a prompt starts with, 0 for none in this step; asked for with ``k_init=0`` only."""
        with self._noted():
            return await self._batch_of[uid].first_rollouts(uid)

    async def alive(self) -> bool:
        """A sign of life of the event loop that answers the groups, for the watch."""
        return True

    async def failures(self) -> list[str]:
        """Why sessions of the step failed, the first few of them."""
        return self._failures

    async def settle(
        self,
        uid: str,
        rewards: dict[int, float],
        failed: Sequence[str] = (),
        problems: Sequence[str] = (),
        states: dict[int, list[str]] | None = None,
    ) -> int:
        """Take the rewards of a group's settled rollouts; answer how many more to start (0 = complete).

        Args:
            rewards: session -> outcome reward in [-1, 1].
            failed: a line for each session that raised, ran into its limit or returned nothing.
            problems: what was wrong with rewards that could not be used; the step then fails when closed.
            states: session -> text before each of its turns, with ``credit=turn``.
        """
        group, batch = self._group_of[uid], self._batch_of[uid]
        group.rewards.update(rewards)
        group.failed += len(failed)
        self._failures.extend(failed[: max(0, SHOWN_FAILURES - len(self._failures))])
        self._problems.extend(problems)
        if self.states is not None and states:
            self.states.add(group, states, batch.record.step)
        with self._noted():
            await batch.believed()
            return await batch.settled(group)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Keep what a schedule, fusion or allocation raises: the trainer ends the run with it."""
        try:
            yield
        except Exception as error:
            line = f"the allocator: {type(error).__name__}: {error}"
            if line not in self._failures:
                self._failures.insert(0, line)
            raise

    async def close_step(self, step: int) -> StepRecord:
        """Return the step's record and let the support buffer, the prior and the fusion learn from it.

        Raises:
            ValueError: a reward of the step was NaN, out of range or absent.
        """
        if self._problems:
            shown = "\n  ".join(self._problems[:5])
            raise ValueError(f"{len(self._problems)} outcome reward(s) cannot be used, the first:\n  {shown}")
        self._failures = []
        record = self._records.pop(step)
        self._step_s = time.monotonic() - self._opened_at.pop(step)
        record.prior_failures += self._lost_states
        self._lost_states = 0
        for group in record.groups:
            del self._group_of[group.uid], self._batch_of[group.uid]
        if self.states is not None:
            await self.states.close_step(record)
        self.method.learn(record.groups)
        record.fusion_metrics = self.method.fusion.metrics()
        outcomes = record.outcomes()
        self.support.add(outcomes)
        try:
            await self._thread.call(self.prior.update, outcomes, step)
        except Exception:
            logger.exception("prior did not learn from step %d", step)
            record.prior_failures += 1
        record.prior_metrics = await self._metrics(step)
        return record

    async def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state; None for a provider that does not give its own."""
        state = {
            "provider": self.settings.prior.provider,
            "prior": await self._state_of(self._thread.call(self.prior.state_dict)),
            "fusion": self.settings.fusion,
            "belief": self.method.fusion.state_dict(),
            "support": self.support.state_dict(),
        }
        if self.states is not None:
            state["states"] = await self._state_of(self.states.state_dict())
        return state

    async def _state_of(self, call: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return await call
        except Exception:
            # The policy's checkpoint is worth more than a prior's state; a run that resumes from it is told.
            logger.exception("the checkpoint is without a prior's state")
            self._lost_states += 1
            return None

    async def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``allow_missing_state`` leaves out what is lost or of another provider or fusion.

        Raises:
            ValueError: the state was written by another provider or fusion, or the prior's is missing in it.
        """
        same_prior = self._same(state, "provider", "prior.provider", self.settings.prior.provider)
        same_fusion = self._same(state, "fusion", "fusion", self.settings.fusion)
        lost = state["prior"] is None
        if lost and not self.settings.allow_missing_state:
            raise ValueError(
                "the checkpoint is without the prior's state, as the prior did not answer when it was written; resume "
                "from an earlier one, or start with a fresh prior by algorithm.v05.allow_missing_state=true"
            )
        self.support.load_state_dict(state["support"])
        if same_fusion:
            self.method.fusion.load_state_dict(state["belief"])
        if same_prior and not lost:
            await self._thread.call(self.prior.load_state_dict, state["prior"])
        if self.states is not None:
            await self._load_states(state.get("states"))

    async def _load_states(self, saved: dict[str, Any] | None) -> None:
        assert self.states is not None
        if saved is None:
            if not self.settings.allow_missing_state:
                raise ValueError(
                    "the checkpoint is without the states' values that credit=turn goes by: it was written with "
                    "credit=outcome, or the state prior did not answer; set credit back, or start them afresh by "
                    "algorithm.v05.allow_missing_state=true"
                )
        elif self._same(saved, "provider", "state_prior.provider", self.settings.state_prior.provider):
            await self.states.load_state_dict(saved)

    def _same(self, state: dict[str, Any], name: str, key: str, ours: str) -> bool:
        """Whether the checkpoint was written with the same choice; ValueError where it must have been."""
        if state[name] != ours and not self.settings.allow_missing_state:
            raise ValueError(
                f"the checkpoint's {name} is {state[name]!r}, the run's algorithm.v05.{key} is {ours!r}; set it "
                "back, or start afresh by algorithm.v05.allow_missing_state=true"
            )
        return state[name] == ours

    async def _ask_prior(self, groups: Sequence[Group], context: list[Outcome] | None, record: StepRecord) -> None:
        asked_at = time.monotonic()
        queries = [g.query for g in groups]
        probability, failures = await self._thread.ask(self.prior, queries, context, record.step, self._patience_s())
        record.prior_failures += failures
        for group, p in zip(groups, probability, strict=True):
            group.probability = float(p)
        self.method.believe(groups)
        record.prior_latency_s += time.monotonic() - asked_at

    async def _metrics(self, step: int) -> dict[str, float]:
        """The provider's metrics; NaN under the names it gave before where it does not answer."""
        try:
            metrics = await self._thread.call(self.prior.metrics)
        except Exception:
            logger.exception("prior's metrics of step %d are lost", step)
            return dict.fromkeys(self._metric_names, math.nan)
        self._metric_names = list(metrics)
        return metrics

    def _patience_s(self) -> float:
        share = self.settings.prior.timeout_share * self._step_s
        return min(self.settings.prior.timeout_s, max(LEAST_TIMEOUT_S, share))
