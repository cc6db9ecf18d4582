"""The processes of a training run: a single one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among ``world_size`` processes; the collectives do nothing if there is only one."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def shard(self, count: int) -> range:
        """Indices of this process's part of ``count`` items: every ``world_size``-th one, from its rank on."""
        return range(self.rank, count, self.world_size)

    def broadcast(self, parameters: Sequence[nn.Parameter]) -> None:
        """Overwrite the parameters with the main process's values."""
        if self.world_size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; a missing one counts as zero."""
        gradients: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self.world_size > 1:
            # One call for all gradients: they are many and small, and each call has the latency of a round trip.
            flat = self.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def all_gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, in every process, ordered by rank."""
        if self.world_size == 1:
            return list(items)
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, list(items))
        return [item for part in gathered for item in part]


@contextmanager
def process_group(device: str | None = None) -> Iterator[ProcessGroup]:
    """Join the process group that torchrun started; without torchrun, a group of one.

    Args:
        device: where to compute; None is this process's GPU if there is one, else the CPU; "cuda" is this process's.
    """
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = device or "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        yield ProcessGroup(device=device)
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
