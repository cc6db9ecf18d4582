"""The processes of a training run: one alone, or as many as torchrun started."""

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
class Team:
    """This process's place among ``world`` processes."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` pieces of work are this process's."""
        return range(self.rank, count, self.world)

    def agree(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the first one's values."""
        if self.world > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; a missing one counts as zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world > 1:
            flat = self.add(torch.cat([p.grad.flatten() for p in parameters]))
            for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.grad.copy_(part.view_as(parameter))

    def add(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """The items of all processes, for everyone."""
        if self.world == 1:
            return list(items)
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, list(items))
        return [item for part in found for item in part]


@contextmanager
def joined(device: str | None = None) -> Iterator[Team]:
    """Join the processes that torchrun started; without torchrun, a team of one.

    Args:
        device: where to compute; None is this process's GPU if there is one, else the CPU; "cuda" is this process's.
    """
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = device or "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        yield Team(device=device)
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
