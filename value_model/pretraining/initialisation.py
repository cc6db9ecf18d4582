"""Initial weights with which tabpfn's network already is a weak in-context classifier.

From random weights such a network spends most of a small training at the base rate, before it finds out that rows
can be compared. Here that is wired in: every feature group of a row takes its label from the row's target cell
(block 1, along the row), averages the labels of the context rows that resemble it in this group (block 1, along the
column), and the target cell gathers these votes over the groups (block 2, along the row): naive Bayes with kernels.
Everything around these few weights is small and random, and all of it is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LABEL, COPY, VOTE, VOTES, FEATURE_FLAG, TARGET_FLAG = range(-6, 0)  # coordinates of a cell's state
RESERVED = [LABEL, COPY, VOTE, VOTES, FEATURE_FLAG, TARGET_FLAG]
MIN_WIDTH, MIN_BLOCKS = 16, 2

BACKGROUND = 0.3  # of the attention's own random weights
OUTPUT_STD = 0.05  # of the projections that tabpfn starts at zero, where no gradient would pass them
SHARPNESS = 5.0  # logit by which a wired row attention prefers the cells it wants
LIKENESS = 0.7  # scale of queries and keys when rows are compared
VOTE_GAIN = 4.0  # votes differ little from row to row


@torch.no_grad()
def wire(network: nn.Module, seed: int) -> None:
    """Set the weights of a TabPFN v2.5 network of at least 16 x 2 blocks, in place."""
    generator = torch.Generator().manual_seed(seed)
    _embed(network, generator)
    for block in network.blocks:
        _calm(block, generator)
    first, second = network.blocks[0], network.blocks[1]
    _gather(first.per_sample_attention_between_features, FEATURE_FLAG, TARGET_FLAG, LABEL, COPY, 1.0)
    _vote(first.per_column_attention_between_cells, generator)
    _gather(second.per_sample_attention_between_features, TARGET_FLAG, FEATURE_FLAG, VOTE, VOTES, VOTE_GAIN)


def _content(width: int) -> slice:
    """Coordinates that hold a cell's features."""
    return slice(0, width // 2 - 4)


def _embed(network: nn.Module, generator: torch.Generator) -> None:
    """Features into the content, labels to -1 and 1 (0 where unknown), and a flag for each kind of cell."""
    features = network.feature_group_embedder.weight
    count, content = network.features_per_group, _content(network.emsize)
    features.zero_()
    features[content, :count] = _normal(features[content, :count], count**-0.5, generator)
    features[:, count:] = _normal(features[:, count:], 0.05, generator)  # indicators of missing values

    columns, target = network.feature_positional_embedding_embeddings, network.target_embedder
    for layer, scale, flag in ((columns, 0.5, FEATURE_FLAG), (target, 0.1, TARGET_FLAG)):
        layer.weight.mul_(scale)
        layer.weight[RESERVED] = 0
        layer.bias.zero_()
        layer.bias[flag] = 1
    # Of an unknown label tabpfn sets the value to 1 and the indicator to -2.
    target.weight[LABEL] = torch.tensor([2.0, 0.5])
    target.bias[LABEL] = -1


def _calm(block: nn.Module, generator: torch.Generator) -> None:
    for attention in (block.per_sample_attention_between_features, block.per_column_attention_between_cells):
        for projection in (attention.q_projection, attention.k_projection, attention.v_projection):
            projection.weight.mul_(BACKGROUND)
        attention.out_projection.weight.copy_(_normal(attention.out_projection.weight, OUTPUT_STD, generator))
    block.mlp[2].weight.copy_(_normal(block.mlp[2].weight, OUTPUT_STD, generator))


def _gather(attention: nn.Module, asking: int, asked: int, source: int, destination: int, gain: float) -> None:
    """The first head lets flagged cells take ``source`` of cells with another flag into their ``destination``."""
    strength = (SHARPNESS * attention.head_dim**0.5) ** 0.5
    for projection, coordinate in ((attention.q_projection, asking), (attention.k_projection, asked)):
        projection.weight[0] = 0
        projection.weight[0, coordinate] = strength
    _carry(attention, source, destination, gain)


def _vote(attention: nn.Module, generator: torch.Generator) -> None:
    """The first head (queries have no other keys) averages the labels of rows alike in their content."""
    size, content = attention.head_dim, _content(attention.out_projection.out_features)
    columns = range(attention.q_projection.in_features)[content]
    comparison = torch.randn(size - 1, len(columns), generator=generator) * LIKENESS / len(columns) ** 0.5
    for projection in (attention.q_projection, attention.k_projection):
        projection.weight[0] = 0
        projection.weight[1:size] *= 0.2
        projection.weight[1:size, content] += comparison
    _carry(attention, COPY, VOTE, VOTE_GAIN)


def _carry(attention: nn.Module, source: int, destination: int, gain: float) -> None:
    attention.v_projection.weight[0] = 0
    attention.v_projection.weight[0, source] = 1
    attention.out_projection.weight[destination] *= 0.1
    attention.out_projection.weight[destination, 0] = gain


def _normal(like: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator) * std
