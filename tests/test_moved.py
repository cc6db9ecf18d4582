"""Import paths of version 0.1 lead to the modules that hold their names now."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module

import pytest
import verl.trainer.ppo.v1  # noqa: F401  first, as in a run: it brings our trainers with it

from verl_v05.compat.moved import MOVED, install

PUBLIC = (
    "verl_v05.fuse",
    "verl_v05.advantages",
    "verl_v05.prior.Prior",
    "verl_v05.rollout.manager.V05AgentLoopManager",
    "verl_v05.grading.reward.compute_score",
    "verl_v05.launch.CheckLaunch",
    "verl_v05.settings.SettingsError",
    "verl_v05.trainer.V05Trainer",
    "verl_v05.platform.replay_buffer.FastReplayBuffer",
)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module_and_says_where_it_went(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        assert import_module(old) is import_module(MOVED[old])


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_stay(path: str) -> None:
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert getattr(import_module(module), name)


def test_an_unknown_module_of_the_package_is_not_found() -> None:
    install()
    assert sum(type(finder).__name__ == "MovedFinder" for finder in sys.meta_path) == 1
    with pytest.raises(ModuleNotFoundError):
        import_module("verl_v05.no_such_module")


def test_the_maths_imports_neither_verl_nor_torch_nor_the_optimiser() -> None:
    heavy = ("torch", "verl", "ray", "omegaconf", "scipy.optimize")
    code = f"import sys, verl_v05, verl_v05.estimators; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
