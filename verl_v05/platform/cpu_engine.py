"""FSDP2 engines for device "cpu"; imported when verl's engines are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, SupportsIndex

import torch
from torch.multiprocessing.reductions import reduce_tensor  # torch's own, taken before sglang replaces it
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel

from verl_v05.compat.module_attribute import module_attribute


class ShmTensor(torch.Tensor):
    """CPU tensor that is pickled through shared memory.

    sglang replaces torch's tensor reducer by one that indexes a slot only CUDA tensors have. A subclass is not
    in the pickler's dispatch table, so pickling calls this method, and unpickling yields a plain tensor.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        return reduce_tensor(self.as_subclass(torch.Tensor))


def load_value_model(
    local_path: str, torch_dtype: torch.dtype, model_config: PretrainedConfig, trust_remote_code: bool
) -> PreTrainedModel:
    """``verl.utils.model.load_valuehead_model`` without flash-attn: a token classifier with ``model_config``'s labels.

    Raises:
        OSError: there is no model at ``local_path``.
    """
    return AutoModelForTokenClassification.from_pretrained(
        local_path,
        dtype=torch_dtype,
        config=model_config,
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
    )


def _register() -> None:
    from verl.utils import model as verl_model
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

    from verl_v05.compat.contract import check_cpu_engine

    check_cpu_engine()

    # The mixin's methods extend those of the engine that it is mixed with, which a type checker cannot see.
    class CpuEngineMixin:
        """What differs on the CPU for both kinds of model."""

        engine_config: Any

        def __init__(self, *args: Any, **kwargs: Any):
            # Trainer and sglang are unrelated processes and cannot pass file descriptors: share by name.
            torch.multiprocessing.set_sharing_strategy("file_system")
            super().__init__(*args, **kwargs)

        def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
            # A forward-only engine asks for offload to pinned memory, which needs a driver; here its
            # parameters are in host memory already.
            forward_only = self.engine_config.forward_only
            object.__setattr__(self.engine_config, "forward_only", False)
            try:
                return super()._build_fsdp_module(module)  # type: ignore[misc]
            finally:
                object.__setattr__(self.engine_config, "forward_only", forward_only)

        def get_per_tensor_param(self, **kwargs: Any) -> tuple[Iterator[tuple[str, torch.Tensor]], Any]:
            params, peft = super().get_per_tensor_param(**kwargs)  # type: ignore[misc]
            return ((name, p.detach().clone().as_subclass(ShmTensor)) for name, p in params), peft

    @EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
    class CpuEngineWithLMHead(CpuEngineMixin, FSDPEngineWithLMHead):  # type: ignore[misc]
        pass

    @EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device="cpu")
    class CpuEngineWithValueHead(CpuEngineMixin, FSDPEngineWithValueHead):  # type: ignore[misc]
        def _build_module(self) -> torch.nn.Module:
            # verl's loader requires flash-attn and is looked up at each call in its module, with no hook in between;
            # overriding the whole method instead would copy forty lines of verl. A worker builds one module at a time.
            with module_attribute(verl_model, "load_valuehead_model", load_value_model):
                return super()._build_module()


_register()
