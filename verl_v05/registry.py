"""Choices of the config: a built-in class by its name, or a user's own by its class path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class SettingsError(ValueError):
    """A value of the config is unknown or impossible; the message names key, value and what is allowed."""


@dataclass(frozen=True)
class Registry:
    """The allowed values of one key.

    Args:
        key: config key, for messages.
        base: path of the class that every choice must be a subclass of.
        names: name -> class path. Paths, not classes, so that a process imports only what its run uses.
    """

    key: str
    base: str
    names: Mapping[str, str]

    @property
    def allowed(self) -> str:
        """What the key accepts, for messages."""
        return f"one of {', '.join(self.names)}, or the path of a {self.base} subclass"

    def resolve(self, name: str) -> type[Any]:
        """The class of a name or class path.

        Raises:
            SettingsError: it is unknown, cannot be imported, or is no subclass of ``base``.
        """
        try:
            found = import_path(self.names.get(name, name))
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingsError(f"{self.key}={name!r} is not allowed: it must be {self.allowed} ({error})") from error
        if not (isinstance(found, type) and issubclass(found, import_path(self.base))):
            raise SettingsError(f"{self.key}={name!r} is not a {self.base} subclass; it must be {self.allowed}")
        return found


def import_path(path: str) -> Any:
    """The object at ``module.attribute``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
