"""V0.5 for verl: a generalist value model as a prior for sparse RL rollouts.

What is imported here is the method's maths, as functions of numpy arrays or torch tensors; it needs neither verl nor
torch. The calibration of the empirical-Bayes fusion is not among it (:mod:`verl_v05.calibration`): every process of a
run imports this package, and only the allocator and the trainer need scipy's optimiser.

fusion/, advantage, allocation, calibration   the paper's equations and the empirical-Bayes fusion: pure
method, settings, launch, plugin              the choices of a run, their config and its checks
prior/ rollout/ estimators/ trainer/          what runs in verl's processes
compat/                                       what is relied on in verl, per version
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
from verl_v05.compat.moved import install
from verl_v05.fusion import Belief, Fusion, fuse, fuse_beta, noise_variance, posterior_variance, squared_bias

__version__ = "0.2.0"

install()

__all__ = [
    "Advantages",
    "Belief",
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
