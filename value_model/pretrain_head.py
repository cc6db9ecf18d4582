"""Train an in-context head from nothing on synthetic tasks: ``python -m value_model.pretrain_head --out DIR``.

The head is tabpfn's v2.5 network, small, and taught as TabPFN is: every step draws new tasks, gives the network a
context with hard labels, and asks for the success probability of further rows. The target is the task's true
probability, not a label, so the head learns to be calibrated in what the value model is used for.

Writes ``head.v2.5.safetensors`` (tabpfn's loader wants the version in the name), ``head.json`` (settings and what was
measured) and ``training.pt``, from which the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from tabpfn.preprocessing import PreprocessorConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from value_model.head import ARCHITECTURE, CLASSES, build_network
from value_model.pretraining import initialisation
from value_model.pretraining.head_metrics import as_table, measure
from value_model.pretraining.synthetic_tasks import Tasks, sample_tasks

WEIGHTS, REPORT, TRAINING = "head.v2.5.safetensors", "head.json", "training.pt"
WIDE_SHARE = 0.1  # of steps with more than max_features


class PretrainError(ValueError):
    """Settings that make no sense, or a checkpoint of another training run."""


@dataclass(frozen=True)
class PretrainSettings:
    """One training run; two runs of equal settings on one CPU thread give the same weights."""

    steps: int = 1500
    seed: int = 0
    # Tasks
    features: int = 48  # number of features that the measurement uses
    min_features: int = 24
    max_features: int = 60
    wide_features: int = 144  # one step in ten draws up to so many
    min_context: int = 32
    max_context: int = 256
    queries: int = 64
    cells: int = 3000  # rows x columns of the network in one step: bounds its time and memory
    # Network
    width: int = 64
    layers: int = 3
    heads: int = 2
    features_per_group: int = 6
    thinking_rows: int = 8
    # Optimiser
    learning_rate: float = 2e-3
    warmup: int = 50  # steps
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    # Bookkeeping
    save_every: int = 50  # steps
    measured_tasks: int = 64  # held-out tasks per size of context

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in ("seed", "warmup", "weight_decay")):
                raise PretrainError(f"{field.name} must be positive; got {value}")
        _check_order(self, "min_features", "max_features")
        _check_order(self, "max_features", "wide_features")
        _check_order(self, "min_context", "max_context")
        if self.width < initialisation.MIN_WIDTH or self.layers < initialisation.MIN_BLOCKS:
            least = f"{initialisation.MIN_WIDTH} and {initialisation.MIN_BLOCKS}"
            raise PretrainError(f"width and layers must be at least {least}; got {self.width} and {self.layers}")
        if self.width % 4 or self.width % self.heads:
            raise PretrainError(f"width must be a multiple of 4 and of heads; got {self.width} and {self.heads}")

    def architecture(self) -> dict[str, Any]:
        """What tabpfn builds the network from."""
        return {
            "max_num_classes": CLASSES,
            "num_buckets": 1,
            "emsize": self.width,
            "nlayers": self.layers,
            "nhead": self.heads,
            "features_per_group": self.features_per_group,
            "num_thinking_rows": self.thinking_rows,
        }


def _check_order(settings: PretrainSettings, low: str, high: str) -> None:
    if getattr(settings, low) > getattr(settings, high):
        raise PretrainError(f"{low} must not exceed {high}; got {getattr(settings, low)} and {getattr(settings, high)}")


def pretrain(settings: PretrainSettings, out: str | os.PathLike, console: Console | None = None) -> Training:
    """Train, or go on from ``out/training.pt``; writes the weights and that file into ``out`` as it goes.

    Raises:
        PretrainError: ``out`` holds the unfinished training of other settings.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    training = Training(settings)
    if (out / TRAINING).exists():
        training.load(out / TRAINING)
    with _progress(console or Console()) as progress:
        bar = progress.add_task("training", total=settings.steps, completed=training.step, loss=float("nan"))
        losses: list[float] = []
        while training.step < settings.steps:
            losses.append(training.advance())
            progress.update(bar, advance=1, loss=losses[-1])
            if training.step % settings.save_every == 0 or training.step == settings.steps:
                training.save(out / TRAINING)
                save_head(training.network, settings, out / WEIGHTS)
                seconds = f"{training.seconds:.0f} s of CPU"
                progress.console.print(f"step {training.step}: mean loss {np.mean(losses):.4f}, {seconds}")
                losses.clear()
    return training


class Training:
    """State of a run: network, optimiser and step; the tasks of a step follow from the seed and the step alone."""

    def __init__(self, settings: PretrainSettings):
        self.settings = settings
        self.step = 0
        self.seconds = 0.0  # of CPU time
        self.network = new_network(settings)
        self.optimiser = torch.optim.AdamW(_groups(self.network, settings), lr=0.0, betas=(0.9, 0.98))

    def advance(self) -> float:
        """One step on fresh tasks; returns the loss (soft cross-entropy) before it."""
        began = time.process_time()
        rng = np.random.default_rng([self.settings.seed, self.step])
        tasks, context = draw_step(rng, self.settings)
        self.network.train()
        with random_column_embeddings(self.network, int(rng.integers(2**31))):
            loss = soft_loss(logits(self.network, tasks, context), tasks.probability[:, context:])
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimiser.step()
        self.step += 1
        self.seconds += time.process_time() - began
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything a later run needs, atomically."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with _replacing(path) as unfinished:
            torch.save(state, unfinished)

    def load(self, path: Path) -> None:
        """Go on from a file of :meth:`save`.

        Raises:
            PretrainError: it was written with other settings.
        """
        state = torch.load(path, weights_only=True)
        ours, theirs = asdict(self.settings), state["settings"]
        changed = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if changed:
            raise PretrainError(
                f"{path} was written with other settings ({', '.join(changed)}); choose another --out or delete it"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def new_network(settings: PretrainSettings) -> nn.Module:
    """A network with fresh weights, which leaves the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(settings.architecture())
    initialisation.wire(network, settings.seed)
    return network


def _groups(network: nn.Module, settings: PretrainSettings) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def draw_step(rng: np.random.Generator, settings: PretrainSettings) -> tuple[Tasks, int]:
    """The tasks of a step and the size of their context; as many tasks as ``settings.cells`` allow, one at least."""
    low, high = settings.min_features, settings.max_features
    if rng.random() < WIDE_SHARE:
        low, high = high, settings.wide_features
    features = int(rng.integers(low, high + 1))
    context = int(np.exp(rng.uniform(np.log(settings.min_context), np.log(settings.max_context + 1))))
    rows = context + settings.queries
    columns = -(-features // settings.features_per_group) + 1
    return sample_tasks(rng, max(1, settings.cells // (rows * columns)), rows, features), context


def logits(network: nn.Module, tasks: Tasks, context: int) -> Tensor:
    """Logits of failure and success of the rows after the first ``context``, (batch, rows - context, 2)."""
    x_rbf = torch.from_numpy(tasks.x).transpose(0, 1)
    labels_cb = torch.from_numpy(tasks.labels[:, :context].astype(np.float32)).T
    return network(x_rbf, labels_cb).transpose(0, 1)


def predict(network: nn.Module, tasks: Tasks, context: int) -> np.ndarray:
    """Success probability of the first task's rows after the first ``context``, (rows - context,)."""
    network.eval()
    with torch.no_grad():
        return logits(network, tasks, context)[0].softmax(-1)[:, 1].numpy()


def soft_loss(logits_bq2: Tensor, probability_bq: np.ndarray) -> Tensor:
    """Cross-entropy against the true probability."""
    success = torch.from_numpy(probability_bq)
    return cross_entropy(logits_bq2.flatten(0, 1), torch.stack([1 - success, success], dim=-1).flatten(0, 1))


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + float(np.cos(np.pi * done)))


@contextlib.contextmanager
def random_column_embeddings(network: nn.Module, seed: int) -> Iterator[None]:
    """Column embeddings drawn anew.

    At this width tabpfn draws them with a fixed seed on the device at hand, so a GPU gives other ones than a CPU.
    A head that never sees the same ones twice does not mind.
    """
    generator = torch.Generator().manual_seed(seed)

    def add(x_brgx: Tensor) -> Tensor:
        embeddings = torch.randn((x_brgx.shape[2], x_brgx.shape[3] // 4), generator=generator)
        return x_brgx + network.feature_positional_embedding_embeddings(embeddings)

    network._add_column_embeddings = add  # shadows the method
    try:
        yield
    finally:
        del network._add_column_embeddings


def save_head(network: nn.Module, settings: PretrainSettings, path: Path) -> None:
    """Write the network as tabpfn's own loader reads it, atomically."""
    checkpoint = {
        "state_dict": network.state_dict(),
        "config": settings.architecture(),
        "architecture_name": ARCHITECTURE,
        "inference_config": asdict(inference_config()),
    }
    with _replacing(path) as unfinished:
        save_as_safetensors(checkpoint, unfinished)


def inference_config() -> InferenceConfig:
    """How tabpfn must run the head to see features as in training: as they are, and logits taken at their word."""
    return replace(
        InferenceConfig.get_default("multiclass", ModelVersion.V2_5),
        PREPROCESS_TRANSFORMS=[PreprocessorConfig("none", categorical_name="numeric")],
        FINGERPRINT_FEATURE=False,  # a hash of the row, which training never shows
        SOFTMAX_TEMPERATURE=1.0,
        N_ESTIMATORS=4,
        MAX_NUMBER_OF_CLASSES=CLASSES,
    )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` when all went well."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    os.replace(unfinished, path)


def _progress(console: Console) -> Progress:
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    loss = TextColumn("loss {task.fields[loss]:.4f}")
    return Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), *times, loss, console=console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m value_model.pretrain_head", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, and to resume from")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; results repeat bit for bit with 1")
    for field in fields(PretrainSettings):
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, metavar=kind.__name__)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Train, measure and write the report."""
    options = vars(_parser().parse_args(arguments))
    out, threads = options.pop("out"), options.pop("threads")
    settings = PretrainSettings(**options)
    torch.set_num_threads(threads)
    console = Console()
    training = pretrain(settings, out, console)
    measured = measure(
        partial(predict, training.network),
        features=settings.features,
        queries=settings.queries,
        tasks=settings.measured_tasks,
        seed=settings.seed,
    )
    console.print(as_table(measured))
    report = {"settings": asdict(settings), "cpu_seconds": round(training.seconds), "measured": measured}
    with _replacing(out / REPORT) as unfinished:
        unfinished.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
