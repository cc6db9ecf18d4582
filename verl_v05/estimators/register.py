"""``algorithm.adv_estimator=mc_grpo``, ``qae``, ``bnpo``, ``james_stein`` and ``ha_dw``: verl's estimator signature.

Parameters are keys of ``algorithm.NAME``, which verl's config lets through: ``+algorithm.qae.k=0.6``. The rewards are
verl's, token rewards summed over a response. Like verl's own estimators other than GRPO these take every row for a
rollout: an agent loop must put out one row a session.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo.core_algos import register_adv_est

from verl_v05.estimators import bnpo, ha_dw, james_stein, mc_grpo, qae
from verl_v05.estimators.groups import GroupAdvantage
from verl_v05.fusion import Array
from verl_v05.trainer.checkpoint import write_json

logger = logging.getLogger(__name__)

HA_DW = "ha_dw"
FILE = "v05_ha_dw.json"
ESTIMATORS = {
    "mc_grpo": mc_grpo.advantages,
    "qae": qae.advantages,
    "bnpo": bnpo.advantages,
    "james_stein": james_stein.advantages,
    HA_DW: ha_dw.step,
}


class HaDw:
    """HA-DW from one step of this process's run to the next.

    Under ``trainer_mode=sync_recorded`` checkpoints carry the anchor; under verl's own modes a resumed run starts
    from an empty one, as a new run does.
    """

    def __init__(self) -> None:
        self.anchor = ha_dw.Anchor()

    def advantages(self, rewards: Array, group: Array, **parameters: Any) -> GroupAdvantage:
        """:func:`verl_v05.estimators.ha_dw.step` from the anchor, which moves on."""
        self.anchor, result = ha_dw.step(self.anchor, rewards, group, **parameters)
        return result

    def save(self, folder: str | os.PathLike) -> None:
        """Write the anchor beside a checkpoint, whole or not at all."""
        write_json(Path(folder) / FILE, asdict(self.anchor))

    def restore(self, folder: str | os.PathLike | None) -> None:
        """Take the anchor of a checkpoint; an empty one if there is none, with a warning if the file is missing.

        Raises:
            ValueError: the file is damaged.
        """
        self.anchor = ha_dw.Anchor()
        if folder is None:
            return
        path = Path(folder) / FILE
        if not path.exists():
            logger.warning("%s is missing: HA-DW's anchor starts anew at the resumed step", path)
            return
        try:
            self.anchor = ha_dw.Anchor(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to start the anchor anew") from error


HA_DW_RUN = HaDw()


def load_parameters(algorithm: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Keyword arguments of the estimator ``name``: its defaults under ``algorithm.NAME`` of verl's config.

    Raises:
        ValueError: a key is unknown or of another type; the message names it and the known ones.
    """
    hints = get_type_hints(ESTIMATORS[name])
    options = [p for p in inspect.signature(ESTIMATORS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    defaults = OmegaConf.structured(make_dataclass(name, [(p.name, hints[p.name], p.default) for p in options]))
    given = (algorithm or {}).get(name) or {}
    where, known = f"algorithm.{name}", ", ".join(p.name for p in options)
    if not isinstance(given, Mapping | DictConfig):
        raise ValueError(f"{where}={given!r} is not allowed: set one of its keys, {where}.KEY=VALUE (keys: {known})")
    try:
        return dict(OmegaConf.merge(defaults, given))
    except OmegaConfBaseException as error:
        reason = str(error.msg).splitlines()[0]
        raise ValueError(f"{where}.{error.full_key}: {reason} (known keys: {known})") from error


def check_parameters(algorithm: DictConfig) -> None:
    """:func:`load_parameters` for the run's estimator, if it is one of ours, before anything is generated."""
    if algorithm.adv_estimator in ESTIMATORS:
        load_parameters(algorithm, algorithm.adv_estimator)


def _register(name: str, advantages: Callable[..., GroupAdvantage]) -> None:
    def compute(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: np.ndarray,
        config: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns, both (R, T), 0 outside the mask; rows without a token in it, verl's padding, and
        their rewards count for nothing. Arguments: (R, T), (R, T), (R,) uid of each row, ``config.algorithm``."""
        real = response_mask.bool().any(dim=-1)
        group, _uids = pd.factorize(np.asarray(index)[real.cpu().numpy()])
        parameters = load_parameters(config, name)
        try:
            result = advantages(token_level_rewards.sum(dim=-1)[real], group, **parameters)
        except ValueError as error:
            raise ValueError(f"algorithm.{name}: {error}") from error
        per_row = token_level_rewards.new_zeros(len(real))
        per_row[real] = result.advantage.to(per_row)
        token_level = per_row.unsqueeze(-1) * response_mask
        return token_level, token_level

    compute.__name__ = f"compute_{name}_outcome_advantage"
    register_adv_est(name)(compute)


for _name, _advantages in (ESTIMATORS | {HA_DW: HA_DW_RUN.advantages}).items():
    _register(_name, _advantages)
