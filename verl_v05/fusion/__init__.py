"""Fusions of a prior with a few rollouts into the advantage baseline: one file each.

To add one, write a :class:`FusionMethod` and name its class path in ``algorithm.v05.fusion`` (docs/extending.md).
"""

from verl_v05.fusion.base import Array, Belief, Fusion, FusionMethod, as_float64, check
from verl_v05.fusion.beta import fuse_beta, posterior_variance
from verl_v05.fusion.shrinkage import ShrinkageFusion, fuse, noise_variance, squared_bias
from verl_v05.registry import Registry

FUSIONS = Registry(
    key="algorithm.v05.fusion",
    base="verl_v05.fusion.FusionMethod",
    names={
        "shrinkage": "verl_v05.fusion.shrinkage.ShrinkageFusion",
        # Not imported here: it needs scipy's optimiser, and every process of a run imports this package.
        "empirical_bayes": "verl_v05.fusion.empirical_bayes.EmpiricalBayesFusion",
    },
)

__all__ = [
    "FUSIONS",
    "Array",
    "Belief",
    "Fusion",
    "FusionMethod",
    "ShrinkageFusion",
    "as_float64",
    "check",
    "fuse",
    "fuse_beta",
    "noise_variance",
    "posterior_variance",
    "squared_bias",
]
