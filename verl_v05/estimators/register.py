"""The estimators of this package under verl's signature, and those of a user's own by class path.

The rewards are verl's, token rewards summed over a response. Like verl's own estimators other than GRPO these take
every row for a rollout: an agent loop must put out one row a session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import make_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from verl_v05.estimators.base import ESTIMATORS, Estimator, estimator, make_estimator, parameters_of
from verl_v05.registry import import_path

# verl calls estimators without telling for which run; the trainer puts its instance here around the call.
_of_this_run: ContextVar[Estimator] = ContextVar("v05_estimator")


@contextmanager
def using(instance: Estimator) -> Iterator[None]:
    """Make ``instance`` the one that verl's calls inside reach."""
    token = _of_this_run.set(instance)
    try:
        yield
    finally:
        _of_this_run.reset(token)


def estimator_of(name: str) -> Estimator | None:
    """A new instance of the estimator ``algorithm.adv_estimator=NAME``; None where it is one of verl's or V0.5's.

    A name with a dot is a class path, or the path of a function, of a user's own; it is registered with verl.

    Raises:
        ValueError: the path cannot be imported.
    """
    if "." in name and name not in ESTIMATORS:
        try:
            estimator(name)(import_path(name))
        except (ImportError, AttributeError) as error:
            raise ValueError(f"algorithm.adv_estimator={name!r} cannot be imported: {error}") from error
    if name not in ESTIMATORS:
        return None
    if name not in ADV_ESTIMATOR_REGISTRY:
        _register(name)
    return make_estimator(name)


def load_parameters(algorithm: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Keyword arguments of the estimator ``name``: its defaults under ``algorithm.NAME`` of verl's config.

    Of a class path the last part is the name of the group.

    Raises:
        ValueError: a key is unknown or of another type; the message names it and the known ones.
    """
    options, group = parameters_of(name), name.rpartition(".")[2]
    defaults = OmegaConf.structured(make_dataclass(group, [(p.name, p.annotation, p.default) for p in options]))
    given = (algorithm or {}).get(group) or {}
    where, known = f"algorithm.{group}", ", ".join(p.name for p in options)
    if not isinstance(given, Mapping | DictConfig):
        raise ValueError(f"{where}={given!r} is not allowed: set one of its keys, {where}.KEY=VALUE (keys: {known})")
    try:
        return dict(OmegaConf.merge(defaults, given))
    except OmegaConfBaseException as error:
        reason = str(error.msg).splitlines()[0]
        raise ValueError(f"{where}.{error.full_key}: {reason} (known keys: {known})") from error


def check_parameters(algorithm: DictConfig) -> None:
    """:func:`load_parameters` for the run's estimator, if it is one of ours, before anything is generated."""
    if estimator_of(algorithm.adv_estimator) is not None:
        load_parameters(algorithm, algorithm.adv_estimator)


def _instance(name: str) -> Estimator:
    """The run's, or a new one where none is needed.

    Raises:
        RuntimeError: the estimator keeps state from step to step, and the trainer does not carry it.
    """
    found = _of_this_run.get(None) or make_estimator(name)
    if found.stateful and _of_this_run.get(None) is None:
        raise RuntimeError(
            f"algorithm.adv_estimator={name} keeps state from step to step, which verl's own trainer does not carry: "
            "set trainer.v1.trainer_mode=sync_recorded"
        )
    return found


def _register(name: str) -> None:
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
            result = _instance(name).advantages(token_level_rewards.sum(dim=-1)[real], group, **parameters)
        except ValueError as error:
            raise ValueError(f"algorithm.{name}: {error}") from error
        per_row = token_level_rewards.new_zeros(len(real))
        per_row[real] = result.advantage.to(per_row)
        token_level = per_row.unsqueeze(-1) * response_mask
        return token_level, token_level

    compute.__name__ = f"compute_{name}_outcome_advantage"
    register_adv_est(name)(compute)


for _name in ESTIMATORS:
    _register(_name)
