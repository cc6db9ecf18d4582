"""V0.5 for verl: a generalist value model as a prior for sparse RL rollouts.

The method's maths, as functions of numpy arrays or torch tensors; importing it needs neither verl nor torch. The
calibration of the empirical-Bayes fusion is in :mod:`verl_v05.calibration`: every process of a run imports this
package, and only one of them needs scipy's optimiser.
"""

from verl_v05.advantage import Advantages, advantages, baseline_mse, leave_one_out
from verl_v05.allocation import (
    empirical_mse,
    extra_rollouts,
    hand_out,
    marginal_return,
    posterior_gain,
    posterior_target,
    rollout_target,
)
from verl_v05.fusion import Fusion, fuse, noise_variance, squared_bias
from verl_v05.fusion.empirical_bayes import fuse_beta, posterior_variance

__version__ = "0.2.0"

__all__ = [
    "Advantages",
    "Fusion",
    "advantages",
    "baseline_mse",
    "empirical_mse",
    "extra_rollouts",
    "fuse",
    "fuse_beta",
    "hand_out",
    "leave_one_out",
    "marginal_return",
    "noise_variance",
    "posterior_gain",
    "posterior_target",
    "posterior_variance",
    "rollout_target",
    "squared_bias",
]
