"""Entry point of the group ``verl.plugins``: importing it makes verl aware of V0.5.

verl imports plugins at the end of its own import, in every process, and hides what they raise. So this module
does little (it must not slow down processes that never train) and nothing that may fail: the CPU platform is
registered at once; trainer and estimator follow when verl's V1 trainer is imported, the related work's estimators
when verl's are, the CPU engines when its engines are, outside verl's reach, where an error is an error.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_v05.compat.contract import check_version
from verl_v05.compat.packages import FLASH_ATTENTION, is_installed

# What registers itself with a package of verl's, once that is imported.
FOLLOWERS = {
    "verl.trainer.ppo.v1": ("verl_v05.trainer.v05", "verl_v05.trainer.recorded"),
    "verl.trainer.ppo.core_algos": ("verl_v05.estimators.register",),
    "verl.workers.engine": ("verl_v05.platform.cpu_engine",),
}


class _ThenImport(Loader):
    """Loader that imports ``followers`` after the module it loads."""

    def __init__(self, loader: Loader, followers: Sequence[str]):
        self._loader = loader
        self._followers = followers

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        try:
            for follower in self._followers:
                import_module(follower)
        except ImportError:
            check_version()  # another verl is the likelier reason, and its message names the version
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class RegisterWithVerl(MetaPathFinder):
    """Imports our modules of ``FOLLOWERS`` after verl's."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in FOLLOWERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:  # verl is not there, or not as a package of files
            return spec
        spec.loader = _ThenImport(spec.loader, FOLLOWERS[fullname])
        return spec


def register() -> None:
    """Idempotent."""
    import_module("verl_v05.platform.cpu")
    _restore_quit()
    OmegaConf.register_new_resolver("verl_v05_plugin", _answer, replace=True)
    if not any(isinstance(finder, RegisterWithVerl) for finder in sys.meta_path):
        sys.meta_path.insert(0, RegisterWithVerl())


def _restore_quit() -> None:
    """sglang's processes end their server by SIGQUIT, which a shell lets what it starts in the background ignore.

    Every process of a run inherits that, and an engine without its scheduler would then wait for ever.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def platform() -> str:
    """Name of the config in ``platform/`` for this machine: "cpu" where verl finds no accelerator."""
    from verl.plugin.platform import get_platform

    return "cpu" if get_platform().device_name == "cpu" else "gpu"


def is_for_this_machine(config: DictConfig) -> bool:
    """Whether this machine is of the kind that the launch is for: with an accelerator, if it is for one."""
    return config.trainer.device == "cpu" or platform() == "gpu"


def attention() -> str:
    """``attn_implementation`` of a policy on GPUs, by what is installed."""
    return "flash_attention_2" if is_installed(FLASH_ATTENTION) else "sdpa"


def fused_log_probs() -> bool:
    """Whether log-probabilities take verl's fused kernel, since flash-attn's cross entropy is not there."""
    return not is_installed(FLASH_ATTENTION)


def _answer(question: str) -> str | bool:
    """``${verl_v05_plugin:platform}`` in a config; where the plugin is not loaded, hydra's error names it."""
    answers: dict[str, Callable[[], str | bool]] = {
        "platform": platform,
        "attention": attention,
        "fused_log_probs": fused_log_probs,
    }
    return answers[question]()


try:
    register()
except Exception as error:
    # verl drops it; the run would end later with an error that does not name the reason.
    print(f"verl-v05: the plugin cannot be loaded: {error!r}", file=sys.stderr, flush=True)
    raise
