"""The trainer of an in-context head: steps on synthetic tasks, and the checkpoints of the run.

Shape suffixes: B tasks of a step, R rows of a task (context, then queries), C context rows, Q queries, F features, G
groups of features, X width of the network, 2 the classes failure and success.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from tabpfn.preprocessing import PreprocessorConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from value_model.config_loader import changed_keys
from value_model.files import replaced
from value_model.head import CLASSES, build_network, save_network
from value_model.pretraining.initialisation import initialise_network
from value_model.pretraining.settings import PretrainError, PretrainSettings
from value_model.pretraining.synthetic_tasks import Tasks, sample_tasks

WIDE_SHARE = 0.1  # of steps with more than max_features


class HeadTrainer:
    """State of a run: network, optimizer and step; the tasks of a step depend on the seed and the step alone."""

    def __init__(self, settings: PretrainSettings):
        self.settings = settings
        self.step = 0
        self.seconds = 0.0  # of CPU time
        self.network = new_network(settings)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.network, settings), lr=0.0, betas=(0.9, 0.98))

    def advance(self) -> float:
        """One step on fresh tasks; returns the loss (soft cross-entropy) before it."""
        began = time.process_time()
        rng = np.random.default_rng([self.settings.seed, self.step])
        tasks, context = draw_tasks(rng, self.settings)
        self.network.train()
        with random_column_embeddings(self.network, int(rng.integers(2**31))):
            loss = soft_loss(logits(self.network, tasks, context), tasks.probability[:, context:])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - began
        return loss.item()

    def save(self, path: Path) -> None:
        """Write the state needed to resume, atomically."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "optimiser": self.optimizer.state_dict(),
        }
        with replaced(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Resume from a file that :meth:`save` wrote.

        Raises:
            PretrainError: it was written with other settings.
        """
        state = torch.load(path, weights_only=True)
        changed = changed_keys(asdict(self.settings), state["settings"])
        if changed:
            raise PretrainError(
                f"{path} was written with other settings ({', '.join(changed)}); choose another --out or delete it"
            )
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimiser"])

    def save_head(self, path: Path) -> None:
        """Write the network in tabpfn's checkpoint format, atomically."""
        with replaced(path) as partial:
            save_network(self.network, self.settings.architecture(), partial, inference_config())


def new_network(settings: PretrainSettings) -> nn.Module:
    """A network with new initial weights; the caller's random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(settings.architecture())
    initialise_network(network, settings.seed)
    return network


def _parameter_groups(network: nn.Module, settings: PretrainSettings) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def draw_tasks(rng: np.random.Generator, settings: PretrainSettings) -> tuple[Tasks, int]:
    """The tasks of a step and the size of their context; as many tasks as ``settings.cells`` allows, at least one."""
    low, high = settings.min_features, settings.max_features
    if rng.random() < WIDE_SHARE:
        low, high = high, settings.wide_features
    features = int(rng.integers(low, high + 1))
    # Log-uniform: doubling the context has a similar effect on what can be learnt at every size.
    context = int(np.exp(rng.uniform(np.log(settings.min_context), np.log(settings.max_context + 1))))
    rows = context + settings.queries
    columns = -(-features // settings.features_per_group) + 1  # the last one holds the label
    return sample_tasks(rng, max(1, settings.cells // (rows * columns)), rows, features), context


def logits(network: nn.Module, tasks: Tasks, context: int) -> Tensor:
    """Logits of failure and success of the rows after the first ``context``, (B, R - context, 2)."""
    x_rbf = torch.from_numpy(tasks.x).transpose(0, 1)
    labels_cb = torch.from_numpy(tasks.labels[:, :context].astype(np.float32)).T
    return network(x_rbf, labels_cb).transpose(0, 1)


def predict(network: nn.Module, tasks: Tasks, context: int) -> np.ndarray:
    """Success probability of the first task's rows after the first ``context``, (R - context,)."""
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
def random_column_embeddings(network: Any, seed: int) -> Iterator[None]:
    """Inside the block, the network uses column embeddings drawn from ``seed``.

    At this width tabpfn draws them with a fixed seed on the current device, so a GPU gives other values than a CPU.
    Training with new ones at every step makes the head independent of their values.
    """
    generator = torch.Generator().manual_seed(seed)

    def add_column_embeddings(x_brgx: Tensor) -> Tensor:
        embeddings = torch.randn((x_brgx.shape[2], x_brgx.shape[3] // 4), generator=generator)
        return x_brgx + network.feature_positional_embedding_embeddings(embeddings)

    network._add_column_embeddings = add_column_embeddings  # the instance's attribute shadows the method
    try:
        yield
    finally:
        del network._add_column_embeddings


def inference_config() -> InferenceConfig:
    """tabpfn's inference settings that match training: no preprocessing of features, and a softmax temperature of 1."""
    return replace(
        InferenceConfig.get_default("multiclass", ModelVersion.V2_5),
        PREPROCESS_TRANSFORMS=[PreprocessorConfig("none", categorical_name="numeric")],
        FINGERPRINT_FEATURE=False,  # a hash of the row, which the training tasks do not have
        SOFTMAX_TEMPERATURE=1.0,
        N_ESTIMATORS=4,
        MAX_NUMBER_OF_CLASSES=CLASSES,
    )
