"""Checks of settings: one form of message for every value that is not allowed."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints


def require(key: str, value: object, ok: bool, allowed: str, error: type[ValueError] = ValueError) -> None:
    """Raise ``error``, naming the key, its value and what is allowed, unless ``ok``."""
    if not ok:
        raise error(f"{key}={value!r} is not allowed: it must be {allowed}")


def field_check(
    settings: Any, section: str = "", error: type[ValueError] = ValueError
) -> Callable[[str, bool, str], None]:
    """Check the types of a dataclass's fields, then return the check of their values.

    Args:
        settings: the dataclass instance; annotations may be plain types, unions, ``list[X]`` and ``dict``.
        section: prefix of each key in the message, such as ``"head."``.
        error: what to raise.

    Returns:
        ``check(key, ok, allowed)``, which is :func:`require` of the field ``key``.
    """
    # A field with repr=False holds a secret, and error messages are logged.
    shown = {field.name: getattr(settings, field.name) if field.repr else "..." for field in fields(settings)}

    def check(key: str, ok: bool, allowed: str) -> None:
        require(f"{section}{key}", shown[key], ok, allowed, error)

    for key, hint in get_type_hints(type(settings)).items():
        check(key, is_of_type(getattr(settings, key), hint), f"of type {_type_name(hint)}")
    return check


def is_of_type(value: object, hint: Any) -> bool:
    """Whether a value fits an annotation; a whole number fits ``float``, and a bool fits no number."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(is_of_type(value, member) for member in arguments)
    if origin is list:
        return isinstance(value, list) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if isinstance(value, bool):  # bool is a subclass of int: `seed: true` would be accepted as seed 1
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
