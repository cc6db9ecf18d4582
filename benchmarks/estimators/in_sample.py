"""What it costs to fit the empirical-Bayes belief to the step whose baselines use it, at 32 and at 2,048 prompts.

`python -m benchmarks.estimators.in_sample` plays a calibration over steps of new prompts, p ~ Beta(0.6, 0.6) with a
prior of logit p + N(0, 1.5), and compares, in the first step and in the eleventh, the belief from before the step with
the one fitted to it:

- ``error``: mean squared error of the plain baseline against the true mean reward, fitted over opening;
- ``shift``: covariance of a leave-one-out baseline with the rollout's own reward over the reward's variance. It is 0
  for a baseline that does not depend on the rollout; the prompt's gradient is scaled by one minus this.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from value_model.conversions import reward_of_success
from verl_v05 import Belief, leave_one_out
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion

MEASURED = (1, 11)  # steps
REPEATS = {32: 1000, 2048: 40}
ROLLOUTS = (1, 4)


def one_run(prompts: int, k: int, last: int, seed: int) -> dict[str, float]:
    """The measures of one run's last step."""
    rng = np.random.default_rng([seed, prompts, k])
    fusion = EmpiricalBayesFusion()
    for step in range(last):
        rate = np.clip(rng.beta(0.6, 0.6, prompts), 1e-9, 1 - 1e-9)
        probability = expit(logit(rate) + rng.normal(0, 1.5, prompts))
        rewards = reward_of_success((rng.random((prompts, k)) < rate[:, None]).astype(float))
        names = [f"{step}-{i}" for i in range(prompts)]
        opening = fusion.believe(names, probability)
        fitted = fusion.learn(names, probability, (rewards > 0).sum(axis=1).astype(float), np.full(prompts, k))
    truth, mean = reward_of_success(rate), rewards.mean(axis=1)

    def error(belief: Belief) -> float:
        return float(((fusion.fuse(mean, np.full(prompts, k), belief).baseline - truth) ** 2).mean())

    def shift(belief: Belief) -> float:
        group = np.repeat(np.arange(prompts), k)
        baseline = leave_one_out(rewards.ravel(), group, belief, fusion)
        own = rewards.ravel() - truth[group]
        return float((baseline * own).mean() / (1 - truth**2).mean())

    return {
        "error opening": error(opening),
        "error fitted": error(fitted),
        "shift": shift(fitted) - shift(opening),  # that of the opening belief is 0 in expectation
    }


def table(sizes: Sequence[int], scale: float = 1.0) -> pd.DataFrame:
    """Means over runs, with 95 % intervals, by prompts, rollouts and step."""
    rows = []
    for prompts, k, last in product(sizes, ROLLOUTS, MEASURED):
        runs = pd.DataFrame([one_run(prompts, k, last, seed) for seed in range(int(REPEATS[prompts] * scale))])
        rows.append(
            {
                "prompts": prompts,
                "k": k,
                "step": last,
                "error, fitted over opening": runs["error fitted"].mean() / runs["error opening"].mean(),
                "shift by the fit": f"{runs['shift'].mean():+.4f} ± {1.96 * runs['shift'].sem():.4f}",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs to play")
    print(table(tuple(REPEATS), parser.parse_args().scale).to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
