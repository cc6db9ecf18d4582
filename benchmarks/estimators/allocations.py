"""Who gets how many rollouts: the project's rules on arrays, whole batches at once.

The rules themselves are those of :mod:`verl_v05.allocation`; the loop over rounds is that of
:class:`verl_v05.rollout.schedule.Rounds` without its bookkeeping (a test holds the two against each other).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks.estimators.populations import Batch
from benchmarks.estimators.posterior import Posterior
from verl_v05.allocation import (
    extra_rollouts,
    hand_out,
    marginal_return,
    posterior_gain,
    posterior_target,
    rollout_target,
)
from verl_v05.calibration import Belief
from verl_v05.fusion import squared_bias
from verl_v05.fusion.empirical_bayes import fuse_beta, posterior_variance

K_INIT, K_MAX, STEP, COST = 4, 16, 2, 0.0039  # the paper's
FIXED = (1, 2, 4, 8, K_MAX)
HALT_SHARE, PAD_MULTIPLE = 0.25, 32
OSLA, OSLA_ROUNDS, OSLA_TO_TARGET = "OSLA", "OSLA, halt at 25 %", "OSLA, to target"
POSTERIOR, POSTERIOR_EQUAL = "posterior", "posterior, OSLA's rollouts"
BAYES, BAYES_EQUAL = "Bayes", "Bayes, OSLA's rollouts"


@dataclass(frozen=True)
class Draw:
    """A batch, the outcomes its prompts would have, and the moments that the outcomes seen so far imply.

    Attributes:
        counts: successes of the first 0..K_MAX rollouts, (n, K_MAX + 1).
    """

    batch: Batch
    counts: np.ndarray
    posterior: Posterior


def draw(rng: np.random.Generator, batch: Batch) -> Draw:
    """Outcomes of ``K_MAX`` rollouts of every prompt; which of them happen is the allocation's choice."""
    success = rng.random((len(batch.p), K_MAX)) < batch.p[:, None]
    counts = np.pad(success.cumsum(axis=1), ((0, 0), (1, 0)))
    return Draw(batch, counts, Posterior(batch.density, K_MAX))


Gain = Callable[[np.ndarray, np.ndarray], np.ndarray]  # as verl_v05.allocation.hand_out takes it


class Demand(NamedTuple):
    """What the rollouts so far say about more of them."""

    target: np.ndarray  # k to stop at, (n,)
    gain: Gain


Ask = Callable[[np.ndarray, np.ndarray], Demand]  # of successes and k, (n,) each


def osla_ask(prior: np.ndarray, cost: float = COST) -> Ask:
    """Demand of one-step look-ahead (Eq. 12 and 36); ``prior`` is V, (n,)."""

    def ask(successes: np.ndarray, k: np.ndarray) -> Demand:
        bias_sq = squared_bias(2 * successes / k - 1, k, prior)
        return Demand(rollout_target(bias_sq, cost), lambda i, nth: marginal_return(bias_sq[i], k[i] + nth))

    return ask


def posterior_ask(belief: Belief, cost: float = COST) -> Ask:
    """Demand by the posterior variance under the calibrated Beta prior."""

    def ask(successes: np.ndarray, k: np.ndarray) -> Demand:
        strength = belief.strength
        variance = posterior_variance(fuse_beta(2 * successes / k - 1, k, *belief).baseline, k, strength)
        n = k + strength
        return Demand(posterior_target(variance, n, k, cost), lambda i, nth: posterior_gain(variance[i], n[i], nth))

    return ask


def in_rounds(
    counts: np.ndarray,
    ask: Ask,
    *,
    step: int | None = STEP,
    halt_share: float = 0.0,
    pad_multiple: int = 1,
    budget: int | None = None,
    k_init: int = K_INIT,
) -> np.ndarray:
    """Rollouts of each prompt, (n,).

    Args:
        counts: of :class:`Draw`.
        ask: looks at the outcomes so far.
        step: rollouts asked for at a time; None: all that is missing to the target.
        halt_share: stop when a smaller share of the prompts asks. 0 and ``pad_multiple=1``: the streaming schedule.
        pad_multiple: a round is padded to a multiple of it.
        budget: rollouts of the batch, the first included; planned anew before every round.
    """
    n, k_max = len(counts), counts.shape[1] - 1
    k = np.full(n, k_init)
    while True:
        target, gain = ask(counts[np.arange(n), k], k)
        asked = extra_rollouts(k, k, target, k_max=k_max, step=step)
        left = n * k_max if budget is None else budget - k.sum()
        if budget is not None:
            asked = np.minimum(asked, hand_out(left, k_max - k, gain))
        if not asked.any() or (asked > 0).sum() < halt_share * n:
            return k
        missing = min(-asked.sum() % pad_multiple, left - asked.sum())
        padding = hand_out(missing, k_max - k - asked, _later(gain, asked))
        k = k + asked + padding


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
    low, high = np.log(1e-7), np.log(4.0)  # at 4, the most a variance can be, nobody goes on
    while high - low > 0.01:
        middle = (low + high) / 2
        within = best(counts, posterior, float(np.exp(middle))).sum() <= budget
        low, high = (low, middle) if within else (middle, high)
    more, k = (best(counts, posterior, float(np.exp(log_cost))) for log_cost in (low, high))
    return np.where((more - k).cumsum() <= budget - k.sum(), more, k)


def allocate_all(found: Draw, belief: Callable[[str], Belief], wanted: frozenset[str]) -> Mapping[str, np.ndarray]:
    """Rollouts of each prompt under each allocation, (n,) each.

    Args:
        belief: calibrated Beta prior of the run that uses the allocation of that name.
        wanted: names; ``OSLA`` must be among them where an equal-rollouts one is.
    """
    counts, prior = found.counts, 2 * found.batch.prior - 1
    k: dict[str, np.ndarray] = {f"k = {k}": np.full(len(counts), k) for k in FIXED}
    rules: dict[str, Callable[[], np.ndarray]] = {
        OSLA_ROUNDS: lambda: in_rounds(counts, osla_ask(prior), halt_share=HALT_SHARE, pad_multiple=PAD_MULTIPLE),
        OSLA: lambda: in_rounds(counts, osla_ask(prior)),
        OSLA_TO_TARGET: lambda: in_rounds(counts, osla_ask(prior), step=None),
        POSTERIOR: lambda: in_rounds(counts, posterior_ask(belief(POSTERIOR))),
        POSTERIOR_EQUAL: lambda: in_rounds(
            counts, posterior_ask(belief(POSTERIOR_EQUAL), cost=0.0), budget=int(k[OSLA].sum())
        ),
        BAYES: lambda: best(counts, found.posterior, COST),
        BAYES_EQUAL: lambda: best_within(counts, found.posterior, int(k[OSLA].sum())),
    }
    for name in rules:
        if name in wanted:
            k[name] = rules[name]()
    return {name: value for name, value in k.items() if name in wanted}


def _later(gain: Gain, asked: np.ndarray) -> Gain:
    """The gain of rollouts that come after those asked for."""
    return lambda i, nth: gain(i, asked[i] + nth)
