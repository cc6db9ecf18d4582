"""Generate and grade the responses of a queue, store them, and show the progress."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.bench.engine import SglangEngine
from benchmarks.bench.problems import Problem
from benchmarks.bench.queue import Request, process_requests
from benchmarks.bench.samples import Sample, SampleStore
from verl_v05.grading import GradingPool


def progress(console: Console) -> Progress:
    """Samples done of all, tokens a second, accuracy so far, time left."""
    return Progress(
        TextColumn("samples"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} tokens/s  accuracy so far {task.fields[accuracy]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def generate_and_grade(
    queue: Sequence[Request],
    finished: Sequence[Sample],
    prompts: Mapping[Problem, Sequence[int]],
    engine: SglangEngine,
    store: SampleStore,
    in_flight: int,
    graders: int,
    console: Console,
) -> None:
    """Process the queue into the store; ``finished`` samples of earlier sessions count in the progress."""
    started, tokens, right = time.perf_counter(), 0, sum(s.correct for s in finished)
    with GradingPool(workers=graders) as pool, progress(console) as bars:
        total = len(finished) + len(queue)
        bar = bars.add_task("", total=total, completed=len(finished), rate=0.0, accuracy=float("nan"))

        def keep(sample: Sample) -> None:
            nonlocal tokens, right
            store.append(sample)
            tokens += sample.tokens
            right += sample.correct
            bars.advance(bar)
            rate = tokens / (time.perf_counter() - started)
            bars.update(bar, rate=rate, accuracy=right / bars.tasks[bar].completed)

        engine.run(process_requests(queue, prompts, engine, pool.submit, keep, in_flight, store.session))
