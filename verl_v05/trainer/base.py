"""verl's synchronous V1 trainer under names of our own, counting costs and carrying state over a resume."""

from __future__ import annotations

import logging
import os
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopManager
from verl.experimental.reward_loop import reward_loop
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_v05.compat.contract import check_contract
from verl_v05.compat.module_attribute import module_attribute
from verl_v05.estimators.base import TurnEstimator
from verl_v05.estimators.register import TurnRows, check_parameters, estimator_of, using
from verl_v05.rollout.reward_limit import V05RewardLoopWorker
from verl_v05.rollout.rows import NO_SESSION, padding
from verl_v05.rollout.turns import TURNS
from verl_v05.run_folder import check_run_folder
from verl_v05.settings import load_watch_settings
from verl_v05.trainer.checkpoint import (
    ALLOCATOR,
    COST,
    ESTIMATOR,
    FILE,
    METRICS,
    load_state,
    save_state,
    torn_folder_removed,
)
from verl_v05.trainer.cost import Cost, discarded_rollouts
from verl_v05.trainer.log_parts import is_logged, move_aside, numbers
from verl_v05.trainer.watch import Watch

logger = logging.getLogger(__name__)

MOST_REFILLS = 10  # batches' worth of prompts that a step may ask for beyond its own, as in DAPO's reference code


class RefillError(RuntimeError):
    """A step has replaced so many prompts that more of them would not help."""


class SyncTrainer(PPOTrainerSync):
    """``PPOTrainerSync`` that can be registered under a name of its own.

    It logs what the run has cost so far, keeps the state of the run's estimator, if that has any, and logs a step that
    was saved but not yet logged when the run was killed. A subclass calls :meth:`_spend` once a step, when its rollouts
    are known, and adds its own parts to the checkpoint by :meth:`_state_parts`.
    """

    state_parts: ClassVar[tuple[str, ...]] = (COST, ESTIMATOR, METRICS)  # of the checkpoint's file, that this one reads
    _cost: Cost  # from fit() on

    def __init__(self, config: DictConfig):
        check_contract()
        check_run_folder(config)  # again: a run may come without our launch check, and this may be another machine
        check_parameters(config.algorithm)
        super().__init__(config)

    def init(self) -> None:
        """Start the run's processes, as verl does; reward workers are those with a limit."""
        with module_attribute(reward_loop, "RewardLoopWorker", V05RewardLoopWorker):
            super().init()

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        """Train, under the eyes of the watch."""
        folder, settings = self.config.trainer.default_local_dir, load_watch_settings(self.config)
        with Watch(folder, settings, lambda: f"in step {self.global_steps}"):
            self._train(agent_loop_manager)
        self._end_engines()

    def _train(self, agent_loop_manager: AgentLoopManager) -> None:
        self._estimator = estimator_of(self.config.algorithm.adv_estimator)
        self._restore(load_state(self._checkpoint_folder(resumed=True)) if self.global_steps > 0 else {})
        move_aside(self.config)
        super().fit(agent_loop_manager)

    def _end_engines(self) -> None:
        # Ray ends servers and schedulers in any order, and a server reports a scheduler that ends first as crashed.
        for replica in self.llm_server_manager.get_replicas():
            for server in replica.servers:
                ray.kill(server)

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self._step_began = time.monotonic()
        self._refilled = 0

    def on_train_begin(self) -> None:
        super().on_train_begin()
        if self._unlogged:
            self.logger.log(data=self._unlogged, step=self.global_steps - 1)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        batch = super().step(metrics, timing_raw)
        self._done = batch, metrics
        return batch

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        # verl asks for as many prompts as have failed, without an end where all of them do.
        self._refilled += num_prompts
        if self._refilled > MOST_REFILLS * self.config.data.train_batch_size:
            raise RefillError(
                f"step {self.global_steps} has replaced {self._refilled - num_prompts} failed or filtered prompts, "
                f"{MOST_REFILLS} times data.train_batch_size, and is still short of a batch"
            )
        return super()._add_prompts_to_generate(num_prompts)

    def _spend(self, rollouts: int, response_tokens: float, metrics: dict[str, Any]) -> None:
        """Count a step's rollouts, and those that were filtered out, which are taken to be as long as the others."""
        discarded = discarded_rollouts(metrics, self.config.actor_rollout_ref.rollout.n)
        self._cost = self._cost.spend(rollouts + discarded, response_tokens * (1 + discarded / max(rollouts, 1)))

    def _restore(self, parts: dict[str, Any]) -> None:
        """Take up what the checkpoint's file holds; ``parts`` is empty for a run that starts."""
        self._cost = self._resumed_cost(parts)
        self._restore_estimator(parts.get(ESTIMATOR))
        self._unlogged = parts[METRICS] if METRICS in parts and self._lost_a_step() else {}
        if ALLOCATOR in parts and ALLOCATOR not in self.state_parts:
            logger.warning("the checkpoint's prior, fusion and support buffer are left out: this run has none")

    def _lost_a_step(self) -> bool:
        """Whether the log lacks the step of this run that the checkpoint is of."""
        saved, folder = self._checkpoint_folder(resumed=True), self.config.trainer.default_local_dir
        own = Path(saved).absolute().parent == Path(folder).absolute()
        return own and not is_logged(self.config, self.global_steps)

    def _state_parts(self) -> dict[str, Any]:
        """What the checkpoint's file holds."""
        # The step that is being saved is not over: its time so far counts.
        seconds = time.monotonic() - self._step_began
        cost = self._cost.wait(seconds)
        parts: dict[str, Any] = {COST: asdict(cost), METRICS: {**self._metrics_so_far(seconds), **cost.metrics()}}
        if self._estimator is not None and self._estimator.stateful:
            name = self.config.algorithm.adv_estimator
            parts[ESTIMATOR] = {"name": name, "state": self._estimator.state_dict()}
        return parts

    def _save_checkpoint(self) -> None:
        folder = self._checkpoint_folder()
        with torn_folder_removed(folder):
            # Before verl's own, which ends by naming the checkpoint as the latest complete one.
            save_state(folder, self._state_parts())
            super()._save_checkpoint()

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self._estimator is None:
            return super()._compute_advantage(batch, metrics)
        turns = _turn_rows(batch) if isinstance(self._estimator, TurnEstimator) else None
        with using(self._estimator, turns):
            return super()._compute_advantage(batch, metrics)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        self._cost = self._cost.wait(timing_raw["step"])
        metrics.update(self._cost.metrics())

    def _metrics_so_far(self, seconds: float) -> dict[str, float]:
        """What verl would log of the step if it ended now; its validation, if it is due, is still to come."""
        batch, metrics = self._done
        metrics, timing = dict(metrics), {**self.timing_raw, "step": seconds}
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        counts = self._rollout_moe_lb_metrics_accumulator
        self._rollout_moe_lb_metrics_accumulator = deepcopy(counts)  # which a step is added to once
        try:
            super()._compute_metrics(batch, metrics, timing, self.global_steps, epoch)
        finally:
            self._rollout_moe_lb_metrics_accumulator = counts
        return numbers(metrics)

    def _resumed_cost(self, parts: dict[str, Any]) -> Cost:
        if self.global_steps > 0 and COST not in parts:
            logger.warning("the checkpoint has no totals: v05/total/* count from the resumed step")
        try:
            return Cost(**parts.get(COST, {}))
        except TypeError as error:
            raise ValueError(f"the totals in the checkpoint's {FILE} are damaged: {error}") from error

    def _restore_estimator(self, saved: dict[str, Any] | None) -> None:
        if self._estimator is None or not self._estimator.stateful or self.global_steps == 0:
            return
        name = self.config.algorithm.adv_estimator
        if saved is None or saved["name"] != name:
            logger.warning("the checkpoint has no state of %s: it starts anew at the resumed step", name)
            return
        try:
            self._estimator.load_state_dict(saved["state"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state of {name} in the checkpoint's {FILE} is damaged: {error}") from error

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
        # verl assigns the registered name here, and then compares it with "sync" to choose its replay buffer, batch
        # sizes and checkpoints. The name is left out on purpose: a trainer of this family is synchronous.
        del name


def _turn_rows(batch: KVBatchMeta) -> TurnRows:
    """The batch's sessions, and the turns that their agent loops have recorded."""
    sessions: dict[str, int] = {}
    session, output = np.full(len(batch.keys), NO_SESSION), np.zeros(len(batch.keys), dtype=int)
    for row, (key, padded) in enumerate(zip(batch.keys, padding(batch), strict=True)):
        if not padded:
            name, number = key.rsplit("_", 1)
            session[row], output[row] = sessions.setdefault(name, len(sessions)), int(number)
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    return TurnRows(session, output, [fields.get(TURNS) for fields in list(data["extra_fields"])])
