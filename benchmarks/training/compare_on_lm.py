"""Methods beside each other on a real language model: `SETTING=gpu1 python -m benchmarks.training.compare_on_lm`.

SmolLM2-135M-Instruct (out of a package, 93 MB) goes on with a list of calculations; the demo's arithmetic continues the
list, its levels graded from what the model mostly knows to what it hardly does. At SETTING=cpu it is slow, and there to
try the command: `ROLLOUTS=16 ... --steps 1 data.val_max_samples=16`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.console import Console

from benchmarks.bench.small_model import convert, make_small_model
from benchmarks.dashboard.__main__ import main as draw_dashboard
from benchmarks.training.compare_methods import METHODS, collect
from recipes.demo.task import LEVELS, Problem, split_problems, write_parquet

EXAMPLES = "2+3=5\n14-6=8\n3*4=12\n27+5=32\n"
SIZES = 512, 128  # training and validation problems, less the examples
# Of recipes/paper: examples and problem take 34 tokens, an answer 2 and the end of its line.
OVERRIDES = (
    "data.max_prompt_length=48",
    "data.max_response_length=6",
    "actor_rollout_ref.actor.optim.lr=1e-5",
    "actor_rollout_ref.rollout.engine_kwargs.sglang.max_total_tokens=40000",
)


@dataclass(frozen=True)
class Continued(Problem):
    """A problem of the demo's arithmetic behind examples; the same answer, and the same reward."""

    data_source: ClassVar[str] = Problem.data_source


def continued(problems: Sequence[Problem]) -> list[Continued]:
    """The problems with the examples before them, without those that are examples: their answer would be in sight."""
    shown = {f"{line.partition('=')[0]}=" for line in EXAMPLES.splitlines()}
    return [Continued(p.level, EXAMPLES + p.prompt, p.answer, p.skill_digit) for p in problems if p.prompt not in shown]


def write_task(out: Path, gguf: Path | None, console: Console) -> Path:
    """Write policy, data and overrides as a TASK of recipes/paper, unless they are there.

    Args:
        out: folder, made if there is none.
        gguf: the model's file, for machines without a package index; None gets it from there.

    Raises:
        BenchError: the model could not be had.
    """
    policy = out / "policy"
    if not (out / "overrides.txt").exists():
        if gguf is None:
            make_small_model(policy, console)
        else:
            convert(gguf, policy)
        _end_at_line_ends(policy)
        for split, problems in zip(("train", "val"), split_problems(np.random.default_rng(0), *SIZES), strict=True):
            write_parquet(continued(problems), split, out / f"{split}.parquet")
        (out / "overrides.txt").write_text("".join(f"{line}\n" for line in OVERRIDES))
    return out


def _end_at_line_ends(policy: Path) -> None:
    """The prompt is the text alone, without a chat's marks, and a response is the rest of its line."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ends = [index for token, index in tokenizer.get_vocab().items() if set(token) == {"Ċ"}]  # "\n", "\n\n" and so on
    tokenizer.eos_token = "Ċ"
    tokenizer.save_pretrained(policy)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((policy / name).read_text())
        (policy / name).write_text(json.dumps(config | {"eos_token_id": sorted(ends)}, indent=2))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training.compare_on_lm", description=__doc__.splitlines()[0].partition(": ")[0]
    )
    parser.add_argument("overrides", nargs="*", help="hydra overrides of every run")
    parser.add_argument("--out", type=Path, default=Path("runs/lm"))
    parser.add_argument("--gguf", type=Path, help="the model's file, where there is no package index")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["grpo16", "v05_rounds"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args(argv)
    console = Console()
    task = write_task(args.out / "task", args.gguf, console)
    folders = collect(args.methods, args.out, args.seeds, args.steps, console, lambda *_: args.overrides, task)
    runs = [str(folder) for group in folders.values() for folder in group]
    title = f"Arithmetic in {len(LEVELS)} levels, SmolLM2-135M-Instruct"
    return draw_dashboard([*runs, "--out", str(args.out / "dashboard"), "--title", title])


if __name__ == "__main__":
    raise SystemExit(main())
