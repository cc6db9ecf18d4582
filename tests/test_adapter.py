"""Adapters: the released parameters, the formula written a second time, and padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.tiny_value_model import RELEASED_ADAPTER, build_adapter
from value_model.adapter import Adapter, ResidualQueryAdapter, last_token, make_adapter
from value_model.config import ADAPTERS, AdapterConfig

WIDTH = 20
SMALL = AdapterConfig(queries=5, dim=6, heads=3, bottleneck=8)


def drawn(config: AdapterConfig, std: float = 0.5) -> Adapter:
    """An adapter in float64 whose every parameter is drawn, biases and norms too."""
    torch.manual_seed(3)
    adapter = make_adapter(WIDTH, config).double().eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=std)
    return adapter


def token_states(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(length, WIDTH, generator=generator, dtype=torch.float64) for length in lengths]


def padded(states: list[Tensor], side: str, extra: int = 0, fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """States padded by ``fill`` to the longest length plus ``extra``."""
    width = max(len(s) for s in states) + extra
    batch = torch.full((len(states), width, WIDTH), fill, dtype=torch.float64)
    mask = torch.zeros(len(states), width, dtype=torch.bool)
    for row, state in enumerate(states):
        place = slice(width - len(state), width) if side == "left" else slice(0, len(state))
        batch[row, place], mask[row, place] = state, True
    return batch, mask


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def attend(p: dict[str, Tensor], name: str, heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    dim = query.shape[-1]
    inputs = zip(
        (query, key, value), p[f"{name}.in_proj_weight"].split(dim), p[f"{name}.in_proj_bias"].split(dim), strict=True
    )
    q, k, v = (x @ weight.T + bias for x, weight, bias in inputs)
    size, mixed = dim // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = (q[:, part] @ k[:, part].T / math.sqrt(size)).exp()
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v[:, part])
    return torch.cat(mixed, -1) @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]


def formula(p: dict[str, Tensor], config: AdapterConfig, states: Tensor) -> Tensor:
    """Features of one prompt's unpadded states (T, D), from the parameters alone."""
    hidden = norm(states[-1] @ p["generator.0.weight"].T + p["generator.0.bias"], *norm_of(p, "generator.1"))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    residual = hidden @ p["generator.4.weight"].T + p["generator.4.bias"]
    query = p["static_queries"][0] + residual.reshape(config.queries, config.dim)
    value = states @ p["proj_kv.weight"].T + p["proj_kv.bias"]
    key = norm(value, *norm_of(p, "ln_kv"))
    for name in ["mha"] + [f"more_mha.{i}" for i in range(config.layers - 1)]:
        query = attend(p, name, config.heads, norm(query, *norm_of(p, "ln_q")), key, value)
    return query.reshape(-1)


def norm_of(p: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return p[f"{name}.weight"], p[f"{name}.bias"]


def test_the_default_adapter_has_the_released_parameters() -> None:
    adapter = make_adapter(1024, AdapterConfig())
    assert {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()} == RELEASED_ADAPTER
    assert sum(p.numel() for p in adapter.parameters()) == 268_838
    assert adapter.width == 1008


def test_training_starts_from_the_static_queries() -> None:
    adapter = make_adapter(1024, AdapterConfig())
    assert not adapter.generator[4].weight.any() and not adapter.generator[4].bias.any()
    assert adapter.static_queries.std().item() == pytest.approx(0.02, rel=0.2)


def test_the_generator_drops_out_in_training_only() -> None:
    adapter = drawn(AdapterConfig(queries=5, bottleneck=64, dropout=0.5))
    batch = padded(token_states([4]), "left")
    assert torch.equal(adapter(*batch), adapter(*batch))
    adapter.train()
    assert not torch.allclose(adapter(*batch), adapter(*batch))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        AdapterConfig(),
        AdapterConfig(queries=3, dim=8, heads=1, bottleneck=4),
        AdapterConfig(queries=4, dim=6, heads=2, bottleneck=8, layers=3),
    ],
    ids=["small", "default", "one head", "three layers"],
)
def test_features_follow_the_formula(config: AdapterConfig, side: str) -> None:
    adapter = drawn(config)
    states = token_states([1, 7, 3, 2])
    features = adapter(*padded(states, side, extra=2))
    parameters = {name: tensor.detach() for name, tensor in adapter.state_dict().items()}
    expected = torch.stack([formula(parameters, config, state) for state in states])
    assert features.shape == (4, adapter.width)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("features", [None, 7])
def test_padding_changes_nothing(kind: str, features: int | None) -> None:
    adapter = drawn(AdapterConfig(kind=kind, queries=5, bottleneck=8, features=features))
    states = token_states([3, 6, 1])
    alone = torch.cat([adapter(*padded([state], "left")) for state in states])
    for side in ("left", "right"):
        for fill in (0.0, 1e3):
            together = adapter(*padded(states, side, extra=3, fill=fill))
            torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_a_zero_generator_leaves_the_last_token_no_word_of_its_own() -> None:
    adapter = make_adapter(WIDTH, SMALL).double().eval()
    states = token_states([5])[0]
    swapped = states[[4, 1, 2, 3, 0]]  # the same tokens, another one last
    features = [adapter(*padded([s], "left")) for s in (states, swapped)]
    torch.testing.assert_close(*features, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        adapter.generator[0].weight.normal_()
    torch.testing.assert_close(adapter(*padded([states], "left")), features[0], rtol=1e-12, atol=1e-12)


def test_a_trained_generator_makes_the_queries_the_prompts_own() -> None:
    adapter = drawn(SMALL)
    states = token_states([5])[0]
    features = [adapter(*padded([s], "left")) for s in (states, states[[4, 1, 2, 3, 0]])]
    assert not torch.allclose(*features, atol=1e-3)


def test_more_layers_keep_the_first_layers_names() -> None:
    config = AdapterConfig(queries=5, bottleneck=8, layers=3)
    names = set(make_adapter(1024, config).state_dict()) - set(RELEASED_ADAPTER)
    assert {name.rsplit(".mha")[0].split(".")[0] for name in names} == {"more_mha"}
    assert {int(name.split(".")[1]) for name in names} == {0, 1}


def test_every_parameter_and_every_token_gets_a_gradient() -> None:
    adapter = drawn(SMALL)
    batch, mask = padded(token_states([3, 5]), "left")
    batch.requires_grad_()
    adapter(batch, mask).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert batch.grad[mask].abs().sum(-1).gt(0).all()
    assert not batch.grad[~mask].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_token_is_the_last_real_one(side: str) -> None:
    states = token_states([1, 4, 2])
    assert torch.equal(last_token(*padded(states, side, extra=1)), torch.stack([s[-1] for s in states]))


def test_poolings_are_the_last_state_and_the_mean() -> None:
    states = token_states([1, 4, 2])
    batch = padded(states, "left", fill=9.0)
    last, mean = (make_adapter(WIDTH, AdapterConfig(kind=kind)).double() for kind in ("last_token", "mean"))
    assert last.width == mean.width == WIDTH
    torch.testing.assert_close(last(*batch), torch.stack([s[-1] for s in states]))
    torch.testing.assert_close(mean(*batch), torch.stack([s.mean(0) for s in states]))


@pytest.mark.parametrize("kind", ["last_token", "mean"])
def test_a_pooling_projects_to_the_features_asked_for(kind: str) -> None:
    adapter = drawn(AdapterConfig(kind=kind, features=7))
    batch = padded(token_states([3, 2]), "left")
    assert adapter.width == 7
    expected = adapter.pool(*batch) @ adapter.projection.weight.T + adapter.projection.bias
    torch.testing.assert_close(adapter(*batch), expected)


@pytest.mark.parametrize("kind", ["last_token", "mean"])
def test_a_projected_pooling_drops_out_in_training_only(kind: str) -> None:
    adapter = drawn(AdapterConfig(kind=kind, features=7, dropout=0.5))
    batch = padded(token_states([4, 2]), "left")
    expected = adapter.projection(adapter.pool(*batch))
    torch.testing.assert_close(adapter(*batch), expected, rtol=0, atol=0)
    adapter.train()
    assert not torch.allclose(adapter(*batch), expected)


@pytest.mark.parametrize("kind", ["last_token", "mean"])
def test_a_pooling_without_a_projection_never_drops_out(kind: str) -> None:
    adapter = make_adapter(WIDTH, AdapterConfig(kind=kind, dropout=0.5)).double().train()
    batch = padded(token_states([4, 2]), "left")
    torch.testing.assert_close(adapter(*batch), adapter.pool(*batch), rtol=0, atol=0)


def test_kinds_are_built_by_name() -> None:
    assert isinstance(make_adapter(WIDTH, SMALL), ResidualQueryAdapter)
    assert len({type(make_adapter(WIDTH, AdapterConfig(kind=kind))) for kind in ADAPTERS}) == len(ADAPTERS)


def test_float32_is_close_to_float64() -> None:
    adapter = build_adapter(WIDTH, SMALL)
    batch, mask = padded(token_states([3, 9]), "left")
    single = adapter(batch.float(), mask)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), adapter.double()(batch, mask), rtol=1e-4, atol=1e-5)
