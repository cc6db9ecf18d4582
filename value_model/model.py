"""V0: encoder, adapter and in-context head, from prompts to success probabilities.

Shape suffixes: C context prompts, Q queries, F features, and, for a batch in the encoder, B prompts, T tokens, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn

from value_model.adapter import Adapter
from value_model.backbone import Backbone
from value_model.cache import TextCache
from value_model.checkpoint import ModelParts, load_parts, save_parts
from value_model.config import ValueModelConfig
from value_model.conversions import hard_label
from value_model.difficulty import Difficulty
from value_model.head import InContextHead

__all__ = ["ContextError", "Task", "ValueModel", "hard_labels"]


class ContextError(ValueError):
    """An invalid context: empty, of one class, or with scores outside [-1, 1]."""


@dataclass(frozen=True)
class Task:
    """Measured outcomes of one policy at one step (the context), and the prompts to predict."""

    context_prompts: Sequence[str]
    context_scores: Sequence[float]  # mean outcome rewards, in [-1, 1]
    prompts: Sequence[str]


class ValueModel(nn.Module):
    """Predicts the probability that a policy solves a prompt, from the outcomes of other prompts.

    Features of a prompt depend on the prompt alone, so they are computed once and cached (``cache``); the policy enters
    only through the context.
    """

    def __init__(
        self,
        config: ValueModelConfig,
        backbone: Backbone,
        adapter: Adapter,
        head: InContextHead,
        difficulty: Difficulty | None = None,
    ):
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.adapter = adapter
        self.head = head
        self.difficulty = difficulty
        self.cache = TextCache(config.cache_prompts)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Device of the head's parameters; the whole model is on one device."""
        return next(self.head.network.parameters()).device

    @property
    def width(self) -> int:
        """Features of a prompt, F: the adapter's, then the difficulty if there is one."""
        return self.adapter.width + (self.difficulty is not None)

    def predict(
        self, context_prompts: Sequence[str], context_scores: Sequence[float], prompts: Sequence[str]
    ) -> np.ndarray:
        """Success probability of each prompt, float64 in [0, 1], shape (prompts,).

        Args:
            context_prompts: prompts the policy was measured on.
            context_scores: their mean outcome rewards in [-1, 1]; a score of at least 0 counts as a success.
            prompts: the prompts to predict.

        Raises:
            ContextError: the context is empty, of one class, of unequal lengths, or a score is not in [-1, 1].
        """
        return self.predict_batch([Task(context_prompts, context_scores, prompts)])[0]

    def predict_batch(self, tasks: Sequence[Task]) -> list[np.ndarray]:
        """:meth:`predict` for many contexts; all prompts are embedded in one pass."""
        labels = [hard_labels(task.context_prompts, task.context_scores) for task in tasks]
        texts = [text for task in tasks for text in (*task.context_prompts, *task.prompts)]
        features = self.features(texts)
        answers, start = [], 0
        for task, label in zip(tasks, labels, strict=True):
            middle, end = start + len(task.context_prompts), start + len(task.context_prompts) + len(task.prompts)
            answers.append(self.probabilities(features[start:middle], label, features[middle:end]))
            start = end
        return answers

    # Inference mode is off: autograd cannot use tensors created in it, and the cache returns these to later callers.
    @torch.inference_mode(False)
    @torch.no_grad()
    def features(self, prompts: Sequence[str]) -> Tensor:
        """Features of each prompt, float32 on the CPU, shape (prompts, F), no gradient."""
        found = self.cache.get(prompts, self._embed)
        return torch.stack(found) if found else torch.zeros(0, self.width)

    @torch.no_grad()
    def probabilities(self, context_cf: Tensor, labels_c: np.ndarray, queries_qf: Tensor) -> np.ndarray:
        """Success probability from features, float64, shape (Q,).

        Raises:
            ContextError: the context is empty, of one class, or all its prompts have the same features.
        """
        _check_both_classes(labels_c)
        if (context_cf == context_cf[0]).all():
            raise ContextError(f"the {len(context_cf)} prompts of the context have the same features: nothing to learn")
        if not len(queries_qf):
            return np.zeros(0)
        logits = self.logits(context_cf, torch.from_numpy(labels_c), queries_qf)
        return logits.double().softmax(dim=-1)[:, 1].cpu().numpy()

    def logits(self, context_cf: Tensor, labels_c: Tensor, queries_qf: Tensor) -> Tensor:
        """Logits of failure and success, (Q, 2), differentiable in both features."""
        device = self.device
        context_cf, labels_c, queries_qf = context_cf.to(device), labels_c.to(device), queries_qf.to(device)
        if self.difficulty is None:
            return self.head(context_cf, labels_c, queries_qf)
        logits = self.head(context_cf[:, :-1], labels_c, queries_qf[:, :-1])
        return self.difficulty.combine(logits, labels_c, context_cf[:, -1], queries_qf[:, -1])

    @property
    def identity(self) -> str:
        """Digest of config, tokenizer and every tensor: equal for two loads of one checkpoint, on any machine."""
        digest = blake2b(f"{self.config.to_json()}{self.backbone.tokenizer_digest}".encode(), digest_size=12)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # The bytes, not sums of them, which would depend on the number of threads.
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save_pretrained(self, path: str | os.PathLike, model_card: str | None = None) -> None:
        """Write this model to a folder, see :func:`value_model.checkpoint.save_parts`."""
        save_parts(ModelParts(self.config, self.backbone, self.adapter, self.head, self.difficulty), path, model_card)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike | None = None, backbone: str | None = None) -> ValueModel:
        """Read a model, see :func:`value_model.checkpoint.load_parts`; None is the small model of this package."""
        return cls(*load_parts(path, backbone))

    def _embed(self, prompts: list[str]) -> list[Tensor]:
        features: list[Tensor] = [torch.empty(0)] * len(prompts)
        with _eval_mode(self):
            for indices, states_btd, mask_bt in self.backbone.batches(prompts):
                rows = self.adapter(states_btd, mask_bt).float()
                if self.difficulty is not None:
                    rows = torch.cat([rows, self.difficulty(states_btd, mask_bt).float().unsqueeze(1)], dim=1)
                for index, row in zip(indices, rows.cpu(), strict=True):
                    features[index] = row.clone()  # a view of the batch would keep the whole batch in memory
        return features


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every submodule is in its previous mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def hard_labels(prompts: Sequence[str], scores: Sequence[float]) -> np.ndarray:
    """The context's class labels for the head: score >= 0, shape (context,).

    Raises:
        ContextError: lengths differ, the context is empty, a score is not in [-1, 1], or there is only one class.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(prompts),):
        raise ContextError(f"{len(prompts)} context prompts have {values.size} scores")
    wrong = ~((values >= -1) & (values <= 1))
    if wrong.any():
        raise ContextError(
            f"context score {values[wrong][0]} of {str(list(prompts)[wrong.argmax()])!r} is not in [-1, 1]"
        )
    labels = hard_label(values)
    _check_both_classes(labels)
    return labels


def _check_both_classes(labels: np.ndarray) -> None:
    if not len(labels) or labels.all() or not labels.any():
        found = "empty" if not len(labels) else "all success" if labels.all() else "all failure"
        raise ContextError(f"the context of {len(labels)} prompts is {found}: it must hold both classes")
