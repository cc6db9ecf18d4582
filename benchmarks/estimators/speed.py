"""``python -m benchmarks.estimators.speed``: what the method's arithmetic costs, beside verl's GRPO on the same rows.

Two functions are timed in turns in one process, so that whatever else the machine does happens to both.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from verl.trainer.ppo.core_algos import (
    compute_grpo_outcome_advantage,
    compute_grpo_vectorized_outcome_advantage,
)

from value_model.conversions import probability_of_value, success_of_reward, value_of_probability
from value_model.files import write_text
from verl_v05.advantage import advantages
from verl_v05.allocation import extra_rollouts, hand_out, posterior_gain, posterior_target, rollout_target
from verl_v05.calibration import Calibration, Evidence
from verl_v05.estimators.v05 import StepInputs, compute_v05_outcome_advantage, step_inputs
from verl_v05.fusion import fuse_beta, posterior_variance, squared_bias
from verl_v05.fusion.empirical_bayes import EmpiricalBayesFusion
from verl_v05.method import Method
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.rows import StepRows
from verl_v05.settings import V05Settings

TEMPLATE = Path(__file__).parent / "speed_page.md"
K = (4, 16)  # sizes of groups
ROWS = (8192, 131072)
PROMPTS, FEW_TOKENS = 2048, 16
CALLS = 20  # of a decision, for one of an advantage
STRENGTH = 4.0  # of every prior, in rollouts
FUSION = EmpiricalBayesFusion()
ADVANTAGE_TARGET = 0.2  # of verl's time
DECISION_TARGET_MS = 1.0
Work = Callable[[], object]


def paired(ours: Work, theirs: Work, repeats: int) -> pd.DataFrame:
    """Seconds of each, called in turns: columns ``ours`` and ``theirs``, one row a turn; the first turn is left out."""
    ours(), theirs()
    return pd.DataFrame({"ours": _seconds(ours), "theirs": _seconds(theirs)} for _ in range(repeats))


def step_of(rows: int, seed: int) -> tuple[StepRows, np.ndarray]:
    """About ``rows`` rollouts in groups of ``K``, with a Beta prior each, and the uid of each row."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(K[0], K[1] + 1, size=round(2 * rows / sum(K)))
    rate = rng.beta(0.5, 0.5, len(sizes))
    group = np.repeat(np.arange(len(sizes)), sizes)
    number = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rewards = np.where(rng.random(len(group)) < rate[group], 1.0, -1.0)
    believed = {"strength": STRENGTH, "fitted_strength": STRENGTH}
    groups = [
        Group(f"u{i}", Query(f"p{i}", "", "speed"), int(k), v, fitted_prior=v, **believed)
        for i, (k, v) in enumerate(zip(sizes, value_of_probability(rate), strict=True))
    ]
    for g, session, reward in zip(group, number, rewards, strict=True):
        groups[g].rewards[int(session)] = float(reward)
    row = np.arange(len(group))
    rows = StepRows(row, np.zeros_like(row), row, group, number, rewards, groups)
    return rows, np.array([f"u{g}" for g in group], dtype=object)


def advantage_times(rows: int, tokens: int, repeats: int, seed: int, device: str = "cpu") -> list[dict[str, str]]:
    """Our advantages beside verl's: the arrays alone, and the registered estimators with their (R, T) products."""
    step, index = step_of(rows, seed)
    rewards = torch.zeros(len(index), tokens, device=device)
    rewards[:, -1] = torch.as_tensor(step.rewards, device=device)
    mask = torch.ones(len(index), tokens, device=device)
    verl = partial(compute_grpo_outcome_advantage, rewards, mask, index)
    vectorised = partial(compute_grpo_vectorized_outcome_advantage, rewards, mask, index)
    belief = step.opening_belief

    def estimator(baseline: str) -> object:
        with step_inputs(StepInputs(step, 0.0, V05Settings(fusion="empirical_bayes", baseline=baseline), FUSION)):
            return compute_v05_outcome_advantage(rewards, mask, index)

    compared = [
        ("estimator, empirical Bayes", partial(estimator, "plain"), verl),
        ("estimator, empirical Bayes, leave-one-out", partial(estimator, "leave_one_out"), verl),
        ("estimator, empirical Bayes", partial(estimator, "plain"), vectorised),
    ]
    if tokens == FEW_TOKENS:  # else verl's product with the mask is what is timed
        alone = partial(advantages, step.rewards, step.session_group, belief.prior)
        beta = partial(advantages, step.rewards, step.session_group, belief, fusion=FUSION)
        compared = [("`advantages`, Eq. 9", alone, verl), ("`advantages`, empirical Bayes", beta, verl), *compared]
    found = []
    for name, ours, theirs in compared:
        seconds = paired(ours, theirs, repeats)
        ratio = seconds["ours"] / seconds["theirs"]
        against = theirs.func.__name__
        row = {"ours": name, "verl's": f"`{against}`", "rows": f"{len(index):,}", "tokens": str(tokens)}
        row |= {"ours, ms": _ms(seconds["ours"]), "verl's, ms": _ms(seconds["theirs"]), "ratio": _spread(ratio)}
        bound = f"≤ {ADVANTAGE_TARGET}: {_met(ratio.median() <= ADVANTAGE_TARGET)}" if theirs is verl else ""
        found.append(row | {"target": bound})
    return found


def decision_times(repeats: int, seed: int) -> list[dict[str, str]]:
    """One allocation decision and one fit for a step of ``PROMPTS`` prompts."""
    step, _ = step_of(PROMPTS * sum(K) // 2, seed)
    k = np.array([g.k for g in step.groups])
    mean = np.array([g.mean_reward for g in step.groups])
    (prior, strength), successes = step.opening_belief, success_of_reward(mean) * k
    evidence = Evidence(probability_of_value(prior), np.zeros(len(k)), np.zeros(len(k)))
    s, start = V05Settings(), Calibration.start()
    schedule = Method.from_settings(s).open(step.groups)
    calibration = start.fit(evidence, successes, k)
    ask = partial(extra_rollouts, k, k, k_max=s.k_max, step=s.rollouts_per_ask)

    def variance() -> np.ndarray:
        return posterior_variance(fuse_beta(mean, k, prior, strength).baseline, k, strength)

    def plan() -> object:
        v, n = variance(), k + strength
        return hand_out(len(k), s.k_max - k, lambda i, nth: posterior_gain(v[i], n[i], nth))

    timed = {
        "OSLA: bias, target, rollouts asked for": lambda: ask(rollout_target(squared_bias(mean, k, prior), s.cost)),
        "posterior: variance, target, rollouts asked for": lambda: ask(
            posterior_target(variance(), k + strength, k, s.cost)
        ),
        "posterior under a budget: variance, division of one more rollout a prompt": plan,
        "the schedule's view of its groups, OSLA": partial(schedule.demand, step.groups),
        "calibration: fit to the step, from the last step's": partial(calibration.fit, evidence, successes, k),
        "calibration: the first fit": partial(start.fit, evidence, successes, k),
    }
    found = []
    for number, (name, work) in enumerate(timed.items()):
        work()
        seconds = pd.Series([_seconds(work) for _ in range(repeats)])
        target = (
            f"< {DECISION_TARGET_MS:g} ms: {_met(1000 * seconds.median() < DECISION_TARGET_MS)}" if number < 3 else ""
        )
        found.append({"for 2,048 prompts": name, "ms": _ms(seconds), "target": target})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TEMPLATE.parent / "speed.md")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the batch that verl's estimators are given: cpu or cuda")
    parser.add_argument("--rows", type=int, default=ROWS[-1], help="leave out batches of more rows")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shapes = [(ROWS[0], FEW_TOKENS), (ROWS[0], 1024), (ROWS[1], FEW_TOKENS)]
    shapes = [shape for shape in shapes if shape[0] <= args.rows]
    advantage = [
        row
        for shape in track(shapes, "advantages")
        for row in advantage_times(*shape, args.repeats, args.seed, args.device)
    ]
    decision = decision_times(CALLS * args.repeats, args.seed)
    write_text(args.out, page(pd.DataFrame(advantage), pd.DataFrame(decision), args))
    Console().print(args.out.read_text())


def page(advantage: pd.DataFrame, decision: pd.DataFrame, args: argparse.Namespace) -> str:
    """The page's text."""
    return TEMPLATE.read_text().format(
        repeats=args.repeats,
        seed=args.seed,
        device=args.device,
        smallest=K[0],
        largest=K[1],
        torch_threads=torch.get_num_threads(),
        threads=os.environ.get("OMP_NUM_THREADS", "not set"),
        load=" ".join(f"{load:.1f}" for load in os.getloadavg()),
        machine=platform.machine(),
        python=platform.python_version(),
        numpy=np.__version__,
        torch=torch.__version__,
        advantage=advantage.to_markdown(index=False, disable_numparse=True),
        calls=CALLS * args.repeats,
        decision=decision.to_markdown(index=False, disable_numparse=True),
    )


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_initialized():  # else a GPU's work would be counted in a later call
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _ms(seconds: pd.Series) -> str:
    return _spread(1000 * seconds)


def _spread(values: pd.Series) -> str:
    return f"{values.median():.3g} ({values.min():.3g} to {values.max():.3g})"


def _met(met: bool) -> str:
    return "yes" if met else "no"


if __name__ == "__main__":
    main()
