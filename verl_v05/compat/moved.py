"""Import paths of version 0.1 that moved: they work until 0.3, with a DeprecationWarning that names the new path."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ESTIMATORS = ("bnpo", "groups", "ha_dw", "james_stein", "mc_grpo", "qae", "register")

MOVED = {
    "verl_v05.contract": "verl_v05.compat.contract",
    "verl_v05.cost": "verl_v05.trainer.cost",
    "verl_v05.empirical_bayes": "verl_v05.fusion.beta",
    "verl_v05.estimator": "verl_v05.estimators.v05",
    "verl_v05.identity": "verl_v05.compat.fingerprint",
    "verl_v05.literature": "verl_v05.estimators",
    **{f"verl_v05.literature.{name}": f"verl_v05.estimators.{name}" for name in _ESTIMATORS},
    "verl_v05.metrics": "verl_v05.trainer.metrics",
    "verl_v05.prompt": "verl_v05.prior.query",
    "verl_v05.recorder": "verl_v05.trainer.recorder",
    "verl_v05.rows": "verl_v05.rollout.rows",
    "verl_v05.run_check": "verl_v05.launch",
    "verl_v05.state": "verl_v05.trainer.checkpoint",
    "verl_v05.sync_trainer": "verl_v05.trainer.base",
}


class _Alias(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MOVED[module.__name__]
        warnings.warn(f"{old} is now {new}; the old path goes in 0.3", DeprecationWarning, stacklevel=2)
        # The import system hands out what stands here when the loader is done.
        sys.modules[old] = import_module(new)


class MovedFinder(MetaPathFinder):
    """Finds the old names; first in line, or an old submodule of a moved package would be loaded a second time."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Alias()) if fullname in MOVED else None


def install() -> None:
    """Idempotent."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
