"""Advantage estimators of V0.5's related work that verl does not have, as functions of numpy arrays or torch tensors.

Each module but :mod:`verl_v05.estimators.register`, which hands them to verl, needs neither verl nor torch.
"""

from verl_v05.estimators import bnpo, ha_dw, james_stein, mc_grpo, qae
from verl_v05.estimators.groups import GroupAdvantage

__all__ = ["GroupAdvantage", "bnpo", "ha_dw", "james_stein", "mc_grpo", "qae"]
