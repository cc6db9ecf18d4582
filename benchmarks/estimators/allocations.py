"""Allocations of rollouts to whole batches: the product's own schedules, and the best possible ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.estimators.populations import Batch
from benchmarks.estimators.posterior import Posterior
from value_model.conversions import reward_of_success, value_of_probability
from verl_v05.allocation import ALLOCATIONS
from verl_v05.fusion import Belief, ShrinkageFusion
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion
from verl_v05.prior.query import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.schedule import SCHEDULES
from verl_v05.settings import V05Settings

PAPER = V05Settings()
K_INIT, K_MAX, STEP, COST = PAPER.k_init, PAPER.k_max, PAPER.step, PAPER.cost
FIXED = (1, 2, 4, 8, K_MAX)
OSLA, OSLA_ROUNDS, OSLA_TO_TARGET = "OSLA", "OSLA, halt at 25 %", "OSLA, to target"
POSTERIOR, POSTERIOR_EQUAL = "posterior", "posterior, OSLA's rollouts"
BAYES, BAYES_EQUAL = "Bayes", "Bayes, OSLA's rollouts"

# Without halt, padding and cap, groups decide independently of each other: rounds allocate as streaming does, and
# decide on all groups in one call.
UNHALTED = {"halt_share": 0.0, "pad_multiple": 1}
BETA = {"fusion": "empirical_bayes", "allocation": "posterior"}
SCHEDULED = {
    OSLA_ROUNDS: PAPER,
    OSLA: V05Settings(**UNHALTED),
    OSLA_TO_TARGET: V05Settings(**UNHALTED, step="to_target"),
    POSTERIOR: V05Settings(**UNHALTED, **BETA),
    POSTERIOR_EQUAL: V05Settings(**UNHALTED, **BETA, cost=0.0),  # and as many rollouts as OSLA, divided by gain
}


@dataclass(frozen=True)
class DrawnBatch:
    """A batch, the outcomes its prompts would have, and the moments that the outcomes seen so far imply.

    Attributes:
        counts: successes of the first 0..K_MAX rollouts, (n, K_MAX + 1).
    """

    batch: Batch
    counts: np.ndarray
    posterior: Posterior


def draw(rng: np.random.Generator, batch: Batch) -> DrawnBatch:
    """Outcomes of ``K_MAX`` rollouts of every prompt; which of them happen is the allocation's choice."""
    success = rng.random((len(batch.p), K_MAX)) < batch.p[:, None]
    counts = np.pad(success.cumsum(axis=1), ((0, 0), (1, 0)))
    return DrawnBatch(batch, counts, Posterior(batch.density, K_MAX))


class CalibratedElsewhere(EmpiricalBayesFusion):
    """The fusion for beliefs whose calibration is not its own; they decide on rollouts before a first fit too."""

    @property
    def ready(self) -> bool:
        return True


def by_schedule(counts: np.ndarray, belief: Belief, settings: V05Settings) -> np.ndarray:
    """Rollouts of each prompt under the product's schedule, (n,).

    Args:
        counts: of :class:`DrawnBatch`.
        belief: from before the rollouts, (n,); of Eq. 9's prior the strengths are not looked at.
        settings: of fusion, allocation and schedule.
    """
    fusion = CalibratedElsewhere() if settings.fusion == "empirical_bayes" else ShrinkageFusion()
    rule = ALLOCATIONS.resolve(settings.allocation)(settings.cost)
    rewards = reward_of_success(np.diff(counts, axis=1).astype(float)).tolist()
    groups = {
        str(i): Group(str(i), Query(str(i), "", ""), settings.k_init, prior=float(prior), strength=float(strength))
        for i, (prior, strength) in enumerate(zip(*belief, strict=True))
    }
    schedule = SCHEDULES.resolve(settings.schedule)(list(groups.values()), settings, fusion, rule)
    running = list(groups)
    while running:
        released: dict[str, int] = {}
        for uid in running:
            group = groups[uid]
            group.rewards.update((session, rewards[int(uid)][session]) for session in range(group.k, group.spent))
            released |= schedule.settled(uid)
        running = [uid for uid, extra in released.items() if extra]
    return np.array([group.k for group in groups.values()])


def best(counts: np.ndarray, posterior: Posterior, cost: float, k_init: int = K_INIT) -> np.ndarray:
    """Rollouts of each prompt when nothing is estimated: dynamic programming on the true population, (n,)."""
    go = posterior.stop_or_go(cost, k_init)
    rows, k = np.arange(len(counts)), np.full(len(counts), k_init)
    while (more := go[rows, k, counts[rows, k]]).any():
        k = k + more
    return k


def best_within(counts: np.ndarray, posterior: Posterior, budget: int) -> np.ndarray:
    """:func:`best` at the cost that takes ``budget`` rollouts of the batch, (n,).

    Between two costs 1 % apart whose rollouts are below and above it, the first prompts get the lower cost's.
    """
    low, high = np.log(1e-7), np.log(4.0)  # no variance exceeds 1, so at 4 no prompt goes on
    while high - low > 0.01:
        middle = (low + high) / 2
        within = best(counts, posterior, float(np.exp(middle))).sum() <= budget
        low, high = (low, middle) if within else (middle, high)
    more, k = (best(counts, posterior, float(np.exp(log_cost))) for log_cost in (low, high))
    return np.where((more - k).cumsum() <= budget - k.sum(), more, k)


def allocate_all(
    found: DrawnBatch, belief: Callable[[str], Belief], wanted: frozenset[str]
) -> Mapping[str, np.ndarray]:
    """Rollouts of each prompt under each allocation, (n,) each.

    Args:
        belief: calibrated Beta prior of the run that uses the allocation of that name.
        wanted: names; ``OSLA`` must be among them where an equal-rollouts one is.
    """
    counts, prior = found.counts, value_of_probability(found.batch.prior)
    k: dict[str, np.ndarray] = {f"k = {k}": np.full(len(counts), k) for k in FIXED}
    osla_belief = Belief(prior, np.full(len(prior), np.nan))

    def scheduled(name: str) -> np.ndarray:
        settings = SCHEDULED[name]
        if name == POSTERIOR_EQUAL:
            settings = replace(settings, max_rollouts_per_step=int(k[OSLA].sum()))
        return by_schedule(counts, belief(name) if settings.fusion == BETA["fusion"] else osla_belief, settings)

    # OSLA comes before what is given its rollouts.
    rules: dict[str, Callable[[], np.ndarray]] = {
        **{name: partial(scheduled, name) for name in SCHEDULED},
        BAYES: lambda: best(counts, found.posterior, COST),
        BAYES_EQUAL: lambda: best_within(counts, found.posterior, int(k[OSLA].sum())),
    }
    for name in rules:
        if name in wanted:
            k[name] = rules[name]()
    return {name: value for name, value in k.items() if name in wanted}
