"""The model that a training run starts from: a saved one, or a new adapter between an encoder and a head."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from value_model.adapter import make_adapter
from value_model.backbone import Backbone
from value_model.checkpoint import BACKBONE
from value_model.config import ConfigError, ValueModelConfig
from value_model.head import InContextHead, load_network
from value_model.model import ValueModel
from value_model.training.settings import TINY, InitSettings, NewModel, SettingsError
from value_model.training.tiny_encoder import write_tiny_encoder


def build_model(init: InitSettings, seed: int) -> ValueModel:
    """The model to train, on the CPU; new weights depend on the seed alone.

    Raises:
        SettingsError: a key or value of ``init.new`` is not allowed.
    """
    if init.new is None:
        return ValueModel.from_pretrained(init.from_pretrained)
    with tempfile.TemporaryDirectory() as scratch:
        return _new_model(init.new, seed, Path(scratch))


def _new_model(new: NewModel, seed: int, scratch: Path) -> ValueModel:
    backbone = dict(new.backbone)
    if backbone.get("name") == TINY:
        # Written to disk first, so that it is loaded in the same way as other encoders and as the saved model's.
        backbone |= {"name": BACKBONE, "max_length": backbone.get("max_length", new.tiny.max_length)}
        write_tiny_encoder(scratch / BACKBONE, new.tiny, seed)
    try:
        config = ValueModelConfig.from_dict({"backbone": backbone, "adapter": new.adapter, "head": new.head})
    except ConfigError as error:
        raise SettingsError(f"init.new: {error}") from error
    network, architecture = load_network(new.head_weights)
    encoder = Backbone(config.backbone, scratch)
    torch.manual_seed(seed)
    adapter = make_adapter(encoder.width, config.adapter)
    return ValueModel(config, encoder, adapter, InContextHead(network, architecture, config.head))
