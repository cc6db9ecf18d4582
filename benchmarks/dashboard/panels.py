"""Panels that the figures and the wandb report share: metrics and their axes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.dashboard.runs import ROLLOUTS, SECONDS, TOKENS

MINUTE, HOUR = 60.0, 3600.0  # seconds


@dataclass(frozen=True)
class Axis:
    """What a run has spent. ``metric`` is None for training steps; figures show it in units of ``unit``."""

    name: str
    label: str
    metric: str | None = None
    unit: float = 1.0

    def readable(self, seconds: float) -> Axis:
        """Time in hours, or in minutes where no run took two hours (``seconds``: the longest); others as they are."""
        if self.metric != SECONDS:
            return self
        name, unit = ("hours", HOUR) if seconds >= 2 * HOUR else ("minutes", MINUTE)
        return replace(self, label=f"{name} of {self.label}", unit=unit)


@dataclass(frozen=True)
class Curve:
    """One metric against steps, a line a method."""

    name: str
    title: str
    metric: str
    label: str  # of the y axis


@dataclass(frozen=True)
class Stack:
    """Metrics that add up to a whole, as shares of it against steps; ``parts`` maps names in legends to metrics."""

    name: str
    title: str
    metric: re.Pattern[str]  # its group "part" is the name in legends

    def parts(self, metrics: Iterable[str]) -> dict[str, str]:
        """Metric of each part, in order of size or name."""
        matches = [match for name in metrics if (match := self.metric.match(name))]
        return {m["part"]: m.string for m in sorted(matches, key=lambda m: (len(m["part"]), m["part"]))}


STEPS = Axis("steps", "training step")
AXES = (
    STEPS,
    Axis("rollouts", "training rollouts", ROLLOUTS),
    Axis("tokens", "response tokens generated for training", TOKENS),
    Axis("seconds", "training steps, without validation", SECONDS),
)
GRADIENT_NORM = Curve("figure_3", "Figure 3: gradient norm", "actor/grad_norm", "gradient norm")
ENTROPY = Curve("figure_4", "Figure 4: entropy of the policy", "actor/entropy", "entropy, nats a token")
RESPONSE_LENGTH = Curve("response_length", "Response length", "response_length/mean", "tokens a response")
CURVES = (GRADIENT_NORM, ENTROPY, RESPONSE_LENGTH)

GROUP_SIZES = Stack("k_distribution", "Rollouts a prompt got", re.compile(r"^v05/k/prompts_with_(?P<part>\d+)$"))
PRIORS = Stack("priors", "What became of the priors", re.compile(r"^v05/prior/(?P<part>accepted|rejected|missing)$"))
STACKS = (GROUP_SIZES, PRIORS)
BASELINE_ERRORS = {"fused baseline": "v05/baseline_mse/fused", "group mean": "v05/baseline_mse/group_mean"}
