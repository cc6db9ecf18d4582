"""Verl's synchronous V1 trainer: a base with a name of its own that counts costs, and one that records outcomes."""

from __future__ import annotations

import os
import time
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_v05.compat.contract import check_contract
from verl_v05.estimators.register import HA_DW, HA_DW_RUN, check_parameters
from verl_v05.prior import Outcome
from verl_v05.prior.query import make_query
from verl_v05.rollout.outcome import outcome_reward
from verl_v05.settings import OutcomeSettings
from verl_v05.trainer.cost import Cost, discarded_rollouts, load_cost, save_cost
from verl_v05.trainer.recorder import check_folder, write_outcomes

RECORDED = "sync_recorded"


class SyncTrainer(PPOTrainerSync):
    """``PPOTrainerSync`` that can be registered under a name of its own and logs what the run has cost so far.

    A subclass calls :meth:`_spend` once a step, when its rollouts are known.
    """

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        resumed = self._checkpoint_folder(resumed=True) if self.global_steps > 0 else None
        self._cost = load_cost(resumed) if resumed else Cost()
        if self._tracks_anchor:
            HA_DW_RUN.restore(resumed)
        super().fit(agent_loop_manager)

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self._step_began = time.monotonic()

    def _spend(self, rollouts: int, response_tokens: float, metrics: dict[str, Any]) -> None:
        """Count a step's rollouts, and those that were filtered out, which are taken to be as long as the others."""
        discarded = discarded_rollouts(metrics, self.config.actor_rollout_ref.rollout.n)
        self._cost = self._cost.spend(rollouts + discarded, response_tokens * (1 + discarded / max(rollouts, 1)))

    def _save_checkpoint(self) -> None:
        save_cost(self._checkpoint_folder(), self._cost.wait(time.monotonic() - self._step_began))
        if self._tracks_anchor:
            HA_DW_RUN.save(self._checkpoint_folder())
        super()._save_checkpoint()

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        self._cost = self._cost.wait(timing_raw["step"])
        metrics.update(self._cost.metrics())

    @property
    def _tracks_anchor(self) -> bool:
        return self.config.algorithm.adv_estimator == HA_DW

    def _checkpoint_folder(self, resumed: bool = False) -> str:
        trainer = self.config.trainer
        if resumed and trainer.resume_mode == "resume_path":
            return trainer.resume_from_path
        return os.path.join(trainer.default_local_dir, f"global_step_{self.global_steps}")

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
        check_parameters(config.algorithm)
        super().__init__(config)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        outcomes = batch_outcomes(batch)
        self._spend(sum(o.k for o in outcomes), response_tokens(batch), metrics)
        write_outcomes(self.config, self.global_steps, outcomes)
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


def response_tokens(batch: KVBatchMeta) -> int:
    """Response tokens of the batch's real rows."""
    return sum(tag["response_len"] for tag in batch.tags if not tag.get("is_padding", False))


def _last_outputs(batch: KVBatchMeta) -> list[str]:
    """Key of each session's last output, which carries its outcome; keys are ``{uid}_{session}_{index}``."""
    last: dict[str, int] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        if not tag.get("is_padding", False):
            session, index = key.rsplit("_", 1)
            last[session] = max(last.get(session, 0), int(index))
    return [f"{session}_{index}" for session, index in last.items()]
