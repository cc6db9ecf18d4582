"""The trainer of a value model: updates, validation, checkpoints of the run, and the final model."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from value_model.checkpoint import BACKBONE
from value_model.config_loader import changed_keys
from value_model.difficulty import COMBINATION
from value_model.files import replaced
from value_model.head import InContextHead
from value_model.model import ValueModel
from value_model.training.data import TrainingData
from value_model.training.difficulty import fit_difficulty
from value_model.training.embedder import Embedder
from value_model.training.losses import Loss, combined_loss
from value_model.training.meta_tasks import MetaTask
from value_model.training.model_builder import build_model
from value_model.training.model_card import model_card
from value_model.training.processes import ProcessGroup
from value_model.training.settings import METRICS, PARTS, OptimizerSettings, TrainSettings
from value_model.training.validation import TaskPrediction, validation_metrics

TRAINING, BEST, MODEL = "training.pt", "best.pt", "model"
# When a run is resumed. The difficulty is fitted after the last update, so a finished run can be given one.
MAY_CHANGE = ("out", "device", "checkpoint_every", "wandb_project", "states_cache_prompts", "difficulty")
TRAINING_HEADS = 8  # seeds of the feature order that training with a smaller ensemble cycles through


class TrainError(RuntimeError):
    """A run that cannot be resumed or split over these processes; the message names what to change."""


class Trainer:
    """State of a run: the model's trained parts, the optimizer and the number of updates made.

    Tasks and dropout depend on the seed and the task's number alone, so no random state is saved.
    """

    def __init__(self, settings: TrainSettings, data: TrainingData, processes: ProcessGroup):
        if settings.optimizer.tasks_per_update % processes.world_size:
            raise TrainError(
                f"optimizer.tasks_per_update={settings.optimizer.tasks_per_update} must be a multiple of the number of "
                f"processes ({processes.world_size})"
            )
        self.settings = settings
        self.data = data
        self.processes = processes
        self.model = build_model(settings.init, settings.seed).to(processes.device)
        self.parameters = _unfreeze_parameters(self.model, settings.optimizer)
        # New weights depend on the seed alone, but their rounding may differ between machines.
        processes.broadcast(list(self.parameters.values()))
        self.embed = Embedder(self.model, settings.states_cache_prompts)
        self.updates = _number_of_updates(settings.optimizer, len(data.train))
        groups = _parameter_groups(self.model, settings.optimizer)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=settings.optimizer.weight_decay)
        warmup = math.ceil(settings.optimizer.warmup_share * self.updates)
        self.scheduler = get_cosine_schedule_with_warmup(self.optimizer, warmup, self.updates)
        self.update = 0
        self.best: dict[str, float] = {}
        self._heads = _training_heads(self.model.head, settings.train_estimators)

    def advance(self) -> dict[str, Any]:
        """One update, validated if due; returns its record for the log."""
        began = time.perf_counter()
        losses, norm = self._accumulate_gradients()
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
        """Loss and metrics of the whole model on the validation tasks, the same tasks every time.

        Raises:
            TrainError: validation is off, so there are no held-out tasks.
        """
        self.model.eval()
        drawn = [self._validation_task(i) for i in self.processes.shard(self._validation_tasks())]
        predictions = [TaskPrediction.from_logits(task, *self._loss(task, self.model.head)) for task in drawn]
        return validation_metrics(self.processes.all_gather(predictions))

    def save(self, path: Path) -> None:
        """Write the state needed to resume, atomically."""
        state = {
            "settings": asdict(self.settings),
            "update": self.update,
            "best": self.best,
            "parameters": self._parameter_values(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        with replaced(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Resume from a file that :meth:`save` wrote; every process reads it.

        Raises:
            TrainError: it is damaged, or was written with other settings.
        """
        state = _read_state(path)
        changed = [key for key in changed_keys(asdict(self.settings), state["settings"]) if key not in MAY_CHANGE]
        if changed:
            raise TrainError(
                f"{path} was written with another {', '.join(changed)}: set it back, choose another out, or delete it"
            )
        self._set_parameter_values(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.update, self.best = state["update"], state["best"]

    def finish(self) -> ValueModel:
        """The best model if there was a validation, else the last one, in eval mode and written to ``out/model``."""
        out = Path(self.settings.out)
        if self.best:
            self._set_parameter_values(torch.load(out / BEST, map_location="cpu", weights_only=True))
        self.model.eval().requires_grad_(False)
        self._fit_difficulty()
        if self.settings.optimizer.backbone_lr and self.model.config.backbone.name != BACKBONE:
            # The trained encoder differs from the one of that name, so the checkpoint must contain it.
            own = replace(self.model.config.backbone, name=BACKBONE, revision=None)
            self.model.config = replace(self.model.config, backbone=own)
        if self.processes.is_main_process:
            self.model.save_pretrained(out / MODEL, model_card(self.settings, self.data.summary, self._card_metrics()))
        return self.model

    def _fit_difficulty(self) -> None:
        """Fit or, where a model that had one was trained on without the setting, remove the difficulty."""
        pooling = self.settings.difficulty
        self.model.config = replace(self.model.config, difficulty=pooling)
        self.model.difficulty = None
        if pooling is not None:
            tasks = [self._validation_task(i) for i in range(self._validation_tasks())]
            self.model.difficulty = fit_difficulty(self.model, self.embed, pooling, self.data.train.table, tasks)

    def _card_metrics(self) -> dict[str, float]:
        if self.model.difficulty is None:
            return self.best
        weights = self.model.difficulty.combination.tolist()
        # The other metrics are the head's, which the best update is chosen by.
        return self.best | {f"combination/{name}": b for name, b in zip(COMBINATION, weights, strict=True)}

    def _accumulate_gradients(self) -> tuple[dict[str, float], float]:
        """Gradients of the update's tasks; returns the mean losses and the norm before clipping.

        The head processes one task per call, so an update has many forward passes. DistributedDataParallel expects one
        forward pass per backward pass; a single all-reduce of the gradients after the last task needs no wrapper and
        equals the update of one process with all tasks.
        """
        settings, sums = self.settings.optimizer, torch.zeros(3, dtype=torch.float64)
        _set_training_mode(self.model, settings)
        self.optimizer.zero_grad()
        for i in self.processes.shard(settings.tasks_per_update):
            loss = self._training_loss(self.update * settings.tasks_per_update + i)
            (loss.total / settings.tasks_per_update).backward()
            sums += torch.stack([loss.total, loss.cross_entropy, loss.pairwise]).detach().double().cpu()
        parameters = list(self.parameters.values())
        self.processes.all_reduce_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm, error_if_nonfinite=True)
        means = self.processes.all_reduce(sums.to(self.processes.device)) / settings.tasks_per_update
        return dict(zip(("loss", "cross_entropy", "pairwise"), means.tolist(), strict=True)), norm.item()

    def _training_loss(self, number: int) -> Loss:
        """Loss of the run's task of this number, counted over all epochs."""
        epoch, index = divmod(number, len(self.data.train))
        # Seeded per task, so that dropout does not depend on the process that computes it or on resumption.
        torch.manual_seed(int(np.random.default_rng([self.settings.seed, number]).integers(2**63)))
        return self._loss(self.data.train.draw(epoch, index), self._heads[number % len(self._heads)])[0]

    def _loss(self, task: MetaTask, head: InContextHead) -> tuple[Loss, Tensor]:
        """Loss and logits."""
        features = self.embed([*task.context_prompts, *task.prompts])
        context, queries = features.split([len(task.context_prompts), len(task.prompts)])
        logits = head(context, torch.from_numpy(task.labels).to(context.device), queries)
        score = torch.as_tensor(task.scores, dtype=logits.dtype, device=logits.device)
        pairs = torch.from_numpy(task.pairs).to(logits.device)
        return combined_loss(logits, score, pairs, self.settings.pairwise_weight), logits

    def _validation_tasks(self) -> int:
        if self.data.validation is None:
            raise TrainError("there is nothing to validate on: validation.every=0 holds no tasks out")
        return min(self.settings.validation.tasks, len(self.data.validation))

    def _validation_task(self, index: int) -> MetaTask:
        assert self.data.validation is not None
        return self.data.validation.draw(0, index)

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
            if self.processes.is_main_process:
                with replaced(Path(self.settings.out) / BEST) as partial:
                    torch.save(self._parameter_values(), partial)

    def _parameter_values(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _set_parameter_values(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def _read_state(path: Path) -> dict[str, Any]:
    keys = ("settings", "update", "best", "parameters", "optimizer", "scheduler")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in keys}
    except Exception as error:  # the type of the error depends on how the file is damaged
        raise TrainError(f"{path} is damaged ({error!r:.200}): delete it to train from the start") from error


def _learning_rate(optimizer: OptimizerSettings, part: str) -> float:
    return getattr(optimizer, f"{part}_lr")


def _unfreeze_parameters(model: ValueModel, optimizer: OptimizerSettings) -> dict[str, nn.Parameter]:
    """Unfreeze the parts that have a learning rate; returns their parameters by name."""
    for part in PARTS:
        getattr(model, part).requires_grad_(_learning_rate(optimizer, part) > 0)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _parameter_groups(model: ValueModel, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    rates = {part: _learning_rate(optimizer, part) for part in PARTS}
    return [
        {"name": part, "params": list(getattr(model, part).parameters()), "lr": rate}
        for part, rate in rates.items()
        if rate > 0
    ]


def _set_training_mode(model: ValueModel, optimizer: OptimizerSettings) -> None:
    """Dropout only in trained parts, and never in the head: tabpfn's forward pass runs in inference mode."""
    model.eval()
    model.adapter.train(optimizer.adapter_lr > 0)
    model.backbone.train(optimizer.backbone_lr > 0)


def _training_heads(head: InContextHead, estimators: int | None) -> list[InContextHead]:
    """The heads that training alternates between: the model's own, or smaller ensembles of the same network."""
    if estimators is None or estimators >= head.config.estimators:
        return [head]
    # With a single small ensemble the order of the features would be fixed, and the adapter would overfit to it.
    configs = [replace(head.config, estimators=estimators, seed=seed) for seed in range(TRAINING_HEADS)]
    return [InContextHead(head.network, head.architecture, config) for config in configs]


def _number_of_updates(optimizer: OptimizerSettings, tasks: int) -> int:
    updates = max(1, optimizer.epochs * tasks // optimizer.tasks_per_update)
    return min(updates, optimizer.max_updates or updates)
