"""What we rely on in verl, checked before a run instead of failing inside one.

verl's public extension points are enough for the prior, the rollouts and the CPU platform. The private methods that are
overridden, in ``trainer/``, ``rollout/`` and ``platform/cpu_engine.py``, are pinned for each supported verl in a
file of this folder, ``verl_0_9_1.py`` for verl 0.9.1. To support another verl, add its file (docs/extending.md).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from packaging.version import Version

PREFIX = "verl_"


class ContractError(RuntimeError):
    """The installed verl is not one that this plugin supports."""


def supported_versions() -> list[str]:
    """The verl versions that this package has pins for, the newest last."""
    names = [module.name for module in iter_modules(import_module(__package__).__path__)]
    versions = [name.removeprefix(PREFIX).replace("_", ".") for name in names if name.startswith(PREFIX)]
    return sorted(versions, key=Version)


def check_version() -> None:
    """Raise :class:`ContractError` if verl's version is not supported."""
    installed, supported = version("verl"), supported_versions()
    if installed not in supported:
        raise ContractError(
            f"verl-v05 supports verl {', '.join(supported)}, found {installed}: install a supported verl, "
            "or a verl-v05 made for yours"
        )


@cache
def check_contract() -> None:
    """Raise :class:`ContractError` naming all that differs in verl from what is relied on. Cheap when repeated."""
    check_version()
    _refuse(differences(pins_of(version("verl"))))


def differences(pins: ModuleType) -> list[str]:
    """What the installed verl has otherwise than the trainer, the workers and the estimators rely on."""
    return _mismatches(pins.SIGNATURES, signature_of) + _mismatches(pins.SOURCES, source_of)


def check_cpu_engine() -> None:
    """:func:`check_contract` for what the CPU engines override."""
    check_version()
    _refuse(_mismatches(pins_of(version("verl")).CPU_ENGINE_SIGNATURES, signature_of))


def pins_of(verl_version: str) -> ModuleType:
    """The module with the pins of a supported version."""
    return import_module(f"{__package__}.{PREFIX}{verl_version.replace('.', '_')}")


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
    found: Any = import_module(module)
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


def main() -> None:
    """Print how the installed verl differs from the newest pins: ``python -m verl_v05.compat.contract``."""
    newest = supported_versions()[-1]
    pins = pins_of(newest)
    found = differences(pins) + _mismatches(pins.CPU_ENGINE_SIGNATURES, signature_of)
    found += _mismatches(pins.DRY_RUN_SOURCES, source_of)
    print(f"verl {version('verl')} against the pins of {newest}: {len(found)} differ")
    print("".join(f"  {line}\n" for line in found), end="")


if __name__ == "__main__":
    main()
