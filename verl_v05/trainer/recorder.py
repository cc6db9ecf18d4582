"""What a run leaves behind of each step, in parquet.

``trajectories/step_{n}.parquet``, always: each prompt's mean outcome, what a value model is trained on.
``state_trajectories/step_{n}.parquet``, with ``credit=turn``: the same of the states inside sessions.
``record_dir/step_{n}.parquet``, if asked for: every group's prior, rewards and advantages, enough to replay its maths.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from value_model.conversions import reward_of_success
from value_model.files import replaced
from value_model.trajectories import write_trajectories
from verl_v05.prior.query import Outcome
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.step_inputs import StepInputs
from verl_v05.run_folder import TRAJECTORIES


def write_outcomes(config: DictConfig, step: int, outcomes: Sequence[Outcome], folder: str = TRAJECTORIES) -> Path:
    """Write a step's outcomes beside the run's checkpoints; the model's name is verl's project and experiment."""
    trainer = config.trainer
    rows = [
        {
            "model": f"{trainer.project_name}/{trainer.experiment_name}",
            "step": step,
            "prompt_id": o.query.prompt_id,
            "prompt": o.query.text,
            "data_source": o.query.data_source,
            "successes": o.success * o.k,
            "n": o.k,
        }
        for o in outcomes
    ]
    names = ["model", "step", "prompt_id", "prompt", "data_source"]
    # A prompt that is twice in a batch is one measurement of more rollouts.
    table = pd.DataFrame(rows).groupby(names, as_index=False, sort=False).sum()
    table["score"] = reward_of_success(table["successes"] / table["n"]).clip(-1, 1)  # rounding may leave the interval
    path = Path(trainer.default_local_dir) / folder / f"step_{step}.parquet"
    write_trajectories(table, path)
    return path


def write_step(folder: str | os.PathLike, record: StepRecord, inputs: StepInputs, used: np.ndarray) -> Path:
    """Write ``step_{n}.parquet`` atomically: a row a group with a scored rollout, sessions in order.

    Args:
        inputs: with the estimator's result, the advantages as computed.
        used: advantage of each session as the actor reads it, (S,).
    """
    per_group = [_group_row(record.step, g, inputs, used) for g in range(len(inputs.rows.groups))]
    path = Path(folder) / f"step_{record.step}.parquet"
    with replaced(path) as partial:
        pd.DataFrame(per_group).to_parquet(partial)
    return path


def _group_row(step: int, index: int, inputs: StepInputs, used: np.ndarray) -> dict[str, object]:
    """``prior`` and ``strength`` are what the baseline went by, ``opening_*`` what the allocation did."""
    rows, result, belief = inputs.rows, inputs.result, inputs.belief
    group = rows.groups[index]
    sessions = np.flatnonzero(rows.session_group == index)
    sessions = sessions[np.argsort(rows.session_number[sessions])]
    return {
        "step": step,
        "prompt_id": group.query.prompt_id,
        "prompt": group.query.text,
        "data_source": group.query.data_source,
        "probability": group.probability,
        "prior": belief.prior[index],
        "strength": belief.strength[index],
        "opening_prior": group.prior,
        "opening_strength": group.strength,
        "k": group.k,
        "spent": group.spent,
        "expected": group.expected,  # first rollouts that it could expect, with schedule=sparse
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
