"""Typed, validated form of the hydra group ``algorithm.v05``. Defaults are the paper's.

Values are checked here one by one; fusion, allocation, schedule and prior provider are resolved, and checked against
each other, by :class:`verl_v05.method.Method`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from value_model.checks import require
from verl_v05.advantage import BASELINES, GROUP_WEIGHTINGS
from verl_v05.registry import SettingsError

__all__ = ["SettingsError", "V05Settings", "load_settings", "load_watch_settings"]

KEY = "algorithm.v05"
PRIOR, STATE_PRIOR = f"{KEY}.prior", f"{KEY}.state_prior"
OUTCOME, TURN = CREDITS = ("outcome", "turn")
TO_TARGET = "to_target"
SECONDS = "a positive number of seconds"


@dataclass
class OutcomeSettings:
    """Where the outcome reward comes from, and how it maps to [-1, 1]."""

    key: str = "acc"  # entry of the reward function's extra info ("acc" is set by verl for plain scores too)
    low: float = 0.0  # value mapped to -1
    high: float = 1.0  # value mapped to +1
    shaping_key: str | None = None  # entry added to the reward in the advantage only, never to the baseline


@dataclass
class SupportSettings:
    """Support buffer: the newest outcomes, sampled as the value model's context (section 4.1.3, step 1)."""

    capacity: int = 512
    sample: int = 256
    seed: int = 0


@dataclass
class ProviderSettings:
    """Who predicts success probabilities; of the states inside sessions by default their own history alone."""

    provider: str = "none"  # "history", "v0", "http", "none" or the path of a verl_v05.prior.Prior subclass
    kwargs: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the provider
    timeout_s: float = 600.0  # after this long the batch's priors count as missing


@dataclass
class PriorSettings(ProviderSettings):
    """Who predicts success probabilities of prompts."""

    provider: str = "history"
    # Or after this share of what the step before took, if that is less, and more than ten seconds.
    timeout_share: float = 0.5
    # Entry of a row's extra_info that a value model reads: the problem alone. Null, or without it, the user's turns.
    text_key: str | None = "problem"


@dataclass
class CalibrationSettings:
    """How fast ``fusion=empirical_bayes`` forgets."""

    forgetting: float = 0.9  # factor on what earlier steps knew of the parameters, at each step
    # Factor on a prompt's own earlier outcomes, each time a step looks at it, with or without rollouts.
    history_forgetting: float = 0.75


@dataclass
class SparseSettings:
    """``schedule=sparse``: ``max_rollouts_per_step`` divided among the step's prompts, from the first rollout on."""

    explore: float = 0.2  # share of the rollouts that is divided equally; every prompt and source expects that much
    reserve: float = 0.0  # share held back until the first outcomes are in
    importance_weights: bool = False  # divide by what a prompt expected, which makes all prompts count the same again
    seed: int = 0


@dataclass
class WatchSettings:
    """How long the run waits for what may never come; after that it ends, by the name of what it waited for."""

    answer_s: float = 300.0  # an actor without a sign of life, or an engine's scheduler: the run ends
    session_s: float = 3600.0  # one rollout with its reward: the session has failed
    reward_s: float = 600.0  # one call of the reward function, without the wait for its turn: the session has failed
    # An actor whose methods block, a rank of the policy above all, may be silent for as long as an update, or a
    # checkpoint's save, takes: the run ends. Also for one call of the allocator by the trainer.
    update_s: float = 3600.0

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            _require(f"watch.{name}", seconds, 0 < seconds < math.inf, SECONDS)


@dataclass
class V05Settings:
    """The whole group. ``k`` counts rollouts of one prompt in one step."""

    # These three, and prior.provider, take a name or the class path of your own (docs/extending.md).
    fusion: str = "shrinkage"  # shrinkage: Eq. 9; empirical_bayes: a Beta prior fitted on line
    baseline: str = "plain"  # or leave_one_out: each rollout against the baseline of the others
    allocation: str = "osla"  # osla: Eq. 12; posterior: expected drop of the posterior variance a rollout
    schedule: str = "rounds"  # rounds, streaming, fixed, sparse
    k_init: int = 4  # 0 with schedule=sparse, which decides on the first rollouts too
    k_max: int = 16
    cost: float = 0.0039  # marginal cost of a rollout, in squared error of the baseline (Eq. 12)
    step: Any = 2  # rollouts asked for at a time, or "to_target"
    halt_share: float = 0.25  # rounds: stop when fewer than this share of the prompts ask
    pad_multiple: int = 32  # rounds: a dispatch is padded up to a multiple of this
    # Cap on all rollouts of a step: streaming, and rounds with allocation=posterior, which divide it by gain. With
    # sparse it is their exact number.
    max_rollouts_per_step: int | None = None
    sigma_floor: float = 0.1  # of the normaliser; 1 switches it off
    # outcome: all tokens of a session have its advantage; turn: each turn's by the values of the states around it.
    credit: str = "outcome"
    group_weighting: str = "per_prompt"
    outcome: OutcomeSettings = field(default_factory=OutcomeSettings)
    support: SupportSettings = field(default_factory=SupportSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    state_prior: ProviderSettings = field(default_factory=ProviderSettings)  # of the states, with credit=turn
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    sparse: SparseSettings = field(default_factory=SparseSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    allow_missing_state: bool = False  # resume a checkpoint that was written without V0.5
    record_dir: str | None = None  # one parquet a step: every rollout's reward, prior and advantage
    custom: dict[str, Any] = field(default_factory=dict)  # read by classes of your own

    def __post_init__(self) -> None:
        choices = (("baseline", BASELINES), ("credit", CREDITS), ("group_weighting", GROUP_WEIGHTINGS))
        for key, allowed in choices:
            _require(key, getattr(self, key), getattr(self, key) in allowed, f"one of {', '.join(allowed)}")
        _require("k_init", self.k_init, self.k_init >= 0, "at least 1, or 0 with schedule=sparse")
        _require("k_max", self.k_max, self.k_max >= max(1, self.k_init), f"at least k_init ({self.k_init}), and 1")
        _require("cost", self.cost, 0 <= self.cost < math.inf, "a positive number, or 0 where a schedule divides a cap")
        _require("step", self.step, self.step == TO_TARGET or _is_count(self.step), f"an integer >= 1 or {TO_TARGET!r}")
        _require("halt_share", self.halt_share, 0 <= self.halt_share <= 1, "in [0, 1]")
        _require("pad_multiple", self.pad_multiple, self.pad_multiple >= 1, "at least 1")
        cap = self.max_rollouts_per_step
        _require("max_rollouts_per_step", cap, cap is None or cap >= 1, "null or a positive integer")
        _require("sigma_floor", self.sigma_floor, 0 < self.sigma_floor <= 1, "in (0, 1]")
        low, high = self.outcome.low, self.outcome.high
        _require("outcome.low", low, math.isfinite(low), "finite")
        _require("outcome.high", high, low < high < math.inf, f"finite and greater than outcome.low ({low})")
        _require("support.capacity", self.support.capacity, self.support.capacity >= 2, "at least 2")
        _require(
            "support.sample",
            self.support.sample,
            2 <= self.support.sample <= self.support.capacity,
            f"in [2, support.capacity ({self.support.capacity})], to hold both classes",
        )
        for key in ("forgetting", "history_forgetting"):
            value = getattr(self.calibration, key)
            _require(f"calibration.{key}", value, 0 <= value <= 1, "in [0, 1]")
        _require("sparse.explore", self.sparse.explore, 0 < self.sparse.explore <= 1, "in (0, 1]")
        _require("sparse.reserve", self.sparse.reserve, 0 <= self.sparse.reserve < 1, "in [0, 1)")
        for group in ("support", "sparse"):
            seed = getattr(self, group).seed
            _require(f"{group}.seed", seed, seed >= 0, "at least 0")
        for group in ("prior", "state_prior"):
            limit_s = getattr(self, group).timeout_s
            _require(f"{group}.timeout_s", limit_s, 0 < limit_s < math.inf, SECONDS)
        _require("prior.timeout_share", self.prior.timeout_share, self.prior.timeout_share > 0, "positive")
        _require("prior.text_key", self.prior.text_key, self.prior.text_key != "", "null or an entry of extra_info")

    @property
    def rollouts_per_ask(self) -> int | None:
        """``step`` as :func:`verl_v05.allocation.extra_rollouts` takes it: None means to the target."""
        return None if self.step == TO_TARGET else int(self.step)


def load_settings(config: DictConfig) -> V05Settings:
    """Read and check ``algorithm.v05`` of a full trainer config.

    Raises:
        SettingsError: the group is missing, or a key or value in it is unknown, mistyped or impossible.
    """
    group = OmegaConf.select(config, KEY)
    if group is None:
        raise SettingsError(
            f"{KEY} is missing: start from `--config-path pkg://verl_v05.config --config-name v05`, or add "
            "`+algorithm/v05=rounds` and `hydra.searchpath=[pkg://verl_v05.config]` to your command"
        )
    if not isinstance(group, DictConfig):
        raise SettingsError(f"{KEY}={group!r} is not allowed: choose a preset with a slash, algorithm/v05={group}")
    known = OmegaConf.structured(V05Settings)
    for name, default in known.items():
        # omegaconf's own message names neither the key nor what would be right.
        if isinstance(default, DictConfig) and not isinstance(value := group.get(name, default), DictConfig):
            keys = f": set its keys, {', '.join(f'{KEY}.{name}.{key}' for key in map(str, default))}" if default else ""
            raise SettingsError(f"{KEY}.{name}={value!r} is not allowed, it is a group{keys}")
    try:
        merged = OmegaConf.merge(known, group)
        return cast(V05Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise SettingsError(_explain(error)) from error


def load_watch_settings(config: DictConfig) -> WatchSettings:
    """``algorithm.v05.watch`` of a run with or without the rest of the group.

    Raises:
        SettingsError: as :func:`load_settings`.
    """
    group = OmegaConf.select(config, f"{KEY}.watch", default={})
    try:
        return cast(WatchSettings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(WatchSettings), group)))
    except OmegaConfBaseException as error:
        raise SettingsError(_explain(error, f"{KEY}.watch")) from error


def _explain(error: OmegaConfBaseException, group: str = KEY) -> str:
    where = f"{group}.{error.full_key}" if error.full_key else group
    names = getattr(error.object_type, "__dataclass_fields__", {})
    known = "" if error.key in names or not names else f" (known keys: {', '.join(names)})"
    return f"{where}: {str(error.msg).splitlines()[0]}{known}"


def _require(key: str, value: object, ok: bool, allowed: str) -> None:
    require(f"{KEY}.{key}", value, ok, allowed, SettingsError)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
