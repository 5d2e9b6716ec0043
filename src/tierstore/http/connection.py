"""One client connection: uvicorn's httptools protocol, with bounds on what a client may send before it is a request.

Guarantees: a connection holds a bounded number of bytes of an unfinished request head, and has a bounded time to finish
it, the first one on a new connection included; beyond that it is closed, with 431 or 408 where nothing else is under
way on it. No byte of a request target is lost. The exact limits on target and headers are the application's: here only
memory and sockets are bounded.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tierstore.limits import Limits

_LIMITS = Limits()


class BoundedConnection(HttpToolsProtocol):
    """An HTTP/1.1 connection whose request heads are bounded in size and time."""

    head_bytes_max: ClassVar[int] = _LIMITS.target_bytes_max + _LIMITS.header_bytes_max + _LIMITS.stream_chunk_bytes
    """Beyond both limits, so that the application answers first; and a chunk more, as a read may begin with a body."""
    head_seconds_max: ClassVar[float] = _LIMITS.request_head_seconds_max
    """From the first bytes of a head, or from the beginning of the connection, to the head's end."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_unfinished = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # because uvicorn's is so
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._head_unfinished:
            return
        # This read began, or went on with, a head that has not ended.
        self._head_bytes += len(data)
        if self._head_bytes > self.head_bytes_max:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_unfinished = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._head_unfinished = False
        self._stop_head_timer()
        # A request target has no fragment (RFC 9112, section 3.2). uvicorn would drop what looks like one, and so take
        # one key for another; here it is part of the path, as a client meant it that did not encode it.
        self.url = self.url.replace(b"#", b"%23")
        super().on_headers_complete()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds_max, self._head_took_too_long)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_took_too_long(self) -> None:
        self._head_timer = None
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
