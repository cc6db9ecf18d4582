"""verl platform "cpu": torch.cpu in the place of torch.cuda, gloo in the place of NCCL.

Registered last, so verl's own detection takes it only where none of its accelerators is found (its check asks
``nvidia-smi`` and the like, not only the process, so a CPU-only actor of a GPU cluster stays on the GPU
platform). Not supported: profiling, IPC, collectives other than gloo.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


class CpuDeviceModule(ModuleType):
    """``torch.cpu`` plus the functions of ``torch.cuda`` that verl calls on its device module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def is_available(self) -> bool:
        return True

    def set_device(self, *_: Any) -> None:
        """There is one device."""

    def get_device_name(self, *_: Any) -> str:
        return "cpu"

    def memory_allocated(self, *_: Any) -> int:
        """Resident bytes of this process."""
        return psutil.Process().memory_info().rss

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        """(available, total) bytes of the machine."""
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def empty_cache(self) -> None:
        """There is no cache."""

    def reset_peak_memory_stats(self, *_: Any) -> None:
        """There are no statistics."""

    reset_accumulated_memory_stats = reset_peak_memory_stats

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)


_DEVICE_MODULE = CpuDeviceModule("verl_v05_cpu_device")


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """One logical device a process; Ray is started with as many "GPU"s as FSDP ranks, since verl requests those."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _DEVICE_MODULE

    def __init__(self) -> None:
        # sglang looks for an accelerator in the training workers too, not only in its own server.
        os.environ.update(self.rollout_env_vars())

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:  # type: ignore[override]
        # verl passes this to Tensor.to, Module.to and torch.device, where an index would mean a GPU.
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU work is synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        """torch's CPU allocator has none."""

    def empty_cache(self) -> None:
        """There is no cache."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        # verl initialises torch.distributed with "cpu:gloo,<device>:<this>", which names the device twice when it is
        # the CPU, an error. It keeps a default group that exists, so the group is created here.
        distributed = torch.distributed
        if not distributed.is_initialized() and {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            distributed.init_process_group(
                "cpu:gloo",
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                init_method=os.environ.get("DIST_INIT_METHOD"),
            )
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {"SGLANG_USE_CPU_ENGINE": "1"}

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def cudart(self) -> None:
        return None
