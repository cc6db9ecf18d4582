"""One parquet a step with every group's prior, rewards and advantages: enough to replay the step's maths."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from verl_v05.advantage import Advantages
from verl_v05.rollout.record import StepRecord
from verl_v05.rows import StepRows


def write_step(
    folder: str | os.PathLike, record: StepRecord, rows: StepRows, result: Advantages, used: np.ndarray
) -> Path:
    """Write ``step_{n}.parquet`` atomically: a row a group with a scored rollout, sessions in order.

    Args:
        used: advantage of each session as the actor reads it, (S,); ``result`` holds it as computed.
    """
    per_group = [_group_row(record.step, g, rows, result, used) for g in range(len(rows.groups))]
    path = Path(folder) / f"step_{record.step}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pd.DataFrame(per_group).to_parquet(partial)
    os.replace(partial, path)
    return path


def _group_row(step: int, index: int, rows: StepRows, result: Advantages, used: np.ndarray) -> dict[str, object]:
    group = rows.groups[index]
    sessions = np.flatnonzero(rows.session_group == index)
    sessions = sessions[np.argsort(rows.session_number[sessions])]
    return {
        "step": step,
        "prompt_id": group.query.prompt_id,
        "prompt": group.query.text,
        "data_source": group.query.data_source,
        "prior": group.prior,
        "k": group.k,
        "spent": group.spent,
        "failed": group.failed,
        "dispatches": group.dispatches,
        "padded": group.padded,
        "mean_reward": result.mean_reward[index],
        "bias_sq": result.bias_sq[index],
        "weight": result.weight[index],
        "baseline": result.baseline[index],
        "sigma": result.sigma[index],
        "rewards": rows.rewards[sessions],
        "advantages": used[sessions],
    }
