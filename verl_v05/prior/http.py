"""A value model behind HTTP (:mod:`value_model.serving.http`, or anything that answers like it)."""

from __future__ import annotations

import asyncio
import math
import os
import ssl
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from ray.util.placement_group import PlacementGroup

from value_model.checks import require
from value_model.conversions import reward_of_success
from value_model.serving.http_settings import TOKEN_ENV, is_loopback
from verl_v05.prior.base import Prior
from verl_v05.prior.query import Outcome, Query

KEY = "algorithm.v05.prior.kwargs"
BACKOFF_S = 0.5  # before the first retry, doubled for each further one
MAX_BACKOFF_S = 30.0


class HttpPriorError(RuntimeError):
    """The server cannot be reached, refuses, or answers nonsense; the message names url and status."""


class HttpPrior(Prior):
    """Asks ``POST <url>/v1/predict`` with the context and a batch of prompts at a time, one request after the other.

    Connection errors, timeouts and 503 are tried again; proxies of the environment are not used.

    Args:
        url: base address, such as http://127.0.0.1:8765.
        token_env: environment variable with the bearer token, in the allocator's process; unset means no token.
        timeout_s: seconds for one try, from the connection to the answer's last byte.
        deadline_s: seconds for all requests of one batch of prompts, retries included; below ``prior.timeout_s``, after
            which the batch's priors are missing whatever comes.
        batch_size: prompts a request.
        retries: further tries of a request.
        verify: check the server's certificate; or the file of the authority that signed it.
        allow_insecure: let the token travel unencrypted to another machine.
    """

    def __init__(
        self,
        url: str,
        token_env: str = TOKEN_ENV,
        timeout_s: float = 60.0,
        deadline_s: float = 540.0,
        batch_size: int = 256,
        retries: int = 2,
        verify: bool | str = True,
        allow_insecure: bool = False,
    ):
        base = _base_url(url)
        require(
            f"{KEY}.token_env", token_env, isinstance(token_env, str) and token_env != "", "an environment variable"
        )
        for name, seconds in (("timeout_s", timeout_s), ("deadline_s", deadline_s)):
            require(f"{KEY}.{name}", seconds, _is_number(seconds) and 0 < seconds < math.inf, "positive seconds")
        require(f"{KEY}.batch_size", batch_size, type(batch_size) is int and batch_size >= 1, "an integer >= 1")
        require(f"{KEY}.retries", retries, type(retries) is int and retries >= 0, "an integer >= 0")
        require(f"{KEY}.allow_insecure", allow_insecure, type(allow_insecure) is bool, "true or false")
        token = os.environ.get(token_env, "").strip()
        require(
            f"{KEY}.token_env", token_env, token.isascii() and token.isprintable(), "a variable holding printable ASCII"
        )
        in_clear = token and base.scheme == "http" and not is_loopback(base.host)
        allowed = f"https, as the token of {token_env} would travel in clear (or set {KEY}.allow_insecure=true)"
        require(f"{KEY}.url", url, allow_insecure or not in_clear, allowed)
        self.url = f"{str(base).rstrip('/')}/v1/predict"
        self.timeout_s = timeout_s
        self.deadline_s = deadline_s
        self.batch_size = batch_size
        self.retries = retries
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        trusted = _tls(verify)
        tls = trusted if base.scheme == "https" else False  # for http, httpx would still read all authorities
        self._client: dict[str, Any] = {"headers": headers, "timeout": timeout_s, "verify": tls, "trust_env": False}

    def start(self, placement_groups: Sequence[PlacementGroup] = ()) -> None:
        """Ask a first question, so that a wrong address or token ends the run before it starts."""
        easy, hard = Query("easy", "1 + 1 = ?", ""), Query("hard", "Is P = NP?", "")
        self.predict([easy], [Outcome(easy, 1.0, 1), Outcome(hard, 0.0, 1)], 0)

    def predict(self, queries: Sequence[Query], context: Sequence[Outcome] | None, step: int) -> np.ndarray:
        """See :class:`Prior`. All missing without a context; HttpPriorError if any request fails in the end."""
        answer = np.full(len(queries), np.nan)
        if context is None:
            return answer
        examples = [{"prompt": o.query.text, "score": reward_of_success(float(o.success))} for o in context]
        deadline = time.monotonic() + self.deadline_s
        for start in range(0, len(queries), self.batch_size):
            prompts = [q.text for q in queries[start : start + self.batch_size]]
            response = self._post({"context": examples, "prompts": prompts}, deadline)
            answer[start : start + len(prompts)] = self._probabilities(response, len(prompts))
        return answer

    def _post(self, body: dict[str, Any], deadline: float) -> httpx.Response:
        problem = f"was not asked about all prompts: deadline_s={self.deadline_s:g} is over"
        for attempt in range(self.retries + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            wait = min(BACKOFF_S * 2.0 ** min(attempt, 32), MAX_BACKOFF_S)
            try:
                response = asyncio.run(self._try(body, min(self.timeout_s, left)))
            except httpx.RequestError as error:
                problem = f"did not answer: {type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return response
                problem = f"answered {response.status_code}: {response.text[:500]}"
                if response.status_code != 503:
                    break
                wait = _retry_after(response, wait)
            if attempt < self.retries:
                time.sleep(min(wait, max(deadline - time.monotonic(), 0)))
        raise HttpPriorError(f"{self.url} {problem}")

    async def _try(self, body: dict[str, Any], seconds: float) -> httpx.Response:
        """One request, whose time is limited as a whole.

        httpx's own timeouts are of single reads, which a server that sends a byte now and then never exceeds. Only a
        coroutine can be cancelled in the middle of one, hence a client for each try: it belongs to an event loop.
        """
        async with httpx.AsyncClient(**self._client) as client:
            try:
                async with asyncio.timeout(seconds):
                    return await client.post(self.url, json=body)
            except TimeoutError as error:
                raise httpx.ReadTimeout(f"no whole answer in {seconds:g} s") from error

    def _probabilities(self, response: httpx.Response, count: int) -> np.ndarray:
        try:
            values = response.json()["probabilities"]
        except (ValueError, KeyError, TypeError, RecursionError):
            values = None
        # Python reads NaN and Infinity, which are no JSON; a NaN would count as a prompt that the model does not know.
        if not (isinstance(values, list) and len(values) == count and all(map(_is_finite_or_null, values))):
            expected = f"'probabilities' must be {count} numbers or nulls, one a prompt"
            raise HttpPriorError(f"{self.url} answered 200: {response.text[:200]!r}; {expected}")
        return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def _base_url(url: Any) -> httpx.URL:
    allowed = "http://host[:port] or https://host[:port], without user, query or fragment"
    try:
        base = httpx.URL(url)
    except (TypeError, httpx.InvalidURL):
        base = httpx.URL("")
    extras = base.userinfo or base.query or base.fragment
    plain = base.scheme in ("http", "https") and bool(base.host) and not extras
    require(f"{KEY}.url", url, plain, allowed)
    return base


def _tls(verify: Any) -> bool | ssl.SSLContext:
    if isinstance(verify, bool):
        return verify
    try:
        return ssl.create_default_context(cafile=os.fspath(verify))
    except (OSError, TypeError) as error:
        raise ValueError(
            f"{KEY}.verify={verify!r} is not allowed: it must be true, false or a file of certificates: {error}"
        ) from error


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds the server asks for, within reason; a date there is left unread."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), MAX_BACKOFF_S) if asked.isdecimal() else otherwise


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite_or_null(value: Any) -> bool:
    return value is None or (_is_number(value) and math.isfinite(value))
