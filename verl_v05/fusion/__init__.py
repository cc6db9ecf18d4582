"""Fusion of a prior with a few rollouts into the advantage baseline."""

from verl_v05.fusion.shrinkage import Array, Fusion, as_float64, check, fuse, noise_variance, squared_bias

__all__ = ["Array", "Fusion", "as_float64", "check", "fuse", "noise_variance", "squared_bias"]
