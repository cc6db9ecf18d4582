"""The parts of a value model on disk: this package's layout, and the one the V0 authors released.

This package's checkpoint is a folder: ``config.json``, ``adapter.safetensors``, ``head.safetensors``,
``difficulty.safetensors`` where the config has a difficulty, a model card, and ``backbone/`` where the encoder itself
was trained; otherwise the config names the encoder and it is not copied. Loading executes no pickled code.
:class:`value_model.model.ValueModel` is not imported here: it is composed from the parts.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from value_model.adapter import Adapter, make_adapter
from value_model.backbone import Backbone
from value_model.config import BackboneConfig, ConfigError, ValueModelConfig
from value_model.difficulty import Difficulty
from value_model.files import exchange, lfs_pointer_problem, naming_full_disk, read_json
from value_model.head import HeadError, InContextHead, load_network

SMALL = Path(__file__).parent / "pretrained" / "small"

CONFIG, ADAPTER, HEAD, DIFFICULTY, BACKBONE, CARD = (
    "config.json",
    "adapter.safetensors",
    "head.safetensors",
    "difficulty.safetensors",
    "backbone",
    "README.md",
)
FORMAT = 1

RELEASED = "v_0_for_grpo_training.pt"
RELEASED_HEAD = "pretrained/tabpfn-v2.5-classifier-v2.5_default.ckpt"
RELEASED_PARTS = {"backbone.": "encoder", "adapter_layer.": "adapter"}

# One of them is there wherever a tokenizer was saved.
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
READS = 5  # of a folder that another process replaces meanwhile


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or not a value model; the message names the file and what to do."""


class ModelParts(NamedTuple):
    """What a checkpoint holds, in the order of :class:`value_model.model.ValueModel`'s arguments."""

    config: ValueModelConfig
    backbone: Backbone
    adapter: Adapter
    head: InContextHead
    difficulty: Difficulty | None = None


def save_parts(parts: ModelParts, path: str | os.PathLike, model_card: str | None = None) -> None:
    """Write a model to the folder ``path``; a value model already there is replaced as a whole or not at all.

    Args:
        parts: of the model.
        path: folder to write; its parents are made.
        model_card: Markdown text of the folder's ``README.md``; None writes none.

    Raises:
        CheckpointError: ``path`` is a file, or a folder that holds something else.
        value_model.files.DiskFullError: the disk is full.
    """
    path = Path(path).resolve()  # else a symbolic link would be replaced instead of its target
    if path.exists() and not (path / CONFIG).is_file() and not _is_empty_folder(path):
        raise CheckpointError(f"{path} holds something that is no value model: delete it, or save elsewhere")
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with naming_full_disk(path):
            _write_folder(parts, scratch, model_card)
        for file in (scratch, *scratch.rglob("*")):  # mkdtemp and safetensors create them readable by the owner only
            file.chmod(0o755 if file.is_dir() else 0o644)
        _replace_folder(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_parts(path: str | os.PathLike | None = None, backbone: str | None = None) -> ModelParts:
    """Read the parts of a value model.

    Args:
        path: a folder (ours or the authors' layout) or a hub id; None is the small model of this package.
        backbone: hub id or path of the encoder, where the name in the checkpoint's config cannot be loaded.

    Raises:
        CheckpointError: there is nothing usable under ``path``.
        value_model.head.HeadError: the head's weights are missing or damaged.
    """
    folder = _local_folder(SMALL if path is None else path)
    for _ in range(READS):
        before = _version(folder)
        try:
            parts = _read_parts(folder, backbone)
        except (CheckpointError, HeadError):
            if _version(folder) == before:
                raise
        else:
            if _version(folder) == before:  # else it may hold parts of two models
                return parts
    raise CheckpointError(f"{folder} was replaced during each of {READS} reads: wait for the process that saves to it")


def _version(folder: Path) -> tuple[int, int] | None:
    """What differs after :func:`save_parts` has replaced the folder; None while there is none."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _read_parts(folder: Path, backbone: str | None) -> ModelParts:
    named = [folder / name for name in (CONFIG, ADAPTER, HEAD, DIFFICULTY, RELEASED, RELEASED_HEAD)]
    for file in (*named, *(folder / BACKBONE).glob("*")):
        if problem := lfs_pointer_problem(file):
            raise CheckpointError(problem)
    if (folder / RELEASED).is_file():
        return _load_released(folder, backbone)
    return _load_folder(folder, backbone)


def _write_folder(parts: ModelParts, folder: Path, model_card: str | None) -> None:
    tokenizer = parts.backbone.tokenizer_digest
    config = {"format": FORMAT, "tokenizer": tokenizer, **json.loads(parts.config.to_json())}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    _save_tensors(parts.adapter, folder / ADAPTER)
    if parts.difficulty is not None:
        _save_tensors(parts.difficulty, folder / DIFFICULTY)
    parts.head.save(folder / HEAD)
    if parts.config.backbone.name == BACKBONE:
        parts.backbone.encoder.save_pretrained(folder / BACKBONE)
        parts.backbone.tokenizer.save_pretrained(folder / BACKBONE)
    if model_card is not None:
        (folder / CARD).write_text(model_card)


def _replace_folder(built: Path, path: Path) -> None:
    """Move ``built`` to ``path``. What was there is then in the place of ``built``, or deleted."""
    # os.replace cannot overwrite a folder that is not empty, which rules out value_model.files.replaced.
    if not path.exists():
        try:
            return os.replace(built, path)
        except OSError:
            if not path.exists():
                raise  # else another process was faster
    if exchange(built, path):
        return
    # Not on this file system: the old folder is renamed first, and renamed back if moving the new one fails.
    old = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old.")
    try:
        os.replace(path, old)
        try:
            os.replace(built, path)
        except BaseException:
            os.replace(old, path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _local_folder(path: str | os.PathLike) -> Path:
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


def _load_folder(folder: Path, backbone: str | None) -> ModelParts:
    config, tokenizer = _read_config(folder / CONFIG)
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone, revision=None))
    elif ".." in Path(config.backbone.name).parts:
        raise CheckpointError(
            f"{folder / CONFIG}: backbone.name={config.backbone.name!r} is not allowed: it must be a hub id, a folder "
            "of the checkpoint or an absolute path"
        )
    network, architecture = load_network(folder / HEAD)
    head = InContextHead(network, architecture, config.head)
    encoder = _load_encoder(config.backbone, folder)
    if tokenizer not in (None, encoder.tokenizer_digest):  # None: written before the digest was
        raise CheckpointError(
            f"the tokenizer of {folder}'s encoder {config.backbone.name!r} is not the one it was saved with "
            f"(digest {encoder.tokenizer_digest}, in {CONFIG} {tokenizer}): copy the whole checkpoint again"
        )
    adapter = make_adapter(encoder.width, config.adapter)
    _load_tensors(adapter, _read_tensors(folder / ADAPTER), str(folder / ADAPTER))
    return ModelParts(config, encoder, adapter, head, _load_difficulty(config.difficulty, encoder.width, folder))


def _load_difficulty(pooling: str | None, width: int, folder: Path) -> Difficulty | None:
    if pooling is None:
        return None
    file = folder / DIFFICULTY
    tensors = _read_tensors(file)
    try:
        difficulty = Difficulty(pooling, **tensors)
    except (TypeError, ValueError) as error:  # tensors of other names, or of other shapes
        raise CheckpointError(f"{file} does not fit: {error}") from error
    if difficulty.centres.shape[1] != width:
        raise CheckpointError(
            f"{file} does not fit: its centres have width {difficulty.centres.shape[1]}, the encoder's states {width}"
        )
    return difficulty


def _read_config(path: Path) -> tuple[ValueModelConfig, str | None]:
    """The config, and the digest of the tokenizer that the model was saved with."""
    try:
        values = read_json(path)
        found = values.pop("format", None) if isinstance(values, dict) else None
        if found != FORMAT:
            raise ConfigError(f"format={found!r} is not known: this version reads format {FORMAT}")
        tokenizer = values.pop("tokenizer", None)
        return ValueModelConfig.from_dict(values), tokenizer
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing, damaged, or no value model's config: {error}") from error


def _load_encoder(config: BackboneConfig, folder: Path) -> Backbone:
    # Checked before transformers resolves the name, which would also match a folder of the working directory.
    if config.name == BACKBONE and not (folder / BACKBONE).is_dir():
        raise CheckpointError(f"{folder} lacks its encoder, the folder {BACKBONE!r}: copy the whole checkpoint")
    inside = folder / config.name
    if inside.is_dir() and not any((inside / name).is_file() for name in TOKENIZER_FILES):
        # transformers would make up a tokenizer without a vocabulary.
        raise CheckpointError(f"{inside} lacks its tokenizer ({TOKENIZER_FILES[0]}, ...): copy the whole checkpoint")
    try:
        return Backbone(config, folder)
    except Exception as error:  # transformers and its parsers share no base class of errors
        raise CheckpointError(
            f"the encoder {config.name!r} of {folder} cannot be loaded; pass backbone=<path or hub id> "
            f"if it is elsewhere: {error}"
        ) from error


def _load_released(folder: Path, backbone: str | None) -> ModelParts:
    """The authors' ``.pt``: keys ``backbone.*`` and ``adapter_layer.*``, each possibly with the prefix ``module.``."""
    config = ValueModelConfig()
    if backbone is not None:
        config = replace(config, backbone=replace(config.backbone, name=backbone))
    tensors = _split_released(folder / RELEASED)
    network, architecture = load_network(folder / RELEASED_HEAD)
    encoder = _load_encoder(config.backbone, folder)
    adapter = make_adapter(encoder.width, config.adapter)
    _load_tensors(encoder.encoder, tensors["encoder"], str(folder / RELEASED))
    _load_tensors(adapter, tensors["adapter"], str(folder / RELEASED))
    # No hub id refers to these encoder weights; with this name, save_parts writes them into the checkpoint.
    config = replace(config, backbone=replace(config.backbone, name=BACKBONE))
    return ModelParts(config, encoder, adapter, InContextHead(network, architecture, config.head))


def _split_released(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(checkpoint["model_state_dict"])
    except Exception as error:  # the type of the error depends on how the file is damaged
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


def _save_tensors(module: nn.Module, file: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, file)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is missing or damaged: {error}") from error


def _load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(tensors)  # strict, so that missing tensors raise instead of staying random
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit: {error}") from error
