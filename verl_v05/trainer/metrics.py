"""The ``v05/`` metrics of a step. Every key is present at every step, so dashboards stay dense."""

from __future__ import annotations

import numpy as np

from verl_v05.advantage import Advantages, baseline_mse
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import StepRows
from verl_v05.settings import V05Settings


def step_metrics(
    record: StepRecord, rows: StepRows, result: Advantages, settings: V05Settings, response_tokens: int
) -> dict[str, float]:
    """All metrics of one step; shares are of the step's prompts unless said otherwise."""
    k = record.column("k")
    metrics = {
        "k/mean": k.mean(),
        "k/min": k.min(),
        "k/max": k.max(),
        **{f"k/prompts_with_{n}": (k == n).sum() for n in range(settings.k_max + 1)},
        "rounds/mean": record.column("dispatches").mean(),  # sequential dispatches of a prompt
        "rounds/max": record.column("dispatches").max(),
        "extra/asked": record.column("asked").sum(),
        "extra/dispatched": (record.column("spent") - settings.k_init).sum(),
        "extra/padded": record.column("padded").sum(),
        "extra/cut": record.column("cut").sum(),
        "rollouts/spent": record.column("spent").sum(),
        "rollouts/failed": record.column("failed").sum(),
        "rollouts/response_tokens": response_tokens,
        **_prior_metrics(record, rows, result),
        **_baseline_metrics(rows, result, settings),
        **{f"calibration/{name}": value for name, value in record.belief_metrics.items()},
    }
    return {f"v05/{name}": float(value) for name, value in metrics.items()}


def _prior_metrics(record: StepRecord, rows: StepRows, result: Advantages) -> dict[str, float]:
    missing = np.isnan(record.column("prior"))
    known = ~np.isnan(rows.prior)
    accepted = known & (result.bias_sq == 0)
    gap = np.abs(rows.prior - result.mean_reward)[known]
    groups = len(record.groups)
    return {
        "prior/accepted": accepted.sum() / groups,
        "prior/rejected": (known & ~accepted).sum() / groups,
        "prior/missing": missing.mean(),
        "prior/unanswered": np.isnan(record.column("probability")).mean(),  # no probability, history may stand in
        "prior/mean": rows.prior[known].mean() if known.any() else 0.0,
        "prior/gap": gap.mean() if known.any() else 0.0,  # mean |V - mean reward|
        "prior/latency_s": record.prior_latency_s,
        "prior/wait_s": record.prior_wait_s,  # the part of the latency on the critical path
        "prior/failures": record.prior_failures,
        **{f"prior/{name}": value for name, value in record.prior_metrics.items()},
    }


def _baseline_metrics(rows: StepRows, result: Advantages, settings: V05Settings) -> dict[str, float]:
    strength = rows.strength
    fused_mse, mean_mse = np.nan_to_num(baseline_mse(rows.rewards, rows.session_group, rows.prior, strength))
    return {
        "fusion/strength": 0.0 if strength is None else strength.mean(),  # rollouts the prior is worth
        "fusion/weight": result.weight.mean(),
        "fusion/baseline": result.baseline.mean(),
        "fusion/mean_reward": result.mean_reward.mean(),
        "fusion/sigma": result.sigma.mean(),
        "fusion/sigma_at_floor": (result.sigma <= settings.sigma_floor).mean(),
        "baseline_mse/fused": fused_mse,
        "baseline_mse/group_mean": mean_mse,
    }
