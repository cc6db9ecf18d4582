"""Hydra callback that checks a run on the launching process, before Ray starts anything.

verl's signatures are checked where its trainer and workers are imported anyway: here that would cost seconds.
"""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from verl_v05.compat.contract import ContractError, check_version
from verl_v05.run_check import check_run
from verl_v05.settings import SettingsError


class CheckLaunch(Callback):
    """Stops the launch with one readable message.

    hydra turns exceptions of callbacks into warnings, hence SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            check_version()
            check_run(config)
        except (ContractError, SettingsError) as error:
            raise SystemExit(f"verl-v05: {error}") from None
