"""From an encoder's token states to the head's features: the residual query adapter, and simple poolings.

Shape suffixes: B prompts, T tokens, D encoder width, Q queries, P projection width, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from value_model.config import AdapterConfig


class Adapter(nn.Module, ABC):
    """``forward(states_btd, mask_bt) -> features_bf``; ``mask`` is true at real tokens, at least one per prompt."""

    width: int  # F

    @abstractmethod
    def forward(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        """Features, (B, F)."""


class ResidualQueryAdapter(Adapter):
    """Static queries plus a per-prompt residual attend to the projected token states.

    Module names are the released checkpoint's, whose tensors are loaded by name (``static_queries``, ``generator``,
    ``proj_kv``, ``mha``, ``ln_q``, ``ln_kv``); layers beyond the first are ``more_mha`` and read the previous layer's
    output as queries.
    The generator's output is zero at initialisation, so training starts from the static queries alone.
    """

    def __init__(self, states_dim: int, config: AdapterConfig):
        super().__init__()
        self.width = config.queries * config.dim
        self._query_shape = (config.queries, config.dim)
        self.static_queries = nn.Parameter(torch.randn(1, config.queries, config.dim) * 0.02)
        self.generator = nn.Sequential(
            nn.Linear(states_dim, config.bottleneck),
            nn.LayerNorm(config.bottleneck),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.bottleneck, self.width),
        )
        for parameter in self.generator[-1].parameters():
            nn.init.zeros_(parameter)
        self.proj_kv = nn.Linear(states_dim, config.dim)
        self.mha = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
        self.ln_q = nn.LayerNorm(config.dim)
        self.ln_kv = nn.LayerNorm(config.dim)
        self.more_mha = nn.ModuleList(
            nn.MultiheadAttention(config.dim, config.heads, batch_first=True) for _ in range(config.layers - 1)
        )

    def forward(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        residual_bqp = self.generator(last_token(states_btd, mask_bt)).unflatten(1, self._query_shape)
        queries_bqp = self.static_queries + residual_bqp
        values_btp = self.proj_kv(states_btd)
        keys_btp = self.ln_kv(values_btp)
        for attention in (self.mha, *self.more_mha):
            queries_bqp, _ = attention(
                self.ln_q(queries_bqp), keys_btp, values_btp, key_padding_mask=~mask_bt, need_weights=False
            )
        return queries_bqp.flatten(1)


class Pooling(Adapter):
    """One state per prompt, linearly projected if the config gives a number of features.

    In training, dropout is applied to the pooled state before the projection, which otherwise overfits to the prompts
    of a small table.
    """

    def __init__(self, states_dim: int, config: AdapterConfig):
        super().__init__()
        self.width = config.features or states_dim
        self.dropout = nn.Dropout(config.dropout if config.features else 0.0)
        self.projection = nn.Linear(states_dim, config.features) if config.features else nn.Identity()

    def forward(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        return self.projection(self.dropout(self.pool(states_btd, mask_bt)))

    @abstractmethod
    def pool(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        """One state per prompt, (B, D)."""


class LastTokenPooling(Pooling):
    """The last real token's state, as usual for causal embedding models."""

    def pool(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        return last_token(states_btd, mask_bt)


class MeanPooling(Pooling):
    """The mean over real tokens."""

    def pool(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        return mean_token(states_btd, mask_bt)


def make_adapter(states_dim: int, config: AdapterConfig) -> Adapter:
    """The configured adapter for an encoder of width ``states_dim``."""
    kinds: dict[str, type[Adapter]] = {
        "residual_query": ResidualQueryAdapter,
        "last_token": LastTokenPooling,
        "mean": MeanPooling,
    }
    return kinds[config.kind](states_dim, config)


def last_token(states_btd: Tensor, mask_bt: Tensor) -> Tensor:
    """State of each prompt's last real token, whichever side is padded, (B, D)."""
    positions = torch.arange(mask_bt.shape[1], device=mask_bt.device)
    last_b = torch.where(mask_bt, positions, -1).argmax(dim=1)
    return states_btd[torch.arange(len(states_btd), device=states_btd.device), last_b]


def mean_token(states_btd: Tensor, mask_bt: Tensor) -> Tensor:
    """Mean state over each prompt's real tokens, (B, D)."""
    weight_bt1 = mask_bt.unsqueeze(-1).to(states_btd.dtype)
    return (states_btd * weight_bt1).sum(1) / weight_bt1.sum(1)
