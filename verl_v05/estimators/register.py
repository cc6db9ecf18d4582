"""The estimators of this package under verl's signature, and those of a user's own by class path.

The rewards are verl's, token rewards summed over a response. Like verl's own estimators other than GRPO these take
every row for a rollout, so an agent loop must put out one row a session; those of turns know which rows are a session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import make_dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from verl_v05.estimators.base import ESTIMATORS, Estimator, TurnEstimator, estimator, make_estimator, parameters_of
from verl_v05.registry import import_path
from verl_v05.rollout.turns import TURNS, TurnRecords, turns_of

# verl calls estimators without telling for which run; the trainer puts its instance here around the call.
_of_this_run: ContextVar[Estimator] = ContextVar("v05_estimator")
_turn_rows: ContextVar[TurnRows] = ContextVar("v05_turn_rows")


class TurnRows(NamedTuple):
    """Which session each of R rows is of, and what its agent loop has recorded of its turns."""

    session: np.ndarray  # (R,) negative for padding
    output: np.ndarray  # (R,) number of the row in its session
    turns: list[Any]  # (R,) the row's extra field ``turns``, None where there is none


@contextmanager
def using(instance: Estimator, turn_rows: TurnRows | None = None) -> Iterator[None]:
    """Make ``instance`` the one that verl's calls inside reach, and the rows those of the step."""
    token = _of_this_run.set(instance)
    rows = _turn_rows.set(turn_rows) if turn_rows is not None else None
    try:
        yield
    finally:
        _of_this_run.reset(token)
        if rows is not None:
            _turn_rows.reset(rows)


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
    if isinstance(make_estimator(name), TurnEstimator):
        _register_turns(name)
        return

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


def _register_turns(name: str) -> None:
    def compute(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: np.ndarray,
        config: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each turn's advantage on its tokens, as advantages and returns, both (R, T), 0 elsewhere; arguments as of
        the other estimators."""
        mask = response_mask.float().cpu().numpy()
        outcome = token_level_rewards.sum(dim=-1).double().cpu().numpy()
        records = _records(name, mask, outcome, np.asarray(index))
        instance = _instance(name)
        assert isinstance(instance, TurnEstimator)
        try:
            found = instance.turn_advantages(records, **load_parameters(config, name))
        except ValueError as error:
            raise ValueError(f"algorithm.{name}: {error}") from error
        token_level = torch.as_tensor(records.turns.over_tokens(found, mask.shape)).to(token_level_rewards)
        return token_level, token_level

    compute.__name__ = f"compute_{name}_turn_advantage"
    register_adv_est(name)(compute)


def _records(name: str, mask: np.ndarray, outcome: np.ndarray, uid: np.ndarray) -> TurnRecords:
    """What the rows' turns are.

    Raises:
        RuntimeError: there is no trainer that says so, or a row's turns are not recorded.
    """
    rows = _turn_rows.get(None)
    if rows is None:
        raise RuntimeError(f"algorithm.adv_estimator={name} credits turns: set trainer.v1.trainer_mode=sync_recorded")
    turns = turns_of(mask, rows.session, rows.output)
    found = np.bincount(turns.row, minlength=len(rows.turns))
    recorded = []
    for row in dict.fromkeys(turns.row.tolist()):  # in the order of the turns
        of_row = rows.turns[row]
        if of_row is None or len(of_row) != found[row]:
            count = "none" if of_row is None else len(of_row)
            raise RuntimeError(
                f"algorithm.adv_estimator={name}: a row has {found[row]} turns, and its agent loop has recorded "
                f"{count} in the extra field {TURNS!r} (verl_v05/rollout/turns.py)"
            )
        recorded.extend(of_row)
    own = np.flatnonzero(rows.session >= 0)
    row_of_session = np.zeros(rows.session.max(initial=-1) + 1, dtype=int)
    row_of_session[rows.session[own]] = own  # any of them: verl gives all rows the session's reward
    state, _ = pd.factorize(np.array([str(turn["state"]) for turn in recorded], dtype=object))
    group, _ = pd.factorize(uid[row_of_session])
    reward = np.array([float(turn["reward"]) for turn in recorded])
    return TurnRecords(turns, state, reward, outcome[row_of_session], group)


for _name in ESTIMATORS:
    _register(_name)
