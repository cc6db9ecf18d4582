"""What a prior is asked about, and what a step measured of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Query:
    """A prompt whose success probability is asked for."""

    prompt_id: str  # the same for the same prompt in every step and run
    text: str
    data_source: str


@dataclass(frozen=True)
class Outcome:
    """What one step measured on a prompt."""

    query: Query
    success: float  # mean success over the k rollouts, in [0, 1]
    k: int


def make_query(messages: Sequence[dict[str, Any]], data_source: object) -> Query:
    """The query of a chat prompt."""
    messages = list(messages)
    return Query(prompt_id(messages), prompt_text(messages), str(data_source))


def prompt_id(messages: list[dict[str, Any]]) -> str:
    """Digest of the chat messages."""
    canonical = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=12).hexdigest()


def prompt_text(messages: list[dict[str, Any]]) -> str:
    """Text a value model reads: the user's turns."""
    return "\n".join(str(m["content"]) for m in messages if m.get("role") == "user")
