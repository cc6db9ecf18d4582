"""Agent-loop manager that opens each training batch at the allocator before verl's workers start on it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import ray
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from verl_v05.compat.contract import check_contract
from verl_v05.compat.fingerprint import check_same
from verl_v05.prior.query import Query, make_query
from verl_v05.rollout.allocator import Allocator
from verl_v05.rollout.worker import V05AgentLoopWorker
from verl_v05.settings import load_settings
from verl_v05.trainer.watch import answered

# Every open group of a step may wait in the allocator at once.
MAX_OPEN_GROUPS = 1_000_000


class V05AgentLoopManager(AgentLoopManagerTQ):
    """Set as ``actor_rollout_ref.rollout.agent.agent_loop_manager_class``."""

    def __init__(self, *args: Any, **kwargs: Any):
        check_contract()
        super().__init__(*args, **kwargs)
        settings = load_settings(self.config)
        self._text_key = settings.prior.text_key
        self._limit_s = settings.watch.update_s
        self.agent_loop_workers_class = ray.remote(V05AgentLoopWorker)
        self.allocator: Any = (  # an actor handle, whose methods Ray makes at run time
            ray.remote(Allocator)
            .options(name=f"allocator_{uuid4().hex[:8]}", num_cpus=0, max_concurrency=MAX_OPEN_GROUPS)  # named: watched
            .remote(settings)
        )

    async def _init_agent_loop_workers(self) -> None:
        await super()._init_agent_loop_workers()
        workers: list[Any] = self.agent_loop_workers
        asked = [self.allocator.fingerprint.remote(), *(worker.attach.remote(self.allocator) for worker in workers)]
        identities = await asyncio.wait_for(asyncio.gather(*asked), self._limit_s)
        for name, theirs in zip(["the allocator", *self.agent_loop_workers], identities, strict=True):
            check_same(str(name), theirs)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch a batch without blocking; training batches are registered with the allocator first."""
        if "validate" not in prompts:
            asked = queries(prompts, self._text_key)
            task = self.allocator.open_batch.remote(int(prompts["global_steps"]), list(prompts["uid"]), asked)
            answered(task, "the allocator, asked for open_batch,", self._limit_s)
        super().generate_sequences(prompts)


def queries(prompts: TensorDict, text_key: str | None) -> list[Query]:
    """One :class:`Query` a row; the prompt id is a digest of the chat messages."""
    messages = list(prompts["raw_prompt"])
    sources = list(prompts["data_source"]) if "data_source" in prompts else ["unknown"] * len(messages)
    infos = list(prompts["extra_info"]) if "extra_info" in prompts else [None] * len(messages)
    return [make_query(m, s, info, text_key) for m, s, info in zip(messages, sources, infos, strict=True)]
