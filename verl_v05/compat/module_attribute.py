"""A name in a module of verl's that has another value for a while: where verl looks a name up and has no hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def module_attribute(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Within the block, ``module.name`` is ``value``, for all threads of this process; afterwards what it was."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
