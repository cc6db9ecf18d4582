"""Advantage estimators for ``algorithm.adv_estimator``: V0.5's, and those of its related work that verl does not have.

One file each; importing this package registers every file of it but needs neither verl nor torch.
:mod:`verl_v05.estimators.register` hands them to verl, and :mod:`verl_v05.estimators.v05` is V0.5's.
"""

from importlib import import_module
from pkgutil import iter_modules

from verl_v05.estimators.base import ESTIMATORS, Estimator, GroupAdvantage, estimator, make_estimator

NEEDS_VERL = ("register", "v05")

# Every other file is imported, so that adding an estimator takes no other change.
for _module in iter_modules(__path__):
    if _module.name not in NEEDS_VERL:
        import_module(f"{__name__}.{_module.name}")

__all__ = ["ESTIMATORS", "Estimator", "GroupAdvantage", "estimator", "make_estimator"]
