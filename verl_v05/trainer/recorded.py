"""``trainer.v1.trainer_mode=sync_recorded``: any algorithm of verl, with a value model's training data recorded."""

from __future__ import annotations

import transfer_queue as tq
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer

from value_model.conversions import success_of_reward
from verl_v05.prior.query import Outcome, Query, make_query
from verl_v05.rollout.outcome import outcome_reward
from verl_v05.rollout.rows import last_outputs, response_tokens
from verl_v05.settings import KEY, OutcomeSettings, PriorSettings
from verl_v05.trainer.base import SyncTrainer
from verl_v05.trainer.recorder import write_outcomes

NAME = "sync_recorded"
TEXT_KEY = f"{KEY}.prior.text_key"


@register_trainer(NAME)
class RecordedTrainer(SyncTrainer):
    """The outcome is ``acc`` in [0, 1] of the reward function's extra info, as verl's validation reads it."""

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        # The group algorithm.v05 is not in the presets of other algorithms; a run may still add this key of it.
        outcomes = batch_outcomes(batch, OmegaConf.select(self.config, TEXT_KEY, default=PriorSettings().text_key))
        self._spend(sum(o.k for o in outcomes), response_tokens(batch), metrics)
        write_outcomes(self.config, self.global_steps, outcomes)
        return super()._compute_advantage(batch, metrics)


def batch_outcomes(batch: KVBatchMeta, text_key: str | None) -> list[Outcome]:
    """One outcome a prompt of the batch, from what the agent loops stored; ``text_key`` as ``make_query`` takes it."""
    fields = ["uid", "raw_prompt", "data_source", "extra_fields"]
    wanted = [*fields, "extra_info"]
    data = tq.kv_batch_get(keys=last_outputs(batch), partition_id=batch.partition_id, select_fields=wanted)
    infos = list(data["extra_info"]) if "extra_info" in data else [None] * len(data)
    queries: dict[str, Query] = {}
    rewards: dict[str, list[float]] = {}
    for uid, prompt, source, extra, info in zip(*(list(data[field]) for field in fields), infos, strict=True):
        queries[uid] = make_query(prompt, source, info, text_key)
        rewards.setdefault(uid, []).append(outcome_reward(extra.get("reward_extra_info", {}), OutcomeSettings()))
    return [Outcome(queries[uid], success_of_reward(sum(r) / len(r)), len(r)) for uid, r in rewards.items()]
