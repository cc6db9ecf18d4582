"""Steps recorded with version 0.1 play out the same: rollouts, rewards, advantages, metrics and state.

``data/recorded_steps.json.gz`` holds, for each case, four steps of twelve prompts whose n-th rollout has a fixed
reward, as version 0.1's allocator, estimator and metrics answered them, and the checkpoint state after them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from verl_v05.estimators.v05 import StepInputs, compute_v05_outcome_advantage, step_inputs
from verl_v05.prior import Query
from verl_v05.rollout.allocator import Allocator
from verl_v05.rollout.rows import match_rows
from verl_v05.settings import V05Settings, load_settings
from verl_v05.trainer.checkpoint import FILE, allocator_state, load_state
from verl_v05.trainer.metrics import step_metrics

RECORDED = json.loads(gzip.decompress((Path(__file__).parent / "data" / "recorded_steps.json.gz").read_bytes()))
BAYES = {"fusion": "empirical_bayes", "allocation": "posterior"}
BUDGET = {"cost": 0.0, "halt_share": 0.0, "pad_multiple": 1, "max_rollouts_per_step": 130}
CASES: dict[str, dict[str, Any]] = {
    "rounds": {"halt_share": 0.1, "pad_multiple": 4},
    "streaming": {"schedule": "streaming", "max_rollouts_per_step": 150},
    "to_target": {"schedule": "streaming", "step": "to_target"},
    "fixed_leave_one_out": {"schedule": "fixed", "baseline": "leave_one_out", "group_weighting": "per_rollout"},
    "empirical_bayes": {**BAYES, "schedule": "streaming"},
    "empirical_bayes_budget": {**BAYES, **BUDGET, "schedule": "rounds"},
    "empirical_bayes_osla": {
        "fusion": "empirical_bayes",
        "schedule": "rounds",
        "halt_share": 0.1,
        "pad_multiple": 4,
    },
    "no_prior": {"schedule": "streaming", "prior": {"provider": "none"}},
}
PROMPTS, STEPS = 12, 4
QUERIES = [Query(f"id{i}", f"prompt {i}", "src") for i in range(PROMPTS)]


def settings_of(case: str) -> V05Settings:
    shared = {"prior": {"kwargs": {"min_rollouts": 16}}, "support": {"capacity": 32, "sample": 8}}
    return load_settings(OmegaConf.create({"algorithm": {"v05": shared | CASES[case]}}))


async def play_step(allocator: Allocator, settings: V05Settings, step: int) -> dict[str, Any]:
    """One step of the script, through the allocator, the estimator and the metrics."""
    rng = np.random.default_rng(7)
    rate = [float(rng.beta(0.6, 0.6)) for _ in range(PROMPTS)]
    uids = [f"u{step}-{i}" for i in range(PROMPTS)]
    draws = [np.random.default_rng([step, i]).random(64) < rate[i] for i in range(PROMPTS)]
    await allocator.open_batch(step, uids, QUERIES)

    async def play(i: int) -> list[int]:
        first, extra, scored = 0, settings.k_init, []
        while extra:
            sessions = range(first, first + extra)
            first += extra
            failed = int(i == 3 and 0 in sessions)  # the first rollout of prompt 3 fails in every step
            rewards = {n: 2.0 * draws[i][n] - 1 for n in sessions if not (failed and n == 0)}
            scored += list(rewards)
            extra = await allocator.settle(uids[i], rewards, ["it raised"] * failed)
        return scored

    if settings.schedule == "rounds":  # the others decide group by group: one after the other, for a fixed order
        sessions = await asyncio.gather(*(play(i) for i in range(PROMPTS)))
    else:
        sessions = [await play(i) for i in range(PROMPTS)]
    record = await allocator.close_step(step)
    keys = [f"{uid}_{n}_0" for uid, numbers in zip(uids, sessions, strict=True) for n in numbers]
    rows = match_rows([*keys, "pad0_0_0"], [False] * len(keys) + [True], record)
    inputs = StepInputs(rows, 0.0, settings, allocator.method.fusion)
    mask = torch.ones(len(keys) + 1, 3, dtype=torch.float64)
    mask[-1] = 0
    index = np.array([key.rsplit("_", 2)[0] for key in keys] + ["pad0"])
    with step_inputs(inputs):
        advantages, _ = compute_v05_outcome_advantage(torch.zeros_like(mask), mask, index)
    return {
        "keys": keys,
        "metrics": step_metrics(record, inputs, 3 * len(keys)),
        "rewards": rows.rewards.tolist(),
        "advantages": advantages[:-1, 0].tolist(),
        "baseline": inputs.result.baseline.tolist(),
        "k": [g.k for g in record.groups],
        "spent": [g.spent for g in record.groups],
    }


async def play_all(case: str) -> tuple[list[dict[str, Any]], Allocator]:
    settings = settings_of(case)
    allocator = Allocator(settings)
    await allocator.start(())
    return [await play_step(allocator, settings, step) for step in range(1, STEPS + 1)], allocator


def same(found: Any, recorded: Any, where: str) -> None:
    """Equal but for rounding; NaN is recorded as null."""
    if isinstance(recorded, dict):
        assert set(found) == set(recorded), where
        for key in recorded:
            same(found[key], recorded[key], f"{where}.{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for i, value in enumerate(recorded):
            same(found[i], value, f"{where}[{i}]")
    elif isinstance(recorded, float) or recorded is None:
        assert (recorded is None and math.isnan(found)) or found == pytest.approx(recorded, rel=1e-9, abs=1e-12), where
    else:
        assert found == recorded, where


@pytest.mark.parametrize("case", CASES)
def test_steps_play_out_as_recorded(case: str) -> None:
    steps, _ = asyncio.run(play_all(case))
    for step, recorded in zip(steps, RECORDED[case]["steps"], strict=True):
        found, metrics = step.pop("metrics"), recorded["metrics"]
        same(step, {name: value for name, value in recorded.items() if name != "metrics"}, case)
        # Metrics of what a run does not have were 0, and are absent.
        assert all(metrics[name] == 0 for name in metrics.keys() - found.keys())
        shared = metrics.keys() & found.keys()
        same({name: found[name] for name in shared}, {name: metrics[name] for name in shared}, case)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_the_old_format_resumes_where_it_was(case: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(RECORDED[case]["state"]))
    (tmp_path / "v05_cost.json").write_text('{"rollouts": 7, "response_tokens": 21.0, "seconds": 1.5}')
    parts = load_state(tmp_path)
    assert parts["cost"] == {"rollouts": 7, "response_tokens": 21.0, "seconds": 1.5}

    async def resume() -> list[list[float]]:
        allocator = Allocator(settings_of(case))
        await allocator.start(())
        await allocator.load_state_dict(allocator_state(tmp_path, parts, allow_missing=False))
        await allocator.open_batch(STEPS + 1, ["n0", "n1"], [QUERIES[0], Query("new", "never seen", "src")])
        await allocator._batch_of["n0"].prior
        groups = [allocator._group_of[uid] for uid in ("n0", "n1")]
        return [[g.probability, g.prior, g.strength] for g in groups]

    same(asyncio.run(resume()), RECORDED[case]["next"], case)


@pytest.mark.parametrize("case", CASES)
def test_the_state_after_the_steps_is_the_recorded_one(case: str) -> None:
    async def state() -> dict[str, Any]:
        _, allocator = await play_all(case)
        return json.loads(json.dumps(await allocator.state_dict()))

    recorded = dict(RECORDED[case]["state"])
    recorded.pop("format")
    same(asyncio.run(state()), recorded, case)
