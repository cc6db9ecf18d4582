"""Initial weights that make tabpfn's network a weak in-context classifier before training.

From random weights, such a network predicts the base rate for most of a short training, until it learns to compare
rows. These initial weights implement the comparison, in three steps:

1. Block 1, attention along a row: every cell of a feature group copies the label from the row's target cell.
2. Block 1, attention along a column: every such cell averages the copied labels of the context rows that resemble its
   row in this group.
3. Block 2, attention along a row: the target cell averages these estimates over the groups.

The result is a kernel naive Bayes classifier. All other weights are small and random, and all weights are trained.

A cell's state has ``width`` coordinates: the first ones hold the cell's features (the content), the last six are
reserved for the classifier.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

# tabpfn's network or a part of it. Any, because nn.Module types every attribute that is a module as Tensor | Module.
TabpfnModule: TypeAlias = Any

# Reserved coordinates of a cell's state.
LABEL = -6  # in target cells: the row's label, -1 or 1, and 0 where it is unknown
COPIED_LABEL = -5  # in feature cells, after step 1
GROUP_ESTIMATE = -4  # in feature cells, after step 2
ROW_ESTIMATE = -3  # in target cells, after step 3
FEATURE_FLAG = -2  # 1 in feature cells
TARGET_FLAG = -1  # 1 in target cells
RESERVED = [LABEL, COPIED_LABEL, GROUP_ESTIMATE, ROW_ESTIMATE, FEATURE_FLAG, TARGET_FLAG]
MIN_WIDTH, MIN_BLOCKS = 16, 2

BACKGROUND_SCALE = 0.3  # of the attention's own random weights
OUTPUT_STD = 0.05  # of the projections that tabpfn initialises to zero, which would block the gradient
FLAG_LOGIT = 5.0  # attention logit, along a row, of cells with the required flag
SIMILARITY_SCALE = 0.7  # of queries and keys when rows are compared
ESTIMATE_GAIN = 4.0  # the averages differ little from row to row


@torch.no_grad()
def initialise_network(network: TabpfnModule, seed: int) -> None:
    """Set the weights of a TabPFN v2.5 network, in place.

    Args:
        network: of width ``MIN_WIDTH`` and ``MIN_BLOCKS`` blocks at least.
        seed: of the random weights.
    """
    generator = torch.Generator().manual_seed(seed)
    _initialise_embedders(network, generator)
    for block in network.blocks:
        _scale_background_weights(block, generator)
    first, second = network.blocks[0], network.blocks[1]
    along_row, along_column = "per_sample_attention_between_features", "per_column_attention_between_cells"
    _attend_by_flag(getattr(first, along_row), FEATURE_FLAG, TARGET_FLAG)
    _route_value(getattr(first, along_row), LABEL, COPIED_LABEL, gain=1.0)
    _attend_by_similarity(getattr(first, along_column), generator)
    _route_value(getattr(first, along_column), COPIED_LABEL, GROUP_ESTIMATE, ESTIMATE_GAIN)
    _attend_by_flag(getattr(second, along_row), TARGET_FLAG, FEATURE_FLAG)
    _route_value(getattr(second, along_row), GROUP_ESTIMATE, ROW_ESTIMATE, ESTIMATE_GAIN)


def _content(width: int) -> slice:
    """Coordinates that hold a cell's features."""
    return slice(0, width // 2 - 4)


def _initialise_embedders(network: TabpfnModule, generator: torch.Generator) -> None:
    """Map features to the content and labels to -1 and 1 (0 if unknown), and set a flag for each kind of cell."""
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
    # tabpfn encodes an unknown label as value 1 and indicator -2.
    target.weight[LABEL] = torch.tensor([2.0, 0.5])
    target.bias[LABEL] = -1


def _scale_background_weights(block: TabpfnModule, generator: torch.Generator) -> None:
    """Scale down a block's random weights, so that the classifier's few large ones dominate initially."""
    for attention in (block.per_sample_attention_between_features, block.per_column_attention_between_cells):
        for projection in (attention.q_projection, attention.k_projection, attention.v_projection):
            projection.weight.mul_(BACKGROUND_SCALE)
        attention.out_projection.weight.copy_(_normal(attention.out_projection.weight, OUTPUT_STD, generator))
    block.mlp[2].weight.copy_(_normal(block.mlp[2].weight, OUTPUT_STD, generator))


def _attend_by_flag(attention: TabpfnModule, query_flag: int, key_flag: int) -> None:
    """In the first attention head, cells with ``query_flag`` attend to cells with ``key_flag``."""
    # Query and key each contribute one factor, and attention divides the product by the square root of the head's size.
    strength = (FLAG_LOGIT * attention.head_dim**0.5) ** 0.5
    for projection, coordinate in ((attention.q_projection, query_flag), (attention.k_projection, key_flag)):
        projection.weight[0] = 0
        projection.weight[0, coordinate] = strength


def _attend_by_similarity(attention: TabpfnModule, generator: torch.Generator) -> None:
    """In the first attention head, the only one whose keys query rows attend to, cells attend to similar content."""
    size, content = attention.head_dim, _content(attention.out_projection.out_features)
    columns = range(attention.q_projection.in_features)[content]
    # The same random projection for queries and keys: their product is large where the contents are similar.
    comparison = torch.randn(size - 1, len(columns), generator=generator) * SIMILARITY_SCALE / len(columns) ** 0.5
    for projection in (attention.q_projection, attention.k_projection):
        projection.weight[0] = 0
        projection.weight[1:size] *= 0.2
        projection.weight[1:size, content] += comparison


def _route_value(attention: TabpfnModule, source: int, destination: int, gain: float) -> None:
    """The first head's value is the coordinate ``source``, and its output is added to ``destination``."""
    attention.v_projection.weight[0] = 0
    attention.v_projection.weight[0, source] = 1
    attention.out_projection.weight[destination] *= 0.1
    attention.out_projection.weight[destination, 0] = gain


def _normal(like: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator) * std
