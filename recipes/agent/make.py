"""Make FrozenLake's prompts and a warmed-up policy: `python -m recipes.agent.make --out DIR --seed 0`.

The folder has what `TASK` of recipes/paper needs: `policy`, `train.parquet`, `val.parquet`, `overrides.txt`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from recipes.agent.frozen_lake import ACTIONS
from recipes.agent.lake import SIZE, Lakes
from recipes.demo.policy import build_model, build_tokenizer, warm_up
from recipes.demo.task import SHAPE, Batch
from value_model.files import write_json, write_text

DATA_SOURCE = "verl_v05/frozen_lake"
TURNS_PER_ROW = 4
STATE_TOKENS = SIZE * (SIZE + 1) - 1
TURN_TOKENS = 2  # an action and the end of the turn
LOOP = Path(__file__).parent / "loop.yaml"


@dataclass(frozen=True)
class Settings:
    """What is made."""

    seed: int = 0
    train_size: int = 512
    val_size: int = 256
    steps: int = 600
    problems_per_step: int = 64
    peak_lr: float = 3e-3
    temperature: float = 0.2  # of the teacher, in units of the best discounted values


def lesson(lakes: Lakes, values: np.ndarray, settings: Settings, rng: np.random.Generator) -> Iterator[Batch]:
    """The teacher's answers to states, each after up to ``TURNS_PER_ROW - 1`` turns of a session that ends in it."""
    chance = np.exp(values / settings.temperature)
    chance /= chance.sum(-1, keepdims=True)
    while True:
        prompts, responses = [], []
        for lake in rng.integers(len(lakes.text), size=settings.problems_per_step):
            state = rng.choice(np.flatnonzero(~lakes.ends[lake]))
            history = ""
            for turn in range(TURNS_PER_ROW):
                action = rng.choice(len(ACTIONS), p=chance[lake, state])
                seen = f"{history}{lakes.state_text(lake, state)}"
                after = lakes.next[lake, state, action]
                if lakes.ends[lake, after] or turn == TURNS_PER_ROW - 1 or rng.random() < 1 / TURNS_PER_ROW:
                    break
                history, state = f"{seen}{ACTIONS[action]}<eos>", after
            prompts.append(seen)
            responses.append(ACTIONS[action])
        yield Batch(prompts, responses, [1.0] * len(prompts))


def rows(lakes: Lakes, chosen: range, split: str) -> pd.DataFrame:
    """verl's rows, a map each."""
    return pd.DataFrame(
        [
            {
                "data_source": DATA_SOURCE,
                "prompt": [{"role": "user", "content": lakes.state_text(i, 0)}],
                "ability": "frozen_lake",
                "reward_model": {"style": "rule", "ground_truth": "goal"},
                "extra_info": {
                    "split": split,
                    "index": i,
                    "problem": lakes.state_text(i, 0),
                    "environment": {"desc": lakes.text[i].split("\n")},
                },
            }
            for i in chosen
        ]
    )


def make(out: Path, settings: Settings, console: Console) -> None:
    """Make the folder."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    lakes = Lakes(settings.train_size + settings.val_size, settings.seed)
    values = lakes.best_values(np.arange(len(lakes.text)))
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, SHAPE)
    began = time.perf_counter()
    warm_up(
        model,
        tokenizer,
        lesson(lakes, values, settings, np.random.default_rng(settings.seed)),
        steps=settings.steps,
        problems_per_step=settings.problems_per_step,
        peak_lr=settings.peak_lr,
        on_step=lambda loss: None,
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out / "policy")
    tokenizer.save_pretrained(out / "policy")
    train = range(settings.train_size)
    rows(lakes, train, "train").to_parquet(out / "train.parquet")
    rows(lakes, range(len(train), len(lakes.text)), "val").to_parquet(out / "val.parquet")
    overrides = {
        "data.max_prompt_length": STATE_TOKENS + 5,
        "data.max_response_length": TURNS_PER_ROW * (STATE_TOKENS + TURN_TOKENS),
        "actor_rollout_ref.rollout.agent.default_agent_loop": "environment",
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": LOOP,
        "actor_rollout_ref.rollout.val_kwargs.n": 1,
    }
    write_text(out / "overrides.txt", "".join(f"{key}={value}\n" for key, value in overrides.items()))
    seconds = time.perf_counter() - began
    write_json(out / "task.json", {"settings": vars(settings), "warm_up_seconds": round(seconds, 1)})
    console.print(f"{out}: {len(lakes.text)} maps, policy of {model.num_parameters():,} parameters, {seconds:.0f} s")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    make(arguments.pop("out").resolve(), Settings(**arguments), Console())


if __name__ == "__main__":
    main()
