"""One training step's rollout phase, for any number of prompts and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.schedules.compared_schedules import LINES, compare
from benchmarks.schedules.lengths import Lengths
from benchmarks.schedules.simulated_engine import Speed, fit_step
from benchmarks.schedules.simulation import Fleet, Run
from benchmarks.schedules.workload import Rates, Workload, draw_workload
from verl_v05.settings import V05Settings

ROLLOUTS = max(V05Settings(**line.settings).k_max for line in LINES.values())
PAST_PROMPTS = 2048  # of the earlier step that a calibrated prior has learnt from
PAST_SEED = 1000


@dataclass(frozen=True)
class Setting:
    """The engines and the prior."""

    tp: int = 1  # GPUs of an engine; more divide its times ideally
    max_running: int = 256  # requests a GPU, at most
    cache_tokens: int = 415_000  # of the key-value cache of a GPU
    prompt_tokens: int = 128
    prefill: float = 0.005  # seconds a rollout
    grading: float = 0.1  # seconds from a group's last token to the answer
    prior_noise: float = 2.0  # standard deviation in log odds


class Step:
    """Prompts with these success rates and response lengths.

    Attributes:
        context: mean tokens of a running request.
        speed: of an engine.
        sample: a step of PAST_PROMPTS, to describe.
    """

    def __init__(self, lengths: Lengths, rates: Rates, setting: Setting):
        self.lengths, self.rates, self.setting = lengths, rates, setting
        self.sample = self.draw(PAST_PROMPTS, PAST_SEED)
        tokens = self.sample.tokens
        # A response is in the batch in proportion to its length, and half complete on average.
        self.context = setting.prompt_tokens + float((tokens**2).mean() / tokens.mean() / 2)
        base, each = fit_step(self.context)
        slots = min(setting.max_running, max(1, int(setting.cache_tokens / self.context)))
        tp = setting.tp
        # Ideal tensor parallelism: twice the GPUs halve the time of a request and hold twice as many.
        self.speed = Speed(base / tp, each / tp, setting.prefill / tp, slots * tp)

    def draw(self, prompts: int, seed: int) -> Workload:
        """A workload of that many prompts."""
        return draw_workload(prompts, ROLLOUTS, self.rates, self.lengths, self.setting.prior_noise, seed)

    def compare(self, prompts: int, gpus: int, names: Sequence[str], seed: int) -> tuple[pd.DataFrame, dict[str, Run]]:
        """A row of measures for each line, and its run."""
        past = self.draw(PAST_PROMPTS, PAST_SEED + seed)
        fleet = Fleet(self.speed, max(1, gpus // self.setting.tp), self.setting.grading)
        table, runs = compare(self.draw(prompts, seed), past, fleet, names, seed)
        return table.reset_index().assign(gpus=gpus, seed=seed), runs

    def words(self) -> str:
        """Lengths and speed, for the page."""
        tokens = self.sample.tokens
        median, most, nearly_all = np.quantile(tokens, [0.5, 0.9, 0.99])
        speed = self.speed
        return (
            f"{self.lengths.source} Drawn, at most {self.lengths.longest} tokens: mean {tokens.mean():.0f}, median "
            f"{median:.0f}, 90 % {most:.0f}, 99 % {nearly_all:.0f}. A decode step of n requests takes "
            f"{1000 * speed.base:.2f} + {1000 * speed.each:.4f} n ms at a mean context of {self.context:.0f} tokens; "
            f"{speed.slots} slots an engine."
        )
