"""Values of the states that sessions pass through, for ``credit=turn``: a process-level prior beside the prompts' one.

A state is the text before a turn of the policy. Its value is asked for when its session has settled, while others of
the step still generate, and calibrated on line by the outcomes of the sessions that passed through it, as the prompts'
beliefs are (:class:`EmpiricalBayesFusion`, whatever the prompts' fusion is).

Invariants:
- values, and the weight that turn credit has, are those believed before the step: no session's own outcome is in them;
- a text is asked for once a step; a prior that raises, times out or answers nonsense is missing, counted, and the
  calibration stands in for it;
- the calibration, the context and the provider learn from a step only when the step is closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.util.placement_group import PlacementGroup

from value_model.conversions import success_of_reward
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion
from verl_v05.prior import Outcome, Prior, Query, make_prior
from verl_v05.prior.support_buffer import SupportBuffer
from verl_v05.prior.thread import ProviderThread
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.settings import STATE_PRIOR, V05Settings
from verl_v05.turn_credit import Evidence, evidence

logger = logging.getLogger(__name__)

KEPT_STATES = 65_536  # whose history is kept; the ones that were met longest ago are dropped


Passed = tuple[int, int, float, list[str]]  # a session's group, number, outcome and states


class StateValues:
    """Used by the allocator, on its event loop."""

    def __init__(self, settings: V05Settings):
        self._settings = settings
        self.prior: Prior = make_prior(settings.state_prior, STATE_PRIOR)
        calibration = settings.calibration
        self.fusion = EmpiricalBayesFusion(calibration.forgetting, calibration.history_forgetting, KEPT_STATES)
        self.support = SupportBuffer(settings.support.capacity, settings.support.sample, settings.support.seed)
        self.evidence = Evidence()
        self._thread = ProviderThread("state_prior", settings.state_prior.timeout_s)
        self._queries: dict[str, Query] = {}  # of the step, by text
        self._probability: dict[str, float] = {}  # what was answered of them
        self._waiting: list[str] = []
        self._asking: asyncio.Task[None] | None = None
        self._context: list[Outcome] | None = None
        self._failures = 0
        self._latency_s = 0.0

    async def start(self, placement_groups: Sequence[PlacementGroup]) -> None:
        """Start the provider; an error in it ends the run before the first step."""
        await self._thread.call_unlimited(self.prior.start, placement_groups)

    async def close(self) -> None:
        """End what the provider started."""
        await self._thread.call(self.prior.close)

    def add(self, group: Group, states: dict[int, list[str]], step: int) -> None:
        """Take the states of a group's settled sessions, and see to it that their values are asked for.

        Args:
            states: session -> text before each of its turns.
        """
        group.states.update(states)
        for text in dict.fromkeys(text for texts in states.values() for text in texts):
            if text not in self._queries:
                self._queries[text] = Query(state_id(text), text, group.query.data_source)
                self._waiting.append(text)
        if self._waiting and self._asking is None:
            self._context = self.support.sample(step)
            self._asking = asyncio.create_task(self._ask(step))

    async def _ask(self, step: int) -> None:
        """Ask until nothing waits: what came while one call was out is the next call."""
        began = time.monotonic()
        try:
            while self._waiting:
                texts, self._waiting = self._waiting, []
                queries = [self._queries[text] for text in texts]
                limit = self._settings.state_prior.timeout_s
                answer, failures = await self._thread.ask(self.prior, queries, self._context, step, limit)
                self._failures += failures
                self._probability.update(zip(texts, answer.tolist(), strict=True))
        finally:
            self._latency_s += time.monotonic() - began
            self._asking = None

    async def close_step(self, record: StepRecord) -> None:
        """Give each session its states' values, and the record the weight; then learn from the step.

        Sets ``Group.state_values`` of the sessions that have states and an outcome.
        """
        asked_at = time.monotonic()
        if self._asking is not None:
            await self._asking
        wait_s = time.monotonic() - asked_at
        passed: list[Passed] = [
            (index, session, group.rewards[session], texts)
            for index, group in enumerate(record.groups)
            for session, texts in group.states.items()
            if session in group.rewards and texts
        ]
        record.turn_weight = self.evidence.weight
        number = {text: i for i, text in enumerate(dict.fromkeys(text for *_, texts in passed for text in texts))}
        ids = [self._queries[text].prompt_id for text in number]
        probability = np.array([self._probability.get(text, math.nan) for text in number])
        belief = self.fusion.believe(ids, probability)
        k, successes = np.zeros(len(number), dtype=int), np.zeros(len(number))
        for index, session, reward, texts in passed:
            record.groups[index].state_values[session] = belief.prior[[number[text] for text in texts]].tolist()
            for visited in {number[text] for text in texts}:  # a session that comes back is one outcome
                k[visited] += 1
                successes[visited] += success_of_reward(reward)
        record.state_metrics = self._metrics(record, passed, probability, wait_s)
        if passed:
            self.fusion.learn(ids, probability, np.clip(successes, 0, k), k)
            record.state_outcomes = outcomes = [
                Outcome(self._queries[text], min(1.0, successes[i] / k[i]), int(k[i])) for text, i in number.items()
            ]
            self.support.add(outcomes)
            try:
                await self._thread.call(self.prior.update, outcomes, record.step)
            except Exception:
                logger.exception("the state prior did not learn from step %d", record.step)
                record.state_metrics["failures"] += 1
        self._queries, self._probability, self._waiting = {}, {}, []
        self._failures, self._latency_s = 0, 0.0

    def _metrics(
        self, record: StepRecord, passed: list[Passed], probability: np.ndarray, wait_s: float
    ) -> dict[str, float]:
        """Metrics of the step, and its evidence added to what later steps go by."""
        metrics = {
            "weight": record.turn_weight,
            "visits": float(sum(len(texts) for *_, texts in passed)),
            "distinct": float(len(probability)),
            "unanswered": float(np.isnan(probability).mean()) if len(probability) else 0.0,
            "failures": float(self._failures),
            "latency_s": self._latency_s,
            "wait_s": wait_s,
        }
        if not passed:
            return metrics
        values = np.concatenate([record.groups[i].state_values[session] for i, session, *_ in passed])
        session = np.repeat(np.arange(len(passed)), [len(texts) for *_, texts in passed])
        rewards = np.array([reward for *_, reward, _ in passed])
        prior = np.array([record.groups[i].prior for i, *_ in passed])
        believed = np.where(np.isnan(prior), rewards.mean(), prior)
        index = np.array([i for i, *_ in passed])
        new = evidence(values, session, rewards, believed, index)
        self.evidence = self.evidence.then(new, self._settings.calibration.forgetting)
        metrics["mse"] = float(np.mean((rewards[session] - values) ** 2))  # of outcomes, their own noise included
        metrics["mse_of_prompt"] = float(np.mean((rewards - believed)[session] ** 2))
        return metrics

    async def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state. PriorError or TimeoutError if the provider does not give its own."""
        return {
            "provider": self._settings.state_prior.provider,
            "prior": await self._thread.call(self.prior.state_dict),
            "belief": self.fusion.state_dict(),
            "support": self.support.state_dict(),
            "evidence": self.evidence._asdict(),
        }

    async def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.fusion.load_state_dict(state["belief"])
        self.support.load_state_dict(state["support"])
        self.evidence = Evidence(**state["evidence"])
        await self._thread.call(self.prior.load_state_dict, state["prior"])


def state_id(text: str) -> str:
    """The same for the same text in every step and run."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
