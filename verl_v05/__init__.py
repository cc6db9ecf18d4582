"""V0.5 for verl: a generalist value model as a prior for sparse RL rollouts.

The method's maths, as functions of numpy arrays or torch tensors; importing it needs neither verl nor torch.
"""

from verl_v05.advantage import Advantages, advantages, baseline_mse
from verl_v05.allocation import empirical_mse, extra_rollouts, marginal_return, pad_dispatch, rollout_target
from verl_v05.fusion import Fusion, fuse, noise_variance, squared_bias

__version__ = "0.1.0"

__all__ = [
    "Advantages",
    "Fusion",
    "advantages",
    "baseline_mse",
    "empirical_mse",
    "extra_rollouts",
    "fuse",
    "marginal_return",
    "noise_variance",
    "pad_dispatch",
    "rollout_target",
    "squared_bias",
]
