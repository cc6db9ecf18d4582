"""Scripted stand-ins for what a rollout test must control: the LLM's answers, their rewards, the prior."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from verl.workers.rollout.replica import TokenOutput

from verl_v05.prior import Prior, Query

REWARDS = {"1": 1.0, "0": 0.0, "n": float("nan"), "2": 2.0}  # answer character -> acc


class ScriptedLLM:
    """verl's LLM client interface: the n-th rollout of a prompt answers the n-th character of its script.

    Args:
        scripts: prompt text -> one character a rollout; "x" raises, "s" answers right but slowly.
        tokenizer: encodes prompts and answers.
    """

    def __init__(self, scripts: dict[str, str], tokenizer: Any):
        self.scripts = scripts
        self.tokenizer = tokenizer
        self.served: dict[str, int] = dict.fromkeys(scripts, 0)

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        prompt = self.tokenizer.decode(prompt_ids)
        nth = self.served[prompt]
        self.served[prompt] += 1
        answer = self.scripts[prompt][nth]
        await asyncio.sleep(0.5 if answer == "s" else 0.01)
        if answer == "x":
            raise RuntimeError(f"scripted failure of {prompt}")
        return TokenOutput(token_ids=self.tokenizer.encode(answer.replace("s", "1")), extra_fields={})


class ScriptedReward:
    """verl's reward worker interface: the answer's character names its score."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def compute_score(self, data: Any) -> dict[str, Any]:
        acc = REWARDS[self.tokenizer.decode(data.batch["responses"][-1])]
        return {"reward_score": acc, "reward_extra_info": {"acc": acc}}


class ScriptedPrior(Prior):
    """Answers from a table of prompt texts; prompts not in it are missing."""

    def __init__(self, table: dict[str, float]):
        self.table = table
        self.updates: list[int] = []

    def predict(self, queries: Sequence[Query], context: Any, step: int) -> np.ndarray:
        return np.array([self.table.get(q.text, np.nan) for q in queries])

    def update(self, outcomes: Any, step: int) -> None:
        self.updates.append(step)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}
