"""Features to train on: differentiable, and with the token states of a frozen encoder cached.

Shape suffixes: B texts of a batch, T tokens, D width of the encoder, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from value_model.backbone import batches_by_length, pad_states
from value_model.cache import TextCache
from value_model.model import ValueModel


class Embedder:
    """Texts to features, differentiable in the trained parts of ``model``; each distinct text once per call.

    Args:
        model: encoder and adapter.
        cached_texts: number of texts whose token states are kept in the CPU's memory; 0 if the encoder trains.
    """

    def __init__(self, model: ValueModel, cached_texts: int = 0):
        self.model = model
        self._cache = TextCache(cached_texts) if cached_texts else None
        # The encoder's own dtype: half of the memory of float32 where the encoder computes in bfloat16, and exact.
        self._dtype = getattr(torch, model.config.backbone.dtype)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The adapter's features on the model's device, (texts, F)."""
        return self.rows(texts, self.model.adapter)

    def rows(self, texts: Sequence[str], function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Outputs of ``function(states_btd, mask_bt)``, which has a row per text, on the model's device."""
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        indices, rows = [], []
        for batch, states_btd, mask_bt in self._batches(list(numbers)):
            indices += batch
            rows.append(function(states_btd, mask_bt))
        position = torch.empty(len(numbers), dtype=torch.long)
        position[indices] = torch.arange(len(numbers))
        wanted = position[[numbers[text] for text in texts]]
        return torch.cat(rows)[wanted.to(rows[0].device)]

    def _batches(self, texts: list[str]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        if self._cache is None:
            yield from self.model.backbone.batches(texts)
            return
        states = self._cache.get(texts, self._states)
        for indices in batches_by_length([len(s) for s in states], self.model.config.backbone.batch_tokens):
            states_btd, mask_bt = pad_states([states[i] for i in indices])
            yield indices, states_btd.to(self.model.device).float(), mask_bt.to(self.model.device)

    @torch.no_grad()
    def _states(self, texts: list[str]) -> list[Tensor]:
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for indices, states_btd, mask_bt in self.model.backbone.batches(texts):
            for index, row_td, mask_t in zip(indices, states_btd, mask_bt, strict=True):
                found[index] = row_td[mask_t].to("cpu", self._dtype)
        return found
