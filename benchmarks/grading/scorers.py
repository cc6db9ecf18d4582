"""The scorers that are compared: this project's grader, math-verify, and verl's."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
from rich.console import Console

from verl_v05.grading import GradingPool

OUR = "verl_v05"

Scorer = Callable[[str, str], bool]  # of a response and the gold


def plain_math_verify(delimited: bool) -> Scorer:
    """As the library's README has it: parse both, verify; golds bare as published or between dollars."""
    from math_verify import parse, verify

    return lambda response, gold: verify(parse(f"${gold}$" if delimited else gold), parse(response))


def verl_math_verify() -> Scorer:
    """What verl runs in its subprocesses."""
    # Without the subprocesses: the verdicts are the same, and the imports are paid once.
    from verl.utils.reward_score.math_verify import _verify_in_subprocess

    return lambda response, gold: _verify_in_subprocess(f"\\boxed{{{gold}}}", response) > 0


def verl_scorer(module: str) -> Scorer:
    """Of ``verl.utils.reward_score``."""
    compute_score = importlib.import_module(f"verl.utils.reward_score.{module}").compute_score
    if module == "math_dapo":
        return lambda response, gold: compute_score(response, gold)["acc"]
    if module == "prime_math":
        return lambda response, gold: compute_score(response, gold)[0]
    return lambda response, gold: compute_score(response, gold) > 0


# Functions, called in the process that uses the scorer: the libraries are slow to import and keep state in signals.
SCORERS: dict[str, Callable[[], Scorer]] = {
    "math-verify, bare gold": lambda: plain_math_verify(False),
    "math-verify, $gold$": lambda: plain_math_verify(True),
    "verl math_verify": verl_math_verify,
    "verl math_dapo": lambda: verl_scorer("math_dapo"),
    "verl math_reward": lambda: verl_scorer("math_reward"),
    "verl prime_math": lambda: verl_scorer("prime_math"),
}


def judge(name: str, pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    """Verdicts of one of ``SCORERS`` on (response, gold) pairs, and its seconds."""
    scorer = SCORERS[name]()
    started, verdicts = time.perf_counter(), []
    # The scorers print and warn, thousands of lines in all.
    with open(os.devnull, "w") as void:
        os.dup2(void.fileno(), 1)
        os.dup2(void.fileno(), 2)
    for pair in pairs:
        try:
            verdicts.append(bool(scorer(*pair)))
        except Exception:  # verl gives no reward where its scorer raises
            verdicts.append(False)
    return verdicts, time.perf_counter() - started


def grade_all(cases: pd.DataFrame, workers: int) -> tuple[pd.DataFrame, float]:
    """The cases with our verdicts and failures, and grades a second."""
    pairs = list(zip(cases["response"], cases["gold"], strict=True))
    with GradingPool(workers=workers) as pool:
        pool.grade_many([("\\boxed{x+y}", "y-x")] * workers)  # start-up is not timed
        started = time.perf_counter()
        verdicts = pool.grade_many(pairs)
        rate = len(pairs) / (time.perf_counter() - started)
    return cases.assign(
        **{OUR: [v.correct for v in verdicts], "failure": [v.failure or "compared" for v in verdicts]}
    ), rate


def judge_all(
    cases: pd.DataFrame, scorers: Sequence[str], workers: int, console: Console
) -> tuple[pd.DataFrame, pd.Series]:
    """The cases with a column of verdicts for each scorer, and grades a second of each."""
    pairs = list(zip(cases["response"], cases["gold"], strict=True))
    context = multiprocessing.get_context("spawn")
    seconds = {}
    # A process for each scorer: some set signal handlers, which needs a main thread that nothing else uses.
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as executor:
        futures = {name: executor.submit(judge, name, pairs) for name in scorers}
        for name, future in futures.items():
            verdicts, seconds[name] = future.result()
            cases = cases.assign(**{name: verdicts})
            console.print(f"{name}: {seconds[name]:.0f} s")
    return cases, len(pairs) / pd.Series(seconds, dtype=float)
