"""Address, secret and limits of the HTTP endpoint."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from value_model.checks import field_check

TOKEN_ENV = "VERL_V05_PRIOR_TOKEN"
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what RFC 6750 allows after "Bearer "


@dataclass(frozen=True)
class ServerSettings:
    """Address, secret and limits of the endpoint; the defaults serve the local machine only.

    Raises:
        ValueError: a limit or the token is invalid, or there is no token and the host is not a loopback address.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = field(default=None, repr=False)
    model_name: str = "default"
    max_body_bytes: int = 64 * 2**20
    max_prompts: int = 1024
    max_context: int = 1024
    max_prompt_chars: int = 100_000
    max_waiting: int = 8  # queued requests; further ones get status 503
    retry_after_s: int = 1  # Retry-After header of those responses
    max_connections: int = 128  # above it the one that has waited longest for a request is closed
    request_timeout_s: int = 30  # for a request to arrive whole, from the connection or its first byte on

    def __post_init__(self) -> None:
        check = field_check(self)
        for name in LIMITS:
            least = 0 if name == "max_waiting" else 1
            check(name, getattr(self, name) >= least, f"at least {least}")
        # The message leaves the value out: a token is a secret.
        if self.token is not None and not TOKEN.fullmatch(self.token):
            raise ValueError("the token is not allowed: it must be one or more of A-Z a-z 0-9 . _ ~ + / - =")
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r} is not allowed without a token: serve 127.0.0.1, or put a token into the "
                f"environment variable {TOKEN_ENV} or a file (--token-file)"
            )


LIMITS = [f.name for f in fields(ServerSettings) if f.name.startswith(("max_", "retry_", "request_"))]


def is_loopback(host: str) -> bool:
    """Whether the host is reachable from the local machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(env: str | None, file: Path | None) -> str | None:
    """The token of a file, else of an environment variable; None only if no source is named and TOKEN_ENV is unset.

    Raises:
        ValueError: the named source is empty.
        OSError: the file cannot be read.
    """
    token = (file.read_text() if file else os.environ.get(env or TOKEN_ENV, "")).strip()
    if not token and (file or env):
        raise ValueError(f"no token in {file or f'the environment variable {env}'}")
    return token or None
