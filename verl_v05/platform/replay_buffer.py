"""verl's replay buffer for steps of a second: it looks for finished prompts every 50 ms, not every 2 s."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_INTERVAL_S = 0.05


class FastReplayBuffer(ReplayBuffer):
    """Set as ``trainer.v1.sampler.custom_sampler``."""

    def __init__(self, **kwargs: Any):
        super().__init__(poll_interval=POLL_INTERVAL_S, **kwargs)
