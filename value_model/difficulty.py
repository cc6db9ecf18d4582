"""A prompt's difficulty for any policy, as the in-context head's prior log-odds.

The head learns from a few hundred outcomes of one policy; how hard a prompt is for policies in general is known from
all of the training table, and an adapter of few features passes little of it on. A kernel regression over the training
prompts' pooled token states holds that part:

    d(x) = 4 sum_m a_m exp(-gamma |x - c_m|^2)                      x, c_m of unit length
    log-odds(x | C) = b_0 + b_1 head(x | C) + b_2 (d(x) - mean_C d) + b_3 log-odds of the share of successes in C

``a`` is fitted to the training prompts and ``b`` to held-out ones, see :mod:`value_model.training.difficulty`. Centring
on the context, whose outcomes carry the policy's level, makes d comparable between policies.

Shape suffixes: B prompts, T tokens, D width of the encoder, M centres, C context prompts, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from value_model.adapter import last_token, mean_token

POOLINGS = {"mean": mean_token, "last_token": last_token}
COMBINATION = ("intercept", "head", "difficulty", "level")
HEAD_ALONE = (0.0, 1.0, 0.0, 0.0)
# Log-odds a unit of success rate, at even odds.
LOG_ODDS_SLOPE = 4.0


class Difficulty(nn.Module):
    """Kernel regression on pooled token states, and its combination with the head's log-odds; nothing in it trains.

    Args:
        pooling: a key of ``POOLINGS``.
        centres: (M, D), of unit length.
        weights: (M,), in success rate.
        gamma: inverse squared width of the kernel, scalar.
        combination: (4,) in the order of ``COMBINATION``.

    Raises:
        ValueError: a shape is another.
    """

    centres: Tensor
    weights: Tensor
    gamma: Tensor
    combination: Tensor

    def __init__(self, pooling: str, *, centres: Tensor, weights: Tensor, gamma: Tensor, combination: Tensor):
        super().__init__()
        size = len(COMBINATION)
        if centres.ndim != 2 or weights.shape != centres.shape[:1] or gamma.shape != () or combination.shape != (size,):
            shapes = [tuple(x.shape) for x in (centres, weights, gamma, combination)]
            raise ValueError(f"expected centres (M, D), weights (M,), gamma () and combination ({size},), got {shapes}")
        self.pooling = pooling
        self.register_buffer("centres", centres)
        self.register_buffer("weights", weights)
        self.register_buffer("gamma", gamma)
        self.register_buffer("combination", combination)

    def forward(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        """Difficulty of each prompt in log-odds, larger is easier, (B,)."""
        return self.of_pooled(self.pool(states_btd, mask_bt))

    def pool(self, states_btd: Tensor, mask_bt: Tensor) -> Tensor:
        """Pooled token states of unit length, (B, D)."""
        return normalize(POOLINGS[self.pooling](states_btd, mask_bt), dim=-1)

    def of_pooled(self, pooled_bd: Tensor) -> Tensor:
        """:meth:`forward` from :meth:`pool`'s vectors, (B,)."""
        return LOG_ODDS_SLOPE * kernel(pooled_bd, self.centres, self.gamma) @ self.weights

    def combine(self, logits_q2: Tensor, labels_c: Tensor, context_c: Tensor, queries_q: Tensor) -> Tensor:
        """Logits of failure and success, (Q, 2), from the head's and the difficulties of context and queries."""
        terms = combination_terms(logits_q2, labels_c, context_c, queries_q)
        log_odds = terms @ self.combination.to(terms.dtype)
        return torch.stack([torch.zeros_like(log_odds), log_odds], dim=1)


def combination_terms(logits_q2: Tensor, labels_c: Tensor, context_c: Tensor, queries_q: Tensor) -> Tensor:
    """What ``combination`` weights, (Q, 4), in its order."""
    head = logits_q2[:, 1] - logits_q2[:, 0]
    # Half an outcome of each class more, so that the level of a small context is not overestimated.
    share = (labels_c.to(head.dtype).sum() + 0.5) / (len(labels_c) + 1)
    difficulty = (queries_q - context_c.mean()).to(head.dtype)
    return torch.stack([torch.ones_like(head), head, difficulty, torch.logit(share).expand_as(head)], dim=1)


def kernel(left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:
    """exp(-gamma |l - r|^2) of every pair of unit vectors, (rows of left, rows of right)."""
    return torch.exp(-gamma * (2 - 2 * left @ right.T).clamp(min=0))
