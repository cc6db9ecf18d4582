"""verl's replay buffer for steps of about a second: it polls for finished prompts every 50 ms, not every 2 s.

verl passes ``algorithm.filter_groups`` only to its own sampler; a custom one without it would silently turn DAPO into
GRPO. So ``config/platform/cpu.yaml`` passes it in ``sampler_kwargs``.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_INTERVAL_S = 0.05


class FastReplayBuffer(ReplayBuffer):
    """Set as ``trainer.v1.sampler.custom_sampler``.

    Args:
        sampler_kwargs: ``filter_groups`` (verl's config group), ``train_batch_size`` in prompts,
            ``sync_refill_failed_groups``; as in ``config/platform/cpu.yaml``.
        kwargs: what verl passes to a custom sampler.
    """

    def __init__(self, sampler_kwargs: DictConfig, **kwargs: Any):
        groups = sampler_kwargs.filter_groups
        super().__init__(
            poll_interval=POLL_INTERVAL_S,
            sampler_kwargs=sampler_kwargs,
            filter_groups_metric=groups.metric if groups.enable else None,
            max_inflight_gen_batches=groups.max_inflight_gen_batches,
            train_batch_size=sampler_kwargs.train_batch_size,
            gen_batch_size=1,  # what verl's trainer sets wherever a sampler asks for more prompts
            sync_refill_failed_groups=sampler_kwargs.sync_refill_failed_groups,
            **kwargs,
        )
