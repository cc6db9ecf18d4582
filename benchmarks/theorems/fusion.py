"""Theorems 3.2-3.4, A.4 and A.8: the fused baseline at fixed k."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from benchmarks.png import panels
from benchmarks.theorems.outcomes import fixed, squared_error
from benchmarks.theorems.verdicts import TOLERANCE, Author, Listed, verdict
from value_model.conversions import probability_of_value, reward_of_success, value_of_probability
from verl_v05 import fuse, squared_bias

RATES = np.linspace(0, 1, 101)
PRIORS = np.arange(-100, 101) / 100
PLAUSIBLE = 0.05  # most that a right prior may be rejected by a test that any plausible noise passes
PROOF_CONSTANT = 2  # of k |bias| Delta in the proof of Theorem 3.4


def bias(rates: np.ndarray, k: int, prior: float) -> np.ndarray:
    """Bias of Eq. 9's baseline at each success rate, (N,)."""
    outcomes = fixed(rates, k)
    return outcomes.expect(fuse(outcomes.mean_reward, k, prior).baseline) - value_of_probability(np.asarray(rates))


def rejection(rates: np.ndarray, k: int, prior: float) -> np.ndarray:
    """Probability that A.4's test rejects the prior at each success rate, (N,)."""
    outcomes = fixed(rates, k)
    return outcomes.expect(squared_bias(outcomes.mean_reward, k, prior) > 0)


def false_rejection(k: int, priors: np.ndarray = PRIORS) -> np.ndarray:
    """Probability that a right prior, V = mu_true, is rejected, for each prior."""
    return np.array([rejection(np.array([probability_of_value(v)]), k, v)[0] for v in priors])


def fixed_weight_residual(k: int) -> float:
    """Largest |E (w mean + (1 - w) V - mu)^2 - (w^2 sigma^2 + (1 - w)^2 Delta^2)| over rates, priors and weights."""
    outcomes, true = fixed(RATES, k), value_of_probability(RATES)
    worst = 0.0
    for prior in PRIORS[::10]:
        for w in np.linspace(0, 1, 11):
            fused = w * outcomes.mean_reward + (1 - w) * prior
            enumerated = outcomes.expect((fused - true[:, None]) ** 2)
            worst = max(worst, np.abs(enumerated - w**2 * (1 - true**2) / k - (1 - w) ** 2 * (prior - true) ** 2).max())
    return worst


def worst_bias(k: int, low: float = 0.0) -> tuple[float, float, float]:
    """Largest sqrt(k) |bias| over success rates in [low, 1 - low] and priors, with its rate and prior."""
    rates = RATES[(RATES >= low) & (RATES <= 1 - low)]
    # The edge of the acceptance region of an all-right group is rarely on the grid.
    found = [(np.abs(bias(rates, k, prior)), prior) for prior in np.append(PRIORS, 1 - k**-0.5)]
    values, prior = max(found, key=lambda item: item[0].max())
    return float(np.sqrt(k) * values.max()), float(rates[values.argmax()]), float(prior)


def worst_scaled_bias(k: int) -> float:
    """Largest k |bias| Delta over success rates and priors."""
    gaps = np.abs(PRIORS[:, None] - value_of_probability(RATES))
    return float(k * (gaps * np.abs([bias(RATES, k, prior) for prior in PRIORS])).max())


def right_prior_bias(k: int) -> np.ndarray:
    """Bias where V = mu_true, for each prior."""
    return np.array([bias(np.array([probability_of_value(v)]), k, v)[0] for v in PRIORS])


def error_ratios(k: int, rates: np.ndarray = RATES[1:-1], priors: np.ndarray = PRIORS) -> tuple[np.ndarray, np.ndarray]:
    """MSE of Eq. 9 over that of the mean, and over that of Theorem 3.3's weight; (priors, N) each."""
    error = np.array([squared_error(fixed(rates, k), rates, prior) for prior in priors])
    variance = 4 * rates * (1 - rates) / k
    gap_sq = (priors[:, None] - value_of_probability(rates)) ** 2
    best = variance * gap_sq / (variance + gap_sq)
    return error / variance, np.divide(error, best, out=np.full_like(error, np.inf), where=best > 1e-12)


def crossing(k: int, rate: float = 0.5) -> float:
    """Smallest Delta sqrt(k) from which on Eq. 9 is worse than the mean of k rollouts, V above mu."""
    priors = np.linspace(value_of_probability(rate), 1, 2001)
    worse = error_ratios(k, np.array([rate]), priors)[0][:, 0] > 1
    return float((priors[worse.argmax()] - value_of_probability(rate)) * np.sqrt(k))


def weight_is_ambiguous(rates: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Whether every weight of Theorem 3.3 has the same error, (priors, N): MSE(w) has the curvature Var + Delta^2."""
    gap_sq = (priors[:, None] - value_of_probability(rates)) ** 2
    return 4 * rates * (1 - rates) + gap_sq <= TOLERANCE


def truncation_is_a_test(k_max: int = 16) -> bool:
    """Whether Eq. 7 is 0 exactly where |mean - V| <= 1/sqrt(k), for every group of up to ``k_max``."""
    for k in range(1, k_max + 1):
        means = reward_of_success(np.arange(k + 1) / k)[:, None]
        away = np.sqrt(k) * np.abs(means - PRIORS)
        clear = np.abs(away - 1) > TOLERANCE  # at the edge itself rounding decides
        if ((squared_bias(means, k, PRIORS) == 0) != (away <= 1))[clear].any():
            return False
    return True


def measure() -> dict[str, object]:
    """Numbers and verdicts of the page's section."""
    return {**_errors(), **_rejections(), **_biases()}


def _errors() -> dict[str, object]:
    """Theorems 3.2, 3.3 and the comparison at the end of A.5."""
    to_mean, to_best = error_ratios(4, RATES[10:91])
    to_best_of_one = error_ratios(1, RATES[10:91])[1].min()
    residual = fixed_weight_residual(16)
    late = error_ratios(1024, np.array([0.5]), np.array([0.5]))[0].item()
    ambiguous = weight_is_ambiguous(RATES, PRIORS)
    certain_and_right = np.isin(RATES, (0, 1)) & np.isclose(PRIORS[:, None], value_of_probability(RATES))
    return {
        "weight_residual": residual,
        "least_to_best": to_best.min(),
        "least_to_best_of_one": to_best_of_one,
        "to_mean_low": to_mean.min(),
        "to_mean_high": to_mean.max(),
        "better_share": 100 * (to_mean < 1).mean(),
        "late_error": late,
        "crossings": {k: crossing(k) for k in (4, 64)},
        # Eq. 8's weight looks at the rewards: if the split held for it as well, it could not have less error than w*.
        "verdict_error_split": verdict(to_best_of_one >= 1, with_condition=residual <= TOLERANCE),
        "verdict_unique": verdict(not ambiguous.any(), with_condition=(ambiguous == certain_and_right).all()),
        "verdict_rate": verdict(late <= 1 + TOLERANCE),
    }


def _rejections() -> dict[str, object]:
    """A.4 and A.8."""
    found = {k: false_rejection(k) for k in (*range(1, 17), 64)}
    mean, worst = ({k: of(rates) for k, rates in found.items()} for of in (np.mean, np.max))
    small, larger = [mean[k] for k in (1, 2, 3)], [mean[k] for k in range(4, 9)]
    return {
        "plausible": PLAUSIBLE,
        "rejection_mean": mean,
        "rejection_worst": worst,
        "rejection_means": Listed(small + larger),
        "rejection_at_08": Listed(false_rejection(k, np.array([0.8]))[0] for k in range(1, 9)),
        "verdict_truncation": verdict(truncation_is_a_test()),
        "verdict_plausible": verdict(worst[64] <= PLAUSIBLE),
        "verdict_two_means": verdict(all((2 / k <= k**-0.5) == (k >= 4) for k in range(1, 65))),
        "verdict_small_groups": verdict(min(small) > max(larger)),
    }


def _biases() -> dict[str, object]:
    """Theorem 3.4."""
    tight = {k: worst_bias(k) for k in (1, 4, 16, 64)}
    scaled = max(worst_scaled_bias(k) for k in (*range(1, 17), 64))
    right = {k: np.abs(right_prior_bias(k)) for k in (4, 16, 64)}
    unbiased_priors = np.isin(PRIORS, (-1, 0, 1))
    return {
        "tight": tight[4],
        "inner_bias": Listed(worst_bias(k, 0.1)[0] for k in (4, 16, 64)),
        "limit": 1024 * abs(bias(np.array([0.5]), 1024, 0.5)[0]) * 0.5,
        "scaled_bias": scaled,
        "right_prior_bias": Listed(k * values.max() for k, values in right.items()),
        "verdict_bias_bound": verdict(max(value for value, _, _ in tight.values()) <= 1 + TOLERANCE),
        "verdict_bias_order": verdict(scaled <= PROOF_CONSTANT),
        "verdict_right_prior": verdict(
            max(values.max() for values in right.values()) <= TOLERANCE,
            with_condition=max(values[unbiased_priors].max() for values in right.values()) <= TOLERANCE,
            author=Author.OURS,
        ),
    }


def draw_error() -> Figure:
    """k MSE against Delta sqrt(k)."""
    figure, axes = panels(2)
    for axis, rate in zip(axes, (0.5, 0.9), strict=True):
        true, variance = value_of_probability(rate), 4 * rate * (1 - rate)
        for k, colour in ((4, "#1b6ca8"), (16, "#e08e45"), (64, "#6a8d3a")):
            priors = np.linspace(-1, 1, 801)
            priors = priors[np.abs(priors - true) * np.sqrt(k) <= 4]
            ratio = error_ratios(k, np.array([rate]), priors)[0][:, 0]
            axis.plot((priors - true) * np.sqrt(k), ratio * variance, color=colour, label=f"Eq. 9, k = {k}")
        units = np.linspace(-4, 4, 401)
        axis.axhline(variance, color="#8c8c8c", label="mean of k")
        axis.plot(units, variance * units**2 / (variance + units**2), "k:", label="Theorem 3.3's w*")
        axis.set(title=f"p = {rate}", xlabel="(V - μ)·√k", ylabel="k · MSE", ylim=(0, 1.8))
    axes[0].legend(fontsize=8)
    return figure


def draw_bias() -> Figure:
    """Tightness and rate of Theorem 3.4."""
    figure, (left, right) = panels(2)
    for k in (1, 4, 16, 64):
        worst = np.abs([bias(RATES, k, prior) for prior in np.append(PRIORS, (1 - k**-0.5, k**-0.5 - 1))]).max(axis=0)
        left.plot(RATES, np.sqrt(k) * worst, label=f"k = {k}")
    left.axhline(1, color="k", linestyle=":")
    left.set(xlabel="success rate p", ylabel="max over V of √k·|bias|", ylim=(0, 1.05))
    left.legend()
    sizes = np.unique(np.geomspace(1, 2048, 60).astype(int))
    for gap in (0.1, 0.25, 0.5, 0.9):
        values = [k * abs(bias(np.array([0.5]), k, gap)[0]) * gap for k in sizes]
        (line,) = right.plot(sizes, values, label=f"Δ = {gap}")
        start = 4 / gap**2
        right.plot(start, np.interp(start, sizes, values), "o", color=line.get_color())
    right.axhline(2, color="k", linestyle=":", label="constant of the proof")
    right.set(xscale="log", xlabel="k", ylabel="k·|bias|·Δ, p = 0.5")
    right.legend(fontsize=8)
    return figure


def draw_false_rejection() -> Figure:
    """A.8's claim against enumeration."""
    figure, (left, right) = panels(2)
    sizes = np.arange(1, 25)
    found = np.array([false_rejection(k) for k in sizes])
    for values, label in (
        (found.max(axis=1), "worst V"),
        (found.mean(axis=1), "mean over V"),
        ([false_rejection(k, np.array([0.8]))[0] for k in sizes], "V = 0.8"),
        ([false_rejection(k, np.array([0.0]))[0] for k in sizes], "V = 0"),
    ):
        left.plot(sizes, values, marker=".", label=label)
    left.axvline(4, color="k", linestyle=":", label="the paper's k_min")
    left.set(xlabel="k", ylabel="P(right prior rejected)")
    left.legend(fontsize=8)
    for k in (1, 2, 3, 4, 8):
        right.plot(PRIORS, false_rejection(k), label=f"k = {k}")
    right.set(xlabel="prior V = μ", ylabel="P(right prior rejected)")
    right.legend(fontsize=8)
    return figure


FIGURES = {"fusion_error": draw_error, "fusion_bias": draw_bias, "false_rejection": draw_false_rejection}
