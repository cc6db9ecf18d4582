"""The config of a launch, composed as ``python -m verl.trainer.main_ppo`` composes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files

from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import DictConfig

from verl_v05 import plugin

ENTRY = "verl.trainer"  # a relative --config-path starts where main_ppo.py lies


def compose_launch(config_path: str, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a config from ``pkg://package``, a folder, or a folder relative to main_ppo.py.

    Raises:
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: as main_ppo would, with hydra's message.
    """
    plugin.register()
    with _search(config_path):
        return compose(config_name, overrides=list(overrides))


def _search(config_path: str) -> initialize_config_module | initialize_config_dir:
    if config_path.startswith("pkg://"):
        return initialize_config_module(config_path.removeprefix("pkg://"), version_base=None)
    folder = config_path.removeprefix("file://")
    if not os.path.isabs(folder):
        folder = os.path.join(str(files(ENTRY)), folder)
    return initialize_config_dir(folder, version_base=None)
