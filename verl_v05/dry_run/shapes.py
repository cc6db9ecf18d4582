"""Where a model's config comes from, without the network: a path, the hub's cache, or the table of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, PretrainedConfig

CONFIG = "config.json"


class ShapeError(ValueError):
    """A model's config cannot be found or read; the message says how to give it."""


def known_shapes() -> dict[str, dict]:
    """The table: hub id to the entries of its config.json that set sizes."""
    return yaml.safe_load((files(__package__) / "shapes.yaml").read_text())


def find_config(key: str, model: str, given: Mapping[str, Path]) -> PretrainedConfig:
    """Config of a model.

    Args:
        key: config key that names the model, for messages.
        model: folder or hub id.
        given: model to the folder or config.json to read instead.

    Raises:
        ShapeError: see there.
    """
    path = given.get(model) or _local(model) or _cached(model)
    if path is not None:
        return _read(key, path)
    if (entries := known_shapes().get(model)) is not None:
        return AutoConfig.for_model(**entries)
    fetch = f", or run `hf download {model} {CONFIG}` where there is a network" if _is_hub_id(model) else ""
    raise ShapeError(
        f"{key}={model!r}: its {CONFIG} is neither in a local folder, nor in the hub's cache, nor in the table of "
        f"this package ({', '.join(known_shapes())}): give it with --model-config {model}=PATH{fetch}"
    )


def _read(key: str, path: Path) -> PretrainedConfig:
    path = path / CONFIG if path.is_dir() else path
    try:
        entries = json.loads(path.read_text())
        return AutoConfig.for_model(**entries)
    except (OSError, ValueError, TypeError) as error:
        raise ShapeError(f"{key}: {path} is no model config that transformers knows: {error}") from error


def _local(model: str) -> Path | None:
    path = Path(model).expanduser()
    return path if (path / CONFIG).is_file() else None


def _cached(model: str) -> Path | None:
    found = try_to_load_from_cache(model, CONFIG) if _is_hub_id(model) else None
    return Path(found) if isinstance(found, str) else None


def _is_hub_id(model: str) -> bool:
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True
