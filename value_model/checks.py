"""Checks of settings: one form of message for every value that is not allowed."""

from __future__ import annotations


def require(key: str, value: object, ok: bool, allowed: str, error: type[ValueError] = ValueError) -> None:
    """Raise ``error``, naming the key, its value and what is allowed, unless ``ok``."""
    if not ok:
        raise error(f"{key}={value!r} is not allowed: it must be {allowed}")
