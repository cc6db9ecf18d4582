"""Losses of the value model, and that both parts of the combined one take part."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from value_model.training.losses import combined_loss, pairwise_logistic, soft_cross_entropy, success_logit

PAIRS = torch.tensor([[0, 1], [3, 2]])
SCORES = torch.tensor([1.0, -0.5, -1.0, 0.25])


def logits() -> torch.Tensor:
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_a_pair_costs_the_softplus_of_its_margin() -> None:
    logit = torch.tensor([2.0, 0.5, 0.0, -1.0])
    expected = (math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.0))) / 2
    assert pairwise_logistic(logit, SCORES, PAIRS).item() == pytest.approx(expected)


def test_the_order_inside_a_pair_does_not_matter() -> None:
    logit = success_logit(logits())
    assert torch.equal(pairwise_logistic(logit, SCORES, PAIRS), pairwise_logistic(logit, SCORES, PAIRS.flip(1)))


def test_the_pairwise_gradient_raises_the_better_and_lowers_the_worse() -> None:
    logit = torch.zeros(4, requires_grad=True)
    pairwise_logistic(logit, SCORES, PAIRS).backward()
    assert torch.equal(logit.grad.sign(), torch.tensor([-1.0, 1.0, 1.0, -1.0]))


def test_no_pairs_cost_nothing() -> None:
    logit = torch.zeros(4, requires_grad=True)
    loss = pairwise_logistic(logit, SCORES, torch.zeros(0, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and not logit.grad.any()


def test_equal_scores_are_no_pair() -> None:
    with pytest.raises(ValueError, match="queries 1 and 1 have equal scores"):
        pairwise_logistic(torch.zeros(4), SCORES, torch.tensor([[0, 1], [1, 1]]))


def test_soft_cross_entropy_is_that_of_the_log_odds() -> None:
    values, target = logits(), (SCORES + 1) / 2
    expected = binary_cross_entropy_with_logits(success_logit(values), target)
    assert soft_cross_entropy(values, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_soft_cross_entropy_is_least_at_the_target() -> None:
    target = torch.tensor([0.3, 0.9])
    at_target = torch.stack([(1 - target).log(), target.log()], dim=1)
    entropy = -(target * target.log() + (1 - target) * (1 - target).log()).mean()
    assert soft_cross_entropy(at_target, target).item() == pytest.approx(entropy.item())
    assert soft_cross_entropy(at_target + torch.tensor([0.0, 0.1]), target) > entropy


def test_the_combined_loss_weighs_its_parts() -> None:
    loss = combined_loss(logits(), SCORES, PAIRS, 0.25)
    assert loss.total.item() == pytest.approx(0.25 * loss.pairwise.item() + 0.75 * loss.cross_entropy.item())


def test_the_pairwise_part_takes_part_in_value_and_gradient() -> None:
    found = {}
    for weight in (0.0, 0.25, 1.0):
        values = logits()
        loss = combined_loss(values, SCORES, PAIRS, weight)
        loss.total.backward()
        found[weight] = (loss.total.item(), values.grad)
    assert len({total for total, _ in found.values()}) == 3
    assert found[1.0][1].abs().min() > 0
    mixed = 0.75 * found[0.0][1] + 0.25 * found[1.0][1]
    assert torch.allclose(found[0.25][1], mixed) and not torch.allclose(found[0.25][1], found[0.0][1])
