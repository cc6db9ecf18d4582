"""verl's own estimators, called as they are, in the form of :mod:`benchmarks.estimators.advantage_gradients`.

Importing verl takes many seconds: nothing else of the bench does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from benchmarks.estimators.advantage_gradients import Knowledge, Method


def _of_verl(name: str, rewards: np.ndarray, group: np.ndarray, **inputs: Any) -> np.ndarray:
    """Advantages of responses of one token, (R,)."""
    scores = torch.as_tensor(rewards)[:, None]
    common = {"token_level_rewards": scores, "response_mask": torch.ones_like(scores)}
    return get_adv_estimator_fn(name)(**common, **inputs)[0][:, 0].numpy()


def _grouped(name: str, batch_wide: bool = False) -> Method:
    return Method(lambda r, g, known: _of_verl(name, r, g, index=g), batch_wide)


def _remax(rewards: np.ndarray, group: np.ndarray, known: Knowledge) -> np.ndarray:
    return _of_verl("remax", rewards, group, reward_baselines=torch.as_tensor(known.greedy[group]))


def _gae(rewards: np.ndarray, group: np.ndarray, known: Knowledge) -> np.ndarray:
    """With the prior for a critic."""
    return _of_verl("gae", rewards, group, values=torch.as_tensor(known.prior[group])[:, None], gamma=1.0, lam=1.0)


VERL_METHODS: dict[str, Method] = {
    "verl grpo": _grouped("grpo"),
    "verl rloo": _grouped("rloo"),
    "verl opo": _grouped("opo"),
    "verl remax": Method(_remax),
    "verl reinforce_plus_plus_baseline": _grouped("reinforce_plus_plus_baseline", batch_wide=True),
    "verl gae, the prior as critic": Method(_gae, batch_wide=True, uses_prior=True),
}
