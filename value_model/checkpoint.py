"""A value model on disk: ``save_pretrained`` / ``from_pretrained``, and the layout the V0 authors released.

Ours is a folder: ``config.json``, ``adapter.safetensors``, ``head.safetensors``, a model card, and ``backbone/`` where
the encoder itself was trained; otherwise the encoder is named, not copied. Nothing here unpickles code.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from value_model.adapter import make_adapter
from value_model.backbone import Backbone
from value_model.config import BackboneConfig, ConfigError, ValueModelConfig
from value_model.head import InContextHead, load_network
from value_model.model import ValueModel

SMALL = Path(__file__).parent / "pretrained" / "small"

CONFIG, ADAPTER, HEAD, BACKBONE, CARD = (
    "config.json",
    "adapter.safetensors",
    "head.safetensors",
    "backbone",
    "README.md",
)
FORMAT = 1

RELEASED = "v_0_for_grpo_training.pt"
RELEASED_HEAD = "pretrained/tabpfn-v2.5-classifier-v2.5_default.ckpt"
RELEASED_PARTS = {"backbone.": "encoder", "adapter_layer.": "adapter"}


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or not a value model; the message names the file and the way out."""


def save(model: ValueModel, path: str | os.PathLike, card: str | None = None) -> None:
    """Write ``model`` to the folder ``path``; a value model already there is replaced as a whole or not at all.

    Raises:
        CheckpointError: ``path`` is a file, or a folder that holds something else.
    """
    path = Path(path).resolve()  # a link would be replaced, not what it points to
    if path.exists() and not (path / CONFIG).is_file() and not _is_empty_folder(path):
        raise CheckpointError(f"{path} holds something that is no value model: delete it, or save elsewhere")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        _write(model, scratch, card)
        for part in (scratch, *scratch.rglob("*")):  # mkdtemp and safetensors let nobody else read
            part.chmod(0o755 if part.is_dir() else 0o644)
        _install(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(path: str | os.PathLike | None = None, backbone: str | None = None) -> ValueModel:
    """Read a value model.

    Args:
        path: a folder (ours or the authors' layout) or a hub id; None is the small model of this package.
        backbone: hub id or path of the encoder, where the checkpoint's own name cannot be reached.

    Raises:
        CheckpointError: there is nothing usable under ``path``.
        value_model.head.HeadError: the head's weights are missing or damaged.
    """
    folder = _folder(SMALL if path is None else path)
    if (folder / RELEASED).is_file():
        return _load_released(folder, backbone)
    return _load_ours(folder, backbone)


def _write(model: ValueModel, folder: Path, card: str | None) -> None:
    config = json.loads(model.config.to_json())
    (folder / CONFIG).write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")
    save_file({k: v.detach().cpu().contiguous() for k, v in model.adapter.state_dict().items()}, folder / ADAPTER)
    model.head.save(folder / HEAD)
    if model.config.backbone.name == BACKBONE:
        model.backbone.encoder.save_pretrained(folder / BACKBONE)
        model.backbone.tokenizer.save_pretrained(folder / BACKBONE)
    if card is not None:
        (folder / CARD).write_text(card)


def _install(built: Path, path: Path) -> None:
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        try:
            os.replace(built, path)
        except BaseException:
            os.replace(old, path)
            raise
        shutil.rmtree(old)
    else:
        os.replace(built, path)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _folder(path: str | os.PathLike) -> Path:
    local = Path(path)
    if local.is_dir():
        if (local / CONFIG).is_file() or (local / RELEASED).is_file():
            return local
        raise CheckpointError(f"{local} holds neither {CONFIG} nor {RELEASED}: it is no value model")
    patterns = [CONFIG, "*.safetensors", f"{BACKBONE}/*", CARD, RELEASED, RELEASED_HEAD]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{str(path)!r} is neither a local folder nor a hub id that can be fetched from here: {error}"
        ) from error


def _load_ours(folder: Path, backbone: str | None) -> ValueModel:
    config = _read_config(folder / CONFIG)
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone, revision=None))
    network, architecture = load_network(folder / HEAD)
    head = InContextHead(network, architecture, config.head)
    encoder = _encoder(config.backbone, folder)
    adapter = make_adapter(encoder.width, config.adapter)
    try:
        tensors = load_file(folder / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTER} is missing or damaged: {error}") from error
    _fill(adapter, tensors, str(folder / ADAPTER))
    return ValueModel(config, encoder, adapter, head)


def _read_config(path: Path) -> ValueModelConfig:
    try:
        values = json.loads(path.read_text())
        found = values.pop("format", None) if isinstance(values, dict) else None
        if found != FORMAT:
            raise ConfigError(f"format={found!r} is not known: this version reads format {FORMAT}")
        return ValueModelConfig.from_dict(values)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing, damaged, or no value model's config: {error}") from error


def _encoder(config: BackboneConfig, folder: Path) -> Backbone:
    # Not looked for anywhere else: the name would also fit a folder of the working directory.
    if config.name == BACKBONE and not (folder / BACKBONE).is_dir():
        raise CheckpointError(f"{folder} lacks its encoder, the folder {BACKBONE!r}: copy the whole checkpoint")
    try:
        return Backbone(config, folder)
    except Exception as error:  # transformers and its parsers raise whatever they please
        raise CheckpointError(
            f"the encoder {config.name!r} of {folder} cannot be loaded; pass backbone=<path or hub id> "
            f"if it is elsewhere: {error}"
        ) from error


def _load_released(folder: Path, backbone: str | None) -> ValueModel:
    """The authors' ``.pt``: keys ``backbone.*`` and ``adapter_layer.*``, possibly behind ``module.``."""
    config = ValueModelConfig()
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone))
    parts = _split_released(folder / RELEASED)
    network, architecture = load_network(folder / RELEASED_HEAD)
    encoder = _encoder(config.backbone, folder)
    adapter = make_adapter(encoder.width, config.adapter)
    _fill(encoder.encoder, parts["encoder"], str(folder / RELEASED))
    _fill(adapter, parts["adapter"], str(folder / RELEASED))
    # The encoder's weights are the checkpoint's own: saved again, they must go with it.
    config = replace(config, backbone=replace(config.backbone, name=BACKBONE))
    return ValueModel(config, encoder, adapter, InContextHead(network, architecture, config.head))


def _split_released(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(checkpoint["model_state_dict"])
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise CheckpointError(
            f"{path} is damaged, holds more than tensors, or has no model_state_dict: {error}"
        ) from error
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in RELEASED_PARTS.values()}
    for name, tensor in state.items():
        plain = str(name).removeprefix("module.")
        prefix = next((p for p in RELEASED_PARTS if plain.startswith(p)), None)
        if prefix is None:
            raise CheckpointError(f"{path} holds {name!r}: every key must start with {' or '.join(RELEASED_PARTS)}")
        parts[RELEASED_PARTS[prefix]][plain.removeprefix(prefix)] = tensor
    return parts


def _fill(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(tensors)  # strict: a missing adapter must never go unnoticed
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit: {error}") from error
