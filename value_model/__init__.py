"""V0, a generalist value model: predicts a prompt's success probability from other prompts' outcomes."""

from __future__ import annotations

from typing import Any

__all__ = ["ContextError", "Task", "ValueModel", "ValueModelConfig"]


def __getattr__(name: str) -> Any:
    """Import lazily: a recorder or an HTTP client needs none of torch, transformers and tabpfn, which take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from value_model import config, model

    return getattr(config if name == "ValueModelConfig" else model, name)
