"""A bounded cache of tensors computed from texts, so that a prompt is embedded once in a run."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from value_model.files import replaced


class TextCache:
    """An LRU cache of one tensor per text.

    Args:
        capacity: texts kept; beyond it the least recently used ones are dropped.
        identity: of the model that computes the values; :meth:`load` rejects a file of another model.
    """

    def __init__(self, capacity: int, identity: str = ""):
        self.capacity = capacity
        self.identity = identity
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        """Remove every entry; the counts of hits and misses stay."""
        self._values.clear()

    def get(self, texts: Sequence[str], compute: Callable[[list[str]], Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Values of ``texts`` in their order; one call of ``compute`` makes those that are missing, each text once."""
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._values}
        made = dict(zip(missing, compute(list(missing.values())) if missing else [], strict=True))
        self.misses += len(missing)
        self.hits += len(texts) - len(missing)
        # Read before eviction, because a batch may be larger than the cache.
        found = [made[key] if key in made else self._values[key] for key in keys]
        self._keep(zip(keys, found, strict=True))
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write everything atomically, oldest first."""
        # The numeric prefix stores the LRU order, because safetensors does not keep the order of its keys.
        tensors = {f"{i}.{key}": value.contiguous() for i, (key, value) in enumerate(self._values.items())}
        with replaced(path) as partial:
            save_file(tensors, partial, metadata={"identity": self.identity})

    def load(self, path: str | os.PathLike) -> None:
        """Add the entries of a file that :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged, or of another ``identity`` than this cache's.
        """
        try:
            self._read(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is damaged or cannot be read: {error}; delete it") from error

    def _read(self, path: str | os.PathLike) -> None:
        with safe_open(path, framework="pt") as file:
            identity = (file.metadata() or {}).get("identity", "")
            if identity != self.identity:
                raise ValueError(
                    f"{path} holds features of {identity!r}, not of {self.identity!r}: delete it, or use that model"
                )
            keys = sorted(file.keys(), key=lambda key: int(key.split(".", 1)[0]))
            self._keep((key.split(".", 1)[1], file.get_tensor(key)) for key in keys)

    def _keep(self, items: Iterable[tuple[str, torch.Tensor]]) -> None:
        for key, value in items:
            self._values[key] = value
            self._values.move_to_end(key)
        while len(self._values) > self.capacity:
            self._values.popitem(last=False)


def _key(text: str) -> str:
    # A digest, so that long prompts are not kept in memory next to their features.
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
