"""Configs and settings from dictionaries, yaml files and the command line.

Every config of this package is a frozen dataclass that checks its own values in ``__post_init__``
(:mod:`value_model.checks`). This module builds such a dataclass, with the nested ones, and names keys that are unknown
or missing by their dotted path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from value_model.checks import is_of_type, require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # exists for type checkers only

Config = TypeVar("Config", bound="DataclassInstance")


def config_from_dict(
    schema: type[Config], values: Any, error: type[ValueError] = ValueError, section: str = ""
) -> Config:
    """Build a config dataclass and check it; ``values`` is not modified.

    Args:
        schema: the dataclass; fields that are dataclasses themselves are built from nested mappings.
        values: field name -> value; fields left out keep their defaults.
        error: raised for every mistake, and for values that the dataclass itself rejects.
        section: dotted path of ``values`` in the whole config, such as ``"head."``.

    Raises:
        ValueError: of type ``error``: a key is unknown or missing, or a value is not allowed.
    """
    require(section.rstrip(".") or "config", values, isinstance(values, Mapping), "a mapping", error)
    hints = get_type_hints(schema)
    for key, value in values.items():
        require(f"{section}{key}", value, key in hints, f"absent (known keys: {', '.join(hints)})", error)
    arguments: dict[str, Any] = {}
    for field in fields(schema):
        path, nested = f"{section}{field.name}", _dataclass_in(hints[field.name])
        if field.name in values:
            value = values[field.name]
            if nested is not None and not is_of_type(value, hints[field.name]):
                value = config_from_dict(nested, value, error, f"{path}.")
            arguments[field.name] = value
        elif field.default is MISSING and field.default_factory is MISSING:
            if nested is None:
                raise error(f"{path} is missing: it has no default")
            # An absent section is read as an empty one, so that the message names the key that is missing in it.
            arguments[field.name] = config_from_dict(nested, {}, error, f"{path}.")
    try:
        return schema(**arguments)
    except error:
        raise
    except ValueError as problem:  # a nested dataclass may raise an error type of its own
        raise error(str(problem)) from problem


def config_from_yaml(
    schema: type[Config],
    path: str | os.PathLike,
    overrides: Sequence[str] = (),
    error: type[ValueError] = ValueError,
) -> Config:
    """:func:`config_from_dict` of a yaml file and then of overrides such as ``optimizer.epochs=3``.

    Raises:
        ValueError: of type ``error``: the file cannot be read, or as :func:`config_from_dict`.
    """
    try:
        read = OmegaConf.load(Path(path))
    except (OSError, YAMLError) as problem:
        raise error(f"{path} cannot be read as yaml: {problem}") from problem
    try:
        merged = OmegaConf.merge(read, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError, TypeError) as problem:
        key = getattr(problem, "full_key", None) or f"{path} with {list(overrides)}"
        raise error(f"{key}: {str(problem).splitlines()[0]}") from problem
    return config_from_dict(schema, _numbers_as_text(schema, values), error)


def changed_keys(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that differ between two nested dictionaries."""
    found: list[str] = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found


def _dataclass_in(hint: Any) -> type[DataclassInstance] | None:
    """The dataclass of an annotation ``X`` or ``X | None``."""
    members = (hint, *get_args(hint))
    return next((member for member in members if isinstance(member, type) and is_dataclass(member)), None)


def _numbers_as_text(schema: type, values: Any) -> Any:
    """Convert numbers to text in fields annotated as text.

    yaml and the command line parse `out=7` as a number; only the field's annotation shows that text is meant.
    """
    if not isinstance(values, Mapping):
        return values
    return {key: _as_annotated(get_type_hints(schema).get(key, Any), value) for key, value in values.items()}


def _as_annotated(hint: Any, value: Any) -> Any:
    nested = _dataclass_in(hint)
    if nested is not None:
        return _numbers_as_text(nested, value)
    if isinstance(value, list) and hint == list[str]:
        return [_as_annotated(str, item) for item in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and not is_of_type(value, hint) and is_of_type("", hint) else value
