"""Size of one replica of the value model, from its files' headers and its encoder's config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from value_model.config import BackboneConfig
from verl_v05.dry_run.launch import ValueModelReplicas
from verl_v05.dry_run.shapes import CONFIG, ShapeError, find_config
from verl_v05.dry_run.trace import measure

KEY = "algorithm.v05.prior.kwargs"


@dataclass(frozen=True)
class ValueModelShape:
    """One replica, in bytes."""

    encoder: str
    parameters: int  # of the encoder
    weights: float  # encoder, and adapter and head where their files are here
    working: float  # while it embeds a batch


def value_model_shape(replicas: ValueModelReplicas, given: Mapping[str, Path]) -> ValueModelShape:
    """weights = encoder parameters x its dtype + files of adapter and head; working = a batch's tokens x (what a layer
    holds + its float32 states).

    A hub id is taken for the released model, with the encoder this package knows it by.

    Raises:
        ShapeError: the folder is no value model, or its encoder's config cannot be found.
    """
    folder = _folder(replicas.model)
    backbone = _backbone(folder)
    name = replicas.backbone or backbone.name
    inside = folder is not None and replicas.backbone is None and (folder / name).is_dir()
    config = find_config(f"{KEY}.backbone", str(folder / name) if inside else name, given)
    dtype = getattr(torch, backbone.dtype)
    shape = measure(config, "encoder", dtype)
    files = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else 0
    return ValueModelShape(
        encoder=name,
        parameters=shape.parameters,
        weights=shape.parameters * dtype.itemsize + files,
        working=backbone.batch_tokens * (shape.layer_saved + 4 * shape.hidden),
    )


def _folder(model: str | None) -> Path | None:
    if model is None:
        from value_model.checkpoint import SMALL

        return SMALL
    return Path(model) if Path(model).is_dir() else None


def _backbone(folder: Path | None) -> BackboneConfig:
    if folder is None or not (folder / CONFIG).is_file():
        return BackboneConfig()
    try:
        return BackboneConfig(**json.loads((folder / CONFIG).read_text())["backbone"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShapeError(f"{KEY}.model: {folder / CONFIG} is no value model's config: {error!r}") from error
