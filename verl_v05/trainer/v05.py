"""``trainer.v1.trainer_mode=v05``: verl's synchronous V1 trainer for groups of different size.

What it changes in ``PPOTrainerSync``, and nothing else:
- advantage: the step's beliefs and outcome rewards are put within the estimator's reach;
- mini-batches: their number is fixed (train_batch_size / ppo_mini_batch_size), their rows are not;
- checkpoint: support buffer, prior and fusion are saved before verl marks the checkpoint as complete,
  and restored before the first step.

All overrides of private methods of verl's trainer are in this folder, and pinned in :mod:`verl_v05.compat`.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import DictConfig
from ray.util.placement_group import PlacementGroup
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict

from verl_v05.estimators.v05 import step_inputs
from verl_v05.launch import check_run
from verl_v05.method import Method
from verl_v05.prior.thread import PriorError
from verl_v05.rollout.outcome import shaping_reward
from verl_v05.rollout.rows import NO_SESSION, StepRows, match_rows, padding, response_tokens
from verl_v05.rollout.step_inputs import StepInputs
from verl_v05.run_folder import STATES
from verl_v05.trainer.base import SyncTrainer
from verl_v05.trainer.checkpoint import ALLOCATOR, allocator_state, naming_state_file
from verl_v05.trainer.metrics import step_metrics
from verl_v05.trainer.recorder import write_outcomes, write_step
from verl_v05.trainer.watch import RunLostError, answered

logger = logging.getLogger(__name__)

NAME = "v05"
ANSWER_S = 10.0  # for what is asked when the run is over anyway


@register_trainer(NAME)
class V05Trainer(SyncTrainer):
    """Synchronous trainer whose batches have a variable number of rows."""

    state_parts = (*SyncTrainer.state_parts, ALLOCATOR)

    def __init__(self, config: DictConfig):
        self.settings = check_run(config)
        # The allocator's instance learns; this one only fuses, which is a function of the beliefs it is given.
        self._fusion = Method.from_settings(self.settings).fusion
        super().__init__(config)

    def fit(self, agent_loop_manager: AgentLoopManager) -> None:
        """Start the allocator's prior, train, and end it."""
        self._allocator: Any = agent_loop_manager.allocator  # type: ignore[attr-defined]  # check_run: it is ours
        try:
            super().fit(agent_loop_manager)
        except RunLostError:
            raise
        except Exception as error:
            # verl's own words for a step whose sessions all failed do not say why they did.
            if failures := self._session_failures():
                raise RunLostError(
                    f"step {self.global_steps} ended with an error after failed sessions, the first:\n  "
                    + "\n  ".join(failures)
                ) from error
            raise
        try:
            ray.get(self._allocator.close.remote(), timeout=self.settings.prior.timeout_s + ANSWER_S)
        except Exception:  # the run is over, and whole
            logger.exception("the allocator did not end what the prior has started: it ends with Ray")

    def _train(self, agent_loop_manager: AgentLoopManager) -> None:
        self._ask("start", self._policy_placement_groups())
        super()._train(agent_loop_manager)

    def _ask(self, question: str, *args: Any) -> Any:
        """What a method of the allocator returns."""
        task = getattr(self._allocator, question).remote(*args)
        return answered(task, f"the allocator, asked for {question},", self.settings.watch.update_s)

    def _session_failures(self) -> list[str]:
        try:
            return ray.get(self._allocator.failures.remote(), timeout=ANSWER_S)
        except Exception:  # it is lost too
            return []

    def _restore(self, parts: dict[str, Any]) -> None:
        super()._restore(parts)
        if self.global_steps > 0:
            folder = self._checkpoint_folder(resumed=True)
            state = allocator_state(folder, parts, self.settings.allow_missing_state)
            if state is not None:
                with naming_state_file(folder, PriorError):
                    self._ask("load_state_dict", state)

    def _policy_placement_groups(self) -> list[PlacementGroup]:
        """Of the policy's ranks, one a node."""
        manager = self.resource_pool_manager
        role = next(r for r in (Role.Actor, Role.ActorRolloutRef, Role.ActorRollout) if r in manager.mapping)
        return manager.get_resource_pool(role).get_placement_groups()

    def _state_parts(self) -> dict[str, Any]:
        return {**super()._state_parts(), ALLOCATOR: self._ask("state_dict")}

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        record = self._ask("close_step", self.global_steps)
        rows = match_rows(batch.keys, padding(batch), record)
        shaping = self._shaping(batch, rows)
        loss = self.config.actor_rollout_ref.actor.loss_agg_mode
        inputs = StepInputs(rows, shaping, self.settings, self._fusion, record.turn_weight, loss)
        with step_inputs(inputs):
            batch = super()._compute_advantage(batch, metrics)
        tokens = response_tokens(batch)
        self._spend(int(record.column("spent").sum()), tokens, metrics)
        metrics.update(step_metrics(record, inputs, tokens))
        write_outcomes(self.config, self.global_steps, record.outcomes())
        if record.state_outcomes:
            write_outcomes(self.config, self.global_steps, record.state_outcomes, STATES)
        if self.settings.record_dir:
            write_step(self.settings.record_dir, record, inputs, _used_advantages(batch, inputs))
        return batch

    def _shaping(self, batch: KVBatchMeta, rows: StepRows) -> np.ndarray | float:
        """Shaping term of each session, (S,); 0 if none is configured."""
        if self.settings.outcome.shaping_key is None:
            return 0.0
        keys = [batch.keys[row] for row in rows.session_row]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        infos = [fields["reward_extra_info"] for fields in list(data["extra_fields"])]
        return np.array([shaping_reward(info, self.settings.outcome) for info in infos])

    @property
    def _num_mini_batches(self) -> int:
        return self.config.data.train_batch_size // self.config.actor_rollout_ref.actor.ppo_mini_batch_size

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        return dp_size * self._num_mini_batches

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's, but for the size of a mini-batch: the batch's rows over a fixed number of mini-batches."""
        actor = self.config.actor_rollout_ref.actor
        rows = sum(not padded for padded in padding(batch))
        batch.extra_info.pop("mini_batch_size", None)
        batch.extra_info.update(
            {
                "calculate_entropy": actor.calculate_entropy or actor.entropy_coeff != 0.0,
                "distillation_use_topk": False,
                "distillation_only": False,
                # Real rows only: padding must not dilute the seq-mean losses, which divide by this.
                "global_batch_size": rows / self._num_mini_batches,
                "num_mini_batch": self._num_mini_batches,
                "epochs": actor.ppo_epochs,
                "seed": actor.data_loader_seed,
                "dataloader_kwargs": {"shuffle": actor.shuffle},
                "temperature": self.config.actor_rollout_ref.rollout.temperature,
            }
        )
        output = rename_dict(self.actor_rollout_wg.update_actor(batch)["metrics"], "actor/")
        output["perf/mfu/actor"] = output.pop("actor/mfu")
        metrics.update(reduce_metrics(output))
        return batch


def _used_advantages(batch: KVBatchMeta, inputs: StepInputs) -> np.ndarray:
    """Mean advantage over each session's tokens, (S,), read back from where the actor reads it."""
    fields = ["advantages", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    mask = data["response_mask"].to_padded_tensor(0).numpy()
    used = data["advantages"].to_padded_tensor(0).double().sum(dim=1).numpy() / inputs.row_weight(mask)
    rows, sessions = inputs.rows, len(inputs.rows.rewards)
    own = rows.row_session != NO_SESSION
    total, tokens = (
        np.bincount(rows.row_session[own], weights=per_row[own], minlength=sessions)
        for per_row in (used, mask.sum(axis=1))
    )
    return total / np.maximum(tokens, 1)
