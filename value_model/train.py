"""Train a value model on trajectories: ``python -m value_model.train --config FILE [key=value ...]``.

Under torchrun the tasks of an update are shared out among the processes. ``out`` gets ``metrics.jsonl`` (a line an
update), ``training.pt`` (to resume from, which happens by itself), ``best.pt`` and at the end the model in ``model/``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from value_model.adapter import make_adapter
from value_model.backbone import Backbone
from value_model.checkpoint import BACKBONE, CheckpointError
from value_model.config import ConfigError, ValueModelConfig
from value_model.evaluation import metrics
from value_model.head import HeadError, InContextHead, load_network
from value_model.model import ValueModel
from value_model.training.embedder import Embedder
from value_model.training.losses import Loss, combined, success_logit
from value_model.training.meta_tasks import MetaTask, MetaTaskError, MetaTasks, MetaTaskSettings
from value_model.training.model_card import model_card
from value_model.training.processes import Team, joined
from value_model.training.settings import (
    METRICS,
    PARTS,
    TINY,
    InitSettings,
    NewModel,
    SettingsError,
    TrainSettings,
    ValidationSettings,
    changed_keys,
    load_settings,
)
from value_model.training.tiny_encoder import write_tiny_encoder
from value_model.trajectories import TrajectoryError, read_trajectories, split_by_prompt

LOG, TRAINING, BEST, MODEL = "metrics.jsonl", "training.pt", "best.pt", "model"
MAY_CHANGE = ("out", "device", "checkpoint_every", "wandb_project", "states_cache_prompts")  # when a run is resumed
TRAINING_HEADS = 8  # feature orders that training with a smaller ensemble goes through


class TrainError(RuntimeError):
    """A run that cannot be resumed, or that cannot be trained on these processes; the message names the way out."""


@dataclass(frozen=True)
class Data:
    """Meta-tasks to train on and, unless validation is off, to validate on."""

    train: MetaTasks
    validation: MetaTasks | None
    summary: dict[str, Any]


def train(settings: TrainSettings, team: Team | None = None, console: Console | None = None) -> ValueModel:
    """Train, or go on where ``settings.out`` stopped, and write the best model to ``out/model``.

    Raises:
        SettingsError: settings that do not fit the data.
        TrainError: ``out`` holds a run of other settings, or the work cannot be shared out among the processes.
    """
    team = team or Team()
    trainer = Trainer(settings, load_data(settings), team)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    if (out / TRAINING).exists():
        trainer.load(out / TRAINING)
    with _log(settings, trainer.update, team) as log, _progress(trainer, team, console) as show:
        while trainer.update < trainer.updates:
            record = trainer.advance()
            log(record)
            if team.leads and (trainer.update % settings.checkpoint_every == 0 or trainer.update == trainer.updates):
                trainer.save(out / TRAINING)
            show(record)
    return trainer.finish()


class Trainer:
    """State of a run: the model's trained parts, the optimizer and the number of updates made.

    Tasks and dropout follow from the seed and the task's number, so nothing random needs to be saved.
    """

    def __init__(self, settings: TrainSettings, data: Data, team: Team):
        if settings.optimizer.tasks_per_update % team.world:
            raise TrainError(
                f"optimizer.tasks_per_update={settings.optimizer.tasks_per_update} must be a multiple of the number of "
                f"processes ({team.world})"
            )
        self.settings = settings
        self.data = data
        self.team = team
        self.model = build_model(settings.init, settings.seed).to(team.device)
        self.parameters = _choose_parameters(self.model, settings)
        team.agree(list(self.parameters.values()))
        self.embed = Embedder(self.model, settings.states_cache_prompts)
        self.updates = _number_of_updates(settings, len(data.train))
        self.optimizer = torch.optim.AdamW(_groups(self.model, settings), weight_decay=settings.optimizer.weight_decay)
        warmup = math.ceil(settings.optimizer.warmup_share * self.updates)
        self.scheduler = get_cosine_schedule_with_warmup(self.optimizer, warmup, self.updates)
        self.update = 0
        self.best: dict[str, float] = {}
        self._heads = _training_heads(self.model.head, settings.train_estimators)

    def advance(self) -> dict[str, Any]:
        """One update, validated if due; returns what the log says of it."""
        began = time.perf_counter()
        losses, norm = self._accumulate()
        record = {"step": self.update + 1, "epoch": self._epoch(), **losses, **self._rates(), "grad_norm": norm}
        self.optimizer.step()
        self.scheduler.step()
        self.update += 1
        record["seconds"] = round(time.perf_counter() - began, 4)
        if self._validation_is_due():
            found = self.validate()
            self._keep_if_best(found)
            record |= {f"validation/{key}": value for key, value in found.items()}
        return record

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and metrics of the whole model on the validation tasks, the same tasks every time."""
        self.model.eval()
        tasks = self.data.validation
        drawn = [tasks.draw(0, i) for i in self.team.share(min(self.settings.validation.tasks, len(tasks)))]
        answers = self.team.gather([_Answer.of(task, *self._loss(task, self.model.head)) for task in drawn])
        return _measure(answers)

    def save(self, path: Path) -> None:
        """Write all that a later run needs, atomically."""
        state = {
            "settings": asdict(self.settings),
            "update": self.update,
            "best": self.best,
            "parameters": self._values(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        _save(state, path)

    def load(self, path: Path) -> None:
        """Go on from a file of :meth:`save`; every process reads it.

        Raises:
            TrainError: it was written with other settings.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = [key for key in changed_keys(asdict(self.settings), state["settings"]) if key not in MAY_CHANGE]
        if changed:
            raise TrainError(
                f"{path} was written with another {', '.join(changed)}: set it back, choose another out, or delete it"
            )
        self._fill(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.update, self.best = state["update"], state["best"]

    def finish(self) -> ValueModel:
        """The best model if there was a validation, else the last one, in eval mode and written to ``out/model``."""
        out = Path(self.settings.out)
        if self.best:
            self._fill(torch.load(out / BEST, map_location="cpu", weights_only=True))
        self.model.eval().requires_grad_(False)
        if self.settings.optimizer.backbone_lr and self.model.config.backbone.name != BACKBONE:
            # The encoder is no longer the one that its name stands for: the checkpoint has to hold it.
            own = replace(self.model.config.backbone, name=BACKBONE, revision=None)
            self.model.config = replace(self.model.config, backbone=own)
        if self.team.leads:
            self.model.save_pretrained(out / MODEL, model_card(self.settings, self.data.summary, self.best))
        return self.model

    def _accumulate(self) -> tuple[dict[str, float], float]:
        """Gradients of the update's tasks; returns the mean losses and the norm before clipping.

        One call of the head is one task, and many calls make an update. DistributedDataParallel would want one
        forward per backward through itself; adding the gradients up once, after the last task, needs no wrapper and
        gives what one process with all the tasks gets.
        """
        settings, sums = self.settings.optimizer, torch.zeros(3, dtype=torch.float64)
        _train_mode(self.model, settings)
        self.optimizer.zero_grad()
        for i in self.team.share(settings.tasks_per_update):
            loss = self._train_task(self.update * settings.tasks_per_update + i)
            (loss.total / settings.tasks_per_update).backward()
            sums += torch.stack([loss.total, loss.cross_entropy, loss.pairwise]).detach().double().cpu()
        parameters = list(self.parameters.values())
        self.team.add_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm, error_if_nonfinite=True)
        means = self.team.add(sums.to(self.team.device)) / settings.tasks_per_update
        return dict(zip(("loss", "cross_entropy", "pairwise"), means.tolist(), strict=True)), norm.item()

    def _train_task(self, number: int) -> Loss:
        epoch, index = divmod(number, len(self.data.train))
        # The task's own seed: dropout is the same whichever process computes it, and after a resumption.
        torch.manual_seed(int(np.random.default_rng([self.settings.seed, number]).integers(2**63)))
        return self._loss(self.data.train.draw(epoch, index), self._heads[number % len(self._heads)])[0]

    def _loss(self, task: MetaTask, head: InContextHead) -> tuple[Loss, Tensor]:
        """Loss and logits."""
        features = self.embed([*task.context_prompts, *task.prompts])
        context, queries = features.split([len(task.context_prompts), len(task.prompts)])
        logits = head(context, torch.from_numpy(task.labels).to(context.device), queries)
        score = torch.as_tensor(task.scores, dtype=logits.dtype, device=logits.device)
        pairs = torch.from_numpy(task.pairs).to(logits.device)
        return combined(logits, score, pairs, self.settings.pairwise_weight), logits

    def _epoch(self) -> float:
        return round(self.update * self.settings.optimizer.tasks_per_update / len(self.data.train), 4)

    def _rates(self) -> dict[str, float]:
        return {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}

    def _validation_is_due(self) -> bool:
        every = self.settings.validation.every
        return every > 0 and (self.update % every == 0 or self.update == self.updates)

    def _keep_if_best(self, found: dict[str, float]) -> None:
        metric = self.settings.validation.metric
        better = METRICS[metric]
        if not self.best or better(found[metric], self.best[metric]) != self.best[metric]:
            self.best = {"step": self.update, **found}
            if self.team.leads:
                _save(self._values(), Path(self.settings.out) / BEST)

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


@dataclass(frozen=True)
class _Answer:
    """What the model said on one task."""

    loss: float
    cross_entropy: float
    p: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    group: tuple[str, int]

    @classmethod
    def of(cls, task: MetaTask, loss: Loss, logits: Tensor) -> _Answer:
        p = success_logit(logits).double().sigmoid().cpu().numpy()
        values = loss.total.item(), loss.cross_entropy.item()
        return cls(*values, p, task.scores, task.counts, (task.model, task.step))


def _measure(answers: Sequence[_Answer]) -> dict[str, float]:
    p, score, n = (np.concatenate([getattr(a, key) for a in answers]) for key in ("p", "scores", "counts"))
    group = np.repeat(np.arange(len(answers)), [len(a.p) for a in answers])
    label = metrics.hard_label(score)
    return {
        "loss": float(np.mean([a.loss for a in answers])),
        "cross_entropy": float(np.mean([a.cross_entropy for a in answers])),
        "auc": metrics.auc(label, p),
        "grouped_auc": metrics.grouped_auc(label, p, group),
        "brier": metrics.brier(score, p),
        "value_mse": metrics.value_mse(score, p),
        "value_mse_unbiased": metrics.value_mse_unbiased(score, n, p),
    }


def load_data(settings: TrainSettings) -> Data:
    """Read the trajectories and hold out what training must not see.

    Raises:
        SettingsError: nothing is held out for the validation that is asked for.
    """
    data = settings.data
    table = read_trajectories(data.paths)
    shares = {"train": 1 - data.heldout_prompts, "validation": data.heldout_prompts}
    kept = split_by_prompt(table, shares, data.split_seed, data.heldout_models)["train"]
    training = MetaTasks(kept, settings.tasks, settings.seed)
    validation = _validation_tasks(table, settings) if settings.validation.every else None
    return Data(training, validation, _summary(kept, training, validation))


def _validation_tasks(table: pd.DataFrame, settings: TrainSettings) -> MetaTasks:
    """Queries are held-out prompts of held-out models, as far as any are held out; contexts may hold any prompt."""
    data = settings.data
    if not data.heldout_models and not data.heldout_prompts:
        raise SettingsError(
            f"validation.every={settings.validation.every} needs held-out data: set data.heldout_prompts or "
            "data.heldout_models, or validation.every=0"
        )
    shares = {"train": 1 - data.heldout_prompts, "validation": data.heldout_prompts}
    asked = set(split_by_prompt(table, shares, data.split_seed)["validation"]["prompt"])
    if data.heldout_prompts and not asked:
        raise SettingsError(
            f"data.heldout_prompts={data.heldout_prompts:g} with data.split_seed={data.split_seed} holds out none of "
            f"the {table['prompt'].nunique()} prompts: a table that was itself split with this seed needs another one"
        )
    rows = table[table["model"].isin(data.heldout_models)] if data.heldout_models else table
    return MetaTasks(rows, _validation_settings(settings.tasks, settings.validation), settings.seed, asked or None)


def _validation_settings(tasks: MetaTaskSettings, validation: ValidationSettings) -> MetaTaskSettings:
    return replace(tasks, balanced=False, pairs=validation.queries // 2, repeats=1)


def _summary(table: pd.DataFrame, training: MetaTasks, validation: MetaTasks | None) -> dict[str, Any]:
    return {
        "models": int(table["model"].nunique()),
        "prompts": int(table["prompt"].nunique()),
        "pairs": len(table),
        "sources": sorted(table["data_source"].unique().tolist()),
        "tasks": len(training),
        "skipped": training.skipped,
        "validation_tasks": len(validation) if validation else 0,
    }


def build_model(init: InitSettings, seed: int) -> ValueModel:
    """The model to train, on the CPU.

    Raises:
        SettingsError: a key or value of ``init.new`` is not allowed.
    """
    if init.new is None:
        return ValueModel.from_pretrained(init.from_pretrained)
    with tempfile.TemporaryDirectory() as scratch:
        return _new_model(init.new, seed, Path(scratch))


def _new_model(new: NewModel, seed: int, scratch: Path) -> ValueModel:
    backbone = dict(new.backbone)
    if backbone.get("name") == TINY:
        backbone |= {"name": BACKBONE, "max_length": backbone.get("max_length", new.tiny.max_length)}
        write_tiny_encoder(scratch / BACKBONE, new.tiny, seed)
    try:
        config = ValueModelConfig.from_dict({"backbone": backbone, "adapter": new.adapter, "head": new.head})
    except ConfigError as error:
        raise SettingsError(f"init.new: {error}") from error
    network, architecture = load_network(new.head_weights)
    encoder = Backbone(config.backbone, scratch)
    torch.manual_seed(seed)
    adapter = make_adapter(encoder.width, config.adapter)
    return ValueModel(config, encoder, adapter, InContextHead(network, architecture, config.head))


def _choose_parameters(model: ValueModel, settings: TrainSettings) -> dict[str, nn.Parameter]:
    """Unfreeze the parts that have a learning rate; returns their parameters by name."""
    for part in PARTS:
        getattr(model, part).requires_grad_(_rate(settings, part) > 0)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _train_mode(model: ValueModel, settings: Any) -> None:
    """Dropout only where something is trained, and never in the head: tabpfn's forward pass is that of inference."""
    model.eval()
    model.adapter.train(settings.adapter_lr > 0)
    model.backbone.train(settings.backbone_lr > 0)


def _groups(model: ValueModel, settings: TrainSettings) -> list[dict[str, Any]]:
    return [
        {"name": part, "params": list(getattr(model, part).parameters()), "lr": _rate(settings, part)}
        for part in PARTS
        if _rate(settings, part) > 0
    ]


def _rate(settings: TrainSettings, part: str) -> float:
    return getattr(settings.optimizer, f"{part}_lr")


def _training_heads(head: InContextHead, estimators: int | None) -> list[InContextHead]:
    """The heads that training takes turns with: the model's own, or smaller ensembles of the same network."""
    if estimators is None or estimators >= head.config.estimators:
        return [head]
    # A single small ensemble would be a fixed order of the features, which the adapter would adapt to.
    configs = [replace(head.config, estimators=estimators, seed=seed) for seed in range(TRAINING_HEADS)]
    return [InContextHead(head.network, head.architecture, config) for config in configs]


def _number_of_updates(settings: TrainSettings, tasks: int) -> int:
    optimizer = settings.optimizer
    updates = max(1, optimizer.epochs * tasks // optimizer.tasks_per_update)
    return min(updates, optimizer.max_updates or updates)


def _save(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


@contextmanager
def _log(settings: TrainSettings, update: int, team: Team) -> Iterator[Any]:
    """Yield a function that logs a record; lines after ``update``, of an interrupted run, are dropped."""
    if not team.leads:
        yield lambda record: None
        return
    path = Path(settings.out) / LOG
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= update]
    path.write_text("".join(f"{line}\n" for line in kept))
    with path.open("a", buffering=1) as file, _wandb(settings) as send:
        yield lambda record: (file.write(_json(record) + "\n"), send(record))


def _json(record: dict[str, Any]) -> str:
    """One line; a metric that the data do not determine is null."""
    return json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()})


@contextmanager
def _wandb(settings: TrainSettings) -> Iterator[Any]:
    if settings.wandb_project is None:
        yield lambda record: None
        return
    import wandb  # optional: only where it is asked for

    with wandb.init(project=settings.wandb_project, dir=settings.out, config=asdict(settings)) as run:
        yield lambda record: run.log(record, step=record["step"])


@contextmanager
def _progress(trainer: Trainer, team: Team, console: Console | None) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    metric = trainer.settings.validation.metric
    with Progress(*columns, *times, console=console, disable=not team.leads) as progress:
        bar = progress.add_task("training", total=trainer.updates, completed=trainer.update, state="")

        def show(record: dict[str, Any]) -> None:
            best = f" best {metric} {trainer.best[metric]:.4f}" if trainer.best else ""
            progress.update(bar, completed=trainer.update, state=f"loss {record['loss']:.4f}{best}")

        yield show


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m value_model.train", description="Train a value model.")
    parser.add_argument("--config", type=Path, required=True, help="a yaml file such as recipes/value_model/small.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file's")
    args = parser.parse_args(arguments)
    try:
        settings = load_settings(args.config, args.overrides)
        with joined(settings.device) as team:
            train(settings, team)
            if team.leads:
                Console().print(f"model written to {Path(settings.out) / MODEL}")
    except (SettingsError, TrainError, TrajectoryError, MetaTaskError, HeadError, CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
