"""What we rely on in verl, checked before a run instead of failing inside one.

verl's public extension points are enough for the prior, the rollouts and the CPU platform; the private
methods overridden in ``sync_trainer.py``, ``trainer.py``, ``rollout/worker.py``, ``rollout/manager.py`` and
``platform/cpu_engine.py`` are pinned here: by signature where ours calls verl's, by source where ours replaces verl's
body.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

SUPPORTED_VERL = SpecifierSet("==0.9.1")

_TRAINER = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
_WORKER = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class"
_MANAGER = "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ"

SIGNATURES = {
    f"{_TRAINER}.fit": "(self, agent_loop_manager)",
    f"{_TRAINER}._load_checkpoint": "(self)",
    f"{_TRAINER}._save_checkpoint": "(self)",
    f"{_TRAINER}._compute_advantage": "(self, batch, metrics)",
    f"{_TRAINER}._compute_metrics": "(self, batch, metrics, timing_raw, global_steps, epoch)",
    f"{_TRAINER}._get_required_batch_multiple": "(self, dp_size)",
    f"{_WORKER}._run_agent_loop": "(self, sampling_params, trajectory, *, agent_name, trace, **kwargs)",
    f"{_WORKER}._agent_loop_postprocess": "(self, output, validate, **kwargs)",
    f"{_MANAGER}._init_agent_loop_workers": "(self)",
    f"{_MANAGER}.generate_sequences": "(self, prompts)",
    "verl.single_controller.ray.base:RayResourcePool.get_placement_groups": "(self, strategy, name, device_name)",
    "verl.single_controller.ray.base:ResourcePoolManager.get_resource_pool": "(self, role)",
    "verl.trainer.ppo.core_algos:register_adv_est": "(name_or_enum)",
    "verl.trainer.ppo.v1.trainer_base:register_trainer": "(name)",
}

SOURCES = {
    f"{_TRAINER}._update_actor": "d7009bd8a69d40b9",
    f"{_TRAINER}.__init__": "6f938d77859b66ae",
    f"{_WORKER}._run_prompt": "3d9bca6b0ea5fe25",
    "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories": "d973cc8aec79bc3d",
    "verl.trainer.ppo.ray_trainer:compute_advantage": "314695381c755264",
}

_ENGINE = "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead"

# Checked where the CPU engines are registered, since not every process imports verl's.
CPU_ENGINE_SIGNATURES = {
    f"{_ENGINE}._build_fsdp_module": "(self, module)",
    f"{_ENGINE}._build_module": "(self)",
    f"{_ENGINE}.get_per_tensor_param": "(self, layered_summon, base_sync_done, **kwargs)",
    "verl.utils.model:load_valuehead_model": "(local_path, torch_dtype, model_config, trust_remote_code)",
}


class ContractError(RuntimeError):
    """The installed verl is not one this plugin knows."""


def check_version() -> None:
    """Raise :class:`ContractError` if verl's version is not supported."""
    installed = version("verl")
    if installed not in SUPPORTED_VERL:
        raise ContractError(
            f"verl-v05 supports verl {SUPPORTED_VERL}, found {installed}: install a supported verl, "
            "or a verl-v05 made for yours"
        )


@cache
def check_contract() -> None:
    """Raise :class:`ContractError` naming all that differs in verl from what is relied on. Cheap when repeated."""
    check_version()
    _refuse(_mismatches(SIGNATURES, signature_of) + _mismatches(SOURCES, source_of))


def check_cpu_engine() -> None:
    """:func:`check_contract` for what the CPU engines override."""
    _refuse(_mismatches(CPU_ENGINE_SIGNATURES, signature_of))


def signature_of(function: Callable) -> str:
    """Parameter names of a function, without annotations and default values."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "_ray_trace_ctx"]  # Ray adds it to actors
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def source_of(function: Callable) -> str:
    """Digest of a function's source text."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def resolve(path: str) -> Callable:
    """The object at ``module:attribute.attribute``."""
    module, _, attributes = path.partition(":")
    found = import_module(module)
    for name in attributes.split("."):
        found = getattr(found, name)
    return found


def _refuse(broken: list[str]) -> None:
    if broken:
        raise ContractError("verl is not the one verl-v05 was tested with:\n  " + "\n  ".join(broken))


def _mismatches(expected: dict[str, str], measure: Callable[[Callable], str]) -> list[str]:
    broken = []
    for path, want in expected.items():
        try:
            found = measure(resolve(path))
        except AttributeError:
            found = "absent"
        if found != want:
            broken.append(f"{path}: expected {want}, found {found}")
    return broken
