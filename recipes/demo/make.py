"""Make a demo's data and warmed-up policy: `python -m recipes.demo.make --out DIR --task arithmetic --seed 0`."""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from recipes.demo.task import TaskProblem

RECORD = "demo.json"
OVERRIDES = "overrides.txt"  # of the setting `cpu`, one a line, read by recipes/paper
PRODUCTS = ("policy", "train.parquet", "val.parquet", OVERRIDES)  # with the record, all that a demo consists of
HISTOGRAM_BINS = 10


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is made. Two demos with equal settings are the same demo.

    The warm-up first trains on the truth alone (`clean_`), then on the mixture with slips that
    leaves the policy partly right (`mixed_`). Raise `format_version` whenever the code makes
    something else from the same numbers.
    """

    task: str = "arithmetic"
    seed: int = 0
    train_size: int = 256
    val_size: int = 256
    clean_steps: int = 800
    clean_problems_per_step: int = 32
    clean_peak_lr: float = 3e-3
    mixed_steps: int = 400
    mixed_problems_per_step: int = 32
    mixed_peak_lr: float = 1e-3
    format_version: int = 1
    # Last digits of the right operand that the policy shall hardly ever and nearly always answer rightly: the more of
    # them, the fewer prompts have anything to teach.
    never: int = 1
    always: int = 1
    start: str | None = None  # folder of a policy to continue from, in the place of the first phase


# Where each task's code is, and what it is made with unless told otherwise.
MODULES = {"arithmetic": "recipes.demo.task", "calculation": "recipes.demo.calculation"}
SETTINGS = {
    "arithmetic": Settings(),
    "calculation": Settings(
        task="calculation",
        train_size=8192,
        clean_steps=700,
        clean_peak_lr=4e-3,
        mixed_steps=350,
        mixed_peak_lr=2e-3,
    ),
}
# A calculation can be right by luck, so its success probabilities are checked against samples.
CHECKED_PROMPTS, CHECKED_SAMPLES, CHECKED_TOKENS = 64, 32, 64


def is_made(out: Path, settings: Settings) -> bool:
    """Tell whether `out` holds a complete demo made with these settings."""
    record = out / RECORD
    if not record.is_file() or not all((out / name).exists() for name in PRODUCTS):
        return False
    # A setting that the record does not name had no other value than its default.
    return Settings(**json.loads(record.read_text())["settings"]) == settings


def make_demo(out: Path, settings: Settings, console: Console) -> dict[str, Any]:
    """Return the record of the demo in `out`, making the demo first where it is not there yet.

    A demo with other settings is replaced; other files in `out` stay.
    """
    if not is_made(out, settings):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            _build(Path(scratch), settings, console)
            _install(Path(scratch), out)
    return json.loads((out / RECORD).read_text())


def _install(built: Path, out: Path) -> None:
    """Move a finished demo into place.

    The record goes first and comes back last, so that an interrupted move never looks made.
    """
    out.mkdir(exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)
    shutil.rmtree(out / "policy", ignore_errors=True)
    for name in (*PRODUCTS, RECORD):
        os.replace(built / name, out / name)


def _build(target: Path, settings: Settings, console: Console) -> None:
    """Make all files in the existing directory `target`."""
    # Imported here so that a demo which is already made costs no seconds of loading torch.
    import numpy as np
    import torch
    from transformers.utils import logging

    from recipes.demo.policy import build_model, build_tokenizer
    from recipes.demo.task import write_parquet

    task = import_module(MODULES[settings.task])

    # One thread makes the result independent of the number of cores, and is fastest at this size.
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    logging.disable_progress_bar()

    competences = task.draw_competences(rng, settings.never, settings.always)
    train, val = task.split_problems(rng, settings.train_size, settings.val_size)
    write_parquet(train, "train", target / "train.parquet")
    write_parquet(val, "val", target / "val.parquet")
    (target / OVERRIDES).write_text("".join(f"{override}\n" for override in task.TRAINING))

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, task.SHAPE)
    started = time.perf_counter()
    _warm_up(model, tokenizer, competences, rng, settings, console)
    seconds = time.perf_counter() - started
    model.save_pretrained(target / "policy")
    tokenizer.save_pretrained(target / "policy")

    record = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "warm_up_seconds": round(seconds, 1),
        "competences": {name: values.round(4).tolist() for name, values in competences.items()},
        "train": _measure(model, tokenizer, train),
        "val": _measure(model, tokenizer, val),
    }
    if settings.task == "calculation":
        record["sampled"] = _check_by_sampling(model, tokenizer, val)
    (target / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _warm_up(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    competences: dict[str, "np.ndarray"],
    rng: "np.random.Generator",
    settings: Settings,
    console: Console,
) -> None:
    """Run both phases of the warm-up on `model` under one progress bar."""
    import numpy as np
    from safetensors.torch import load_model

    from recipes.demo.policy import warm_up

    task = import_module(MODULES[settings.task])
    perfect = {name: np.ones_like(values) for name, values in competences.items()}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps  loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("warming up", total=None, loss=float("nan"))

        def on_step(loss: float) -> None:
            progress.update(bar, advance=1, loss=loss)

        phases = [
            (perfect, settings.clean_steps, settings.clean_problems_per_step, settings.clean_peak_lr),
            (competences, settings.mixed_steps, settings.mixed_problems_per_step, settings.mixed_peak_lr),
        ]
        if settings.start is not None:
            load_model(model, Path(settings.start, "model.safetensors"))
            del phases[0]
        progress.update(bar, total=sum(steps for _, steps, _, _ in phases))
        for known, steps, problems_per_step, peak_lr in phases:
            warm_up(
                model,
                tokenizer,
                task.warm_up_batches(known, rng, problems_per_step),
                steps=steps,
                problems_per_step=problems_per_step,
                peak_lr=peak_lr,
                on_step=on_step,
            )


def _measure(
    model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", problems: Sequence["TaskProblem"]
) -> dict[str, Any]:
    """Summarise the success probabilities of a split under sampling at temperature 1.

    `histogram` counts prompts in equal bins over [0, 1]; `by_level` gives the number of prompts and
    the expected accuracy; `success_probabilities` has one value per row of the split, in row order: the probability of
    the one right answer, or of the true calculation, to which right answers by luck come on top (see `sampled`).
    """
    import numpy as np

    from recipes.demo.policy import success_probabilities

    values = success_probabilities(model, tokenizer, problems)
    by_level: dict[str, list[float]] = {}
    for problem, value in zip(problems, values.tolist(), strict=True):
        by_level.setdefault(problem.level, []).append(value)
    return {
        "prompts": len(problems),
        "accuracy": round(float(values.mean()), 4),
        "by_level": {
            name: {"prompts": len(group), "accuracy": round(sum(group) / len(group), 4)}
            for name, group in sorted(by_level.items())
        },
        "histogram": np.histogram(values, bins=HISTOGRAM_BINS, range=(0.0, 1.0))[0].tolist(),
        "success_probabilities": values.round(6).tolist(),
    }


def _check_by_sampling(
    model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", problems: Sequence["TaskProblem"]
) -> dict[str, Any]:
    """Compare the accuracy of sampled responses to the first problems with what their probabilities say."""
    from recipes.demo.policy import sampled_success, success_probabilities

    problems = problems[:CHECKED_PROMPTS]
    sampled = sampled_success(model, tokenizer, problems, CHECKED_SAMPLES, CHECKED_TOKENS)
    return {
        "prompts": len(problems),
        "samples": CHECKED_SAMPLES,
        "accuracy": round(float(sampled.mean()), 4),
        "expected_accuracy": round(float(success_probabilities(model, tokenizer, problems).mean()), 4),
    }


def _print_summary(record: dict[str, Any], out: Path, console: Console) -> None:
    """Print where the demo is and how good its policy starts."""
    table = Table(title=f"{out}: expected accuracy before reinforcement learning")
    table.add_column("level")
    for split in ("train", "val"):
        table.add_column(f"{split} prompts", justify="right")
        table.add_column(f"{split} accuracy", justify="right")
    train, val = record["train"], record["val"]
    for name in (*train["by_level"], "all"):
        cells = []
        for split in (train, val):
            row = split if name == "all" else split["by_level"][name]
            cells += [str(row["prompts"]), f"{row['accuracy']:.3f}"]
        table.add_row(name, *cells)
    console.print(table)
    for name, split in (("train", train), ("val", val)):
        console.print(
            f"{name}: prompts by success probability, {HISTOGRAM_BINS} equal bins over 0..1: "
            + " ".join(map(str, split["histogram"]))
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to make the demo in")
    parser.add_argument("--task", choices=SETTINGS, default=Settings.task)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--train-size", type=int, help="number of training prompts")
    parser.add_argument("--never", type=int, help="of ten last digits, how many the policy never answers rightly [1]")
    parser.add_argument("--always", type=int, help="how many it always does [1]")
    parser.add_argument("--start", help="policy folder to continue from, which saves half of the warm-up or more")
    arguments = parser.parse_args()
    given = {name: value for name, value in vars(arguments).items() if name != "out" and value is not None}
    settings = replace(SETTINGS[arguments.task], **given)
    console = Console()
    out = arguments.out.resolve()
    _print_summary(make_demo(out, settings, console), out, console)


if __name__ == "__main__":
    main()
