"""Verl's synchronous V1 trainer under another name, as a base, and as one that records trajectories."""

from __future__ import annotations

import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_v05.contract import check_contract
from verl_v05.prior import Outcome
from verl_v05.prompt import make_query
from verl_v05.recorder import check_folder, write_outcomes
from verl_v05.rollout.outcome import outcome_reward
from verl_v05.settings import OutcomeSettings

RECORDED = "sync_recorded"


class SyncTrainer(PPOTrainerSync):
    """``PPOTrainerSync`` that can be registered under a name of its own."""

    @property
    def trainer_mode(self) -> str:
        """verl treats every mode but the literal "sync" as asynchronous."""
        return "sync"

    @trainer_mode.setter
    def trainer_mode(self, name: str) -> None:
        """verl assigns the registered name; the mode stays "sync"."""


@register_trainer(RECORDED)
class RecordedTrainer(SyncTrainer):
    """``trainer.v1.trainer_mode=sync_recorded``: any algorithm of verl, with a value model's training data recorded.

    The outcome is ``acc`` in [0, 1] of the reward function's extra info, as verl's validation reads it.
    """

    def __init__(self, config: DictConfig):
        check_contract()
        check_folder(config)
        super().__init__(config)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        write_outcomes(self.config, self.global_steps, batch_outcomes(batch))
        return super()._compute_advantage(batch, metrics)


def batch_outcomes(batch: KVBatchMeta) -> list[Outcome]:
    """One outcome a prompt of the batch, from what the agent loops stored."""
    fields = ["uid", "raw_prompt", "data_source", "extra_fields"]
    data = tq.kv_batch_get(keys=_last_outputs(batch), partition_id=batch.partition_id, select_fields=fields)
    queries, rewards = {}, {}
    for uid, prompt, source, extra in zip(*(list(data[field]) for field in fields), strict=True):
        queries[uid] = make_query(prompt, source)
        rewards.setdefault(uid, []).append(outcome_reward(extra.get("reward_extra_info", {}), OutcomeSettings()))
    return [Outcome(queries[uid], (sum(r) / len(r) + 1) / 2, len(r)) for uid, r in rewards.items()]


def _last_outputs(batch: KVBatchMeta) -> list[str]:
    """Key of each session's last output, which carries its outcome; keys are ``{uid}_{session}_{index}``."""
    last: dict[str, int] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        if not tag.get("is_padding", False):
            session, index = key.rsplit("_", 1)
            last[session] = max(last.get(session, 0), int(index))
    return [f"{session}_{index}" for session, index in last.items()]
