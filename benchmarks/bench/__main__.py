"""mean@16 of a model on the mathematics benchmarks: `python -m benchmarks.bench MODEL`.

MODEL is a folder in Hugging Face's format or a hub id. Finished samples are kept in OUT/samples; the same command
started again asks only for what is missing. Without a GPU a small model answers a sample of the problems.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel

from benchmarks.bench import BenchError
from benchmarks.bench.checkpoint import find_model, fingerprint
from benchmarks.bench.engine import (
    Sampling,
    SglangEngine,
    check_lengths,
    engine_arguments,
    engine_options,
    require_tokenizer,
    tokenize,
)
from benchmarks.bench.generation import generate_and_grade
from benchmarks.bench.problems import BENCHMARKS, Problem, digest, draw, read_benchmark
from benchmarks.bench.queue import requests, stable_seed
from benchmarks.bench.results_page import machine, markdown, measure, requested_samples, throughput, write_result
from benchmarks.bench.samples import SampleStore
from benchmarks.bench.small_model import NAME, make_small_model

RUNS = Path("runs/bench")


@dataclass(frozen=True)
class Amount:
    """Defaults of the command line; None problems is all of a benchmark."""

    problems: int | None
    samples: int
    max_tokens: int


ON_GPU = Amount(problems=None, samples=16, max_tokens=4096)
ON_CPU = Amount(problems=4, samples=4, max_tokens=256)


def parser() -> argparse.ArgumentParser:
    """The command line; a default of None depends on the machine."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    cli.add_argument("model", nargs="?", help=f"folder or hub id; without a GPU {NAME} if left out")
    cli.add_argument("--revision", help="of a hub id")
    cli.add_argument("--data", type=Path, default=Path("data/test"), help="folder of <benchmark>.parquet")
    cli.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS))
    cli.add_argument("--sample", type=int, metavar="N", help=f"N problems of each; all, or {ON_CPU.problems} on a CPU")
    cli.add_argument("--samples", type=int, help=f"responses a problem: {ON_GPU.samples}, or {ON_CPU.samples} on a CPU")
    cli.add_argument("--max-tokens", type=int, help=f"{ON_GPU.max_tokens}, or {ON_CPU.max_tokens} on a CPU")
    cli.add_argument("--temperature", type=float, default=Sampling.temperature)
    cli.add_argument("--top-p", type=float, default=Sampling.top_p)
    cli.add_argument("--seed", type=int, default=Sampling.seed)
    cli.add_argument("--deterministic", action="store_true", help="a seed for each response; slower, GPU only")
    cli.add_argument("--tp", type=int, default=1, help="GPUs a replica of the model")
    cli.add_argument("--dp", type=int, help="replicas; as many as the GPUs allow")
    cli.add_argument("--in-flight", type=int, help="requests at the engine; twice what it can run at a time")
    cli.add_argument("--graders", type=int, default=max(1, min(8, (os.cpu_count() or 1) // 2)))
    engine = {"nargs": "*", "action": "extend", "default": [], "metavar": "KEY=VALUE"}
    cli.add_argument("--engine", help="sglang's own arguments, such as mem_fraction_static=0.8", **engine)
    cli.add_argument("--out", type=Path, help="runs/bench/<name of the model>")
    return cli


def choose_amount(args: argparse.Namespace, default: Amount) -> Amount:
    """The amounts of the command line, with defaults for those not given.

    Raises:
        BenchError: out of range.
    """
    for name in ("sample", "samples", "max_tokens", "in_flight", "graders"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BenchError(f"--{name.replace('_', '-')}={value} must be at least 1")
    return Amount(
        problems=default.problems if args.sample is None else args.sample,
        samples=args.samples or default.samples,
        max_tokens=args.max_tokens or default.max_tokens,
    )


def grader_fingerprint() -> str:
    """Hash of the grader's code and libraries; samples of different graders must not be mixed."""
    total = hashlib.sha256(f"{version('math-verify')} {version('sympy')}".encode())
    for path in sorted(Path(str(files("verl_v05.grading"))).rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def measurement_fingerprint(
    model: Path, sampling: Sampling, benchmarks: Mapping[str, Sequence[Problem]]
) -> dict[str, Any]:
    """What must not change between sessions that share a folder: nested, for messages about what differs."""
    return {
        "model": fingerprint(model),
        "sampling": asdict(sampling),
        "grader": grader_fingerprint(),
        "data": {name: digest(problems) for name, problems in benchmarks.items()},
    }


def announce(model: str, amount: Amount, args: argparse.Namespace, console: Console) -> None:
    """Print what a machine without a GPU measures instead."""
    console.print(
        Panel(
            f"model        {model}\n"
            f"problems     {amount.problems} of each of {', '.join(args.benchmarks)}\n"
            f"responses    {amount.samples} a problem, of at most {amount.max_tokens} tokens\n"
            f"On a GPU: all problems, {ON_GPU.samples} responses, {ON_GPU.max_tokens} tokens; "
            "--sample, --samples and --max-tokens change it",
            title="No GPU: a sample on the CPU, which shows that it works and measures little",
            style="yellow",
        )
    )


def bench(args: argparse.Namespace, console: Console) -> None:
    """Measure, and write the result.

    Raises:
        BenchError: what is asked cannot be done.
    """
    started, startup = time.perf_counter(), 0.0
    gpus = torch.cuda.device_count()
    amount = choose_amount(args, ON_GPU if gpus else ON_CPU)
    sampling = Sampling(args.temperature, args.top_p, amount.max_tokens, args.seed, args.deterministic)
    name = args.model or NAME
    if not gpus:
        announce(name, amount, args, console)
    elif args.model is None:
        raise BenchError("no model: pass a folder in Hugging Face's format or a hub id")
    arguments = engine_arguments(sampling.deterministic, args.tp, args.dp, gpus)
    arguments |= engine_options(args.engine)

    whole = {b: read_benchmark(args.data, b) for b in args.benchmarks}
    drawn = {b: draw(problems, amount.problems, args.seed) for b, problems in whole.items()}
    asked = requests(drawn, amount.samples, args.seed)
    folder = find_model(args.model, args.revision) if args.model else make_small_model(RUNS / "models" / NAME, console)
    require_tokenizer(folder)  # here: the fingerprint reads all weights, and the engine takes minutes to start
    identity = measurement_fingerprint(folder, sampling, whole)
    out = args.out or RUNS / Path(name).name
    with closing(SampleStore(out, identity)) as store:
        queue = [r for r in asked if r.key not in store.finished]
        finished = [store.finished[r.key] for r in asked if r.key in store.finished]
        console.print(f"{out}: {len(finished)} of {len(asked)} samples are there, {len(queue)} to be asked")
        if queue:
            prompts = tokenize(folder, (r.problem for r in queue))
            with SglangEngine(folder, sampling, stable_seed(args.seed, store.session), arguments) as engine:
                startup = time.perf_counter() - started
                check_lengths(prompts, amount.max_tokens, engine.longest)
                in_flight = args.in_flight or 2 * engine.capacity
                generate_and_grade(queue, finished, prompts, engine, store, in_flight, args.graders, console)
        table = requested_samples(store.finished, asked)
    result = {
        "model": name,
        "sample": any(len(drawn[b]) < len(whole[b]) for b in whole),
        "samples": amount.samples,
        "drawn": {b: f"{len(drawn[b])} of {len(whole[b])}" for b in whole},
        "sampling": identity["sampling"],
        "benchmarks": measure(table, amount.samples, args.seed),
        "run": {
            **throughput(table),
            "startup_seconds": round(startup, 1),
            "wall_seconds": round(time.perf_counter() - started, 1),
        },
        "machine": machine(),
        "engine": arguments,
        "fingerprint": identity,
    }
    write_result(out, result, table)
    console.print(markdown(result), markup=False, soft_wrap=True)
    console.print(f"written: {out}/result.json, .md, .csv", markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    args = parser().parse_args(argv)
    try:
        bench(args, Console())
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("bench: interrupted; the same command goes on with what is missing") from None


if __name__ == "__main__":
    main()
