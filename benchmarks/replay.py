"""Replay a recorded run through the pure functions: are the advantages the actor used those of the method?

`python -m benchmarks.replay runs/demo/v05_0/record` takes the rewards, priors and k of every step
(``algorithm.v05.record_dir``) and prints how far the recorded advantages, baselines and allocations are from
what the functions give. Settings that were not the defaults are given after the folder, as
`fusion=empirical_bayes allocation=posterior`. (The posterior allocation went by the belief before the step, which is
not recorded, so its decisions are not replayed.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from verl_v05 import advantages
from verl_v05.allocation import rollout_target
from verl_v05.settings import OSLA, SHRINKAGE, V05Settings, load_settings


def replay(groups: pd.DataFrame, settings: V05Settings) -> dict[str, float]:
    """Largest differences of one step; ``groups`` is one of the recorded parquets."""
    rewards = np.concatenate(groups["rewards"].to_list())
    group = np.repeat(np.arange(len(groups)), groups["k"])
    result = advantages(
        rewards,
        group,
        groups["prior"].to_numpy(),
        strength=None if settings.fusion == SHRINKAGE else groups["strength"].to_numpy(),
        baseline=settings.baseline,
        sigma_floor=settings.sigma_floor,
        group_weighting=settings.group_weighting,
    )
    used = np.concatenate(groups["advantages"].to_list())
    # Padding goes beyond the target, so the rule says only who must not have stopped.
    replayed = settings.allocation == OSLA and settings.fusion == SHRINKAGE
    below_target = replayed & (groups["k"] < rollout_target(groups["bias_sq"].to_numpy(), settings.cost))
    return {
        "rollouts": len(rewards),
        "advantage": np.abs(used - result.advantage).max(),
        "advantage in float32": np.abs(used - result.advantage.astype(np.float32)).max(),
        "baseline": np.abs(groups["baseline"] - result.baseline).max(),
        "stopped below target": int((below_target & (groups["spent"] < settings.k_max)).sum()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="folder of step_*.parquet")
    parser.add_argument("settings", nargs="*", help="key=value of algorithm.v05")
    args = parser.parse_args()
    settings = load_settings(OmegaConf.create({"algorithm": {"v05": OmegaConf.from_dotlist(args.settings)}}))
    paths = sorted(args.record.glob("step_*.parquet"), key=lambda p: int(p.stem.split("_")[1]))
    if not paths:
        raise SystemExit(f"no step_*.parquet in {args.record}: train with algorithm.v05.record_dir={args.record}")
    steps = pd.DataFrame([replay(pd.read_parquet(path), settings) for path in paths])
    totals = {"rollouts": steps["rollouts"].sum(), "stopped below target": steps["stopped below target"].sum()}
    print(f"{len(paths)} steps, {totals['rollouts']} rollouts")
    for name in ("advantage", "advantage in float32", "baseline"):
        print(f"largest difference of {name}: {steps[name].max():.3g}")
    print(f"groups that stopped below their target: {totals['stopped below target']}")


if __name__ == "__main__":
    main()
