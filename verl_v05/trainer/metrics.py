"""The ``v05/`` metrics of a step.

Keys of a piece that a run does not have are absent: ``v05/calibration/*`` and ``v05/fusion/strength`` without a fusion
that has them, ``v05/prior/mean`` and ``gap`` in a step without any prior, ``v05/baseline_mse/*`` in a step without a
group of two rollouts. All others are there at every step, because the dashboards stack them: counts of prompts by k,
shares of accepted, rejected and missing priors, extra and failed rollouts, 0 where there were none.
"""

from __future__ import annotations

import numpy as np

from verl_v05.advantage import Advantages, baseline_mse
from verl_v05.fusion import Belief
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.step_inputs import StepInputs
from verl_v05.settings import V05Settings

ZERO = 1e-6


def step_metrics(record: StepRecord, inputs: StepInputs, response_tokens: int) -> dict[str, float]:
    """All metrics of one step; shares are of the step's prompts with a rollout unless said otherwise.

    Args:
        inputs: with the estimator's result.
    """
    settings, result = inputs.settings, inputs.result
    k = record.column("k")
    metrics = {
        "k/mean": k.mean(),
        "k/min": k.min(),
        "k/max": k.max(),
        **{f"k/prompts_with_{n}": (k == n).sum() for n in range(settings.k_max + 1)},
        "rounds/mean": record.column("dispatches").mean(),  # sequential dispatches of a prompt
        "rounds/max": record.column("dispatches").max(),
        "extra/asked": record.column("asked").sum(),
        "extra/dispatched": (record.column("spent") - record.column("first")).sum(),
        "extra/padded": record.column("padded").sum(),
        "extra/cut": record.column("cut").sum(),
        "rollouts/spent": record.column("spent").sum(),
        "rollouts/failed": record.column("failed").sum(),
        "rollouts/response_tokens": response_tokens,
        "rollouts/zero_advantage": (np.abs(result.advantage) < ZERO).mean(),  # share that teaches nothing
        **_by_source(record),
        **_sparse_metrics(record),
        **{f"states/{name}": value for name, value in record.state_metrics.items()},
        **_prior_metrics(record, inputs.belief.prior, result),
        **_fusion_metrics(inputs.belief, result, settings),
        **_baseline_errors(inputs),
        **{f"calibration/{name}": value for name, value in record.fusion_metrics.items()},
    }
    return {f"v05/{name}": float(value) for name, value in metrics.items()}


def _by_source(record: StepRecord) -> dict[str, float]:
    spent: dict[str, float] = {}
    for group in record.groups:
        spent[group.query.data_source] = spent.get(group.query.data_source, 0) + group.spent
    return {f"rollouts/source/{source}": count for source, count in spent.items()}


def _sparse_metrics(record: StepRecord) -> dict[str, float]:
    expected = record.column("expected")
    if np.isnan(expected).all():
        return {}
    skipped, prior = record.column("spent") == 0, record.column("prior")
    return {
        "sparse/looked_at": len(record.groups),
        "sparse/skipped_solved": (skipped & (prior > 0)).sum(),  # more likely right than wrong
        "sparse/skipped_hopeless": (skipped & (prior <= 0)).sum(),
        "sparse/expected_min": expected.min(),  # below 1 it is the chance to get a rollout at all
        "sparse/expected_max": expected.max(),
    }


def _prior_metrics(record: StepRecord, prior: np.ndarray, result: Advantages) -> dict[str, float]:
    """``prior`` is that of the groups with a scored rollout; those without count in the shares too."""
    known = ~np.isnan(prior)
    accepted = known & (result.bias_sq == 0)
    dispatched = record.column("spent") > 0
    groups = dispatched.sum()
    metrics = {
        "prior/accepted": accepted.sum() / groups,
        "prior/rejected": (known & ~accepted).sum() / groups,
        "prior/missing": np.isnan(record.column("fitted_prior"))[dispatched].mean(),
        "prior/unanswered": np.isnan(record.column("probability")).mean(),  # no probability, history may stand in
        "prior/latency_s": record.prior_latency_s,
        "prior/wait_s": record.prior_wait_s,  # the part of the latency on the critical path
        "prior/failures": record.prior_failures,
        **{f"prior/{name}": value for name, value in record.prior_metrics.items()},
    }
    if known.any():
        metrics["prior/mean"] = prior[known].mean()
        metrics["prior/gap"] = np.abs(prior - result.mean_reward)[known].mean()  # mean |V - mean reward|
    return metrics


def _fusion_metrics(belief: Belief, result: Advantages, settings: V05Settings) -> dict[str, float]:
    metrics = {
        "fusion/weight": result.weight.mean(),
        "fusion/baseline": result.baseline.mean(),
        "fusion/mean_reward": result.mean_reward.mean(),
        "fusion/sigma": result.sigma.mean(),
        "fusion/sigma_at_floor": (result.sigma <= settings.sigma_floor).mean(),
    }
    if not np.isnan(belief.strength).all():
        metrics["fusion/strength"] = np.nanmean(belief.strength)  # rollouts the prior is worth
    return metrics


def _baseline_errors(inputs: StepInputs) -> dict[str, float]:
    rows = inputs.rows
    fused, mean = baseline_mse(rows.rewards, rows.session_group, inputs.belief, inputs.fusion)
    return {} if np.isnan(fused) else {"baseline_mse/fused": fused, "baseline_mse/group_mean": mean}
