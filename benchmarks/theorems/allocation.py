"""Lemma 3.5, Theorem 3.6 and A.7: when a prompt stops, what that costs, and what it does to the mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import betabinom

from benchmarks.png import panels
from benchmarks.theorems.outcomes import Outcomes, fixed, squared_error, stopped
from benchmarks.theorems.verdicts import TOLERANCE, Author, Listed, verdict
from value_model.conversions import reward_of_success, value_of_probability
from verl_v05 import empirical_mse, fuse, marginal_return, rollout_target, squared_bias

COST = 0.0039
K_INIT = 4
CLOSE = 0.1  # relative error up to which Eq. 11 counts as an estimate of the true error
GROWTH = 10  # most that regret / c may grow by, while c falls to 1/390, to count as O(c)
RATES = np.linspace(0.01, 0.99, 99)
PRIORS = np.arange(-100, 101) / 100
COSTS = (0.05, 0.0158, 0.005, 0.0039, 0.0016, 0.0005)
FAR_COSTS = (*COSTS, 0.0001, 0.00003, 0.00001)
CASES = ((0.5, 0.9), (0.5, 0.5), (0.3, 0.8), (0.1, 0.8), (0.5, 0.0), (0.9, 0.8))  # (p, V); the last two are right


class States(NamedTuple):
    """Every (k, successes, prior) of groups of k_min to k_max rollouts with priors of a grid, flat."""

    k: np.ndarray
    successes: np.ndarray
    prior: np.ndarray
    bias_sq: np.ndarray


def states(k_min: int = K_INIT, k_max: int = 16) -> States:
    """The lattice that Eq. 12 decides on."""
    pairs = np.array([(k, s) for k in range(k_min, k_max + 1) for s in range(k + 1)])
    k, successes = np.repeat(pairs, len(PRIORS), axis=0).T
    prior = np.tile(PRIORS, len(pairs))
    return States(k, successes, prior, squared_bias(reward_of_success(successes / k), k, prior))


def envelope(bias_sq: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Lemma 3.5's lower bound of the marginal return."""
    return (bias_sq / ((k + 1) * bias_sq + 1)) ** 2


def expected_drop(found: States) -> np.ndarray:
    """E[MSE_hat(k) - MSE_hat(k + 1)]; the next reward follows the rule of succession (p uniform a priori)."""
    right = (found.successes + 1) / (found.k + 2)
    failed, succeeded = (empirical_mse(bias_sq, found.k + 1) for bias_sq in _bias_sq_after(found))
    return empirical_mse(found.bias_sq, found.k) - (1 - right) * failed - right * succeeded


def reopened(found: States, cost: float = COST) -> np.ndarray:
    """Whether a state that Eq. 12 stops at has a next reward after which it would go on."""
    stops = found.k >= rollout_target(found.bias_sq, cost)
    return stops & np.logical_or(*(found.k + 1 < rollout_target(bias_sq, cost) for bias_sq in _bias_sq_after(found)))


def _bias_sq_after(found: States) -> list[np.ndarray]:
    """Eq. 7 after one more failure and after one more success."""
    k = found.k + 1
    return [squared_bias(reward_of_success((found.successes + more) / k), k, found.prior) for more in (0, 1)]


def paper_risk(k: np.ndarray, gap_sq: float, cost: float) -> np.ndarray:
    """R of Eq. 42, with the true squared bias of the prior."""
    return gap_sq / (k * gap_sq + 1) + cost * k


class Regret(NamedTuple):
    """Excess over the best fixed k >= k_init, for one prompt."""

    paper: float  # in the risk of Eq. 42, whose only noise is when it stops
    literal: float  # E[R(K*)] with Eq. 11's own estimate of the error, as Eq. 41 is written
    true: float  # in the true squared error of Eq. 9 plus c k
    stops_at_once: float  # probability of stopping at k_init
    rollouts: float


def regret(rate: float, prior: float, cost: float, k_init: int = K_INIT) -> Regret:
    """A.7's regret of Eq. 12, one rollout at a time, exactly."""
    rates, gap_sq = np.array([rate]), (prior - value_of_probability(rate)) ** 2
    outcomes = stopped(rates, prior, cost=cost, k_init=k_init, step=1)
    sizes = np.arange(k_init, int(2 * cost**-0.5) + 2 * k_init)
    best_true = min(squared_error(fixed(rates, int(k)), rates, prior)[0] + cost * k for k in sizes)
    rollouts = outcomes.expect(outcomes.k)[0]
    estimate = empirical_mse(squared_bias(outcomes.mean_reward, outcomes.k, prior), outcomes.k) + cost * outcomes.k
    oracle = paper_risk(sizes, gap_sq, cost).min()
    return Regret(
        paper=float(outcomes.expect(paper_risk(outcomes.k, gap_sq, cost))[0] - oracle),
        literal=float(outcomes.expect(estimate)[0] - oracle),
        true=float(squared_error(outcomes, rates, prior)[0] + cost * rollouts - best_true),
        stops_at_once=float(outcomes.expect(outcomes.k == k_init)[0]),
        rollouts=float(rollouts),
    )


def bias_sq_variance(rate: float, prior: float, k: int) -> float:
    """Variance of Eq. 7 at fixed k."""
    outcomes = fixed(np.array([rate]), k)
    values = squared_bias(outcomes.mean_reward, k, prior)
    return float(outcomes.expect(values**2)[0] - outcomes.expect(values)[0] ** 2)


class Bayes(NamedTuple):
    """Expected squared error + c k where p ~ Beta(m q, m (1 - q)) and V = 2 q - 1."""

    osla: float  # Eq. 12 with Eq. 9
    best_fixed: float  # the best fixed k >= k_init with Eq. 9
    optimal_stop: float  # backward induction with Eq. 9's baseline
    optimal: float  # backward induction with the posterior mean
    osla_rollouts: float


def bayes(strength: float, q: float, cost: float = COST, k_init: int = K_INIT, k_max: int = 64) -> Bayes:
    """Eq. 12 against the exact dynamic program over (k, successes)."""
    prior, a, b = value_of_probability(q), strength * q, strength * (1 - q)

    def risks(k: int) -> tuple[np.ndarray, np.ndarray]:
        """Posterior expected squared error of Eq. 9 and of the posterior mean, plus c k, (k + 1,) each."""
        s = np.arange(k + 1)
        mean, total = (a + s) / (a + b + k), a + b + k
        variance = 4 * mean * (1 - mean) / (total + 1)
        fused = fuse(reward_of_success(s / k), k, prior).baseline
        return variance + (fused - value_of_probability(mean)) ** 2 + cost * k, variance + cost * k

    fused_value, mean_value = risks(k_max)
    rule_value, size = fused_value, np.full(k_max + 1, float(k_max))
    fixed_values = []
    for k in range(k_max, k_init - 1, -1):
        s = np.arange(k + 1)
        now_fused, now_mean = risks(k)
        fixed_values.append(betabinom.pmf(s, k, a, b) @ now_fused)
        if k == k_max:
            continue
        right = (a + s) / (a + b + k)

        def ahead(value: np.ndarray, right: np.ndarray = right) -> np.ndarray:
            return right * value[1:] + (1 - right) * value[:-1]

        asks = k < rollout_target(squared_bias(reward_of_success(s / k), k, prior), cost)
        rule_value, size = np.where(asks, ahead(rule_value), now_fused), np.where(asks, ahead(size), k)
        fused_value = np.minimum(now_fused, ahead(fused_value))
        mean_value = np.minimum(now_mean, ahead(mean_value))
    start = betabinom.pmf(np.arange(k_init + 1), k_init, a, b)
    values = (start @ rule_value, min(fixed_values), start @ fused_value, start @ mean_value, start @ size)
    return Bayes(*map(float, values))


def mean_bias(outcomes: Outcomes, rates: np.ndarray) -> np.ndarray:
    """Bias of the mean reward at each success rate, (N,)."""
    return outcomes.expect(outcomes.mean_reward) - value_of_probability(np.asarray(rates))


def error_estimates(rates: np.ndarray, k: int, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True MSE of Eq. 9, E of Eq. 11, and Eq. 11 with the true Delta^2, at each success rate, (N,) each."""
    outcomes = fixed(rates, k)
    estimate = outcomes.expect(empirical_mse(squared_bias(outcomes.mean_reward, k, prior), k))
    return squared_error(outcomes, rates, prior), estimate, empirical_mse((prior - value_of_probability(rates)) ** 2, k)


def curvature_errors(cost: float) -> tuple[np.ndarray, np.ndarray]:
    """|R''(x) / (2 c^(3/2)) - 1| at the minimum x >= K_INIT of R, for squared biases of a grid, and A.7's condition.

    The condition is Delta^2 > sqrt(c) / (1 - k_min sqrt(c)), that x* is above k_min; (N,) each.
    """
    gap_sq = np.linspace(0.01, 4, 400)
    at = np.maximum(cost**-0.5 - 1 / gap_sq, K_INIT)
    second = 2 * gap_sq**3 / (at * gap_sq + 1) ** 3
    return np.abs(second / (2 * cost**1.5) - 1), gap_sq > cost**0.5 / (1 - K_INIT * cost**0.5)


def measure() -> dict[str, object]:
    """Numbers and verdicts of the page's section."""
    fixed_by_choice = {"cost": COST, "far_cost": FAR_COSTS[-1], "close": 100 * CLOSE, "growth": GROWTH}
    return {**fixed_by_choice, **_steps_ahead(), **_regrets(), **_adaptive_groups(), "dynamic_rows": _dynamic_rows()}


def _steps_ahead() -> dict[str, object]:
    """Lemma 3.5, Eq. 11 and Theorem 3.6."""
    found = states()
    gain, floor, drop = marginal_return(found.bias_sq, found.k), envelope(found.bias_sq, found.k), expected_drop(found)
    estimate, root = empirical_mse(found.bias_sq, found.k), COST**0.5
    rejected, asks = found.bias_sq > 0, found.k < rollout_target(found.bias_sq, COST)
    clear = np.abs(estimate - root) > TOLERANCE  # at the edge itself rounding decides
    true, estimated, known = (x[0] for x in error_estimates(np.array([0.5]), K_INIT, 0.8))
    again = reopened(found)
    return {
        "largest_gain": (gain[rejected] / floor[rejected]).max(),
        "drops_below": 100 * (drop < floor)[rejected].mean(),
        "negative_drops": 100 * (drop < 0)[~rejected].mean(),
        "true_error": true,
        "estimated_error": estimated,
        "known_error": known,
        "envelope_too_small": 100 * (floor <= COST)[asks].mean(),
        "gain_too_small": 100 * (gain <= COST)[asks].mean(),
        "reopened": 100 * again.mean(),
        "verdict_envelope": verdict(
            (gain > floor).all(), with_condition=(gain > floor)[found.bias_sq > TOLERANCE].all()
        ),
        "verdict_expected_drop": verdict((drop >= floor - TOLERANCE).all()),
        "verdict_estimate": verdict(abs(estimated / true - 1) <= CLOSE),
        "verdict_first_k": verdict((floor > COST)[asks].all(), with_condition=(asks == (estimate > root))[clear].all()),
        "verdict_optimal": verdict(not again.any()),
    }


def _regrets() -> dict[str, object]:
    """A.7, of a wrong and of a right prior."""
    wrong, right = CASES[0], CASES[-2]
    near, far = ({case: regret(*case, cost) for case in (wrong, right)} for cost in (COST, FAR_COSTS[-1]))
    ratios = {case: (near[case].paper / COST, far[case].paper / FAR_COSTS[-1]) for case in (wrong, right)}
    away, inside = curvature_errors(COST)
    spread = [k * bias_sq_variance(*wrong, k) for k in (4, 64, 1024)]
    return {
        "near": near[wrong],
        "far": far[wrong],
        "wrong_ratios": ratios[wrong],
        "right_ratios": ratios[right],
        "variances": Listed(spread),
        "variance_limit": 4 * (wrong[1] - value_of_probability(wrong[0])) ** 2 * 4 * wrong[0] * (1 - wrong[0]),
        "right_variances": Listed(k**2 * bias_sq_variance(*right, k) for k in (4, 64, 1024)),
        "verdict_curvature": verdict(away.max() <= TOLERANCE, with_condition=away[inside].max() <= TOLERANCE),
        "verdict_variance": verdict(max(spread[1:]) <= spread[0]),
        "verdict_regret": verdict(max(far / near for near, far in ratios.values()) <= GROWTH),
        "verdict_empirical_regret": verdict(near[wrong].literal >= 0),
    }


def _adaptive_groups() -> dict[str, object]:
    """The mean reward where Eq. 12 decides the size of the group."""
    found = {prior: mean_bias(stopped(RATES, prior, cost=COST, k_max=16), RATES) for prior in PRIORS[::5]}
    prior = max(found, key=lambda v: np.abs(found[v]).max())
    largest = np.abs(found[prior]).max()
    return {
        "mean_bias": largest,
        "mean_bias_rate": RATES[np.abs(found[prior]).argmax()],
        "mean_bias_prior": prior,
        "verdict_adaptive_mean": verdict(largest <= TOLERANCE, author=Author.OURS),
    }


def _dynamic_rows() -> str:
    """Rows of the table of expected risks."""
    found = {(m, q): bayes(m, q) for m in (1, 4, 16, 64) for q in (0.3, 0.5, 0.8)}
    return "\n".join(
        f"| {m} | {q} | " + " | ".join(f"{value:.4f}" for value in risk[:4]) + f" | {risk.osla_rollouts:.1f} |"
        for (m, q), risk in found.items()
    )


def draw_regret() -> Figure:
    """A.7's regret against c."""
    figure, (left, right) = panels(2)
    for rate, prior in CASES:
        found = [regret(rate, prior, cost) for cost in FAR_COSTS]
        label = f"p = {rate}, V = {prior}"
        # Where c is so large that no prompt goes on, the regret is 0 up to rounding.
        scaled = [r.paper / c if r.paper > 1e-9 else np.nan for r, c in zip(found, FAR_COSTS, strict=True)]
        left.plot(FAR_COSTS, scaled, marker=".", label=label)
        right.plot(FAR_COSTS, [r.true for r in found], marker=".", label=label)
    left.set(xscale="log", yscale="log", ylim=(1e-2, None), xlabel="c", ylabel="regret / c, paper's risk")
    right.set(xscale="log", xlabel="c", ylabel="regret, true squared error + c k")
    left.legend(fontsize=8)
    return figure


def draw_error_estimate() -> Figure:
    """Eq. 11 against the truth."""
    figure, axes = panels(3)
    for axis, rate in zip(axes, (0.5, 0.9), strict=False):
        rates = np.array([rate])
        values = np.array([[x[0] for x in error_estimates(rates, K_INIT, v)] for v in PRIORS])
        for column, (label, style) in zip(
            values.T, (("true MSE of Eq. 9", "-"), ("mean of Eq. 11", "--"), ("Eq. 11, true Δ²", ":")), strict=True
        ):
            axis.plot(PRIORS, column, style, label=label)
        axis.axhline(4 * rate * (1 - rate) / K_INIT, color="#8c8c8c", linewidth=1, label="mean of 4")
        axis.set(title=f"p = {rate}", xlabel="V", ylabel="squared error, k = 4")
    axes[0].legend(fontsize=8)
    variance = 4 * RATES * (1 - RATES) / K_INIT
    axes[2].plot(RATES, 1 / K_INIT / variance, label="1/k over 4p(1 - p)/k")
    for gap_sq in (0.25, 1.0):
        best = variance * gap_sq / (variance + gap_sq)
        axes[2].plot(RATES, empirical_mse(gap_sq, K_INIT) / best, label=f"Eq. 11 over the error of w*, Δ² = {gap_sq}")
    axes[2].set(xlabel="success rate p", ylabel="over-estimate, k = 4", yscale="log")
    axes[2].legend(fontsize=8)
    return figure


def draw_optional_stopping() -> Figure:
    """Bias after adaptive stopping."""
    figure, axes = panels(2)
    for axis, prior in zip(axes, (0.0, 0.8), strict=True):
        adaptive, start = stopped(RATES, prior, cost=COST, k_max=16), fixed(RATES, K_INIT)
        axis.plot(RATES, mean_bias(adaptive, RATES), label="mean reward, Eq. 12")
        for outcomes, label in ((adaptive, "Eq. 9, Eq. 12"), (start, "Eq. 9, fixed k = 4")):
            baseline = fuse(outcomes.mean_reward, outcomes.k, prior).baseline
            axis.plot(RATES, outcomes.expect(baseline) - value_of_probability(RATES), "--", label=label)
        axis.axhline(0, color="k", linewidth=0.8)
        axis.set(title=f"V = {prior}", xlabel="success rate p", ylabel="bias")
    axes[0].legend(fontsize=8)
    return figure


FIGURES = {"regret": draw_regret, "error_estimate": draw_error_estimate, "optional_stopping": draw_optional_stopping}
