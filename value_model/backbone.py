"""The text encoder: token states of prompts, batched by length.

Shape suffixes and sizes: B prompts, T tokens, D width of the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from value_model.config import BackboneConfig

# Texts that tokenizers of one vocabulary split differently: spaces, digits, LaTeX, code, case, accents, other scripts.
TOKENIZER_PROBES = (
    "",
    "  What is 17*23 + 1,000.5 ?\n\n",
    "Let $x^2 + \\frac{1}{2}\\sqrt{3} = \\boxed{0}$. Find\u00a0x.",
    "def f(n):\n\treturn [i for i in range(n)]  # aAbBzZ",
    "Ünïcödé e\u0301 ﬁ ½ 中文数学 русский العربية \U0001f600",
    "antidisestablishmentarianism !\"#%&'()*+,-./:;<=>@[]^_`{|}~",
)


class Backbone(nn.Module):
    """An encoder that sentence-transformers loads; only its first module, the transformer, is used.

    Attributes:
        width: size D of a token state.
    """

    def __init__(self, config: BackboneConfig, folder: Path | None = None):
        """Load the encoder.

        Args:
            config: what to load.
            folder: checkpoint that holds the encoder, if ``config.name`` is a folder in it.

        Raises:
            OSError: nothing can be loaded under that name.
        """
        super().__init__()
        self.config = config
        inside = folder / config.name if folder is not None and (folder / config.name).is_dir() else None
        loaded = SentenceTransformer(
            str(inside or config.name),
            revision=None if inside else config.revision,
            device="cpu",
            model_kwargs={"dtype": getattr(torch, config.dtype)},
            processor_kwargs={"padding_side": config.padding_side},
        )
        transformer: Any = loaded[0]  # typed as nn.Module, whose attributes are all Tensor | Module
        self.encoder: PreTrainedModel = transformer.auto_model
        self.tokenizer = loaded.tokenizer
        self.width: int = self.encoder.config.hidden_size
        self.max_length = min(config.max_length, loaded.max_seq_length or config.max_length)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token states in float32, (B, T, D)."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()

    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token states and mask of one batch, (B, T, D) and (B, T); differentiable if the encoder trains."""
        batch = self._pad(self._tokens(prompts))
        return self(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"].bool()

    def batches(self, prompts: Sequence[str]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield (indices into ``prompts``, states, mask), prompts of similar length together."""
        tokens = self._tokens(prompts)
        for indices in batches_by_length([len(t) for t in tokens], self.config.batch_tokens):
            batch = self._pad([tokens[i] for i in indices])
            mask = batch["attention_mask"]
            yield indices, self(batch["input_ids"], mask), mask.bool()

    def _tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        if not prompts:
            return []
        # The tokenizer raises on a lone surrogate (half of a truncated surrogate pair), which UTF-8 cannot encode.
        texts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        # A tokenizer without special tokens returns no token for an empty prompt; pooling over none would give NaN.
        return [tokens or [self._empty_prompt_token] for tokens in encoded]

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the vocabulary and of how some texts are split, which versions of transformers agree on."""
        split = self.tokenizer(list(TOKENIZER_PROBES))["input_ids"]
        known = [sorted(self.tokenizer.get_vocab().items()), [list(ids) for ids in split], self._empty_prompt_token]
        return blake2b(json.dumps(known).encode(), digest_size=12).hexdigest()

    @property
    def _empty_prompt_token(self) -> int:
        known = (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, self.tokenizer.unk_token_id)
        return next((token for token in known if token is not None), 0)

    def _pad(self, tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        device = next(self.encoder.parameters()).device
        return self.tokenizer.pad({"input_ids": [list(t) for t in tokens]}, return_tensors="pt").to(device)


def pad_states(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack token states of different length, (T_i, D) each, into (B, T, D) with their mask (B, T)."""
    mask = pad_sequence([torch.ones(len(s), dtype=torch.bool) for s in states], batch_first=True)
    return pad_sequence(list(states), batch_first=True), mask


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``batch_tokens`` padded tokens (at least one prompt), longest first."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Sorted longest first, so the batch's first prompt sets the padded length.
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
