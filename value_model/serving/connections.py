"""Limits on the connections of the HTTP endpoint, which uvicorn does not have.

uvicorn's ``limit_concurrency`` counts connections that never send a request, so alone it would let these keep out every
other client, and its only time limit is that of an idle connection after a response.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class LimitedConnection(H11Protocol):
    """A connection that is closed when a request takes too long to arrive, or to make room for a newer one."""

    request_timeout_s: ClassVar[float]  # from the connection, or a request's first byte, to the last byte of its body
    max_connections: ClassVar[int]  # above it the one that has waited longest for its request is closed
    _timer: asyncio.TimerHandle | None = None  # runs while the connection waits for a whole request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        waiting = [other for other in self.connections if isinstance(other, LimitedConnection) and other._timer]
        if len(self.connections) > self.max_connections and len(waiting) > 1:
            min(waiting, key=lambda other: other._timer.when() if other._timer else 0).abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close without waiting for what the other side has not read."""
        self._stop_timer()
        self.connections.discard(self)  # the transport tells of the loss later, and a newer connection counts now
        self.transport.abort()

    def _watch(self) -> None:
        request_is_whole = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if request_is_whole:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.request_timeout_s, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connection_class(timeout_s: float, most: int) -> type[LimitedConnection]:
    """The class for uvicorn's ``http``, which builds it without arguments of ours."""

    class Connection(LimitedConnection):
        request_timeout_s = timeout_s
        max_connections = most

    return Connection
