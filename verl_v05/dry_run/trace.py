"""A model's sizes, counted on the meta device: no weights, no memory, no arithmetic."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, PretrainedConfig
from transformers.modeling_utils import AttentionInterface

Kind = Literal["policy", "critic", "encoder"]
CLASSES = {"policy": AutoModelForCausalLM, "critic": AutoModelForTokenClassification, "encoder": AutoModel}
ATTENTION = "verl_v05_dry_run"
TRACE_TOKENS = 64  # any number: what is kept grows in proportion


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model. Saved bytes are those of one token that autograd keeps for the backward pass."""

    parameters: int
    layers: int
    layer_parameters: int  # of the largest layer, the unit FSDP gathers
    layer_saved: float  # bytes, of the largest layer
    saved: float  # bytes, of all layers and what is around them, without the logits
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int

    @property
    def root_parameters(self) -> int:
        """Embeddings, final norm, head: what FSDP's root unit gathers."""
        return self.parameters - self.layers * self.layer_parameters


def measure(config: PretrainedConfig, kind: Kind, dtype: torch.dtype) -> ModelShape:
    """Count parameters, and run a forward pass on the meta device to see what autograd keeps of it.

    Attention is taken to keep what a fused kernel keeps (queries, keys, values, output, one number a row), as verl
    runs flash attention.

    Args:
        dtype: of the computation.

    Raises:
        ValueError: transformers has no model of that kind for the config.
    """
    model = _build(config, kind, dtype)
    layers = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers] or [0]
    saved = _saved_bytes(model, layers)
    text = config.get_text_config()
    heads = text.num_attention_heads
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=len(layers),
        layer_parameters=max(sizes),
        layer_saved=max((n for where, n in saved.items() if where is not None), default=0) / TRACE_TOKENS,
        saved=sum(saved.values()) / TRACE_TOKENS,
        hidden=text.hidden_size,
        vocab=text.vocab_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        context=text.max_position_embeddings,
    )


def _build(config: PretrainedConfig, kind: Kind, dtype: torch.dtype) -> nn.Module:
    config = deepcopy(config)
    if kind == "critic":
        config.num_labels = 1  # as verl does
    AttentionInterface.register(ATTENTION, _attention)
    with torch.device("meta"):
        return CLASSES[kind].from_config(config, dtype=dtype, attn_implementation=ATTENTION)


def _saved_bytes(model: nn.Module, layers: list[nn.Module]) -> dict[int | None, int]:
    """Bytes kept by each layer's forward pass; under None those outside the layers."""
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # alive, so that no storage takes the address of another
    found: dict[int | None, int] = defaultdict(int)
    current: list[int | None] = [None]

    def enter(index: int) -> None:
        current[0] = index

    def leave() -> None:
        current[0] = None

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if address not in weights and address not in kept:
            kept[address] = tensor
            found[current[0]] += tensor.untyped_storage().nbytes()
        return tensor

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, index=index: enter(index))
        layer.register_forward_hook(lambda *_: leave())
    tokens = torch.zeros(1, TRACE_TOKENS, dtype=torch.long, device=next(model.parameters()).device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, use_cache=False)
    return found


class _FusedAttention(torch.autograd.Function):
    """Keeps what flash attention keeps; computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # (B, H, T, D) each
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(batch, heads, tokens, dtype=torch.float32))
        return output


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value), None
