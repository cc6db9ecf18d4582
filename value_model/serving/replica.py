"""A copy of the value model in its own process.

Shape suffixes: C context prompts, Q queries, F features; P prompts.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import numpy as np

# torch and the model are imported in the methods: the actor starts quickly, and load() does the slow imports.


@dataclass(frozen=True)
class ReplicaInfo:
    """Identity and location of a loaded replica."""

    identity: str  # of the model's weights; equal for all replicas of a run
    device: str
    host: str
    pid: int


class Replica:
    """Ray actor (undecorated here). Its weights are its only state, so it can be replaced at any time.

    Between :meth:`sleep` and the next call the weights are in host memory, so that the model leaves GPU memory
    to the rollout engine's KV cache and to training.

    Args:
        model: folder or hub id, None for the small model of the package.
        backbone: see :func:`value_model.checkpoint.load_parts`.
        device: "auto" (the GPU Ray assigned, else the CPU) or a torch device.
        dtype: of the encoder: "auto" (bfloat16 on a GPU, elsewhere that of the model's config), or one of
            :data:`value_model.config.DTYPES`. Adapter and head stay in float32.
    """

    def __init__(self, model: str | None, backbone: str | None = None, device: str = "auto", dtype: str = "auto"):
        self._source = (model, backbone)
        self._device = device
        self._dtype = dtype

    def load(self) -> ReplicaInfo:
        """Read the weights; call it once, before any other method."""
        import torch

        from value_model.model import ValueModel

        self._model = ValueModel.from_pretrained(*self._source)
        if self._device == "auto":
            self._device = assigned_device()
        if self._device.startswith("cuda"):
            # Else some calls create a CUDA context on GPU 0.
            torch.cuda.set_device(torch.device(self._device).index or 0)
        # Before the identity is taken: replicas that round differently must not share features.
        if (dtype := encoder_dtype(self._dtype, self._device)) is not None:
            self._model.backbone.encoder.to(getattr(torch, dtype))
        return ReplicaInfo(self._model.identity, self._device, socket.gethostname(), os.getpid())

    def embed(self, prompts: list[str]) -> np.ndarray:
        """Features of each prompt, float32, (P, F)."""
        self._move_to_device()
        self._model.cache.clear()  # the caller caches the features of all replicas
        return self._model.features(prompts).numpy()

    def predict(self, context_cf: np.ndarray, labels_c: np.ndarray, queries_qf: np.ndarray) -> np.ndarray:
        """Success probabilities from features, float64, (Q,)."""
        import torch

        self._move_to_device()
        return self._model.probabilities(torch.tensor(context_cf), np.array(labels_c), torch.tensor(queries_qf))

    def sleep(self) -> None:
        """Move the weights to host memory and release the accelerator memory.

        What stays is the process's CUDA context, which PyTorch's allocator does not count.
        """
        self._model.head.release()
        if self._device.startswith("cuda"):
            self._model.to("cpu")
            release_cuda_memory()

    def _move_to_device(self) -> None:
        if str(self._model.device) != self._device:
            self._model.to(self._device)


def encoder_dtype(dtype: str, device: str) -> str | None:
    """Name of the dtype that the encoder is converted to; None leaves it as its config says."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else None


def release_cuda_memory() -> None:
    """Give the GPU memory that PyTorch keeps for later back to the driver."""
    import torch

    # cuBLAS's workspace (32 MiB on Hopper) is an allocation of PyTorch's own, which empty_cache() leaves alone. The
    # function is private to torch: without it the workspace stays.
    if (clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None)) is not None:
        clear()
    torch.cuda.empty_cache()


def assigned_device() -> str:
    """The GPU Ray assigned to this process, by torch's index; "cpu" without one, or where torch finds none.

    Raises:
        RuntimeError: the assigned GPU is not visible to this process.
    """
    import ray
    import torch

    assigned = [str(i) for i in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
    if not assigned or not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    if count == 1:  # Ray made only the assigned one visible
        return "cuda:0"
    # Several are visible with RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES: torch's index is the position in the list.
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in listed.split(",")] if listed else [str(i) for i in range(count)]
    if assigned[0] not in names:
        raise RuntimeError(
            f"Ray assigned GPU {assigned[0]!r}, which is not in CUDA_VISIBLE_DEVICES={listed!r}; "
            "set algorithm.v05.prior.kwargs.device, or unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
        )
    return f"cuda:{names.index(assigned[0])}"
