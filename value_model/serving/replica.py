"""One copy of the value model in a process of its own."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import numpy as np

# torch and the model are imported in load(): creating a replica's process must not take seconds.


@dataclass(frozen=True)
class ReplicaInfo:
    """What a loaded replica says of itself."""

    identity: str  # of the model's weights; equal for all replicas of a run
    device: str
    host: str
    pid: int


class Replica:
    """Ray actor (a plain class here). Stateless but for its weights: a new one can take its place at any time.

    Between :meth:`sleep` and the next call the weights are in host memory, so that on a GPU the model takes nothing
    from the rollout engine's KV cache or from training.

    Args:
        model: folder or hub id, None for the small model of the package.
        backbone: see :func:`value_model.checkpoint.load`.
        device: "auto" (the accelerator Ray assigned, else the CPU) or a torch device.
    """

    def __init__(self, model: str | None, backbone: str | None = None, device: str = "auto"):
        self._source = (model, backbone)
        self._device = device

    def load(self) -> ReplicaInfo:
        """Read the weights; to be called once, before anything else."""
        from value_model.checkpoint import load

        self._model = load(*self._source)
        if self._device == "auto":
            self._device = assigned_device()
        return ReplicaInfo(self._model.identity, self._device, socket.gethostname(), os.getpid())

    def embed(self, prompts: list[str]) -> np.ndarray:
        """Features of each prompt, float32, (P, F)."""
        self._wake()
        self._model.cache.clear()  # the caller keeps the features of all replicas
        return self._model.features(prompts).numpy()

    def predict(self, context_cf: np.ndarray, labels_c: np.ndarray, queries_qf: np.ndarray) -> np.ndarray:
        """Success probabilities from features, float64, (Q,)."""
        import torch

        self._wake()
        return self._model.probabilities(torch.tensor(context_cf), np.array(labels_c), torch.tensor(queries_qf))

    def sleep(self) -> None:
        """Move the weights to host memory and give the accelerator's memory back."""
        import torch

        if self._device.startswith("cuda"):
            self._model.to("cpu")
            torch.cuda.empty_cache()

    def _wake(self) -> None:
        if str(self._model.device) != self._device:
            self._model.to(self._device)


def assigned_device() -> str:
    """The accelerator Ray gave this process, "cpu" where torch sees none."""
    import ray
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    # Ray hides the other GPUs unless told not to, which verl does: then the assigned number is torch's.
    visible = torch.cuda.device_count()
    index = int(assigned[0]) if assigned and visible > 1 else 0
    return f"cuda:{index if index < visible else 0}"
