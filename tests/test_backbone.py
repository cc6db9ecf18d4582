"""Encoder: batches by length give what one prompt alone gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from value_model.adapter import last_token
from value_model.backbone import Backbone, pad_states
from value_model.config import BackboneConfig

pytest_plugins = ("tests.tiny_value_model",)

PROMPTS = ["2+2=", "", "What is 17 * 23?", "héllo wörld", "数学の問題", "x" * 90, " ", "a\nb\tc", "2+2=", "🙂🙂", "9"]


def load(encoder: Path, **config: object) -> Backbone:
    return Backbone(BackboneConfig(name=str(encoder), **config)).eval()  # type: ignore[arg-type]


@torch.no_grad()
def alone(backbone: Backbone, prompts: list[str]) -> list[Tensor]:
    """Each prompt's token states from a forward pass of its own."""
    states = []
    for prompt in prompts:
        state, mask = backbone.states([prompt])
        states.append(state[0][mask[0]])
    return states


@torch.no_grad()
def batched(backbone: Backbone, prompts: list[str]) -> tuple[list[list[int]], list[Tensor]]:
    """Batches of indices, and each prompt's token states in the order of ``prompts``."""
    found, batches = {}, []
    for indices, states, mask in backbone.batches(prompts):
        batches.append(indices)
        found.update({i: states[row][mask[row]] for row, i in enumerate(indices)})
    return batches, [found[i] for i in range(len(prompts))]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 200, 16384])
def test_batches_give_the_states_of_prompts_alone(encoder: Path, side: str, batch_tokens: int) -> None:
    backbone = load(encoder, padding_side=side, batch_tokens=batch_tokens)
    _, states = batched(backbone, PROMPTS)
    for state, expected in zip(states, alone(backbone, PROMPTS), strict=True):
        assert state.dtype == torch.float32 and state.shape[1] == backbone.width
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 40, 200, 16384])
def test_every_prompt_is_in_one_batch_and_batches_keep_the_bound(encoder: Path, batch_tokens: int) -> None:
    backbone = load(encoder, batch_tokens=batch_tokens)
    shapes: list[torch.Size] = []
    backbone.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    batches, _ = batched(backbone, PROMPTS)
    assert sorted(i for batch in batches for i in batch) == list(range(len(PROMPTS)))
    assert len(shapes) == len(batches)
    assert all(rows == 1 or rows * width <= batch_tokens for rows, width in shapes)


def test_batches_are_filled(encoder: Path) -> None:
    backbone = load(encoder, batch_tokens=40)
    batches, _ = batched(backbone, ["abc"] * 25)  # 4 tokens each, the end among them
    assert [len(batch) for batch in batches] == [10, 10, 5]


def test_prompts_of_similar_length_share_a_batch(encoder: Path) -> None:
    batches, _ = batched(load(encoder, batch_tokens=64), ["x" * length for length in (3, 30, 4, 31, 5, 9)])
    assert batches == [[3, 1], [5, 4, 2, 0]]


def test_no_prompts_are_no_batches(encoder: Path) -> None:
    assert list(load(encoder).batches([])) == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_configured_side(encoder: Path, side: str) -> None:
    _, mask = load(encoder, padding_side=side).states(["a", "a longer one"])
    assert mask.dtype == torch.bool and mask[1].all()
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=side == "right")
    assert mask.sum(1).tolist() == [2, 13]


def test_the_side_of_the_padding_does_not_change_the_last_state(encoder: Path) -> None:
    with torch.no_grad():
        left, right = (last_token(*load(encoder, padding_side=side).states(PROMPTS)) for side in ("left", "right"))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_a_long_prompt_is_cut_at_its_end(encoder: Path) -> None:
    backbone = load(encoder, max_length=8)
    cut, same, other = alone(backbone, ["abcdefghijkl", "abcdefgXYZ", "Xbcdefgh"])
    assert len(cut) == 8
    torch.testing.assert_close(cut, same, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(cut, other, atol=1e-3)


def test_a_prompt_is_never_longer_than_the_encoder_can_read(encoder: Path) -> None:
    backbone = load(encoder, max_length=100_000)
    assert backbone.max_length == 2048
    assert len(alone(backbone, ["x" * 5000])[0]) == 2048


@pytest.mark.parametrize("prompt", ["", " ", "\n", "\x00", "\ud800"])
def test_a_prompt_without_words_has_finite_states(encoder: Path, prompt: str) -> None:
    states = alone(load(encoder), [prompt])[0]
    assert len(states) >= 1 and states.isfinite().all()


def test_a_prompt_is_not_changed_on_the_way(encoder: Path) -> None:
    backbone = load(encoder)
    assert not torch.equal(alone(backbone, [""])[0], alone(backbone, [" "])[0])
    assert not torch.equal(alone(backbone, ["a"])[0][:1], alone(backbone, [" a"])[0][:1])


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_a_tokenizer_that_finds_nothing_in_a_prompt_gives_one_token(encoder: Path, prompt: str) -> None:
    backbone = load(encoder)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "two": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", padding_side="left"
    )
    with torch.no_grad():
        states, mask = backbone.states([prompt, "two two two"])
    assert mask.sum(1).tolist() == [1, 3]
    assert states[mask].isfinite().all()


def test_lower_precision_gives_float32_states_close_to_full(encoder: Path) -> None:
    half = load(encoder, dtype="bfloat16")
    assert next(half.encoder.parameters()).dtype == torch.bfloat16
    state, expected = alone(half, ["abc"])[0], alone(load(encoder), ["abc"])[0]
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, expected, rtol=0.1, atol=0.2)


def test_states_carry_gradients_to_an_encoder_that_trains(encoder: Path) -> None:
    backbone = load(encoder)
    backbone.states(["abc", "a"])[0].sum().backward()
    assert all(p.grad is not None for p in backbone.encoder.parameters())


def test_a_folder_of_the_checkpoint_comes_before_a_name(encoder: Path) -> None:
    inside = Backbone(BackboneConfig(name=encoder.name, revision="ignored"), encoder.parent)
    assert inside.width == 32


def test_an_encoder_that_is_not_there_is_an_os_error(offline: None, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        load(tmp_path / "nothing")
    with pytest.raises(OSError):
        Backbone(BackboneConfig(name="nobody/nothing-here"), tmp_path)


@pytest.mark.parametrize("lengths", [[3], [1, 4, 2]])
def test_states_of_different_length_are_stacked_with_their_mask(lengths: list[int]) -> None:
    states = [torch.randn(length, 5) for length in lengths]
    batch, mask = pad_states(states)
    assert batch.shape == (len(lengths), max(lengths), 5)
    for row, state in enumerate(states):
        assert torch.equal(batch[row][mask[row]], state)
        assert not batch[row][~mask[row]].any()
