"""What a run trains with, read from its composed config, and how its method is named and drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

V05 = "v05"
FIXED_SCHEDULE, SPARSE_SCHEDULE = "fixed", "sparse"
REFERENCE = "GRPO-16"
ESTIMATOR, FILTERED = "algorithm.adv_estimator", "algorithm.filter_groups.enable"
SCHEDULE, ALLOCATION = "algorithm.v05.schedule", "algorithm.v05.allocation"
ROLLOUTS_A_PROMPT = "actor_rollout_ref.rollout.n"


@dataclass(frozen=True)
class Variant:
    """A setting of V0.5 other than the paper's, and how runs with it are named."""

    suffix: str  # of the method in recipes/demo/run.sh, which takes several in the order of VARIANTS
    key: str
    value: str
    label: str  # at the end of the method's name in figures and tables; "" where that does not show it
    name: str


VARIANTS = VALUE_MODEL_PRIOR, NO_PRIOR, EMPIRICAL_BAYES, LEAVE_ONE_OUT = (
    Variant("_v0", "algorithm.v05.prior.provider", "v0", "", "value model as the prior"),
    Variant("_none", "algorithm.v05.prior.provider", "none", "", "no prior"),
    Variant("_eb", "algorithm.v05.fusion", "empirical_bayes", "EB", "empirical-Bayes fusion"),
    Variant("_loo", "algorithm.v05.baseline", "leave_one_out", "LOO", "leave-one-out baseline"),
)
LABELLED = tuple(variant for variant in VARIANTS if variant.label)
# Runs that agree in these keys are of one method; the seed is not among them. A report that groups by fewer would
# average, for example, runs with and without a prior.
METHOD_KEYS = (ESTIMATOR, SCHEDULE, ALLOCATION, *dict.fromkeys(v.key for v in VARIANTS), ROLLOUTS_A_PROMPT, FILTERED)

# Shown for each run, and compared between the runs of a method.
SHOWN = {
    "model": "actor_rollout_ref.model.path",
    "lr": "actor_rollout_ref.actor.optim.lr",
    "mini-batch": "actor_rollout_ref.actor.ppo_mini_batch_size",
    "clip": "actor_rollout_ref.actor.clip_ratio_high",
    "KL": "actor_rollout_ref.actor.use_kl_loss",
    "max response": "data.max_response_length",
    "k_max": "algorithm.v05.k_max",
    "cost": "algorithm.v05.cost",
    "prior": NO_PRIOR.key,
}


class ConfigError(ValueError):
    """A run's config lacks or cannot resolve what the comparison needs; the message names file and key."""


@dataclass(frozen=True)
class Setup:
    """The part of a run's config that tells methods apart. ``group`` counts first rollouts a prompt."""

    estimator: str
    schedule: str | None  # of V0.5; None elsewhere
    allocation: str  # of V0.5, as the label has it
    variants: tuple[Variant, ...]  # of V0.5, those in the label
    filtered: bool  # prompts whose rollouts all agree are left out and replaced (DAPO)
    prompts: int  # prompts trained on, a step
    group: int
    seed: int | None  # None: verl drew one
    shown: dict[str, str]  # settings by short name; "" where the config has none

    @property
    def label(self) -> str:
        """Name of the method in every figure and table."""
        if self.estimator == V05:
            if self.schedule == SPARSE_SCHEDULE:
                return "V0.5 sparse"
            rollouts = f"fixed k={self.group}" if self.fixed else f"{self.allocation} ({self.schedule})"
            return " ".join(["V0.5", rollouts, *(variant.label for variant in self.variants)])
        if self.estimator == "gae":
            return "PPO"
        if self.estimator == "grpo" and self.filtered:
            return "DAPO"
        return f"{self.estimator.upper()}-{self.group}"

    @property
    def fixed(self) -> bool:
        """Whether this is V0.5 without extra rollouts."""
        return self.estimator == V05 and self.schedule == FIXED_SCHEDULE


def read_setup(path: Path) -> Setup:
    """Read hydra's composed config; only the keys needed are resolved.

    Raises:
        ConfigError: a key is missing or does not resolve.
    """
    config = OmegaConf.load(path)

    def need(key: str) -> Any:
        value = _value(config, key, path)
        if value is None:
            raise ConfigError(f"{path} has no {key}: this needs the composed config of a run of verl.trainer.main_ppo")
        return value

    estimator = str(need(ESTIMATOR))
    seed = _value(config, "data.seed", path)
    shown = {name: _value(config, key, path) for name, key in SHOWN.items()}
    return Setup(
        estimator=estimator,
        schedule=str(need(SCHEDULE)) if estimator == V05 else None,
        allocation="posterior" if _value(config, ALLOCATION, path) == "posterior" else "OSLA",
        variants=tuple(v for v in LABELLED if _value(config, v.key, path) == v.value),
        filtered=bool(_value(config, FILTERED, path)),
        prompts=int(need("data.train_batch_size")),
        group=int(need(ROLLOUTS_A_PROMPT)),
        seed=None if seed is None else int(seed),
        shown={name: "" if value is None else str(value).rstrip("/").split("/")[-1] for name, value in shown.items()},
    )


def _value(config: DictConfig, key: str, path: Path) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {key} does not resolve: {error}") from error


@dataclass(frozen=True)
class Style:
    """How a method is drawn, the same in every figure."""

    colour: str
    marker: str
    line: str = "-"


# Okabe and Ito's colours, which colour-blind readers can tell apart; the fixed sizes are one hue, darker as k grows.
STYLES = {
    "V0.5 sparse": Style("#7A1FA2", "*"),
    "V0.5 OSLA (streaming)": Style("#0072B2", "o"),
    "V0.5 OSLA (rounds)": Style("#56B4E9", "s"),
    "V0.5 fixed k=1": Style("#A3CF62", "v", "--"),
    "V0.5 fixed k=2": Style("#4FB06D", "<", "--"),
    "V0.5 fixed k=4": Style("#148056", ">", "--"),
    "V0.5 fixed k=8": Style("#0A4A35", "^", "--"),
    "GRPO-4": Style("#E69F00", "P"),
    "GRPO-8": Style("#8C8C8C", "X"),
    "GRPO-16": Style("#000000", "D"),
    "DAPO": Style("#D55E00", "p"),
    "PPO": Style("#CC79A7", "h"),
}
_OTHERS = ("#332288", "#882255", "#999933", "#44AA99", "#AA4499", "#661100")


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for every label in the order of legends: known methods first, then others by name."""
    found = set(labels)
    others = zip(sorted(found - set(STYLES)), cycle(_OTHERS), cycle("*dH8"), strict=False)
    known = {label: style for label, style in STYLES.items() if label in found}
    return known | {label: Style(colour, marker, ":") for label, colour, marker in others}
