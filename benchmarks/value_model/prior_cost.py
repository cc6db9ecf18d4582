"""What asking the value model costs: seconds, prompts a second and memory of a step's priors.

`python -m benchmarks.value_model.prior_cost --out runs/prior_cost` asks a real pool of replicas for a step of 2,048
prompts with a context of 256, cold (every prompt new) and warm (every prompt embedded before), several times.
`--released-shape N` also measures a network of the released V0's shape with random weights on N prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import ray
import torch
from rich.console import Console
from rich.progress import track
from transformers import Qwen3Config, Qwen3Model

from recipes.demo.task import LEVELS, problems_of
from value_model.files import write_text
from verl_v05.check_gpu.policy import SHAPE
from verl_v05.prior import Outcome, Query
from verl_v05.prior.value_model import ValueModelPrior

# Qwen3-Embedding-0.6B.
RELEASED = {"vocab_size": 151669, **SHAPE}
TOKENS = 128  # of a prompt: DAPO-Math's mean is about 100


def step_of(prompts: int, number: int, rng: np.random.Generator) -> list[Query]:
    """Distinct prompts of the demo's kind; another ``number``, other prompts."""
    problems = [p.prompt for level in LEVELS for p in problems_of(level)]
    texts = [f"{text} #{number}.{i}" for i, text in enumerate(rng.choice(problems, prompts))]
    return [Query(text, text, "cost") for text in texts]


def measure(prior: ValueModelPrior, prompts: int, context: int, number: int) -> list[dict[str, float | str]]:
    """Seconds of one cold and one warm call."""
    rng = np.random.default_rng(number)
    queries = step_of(prompts, number, rng)
    known = [Outcome(q, float(rng.random()), 4) for q in step_of(context, -number - 1, rng)]
    rows = []
    for state in ("cold", "warm"):
        started = time.perf_counter()
        answers = prior.predict(queries, known, step=number)
        seconds = time.perf_counter() - started
        assert np.isfinite(answers).all()
        own = prior.metrics()
        rows.append({"cache": state, "seconds": seconds, "embedding": own["embed_s"], "prompts/s": prompts / seconds})
    return rows


def replica_memory() -> float:
    """MiB that are the replica's own (unique set size)."""
    own = psutil.Process().children(recursive=True)  # other runs on the machine may have replicas too
    found = [p for p in own if "ray::Replica" in " ".join(p.cmdline())]
    return sum(p.memory_full_info().uss for p in found) / 2**20


def released_shape(prompts: int) -> dict[str, float]:
    """Seconds a prompt of an encoder of the released size, random weights, float32, on this machine."""
    network = Qwen3Model(Qwen3Config(**RELEASED)).eval()
    ids = torch.randint(RELEASED["vocab_size"], (prompts, TOKENS))
    with torch.inference_mode():
        network(ids[:1])
        started = time.perf_counter()
        for row in track(ids, "encoder of the released shape"):
            network(row[None])
        seconds = (time.perf_counter() - started) / prompts
    matrices = sum(p.numel() for n, p in network.named_parameters() if "embed" not in n)
    flop = 2.0 * matrices * TOKENS
    return {"s a prompt": seconds, "GFLOP a prompt": flop / 1e9, "GFLOP/s here": flop / seconds / 1e9}


def spread(values: pd.Series) -> str:
    """Median and range."""
    return f"{values.median():.3g} ({values.min():.3g} to {values.max():.3g})"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; without it the small model of the package")
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--released-shape", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("runs/prior_cost"))
    args = parser.parse_args(argv)
    console = Console()
    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=400_000_000, log_to_driver=False)
    prior = ValueModelPrior(model=args.model)
    started = time.perf_counter()
    prior.start()
    loading = time.perf_counter() - started
    measure(prior, args.prompts, args.context, 0)  # to warm up
    rows = [r for n in range(args.repeats) for r in measure(prior, args.prompts, args.context, n + 1)]
    memory = replica_memory()
    prior.close()
    ray.shutdown()

    table = pd.DataFrame(rows).groupby("cache").agg(spread).reset_index()
    lines = [
        f"{args.prompts} prompts, context {args.context}, one replica, {args.repeats} repeats: median (range)",
        "",
        table.to_markdown(index=False),
        "",
        f"loading {loading:.1f} s; replica's own memory {memory:.0f} MiB; {torch.get_num_threads()} threads",
    ]
    if args.released_shape:
        values = released_shape(args.released_shape)
        lines += ["", f"Encoder of the released shape, {TOKENS} tokens a prompt, float32, random weights:", ""]
        lines += [pd.DataFrame([values]).round(2).to_markdown(index=False)]
    write_text(args.out / "cost.md", "\n".join(lines) + "\n")
    console.print("\n".join(lines))


if __name__ == "__main__":
    main()
