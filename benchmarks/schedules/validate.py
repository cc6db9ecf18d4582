"""The simulation beside a real engine: `python -m benchmarks.schedules.validate MODEL --out FOLDER`.

sglang on this machine's CPU runs the same rollouts under the same schedule, with asyncio in the place of the
simulated clock: the workload's rewards and priors, responses of exactly its lengths (scaled down, end of sequence
ignored). The speeds that the simulation takes are measured on that engine before and after each run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.optimize import nnls

from benchmarks.bench.engine import Sampling, SglangEngine, cpu_arguments
from benchmarks.schedules.compared_schedules import LINES
from benchmarks.schedules.decisions import Decisions
from benchmarks.schedules.lengths import load_lengths
from benchmarks.schedules.schedules_page import mean_and_spread
from benchmarks.schedules.simulated_engine import Speed
from benchmarks.schedules.simulation import Fleet, simulate
from benchmarks.schedules.training_step import PAST_SEED
from benchmarks.schedules.workload import Workload, draw_workload, public_rates
from value_model.files import write_text
from verl_v05.settings import V05Settings

TEMPLATE = Path(__file__).parent / "validation_page.md"
NAMES = ("fixed 4", "rounds, step 2, no halt", "streaming, step 2", "streaming, to target")
PROMPT_TOKENS = 16
DECODED = (2, 10, 26)  # response lengths that the speed is measured with


async def generate(engine: SglangEngine, ids: np.ndarray, tokens: int) -> None:
    """A response of exactly ``tokens``."""
    parameters = {"max_new_tokens": tokens, "ignore_eos": True}
    out = await engine.engine.async_generate(input_ids=ids.tolist(), sampling_params=parameters)
    assert out["meta_info"]["completion_tokens"] == tokens


async def play(
    engine: SglangEngine, workload: Workload, prompts: np.ndarray, k_init: int, settled: Callable
) -> tuple[float, int]:
    """(makespan in seconds, rollouts) of a step whose groups ask as verl's workers do."""
    answers: dict[int, asyncio.Future[int]] = {}

    async def run_group(prompt: int) -> int:
        first, extra = 0, k_init
        while extra:
            sessions = range(first, first + extra)
            lengths = workload.tokens[prompt, sessions].tolist()
            await asyncio.gather(*(generate(engine, prompts[prompt], tokens) for tokens in lengths))
            first += extra
            answer = answers[prompt] = asyncio.get_running_loop().create_future()
            for other, more in settled(prompt, sessions).items():
                answers.pop(other).set_result(more)
            extra = await answer
        return first

    started = time.perf_counter()
    counts = await asyncio.gather(*(run_group(prompt) for prompt in range(len(prompts))))
    return time.perf_counter() - started, sum(counts)


def measure_speed(engine: SglangEngine, slots: int, rng: np.random.Generator) -> np.ndarray:
    """(base, each, prefill, way) in seconds; ``way`` is to the engine and back, the same for every request.

    By least squares of relative errors, none below 0, over batches of several sizes and lengths.
    """
    terms, seconds = [], []
    for running in sorted({1, max(1, slots // 4), max(1, slots // 2), slots}):
        for tokens in DECODED:
            prompts = random_prompts(engine, running, rng)
            started = time.perf_counter()
            engine.run(_all(generate(engine, ids, tokens) for ids in prompts))
            seconds.append(time.perf_counter() - started)
            terms.append([tokens - 1, (tokens - 1) * running, running, 1])
    weights = 1 / np.array(seconds)
    return nnls(np.array(terms) * weights[:, None], np.ones(len(terms)))[0]


async def _all(work: Iterable[Coroutine]) -> None:
    await asyncio.gather(*work)


def random_prompts(engine: SglangEngine, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """(prompts, PROMPT_TOKENS) token ids that no earlier request has in the prefix cache."""
    vocabulary = engine.engine.tokenizer_manager.model_config.vocab_size
    return rng.integers(vocabulary // 2, size=(prompts, PROMPT_TOKENS))


def compare(
    engine: SglangEngine, workloads: Sequence[Workload], pasts: Sequence[Workload], slots: int, console: Console
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each seed and line, real beside simulated; and all the speeds that were measured."""
    rng = np.random.default_rng(0)
    measure_speed(engine, slots, rng)  # to warm up
    speeds, rows = [measure_speed(engine, slots, rng)], []
    for seed, (workload, past) in enumerate(zip(workloads, pasts, strict=True)):
        for name in NAMES:
            settings = V05Settings(**LINES[name].settings, pad_multiple=1)
            settled = Decisions(workload, settings, past).settled
            prompts = random_prompts(engine, len(workload.tokens), rng)
            seconds, rollouts = engine.run(play(engine, workload, prompts, settings.k_init, settled))
            speeds.append(measure_speed(engine, slots, rng))
            base, each, prefill, way = ((speeds[-2] + speeds[-1]) / 2).tolist()
            run = simulate(workload, settings, Fleet(Speed(base, each, prefill, slots), 1, way), past, seed)
            row = {"seed": seed, "line": name, "rollouts": rollouts, "simulated rollouts": len(run.tokens)}
            rows.append(row | {"real": seconds, "simulated": run.makespan, "load": os.getloadavg()[0]})
            console.print(rows[-1])
    return pd.DataFrame(rows), pd.DataFrame(speeds, columns=["base", "each", "prefill", "way"])


def page(rows: pd.DataFrame, speeds: pd.DataFrame, command: str) -> str:
    """Markdown."""
    rows = rows.assign(ratio=rows.simulated / rows.real)
    for column in ("real", "simulated"):
        first = rows[rows.line == NAMES[0]].set_index("seed")[column]
        rows[f"{column} ratio"] = rows[column] / rows.seed.map(first)
    summary = rows.groupby("line", sort=False)[["ratio", "real ratio", "simulated ratio"]].agg(mean_and_spread)
    summary.columns = ["simulated / real", f"real makespan / {NAMES[0]}", f"simulated makespan / {NAMES[0]}"]
    return TEMPLATE.read_text().format(
        command=command,
        seeds=rows.seed.nunique(),
        cores=os.cpu_count(),
        least_load=rows.load.min(),
        most_load=rows.load.max(),
        summary=summary.reset_index().to_markdown(index=False),
        runs=rows.drop(columns=["ratio", "real ratio", "simulated ratio"]).round(2).to_markdown(index=False),
        measurements=len(speeds),
        speeds=(1000 * speeds).quantile([0, 0.25, 0.5, 0.75, 1]).T.round(2).to_markdown(),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--slots", type=int, default=32, help="requests running at a time")
    parser.add_argument("--longest", type=int, default=64, metavar="TOKENS", help="that 4,096 tokens are scaled to")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N - 1")
    parser.add_argument("--out", type=Path, default=Path("runs/schedules"))
    args = parser.parse_args(argv)
    lengths, rates = load_lengths("sky-t1-math500", longest=4096, within_prompt=0.4), public_rates(None)

    def draw(prompts: int, seed: int) -> Workload:
        workload = draw_workload(prompts, V05Settings().k_max, rates, lengths, prior_noise=2.0, seed=seed)
        return replace(workload, tokens=np.maximum(1, np.rint(workload.tokens * args.longest / 4096).astype(int)))

    arguments = {**cpu_arguments(), "max_running_requests": args.slots}
    with SglangEngine(args.model, Sampling(), 0, arguments) as engine:
        steps = [draw(args.prompts, seed) for seed in range(args.seeds)]
        pasts = [draw(256, seed + PAST_SEED) for seed in range(args.seeds)]
        rows, speeds = compare(engine, steps, pasts, args.slots, Console())
    options = f"--prompts {args.prompts} --slots {args.slots} --longest {args.longest} --seeds {args.seeds}"
    text = page(rows, speeds, f"python -m benchmarks.schedules.validate {args.model.name} {options}")
    write_text(args.out / "validation.md", text)
    print(text)


if __name__ == "__main__":
    main()
