"""The training loss: the order of a success and a failure (pairwise logistic), and success rates (cross-entropy).

Shape suffixes: Q queries, M pairs, 2 the classes failure and success, or the two queries of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from value_model.conversions import success_of_reward


@dataclass(frozen=True)
class Loss:
    """A task's loss with its two parts, scalars; ``total`` is the one to differentiate."""

    total: Tensor
    cross_entropy: Tensor
    pairwise: Tensor


def success_logit(logits_q2: Tensor) -> Tensor:
    """Log-odds of success, (Q,), from the head's logits of failure and success."""
    return logits_q2[:, 1] - logits_q2[:, 0]


def pairwise_logistic(logit_q: Tensor, score_q: Tensor, pairs_m2: Tensor) -> Tensor:
    """Mean of log(1 + exp(logit of the worse - logit of the better)) over pairs of queries; 0 without pairs.

    Args:
        logit_q: log-odds of success.
        score_q: measured scores, the larger one of a pair is the better query.
        pairs_m2: indices of the two queries of each pair, in any order.

    Raises:
        ValueError: the two queries of a pair have equal scores.
    """
    first_m, second_m = pairs_m2[:, 0], pairs_m2[:, 1]
    order_m = torch.sign(score_q[first_m] - score_q[second_m])
    if (order_m == 0).any():
        pair = pairs_m2[int((order_m == 0).int().argmax())].tolist()
        raise ValueError(f"queries {pair[0]} and {pair[1]} have equal scores: a pair needs a better and a worse one")
    if not len(pairs_m2):
        return logit_q.sum() * 0.0  # zero, but connected to the graph, so that backward works
    return softplus(-order_m * (logit_q[first_m] - logit_q[second_m])).mean()


def soft_cross_entropy(logits_q2: Tensor, target_q: Tensor) -> Tensor:
    """Mean cross-entropy against success rates in [0, 1]."""
    log_p_q2 = log_softmax(logits_q2, dim=-1)
    return -(target_q * log_p_q2[:, 1] + (1 - target_q) * log_p_q2[:, 0]).mean()


def combined_loss(logits_q2: Tensor, score_q: Tensor, pairs_m2: Tensor, pairwise_weight: float = 0.25) -> Loss:
    """``pairwise_weight`` parts of :func:`pairwise_logistic`, the rest :func:`soft_cross_entropy` on success rates.

    Args:
        logits_q2: the head's logits of failure and success.
        score_q: measured scores in [-1, 1], in the logits' dtype.
        pairs_m2: indices of the two queries of each pair, (M, 2).
        pairwise_weight: in [0, 1].
    """
    pairwise = pairwise_logistic(success_logit(logits_q2), score_q, pairs_m2)
    cross_entropy = soft_cross_entropy(logits_q2, success_of_reward(score_q))
    total = pairwise_weight * pairwise + (1 - pairwise_weight) * cross_entropy
    return Loss(total, cross_entropy, pairwise)
