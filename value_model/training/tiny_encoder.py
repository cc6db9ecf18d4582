"""A new, tiny text encoder: a byte-level Qwen3, small enough to train with the adapter and to ship in the package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from value_model.checks import field_check

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class TinyEncoderSettings:
    """Size of the encoder; the defaults make about 100,000 parameters."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    max_length: int = 2048  # bytes

    def __post_init__(self) -> None:
        check = field_check(self, "init.new.tiny.")
        for key in ("width", "layers", "heads", "max_length"):
            check(key, getattr(self, key) >= 1, "at least 1")
        # Rotary position embeddings rotate pairs of a head's coordinates, so the size of a head must be even.
        check("width", self.width % (2 * self.heads) == 0, f"a multiple of {2 * self.heads}")


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token per byte, and one at the end of the text.

    Equivalent to transformers' ByT5Tokenizer, whose Python implementation takes longer than the encoder itself.
    """
    words = [PAD, END, UNKNOWN, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    # The byte level writes each byte as one character, and the split makes each character a word.
    tokenizer.pre_tokenizer = Sequence([ByteLevel(add_prefix_space=False, use_regex=False), Split("", "isolated")])
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, words.index(END))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=max_length
    )


def write_tiny_encoder(folder: str | os.PathLike, settings: TinyEncoderSettings, seed: int) -> None:
    """Write an encoder with new initial weights and its tokenizer into ``folder``, in transformers' format.

    The caller's random state is not changed.
    """
    tokenizer = byte_tokenizer(settings.max_length)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=2 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.width // settings.heads,
        max_position_embeddings=settings.max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen3Model(config).save_pretrained(Path(folder))
    tokenizer.save_pretrained(Path(folder))
