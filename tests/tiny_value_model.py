"""A tiny value model whose weights matter: its predictions depend on every prompt, label and layer.

Used as a plugin (``pytest_plugins``), so that the encoder is written once in a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ByT5Tokenizer, Qwen3Config, Qwen3Model

from value_model.adapter import Adapter, make_adapter
from value_model.backbone import Backbone
from value_model.config import AdapterConfig, BackboneConfig, HeadConfig, ValueModelConfig
from value_model.head import InContextHead, build_network
from value_model.model import ValueModel

# Names and shapes of the adapter in the public V0 code.
RELEASED_ADAPTER = {
    "static_queries": (1, 168, 6),
    "generator.0.weight": (128, 1024),
    "generator.0.bias": (128,),
    "generator.1.weight": (128,),
    "generator.1.bias": (128,),
    "generator.4.weight": (1008, 128),
    "generator.4.bias": (1008,),
    "proj_kv.weight": (6, 1024),
    "proj_kv.bias": (6,),
    "mha.in_proj_weight": (18, 6),
    "mha.in_proj_bias": (18,),
    "mha.out_proj.weight": (6, 6),
    "mha.out_proj.bias": (6,),
    "ln_q.weight": (6,),
    "ln_q.bias": (6,),
    "ln_kv.weight": (6,),
    "ln_kv.bias": (6,),
}

torch.set_num_threads(1)  # more than one only costs time at these sizes


def write_encoder(folder: Path, width: int = 32, layers: int = 2) -> Path:
    """A byte-level Qwen3 encoder with random weights, as transformers saves it."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draw_zeros(module: nn.Module, std: float) -> None:
    """Draw the weights that are zero at initialisation: with them an output says nothing of the input."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(std=std)


def build_adapter(width: int, config: AdapterConfig) -> Adapter:
    torch.manual_seed(1)
    adapter = make_adapter(width, config)
    draw_zeros(adapter, 0.02)
    return adapter.eval()


def build_head(config: HeadConfig | None = None, **architecture: Any) -> InContextHead:
    small = {"max_num_classes": 2, "emsize": 32, "nlayers": 2, "nhead": 2, "features_per_group": 3}
    values = {**small, "num_thinking_rows": 4, **architecture}
    torch.manual_seed(2)
    network = build_network(values)
    draw_zeros(network, 0.1)
    return InContextHead(network, values, config or HeadConfig(estimators=2)).eval()


def build_model(encoder: Path, adapter: AdapterConfig | None = None, **config: Any) -> ValueModel:
    """A fresh model on the encoder in ``encoder``, which is saved with it."""
    settings = ValueModelConfig(
        backbone=BackboneConfig(name=encoder.name, batch_tokens=512),
        adapter=adapter or AdapterConfig(queries=6, bottleneck=16),
        head=HeadConfig(estimators=2, fingerprint=False),
        **config,
    )
    backbone = Backbone(settings.backbone, encoder.parent)
    return ValueModel(settings, backbone, build_adapter(backbone.width, settings.adapter), build_head(settings.head))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny encoder."""
    return write_encoder(tmp_path_factory.mktemp("tiny") / "backbone")


@pytest.fixture(scope="session")
def tiny_model(encoder: Path) -> ValueModel:
    """Shared by the session: not to be changed."""
    return build_model(encoder)


@pytest.fixture
def fresh_model(encoder: Path) -> Callable[..., ValueModel]:
    """Builder of models of the test's own, equal to ``tiny_model``."""
    return lambda *args, **kwargs: build_model(encoder, *args, **kwargs)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No hub: the environment is read when huggingface_hub is imported, so its constant is set too."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield
