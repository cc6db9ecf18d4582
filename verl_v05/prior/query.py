"""What a chat prompt is called, and what a value model reads of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from verl_v05.prior import Query


def make_query(messages: Sequence[dict[str, Any]], data_source: object) -> Query:
    """The query of a chat prompt."""
    messages = list(messages)
    return Query(prompt_id(messages), prompt_text(messages), str(data_source))


def prompt_id(messages: list[dict[str, Any]]) -> str:
    """Stable id of a chat prompt."""
    canonical = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=12).hexdigest()


def prompt_text(messages: list[dict[str, Any]]) -> str:
    """Text a value model reads: the user's turns."""
    return "\n".join(str(m["content"]) for m in messages if m.get("role") == "user")
