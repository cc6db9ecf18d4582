"""Sizes of the trained models, from their configs: a path, the hub's cache, or the table of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig

CONFIG = "config.json"
# Hub id to the entries of its config.json that set sizes.
KNOWN: dict[str, dict] = yaml.safe_load((files(__package__) / "shapes.yaml").read_text())


class ShapeError(ValueError):
    """A model's config cannot be found or read; the message says how to give it."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model; ``context`` in tokens."""

    parameters: int
    heads: int
    context: int


def measure(config: PretrainedConfig, critic: bool = False) -> ModelShape:
    """Count a language model's parameters, or with a head of one value those of a critic, without its weights."""
    text = config.get_text_config()
    kind: type[AutoModelForCausalLM] | type[AutoModelForTokenClassification] = AutoModelForCausalLM
    if critic:
        config.num_labels, kind = 1, AutoModelForTokenClassification  # as verl loads it
    with torch.device("meta"):
        model = kind.from_config(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelShape(parameters, text.num_attention_heads, text.max_position_embeddings)


def find_config(key: str, model: str, given: Mapping[str, Path]) -> PretrainedConfig:
    """Config of ``model``, a folder or hub id that ``key`` names, without the network.

    Args:
        given: model to the folder or config.json to read instead.

    Raises:
        ShapeError: see there.
    """
    source = given.get(model, Path(model).expanduser())
    local = model in given or source.exists()
    try:
        # Code that comes with a model is never run here, and without an answer transformers would ask for one.
        return AutoConfig.from_pretrained(source if local else model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if local or isinstance(error, ValueError):
            raise ShapeError(f"{key}: {source} has no {CONFIG} that transformers knows: {error}") from error
    if (entries := KNOWN.get(model)) is not None:
        return AutoConfig.for_model(**entries)
    is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model)
    fetch = f", or run `hf download {model} {CONFIG}` where there is a network" if is_hub_id else ""
    raise ShapeError(
        f"{key}={model!r}: its {CONFIG} is neither in a local folder, nor in the hub's cache, nor in the table of "
        f"this package ({', '.join(KNOWN)}): give it with --model-config {model}=PATH{fetch}"
    )
