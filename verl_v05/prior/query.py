"""What a prior is asked about, and what a step measured of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Query:
    """A prompt whose success probability is asked for."""

    prompt_id: str  # the same for the same prompt in every step and run
    text: str  # what a value model reads
    data_source: str


@dataclass(frozen=True)
class Outcome:
    """What one step measured on a prompt."""

    query: Query
    success: float  # mean success over the k rollouts, in [0, 1]
    k: int


def make_query(
    messages: Sequence[dict[str, Any]], data_source: object, extra_info: object = None, text_key: str | None = None
) -> Query:
    """The query of a prompt.

    Args:
        messages: its chat.
        data_source: of its row.
        extra_info: of its row, a mapping where it has any.
        text_key: entry of ``extra_info`` that is the problem without the template around it, and is what a value model
            reads; None, or a row without it, is the user's turns.
    """
    messages = list(messages)
    problem = extra_info.get(text_key) if isinstance(extra_info, Mapping) else None
    text = problem if isinstance(problem, str) and problem else prompt_text(messages)
    # The id does not depend on the text, so that a checkpoint's history is of the same prompts with any text_key.
    return Query(prompt_id(messages), text, str(data_source))


def prompt_id(messages: list[dict[str, Any]]) -> str:
    """Digest of the chat messages."""
    canonical = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=12).hexdigest()


def prompt_text(messages: list[dict[str, Any]]) -> str:
    """The user's turns."""
    return "\n".join(str(m["content"]) for m in messages if m.get("role") == "user")
