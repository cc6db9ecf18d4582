"""Driver, compilers, packages and two kernels: ``python -m verl_v05.check_gpu.packages``."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from verl_v05.check_gpu.runner import gpus
from verl_v05.check_gpu.stages import tell
from verl_v05.compat.packages import FLASH_ATTENTION, is_installed
from verl_v05.plugin import attention

PACKAGES = ("torch", "triton", "transformers", "verl", "sglang", "flashinfer-python", "flash-attn", "ray", "tabpfn")
# What a run imports, in this order: the processes of a run find out one by one, minutes after its start.
MODULES = (
    "verl.trainer.main_ppo",
    "verl_v05.trainer.v05",
    "verl_v05.rollout.worker",
    "value_model.serving.pool",
    "value_model.model",
    "sglang.srt.entrypoints.engine",
)
TOOLS = ("nvcc", "ninja", "g++")  # what sglang compiles kernels with, at the first start


def main() -> None:
    cards, failed = gpus(), list[str]()
    tell(python=platform.python_version(), cores=os.cpu_count(), gpus=cards or "none", cuda=torch.version.cuda)
    tell(**{name: _version(name) for name in PACKAGES}, attention=attention())
    tell(**{name: shutil.which(name) or "missing" for name in TOOLS}, CUDA_HOME=os.environ.get("CUDA_HOME", "not set"))
    tell(shm_gib=shutil.disk_usage("/dev/shm").free >> 30, flash_attn_importable=is_installed(FLASH_ATTENTION))
    if not cards:
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # read when sglang is imported
    started = time.monotonic()
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a package raises
            failed.append(f"cannot import {name}: {error!r:.300}")
    tell(imports_s=round(time.monotonic() - started, 1))
    if cards:
        failed += [
            f"{tool} is not on PATH: sglang compiles kernels with it" for tool in TOOLS if not shutil.which(tool)
        ]
        failed += _kernels()
    for message in failed:
        print("error:", message, flush=True)
    sys.exit(bool(failed))


def _kernels() -> list[str]:
    """Two kernels against torch, and whether the memory saver can be loaded before torch."""
    if not torch.cuda.is_available():
        return ["there is a driver, but torch does not find the GPU: is it built for this driver's CUDA?"]
    from sgl_kernel import rmsnorm
    from sglang.jit_kernel.activation import silu_and_mul
    from torch_memory_saver.utils import get_binary_path_from_package

    x, ones = (
        make(*shape, device="cuda", dtype=torch.bfloat16)
        for make, shape in ((torch.randn, (8, 128)), (torch.ones, (128,)))
    )
    norm = torch.nn.functional.rms_norm(x.float(), (128,), eps=1e-6)
    compiled, out = time.monotonic(), torch.empty(8, 64, device="cuda", dtype=torch.bfloat16)
    silu_and_mul(x, out)
    silu = torch.nn.functional.silu(x[:, :64].float()) * x[:, 64:].float()
    differences = {
        "rmsnorm": (rmsnorm(x, ones, 1e-6).float() - norm).abs().max().item(),
        "silu_and_mul": (out.float() - silu).abs().max().item(),
    }
    tell(kernels_differ_by=differences, compiled_in_s=round(time.monotonic() - compiled, 1))
    failed = [f"kernel {name} differs from torch by {d:.3f}" for name, d in differences.items() if d > 0.1]
    saver = str(get_binary_path_from_package("torch_memory_saver_hook_mode_preload"))
    probe = [sys.executable, "-c", "print('loaded')"]
    done = subprocess.run(probe, env={**os.environ, "LD_PRELOAD": saver}, capture_output=True, text=True, timeout=60)
    if "loaded" not in done.stdout or "cannot be preloaded" in done.stderr:
        failed.append(
            f"the memory saver cannot be preloaded, put libcudart's folder into LD_LIBRARY_PATH: {done.stderr:.200}"
        )
    return failed


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
