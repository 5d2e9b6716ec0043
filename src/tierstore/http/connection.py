"""One client connection: uvicorn's httptools protocol, with bounds on what a client may send, keep waiting or not take.

Guarantees:

- Bounded memory: of a head, of trailers, of requests that wait for the answer to an earlier one.
- Bounded time: for a head, for trailers, and for a client to take what was written. A connection on which nothing is
  under way has a timer, and one that was closed but not flushed is aborted.
- A bounded number of them, and of bytes that they hold together: a connection whose client is waited for gives way when
  others need the room (`tierstore.http.crowd`).
- A request that two readers could take for two different ones is refused, whatever it asks for, and nothing that comes
  behind it on its connection is read.
- What is no request is answered by the application like one that is, or, while another response is owed, by an abort:
  a response never has bytes of another in it.
- Trailers are dropped (RFC 9110, section 6.5.1, allows it). An offered upgrade is passed over (section 7.8), body and
  all, and the connection closed behind it: nothing that follows is taken for a request.

No byte of a request target is lost. The exact limits on target and headers are the application's.
"""

import asyncio
import re
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tierstore.clock import Clock
from tierstore.errors import HeadersTooLarge, InvalidRequest, NotOffered, RequestTimeout
from tierstore.http.crowd import Crowd, Member
from tierstore.limits import Limits

EXTENSION: Final = "tierstore.connection"
"""The ASGI extension under which a request finds its `BoundedConnection`."""
REFUSAL: Final = "tierstore.refusal"
"""The ASGI extension with the error to answer, where the parser found no request."""

_GIVING_WAY_LINGERS: Final = 2
"""Who gives way is told so, lingers as anybody who is refused does, and then has as long again to be gone."""
_STREAMED_CHUNKS: Final = 2
"""Of an answer that is being streamed: the one that waits to be sent, and the one that is read ahead."""
_NO_ROOM: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 68\r\n"
    b"x-content-type-options: nosniff\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    b'{"detail":"the server has as many connections as it can; try again"}'
)
"""Without a request's id: there is no request, nor time for one."""
_VERSIONS = frozenset({"1.1", "1.0"})
"""The parser would let in 0.9, of which a line is a whole request, and 2.0."""
_METHOD = re.compile(rb"[A-Z]+ ")
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class _PipelineFull(Exception):
    """More requests are waiting on one connection than may."""


class _PipelineFlow(FlowControl):
    """Reading is not resumed while requests wait: they are whole but for the last, which will resume it itself."""

    def __init__(self, transport: asyncio.Transport, waiting: object) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class BoundedConnection(HttpToolsProtocol, Member):
    """An HTTP/1.1 connection within ``limits``, one of ``crowd``; `bounded` gives both."""

    limits: ClassVar[Limits]
    crowd: ClassVar[Crowd]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.lost = False
        """Whether the connection has ended: what is sent reaches nobody."""
        self.body_error: Exception | None = None
        """Why the body of the request that is being answered cannot be read to its end."""
        self._answering: RequestResponseCycle | None = None
        self._extensions: dict[str, object] = {}
        self._in_head = False
        self._in_body = False
        self._at_end = False  # what still comes is thrown away
        self._thrown_away = 0
        self._framing = b""
        self._coding: bytes | None = None
        self._bytes_between = 0  # read since a head began or ended, or a byte of a body came
        self._bytes_between_max = 2 * (self.limits.target_bytes_max + self.limits.header_bytes_max)
        """Beyond both, so that the application answers first."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._output_timer: asyncio.TimerHandle | None = None
        self._output_left = 0
        self._idle_since: float | None = None
        """Since when no request is under way."""
        self._output_full_since: float | None = None
        self._body_began = 0.0
        self._body_bytes = 0  # received of the body that is read, or was last
        self._body_waited_since: float | None = None
        self._body_kept = 0  # of it, by the request
        self._output_kept = 0
        self._output_body_bytes = 0
        self._followed: Member | None = None

    def follow(self, member: Member) -> None:
        """When it begins, take the place in the crowd that ``member`` has until then."""
        self._followed = member

    # The transport's callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # because uvicorn's is so
        super().connection_made(transport)
        transport.set_write_buffer_limits(HIGH_WATER_LIMIT)  # over TLS it would be eight times as much
        self.flow = _PipelineFlow(transport, self.pipeline)
        self._idle_since = self.crowd.clock.monotonic()
        if self._followed is not None:
            self.crowd.leave(self._followed)
        if not self.crowd.join(self):
            self._at_end = True
            transport.write(_NO_ROOM)
            self.close()
            self._bound_goodbye()
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.crowd.leave(self)
        self._stop_head_timer()
        self._stop_output_timer()
        super().connection_lost(exc)
        # uvicorn knows the latest request only, which is not the one that is being answered when others wait.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        if self._at_end:
            self._thrown_away += len(data)
            if self._thrown_away > self.limits.linger_bytes_max:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._bytes_between += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._pass_over_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._parsing_failed(error, data)
            return
        if self._bytes_between > self._bytes_between_max and (self._in_head or self._in_body):
            self._fail(HeadersTooLarge("the headers, or the trailers, of a request are longer than is read here"))
            return
        cycle: RequestResponseCycle | None = self.cycle
        if self._head_timer is None and (self._in_head or cycle is None or cycle.response_complete):
            self._start_head_timer()  # for uvicorn has just stopped its own, whatever it is that came

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._output_full_since is None:
            self._output_full_since = self.crowd.clock.monotonic()
        self._watch_output()
        self._keep_output(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._stop_output_timer()
            self._output_full_since = None
            self._keep_output(0)
        super().resume_writing()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._extensions = {EXTENSION: self}
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]  # because the type knows two alone
        self._in_head = True
        self._bytes_between = 0
        self._coding = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer
            if self._head_timer is None:
                self._start_head_timer()
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"transfer-encoding":
            self._coding = value if self._coding is None else self._coding + b", " + value
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined_requests_max:
            raise _PipelineFull
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise InvalidRequest("the versions of HTTP that are spoken here are 1.1 and 1.0")
        if self._coding is not None:
            self._check_coding(self._coding, version)
        upgrade = self.parser.should_upgrade()
        if upgrade:
            if self.parser.get_method() == b"CONNECT":
                raise NotOffered("this is no proxy")
            self._framing = b"".join(b"%s: %s\r\n" % (name, value) for name, value in self.headers if name in _FRAMING)
        # A request target has no fragment (RFC 9112, section 3.2). uvicorn would drop what looks like one, and so take
        # one key for another; here it is part of the path, as a client meant it that did not encode it.
        self.url = self.url.replace(b"#", b"%23")
        if not self.url.startswith(b"/") and not httptools.parse_url(self.url).path:
            raise InvalidRequest("the request target has no path")
        super().on_headers_complete()
        if upgrade:
            self.cycle.keep_alive = False
        self._in_head, self._in_body = False, True
        self._bytes_between = 0
        self._idle_since = None
        self._body_bytes = 0
        self._stop_head_timer()

    def _check_coding(self, coding: bytes, version: str) -> None:
        """Raise for a body whose end another reader might see elsewhere (RFC 9112, section 6.1), whatever the method.

        The parser takes some of these for chunked, and finds fault with others only when the request has begun.
        """
        if version == "1.0":
            raise InvalidRequest("HTTP/1.0 has no transfer codings")
        if coding.strip(b" \t").lower() != b"chunked":
            raise NotOffered("the only transfer coding is chunked")

    def on_body(self, body: bytes) -> None:
        self._bytes_between = 0
        self._body_bytes += len(body)
        cycle = self.cycle
        if self._at_end or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._framing or self._at_end:
            return
        self._in_body = False
        self._stop_head_timer()
        cycle = self.cycle
        if cycle.keep_alive and not self.parser.should_keep_alive():  # a trailer says so, and the parser has ended
            cycle.keep_alive = False
            if cycle.response_complete:
                self.close()
        if not cycle.keep_alive:
            self._at_end = True
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._body_kept:
            self.keep_body(0)
        if self._answering is not None and self._answering.response_complete:  # else that of the next one has begun
            self._idle_since = self.crowd.clock.monotonic()
        if self.transport.is_closing():
            self._watch_output()
        elif not self.pipeline:
            self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        self.close()
        if not self.transport.get_write_buffer_size():
            self._bound_goodbye()

    def shutdown(self) -> None:
        was_closing = self.transport.is_closing()
        super().shutdown()
        if self.transport.is_closing():
            self._watch_output()
            if not was_closing and not self.transport.get_write_buffer_size():
                self._bound_goodbye()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self._body_began = self.crowd.clock.monotonic()
        super()._start_asgi_task(cycle, app)

    # One of many

    @property
    def body_has_come(self) -> bool:
        """Whether there is something to receive at once for the request that is being answered."""
        return self._answering is None or self._answering.message_event.is_set()

    @property
    def output_is_full(self) -> bool:
        """Whether sending waits for the client to take what was sent."""
        return self._output_full_since is not None

    def wait_for_body(self) -> None:
        """The request that is being answered waits for its client to send, until `go_on`."""
        self._body_waited_since = self.crowd.clock.monotonic()

    def go_on(self) -> None:
        """It does not wait any more."""
        self._body_waited_since = None

    def keep_body(self, size: int) -> None:
        """The request that is being answered keeps so many bytes of its body in memory."""
        self._body_kept = size
        self.crowd.hold(self, size + self._output_kept)

    def check_room(self) -> None:
        """Raise `Overloaded` if no other body can be taken in."""
        self.crowd.check_room()

    def waited_since(self, now: float) -> float | None:
        if self._output_full_since is not None or self._idle_since is not None:
            return self._output_full_since if self._output_full_since is not None else self._idle_since
        since = self._body_waited_since
        if since is None or self.body_has_come:  # and is about to be read
            return None
        if self._body_bytes < self.limits.body_bytes_per_second_min * (now - self._body_began):
            return self._body_began  # a byte now and then is no progress
        return since

    def give_way(self) -> None:
        idle = self._idle_since is not None and not self._in_head
        # Over TLS an orderly end would wait for the client once more.
        if self._output_full_since is not None or self._at_end or (idle and self.scheme == "https"):
            self.transport.abort()
        elif idle:
            self.close()
        else:
            self._fail(RequestTimeout("the server has waited for the rest of this request, and needs the room"))
        if not self.lost:
            # Who does not take what was written before does not take this answer either, and is in nobody's count now.
            self.loop.call_later(_GIVING_WAY_LINGERS * self.limits.linger_seconds_max, self._let_go)

    def _keep_output(self, size: int) -> None:
        if size and self._answering is not None and not self._answering.response_complete:
            size += _STREAMED_CHUNKS * self.limits.stream_chunk_bytes
        self._output_kept = size
        self.crowd.hold(self, self._body_kept + size)

    # Ends

    def close(self) -> None:
        """Close it, once the client has taken what was written; abort it if the client does not."""
        self.transport.close()
        self._watch_output()

    def _bound_goodbye(self) -> None:
        """Of a connection that is closed and has nothing left to say: over TLS the client has to agree, and may not."""
        if self.scheme == "https" and not self.lost:
            self.loop.call_later(self.limits.linger_seconds_max, self._let_go)

    def _let_go(self) -> None:
        if not self.lost:
            self.transport.abort()

    def cut_off(self) -> None:
        """End the response that is being sent, short of what it announced."""
        if self._answering is not None:
            self._answering.disconnected = True
        self.close()

    def _parsing_failed(self, error: httptools.HttpParserError, received: bytes) -> None:
        cause = error.__context__
        if isinstance(cause, _PipelineFull):
            # Close behind the requests that wait; a client sends the others again (RFC 9112, section 9.3.2).
            self._in_head, self._at_end = False, True
            self._stop_head_timer()
            self.cycle.keep_alive = False
            return
        self._fail(_translated(error, cause, received))

    def _fail(self, error: Exception) -> None:
        """Take in nothing more, and answer ``error`` if an answer can be told from what is under way."""
        if self._at_end or self.transport.is_closing():
            return
        self._at_end = True
        self._stop_head_timer()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            if self._in_body:  # that has been answered
                self.close()
            else:
                self._refuse(error)
        elif self._in_body and cycle is self._answering and not cycle.response_started:
            self.body_error = error
            cycle.keep_alive = False
            cycle.message_event.set()
        else:
            self.transport.abort()

    def _refuse(self, error: Exception) -> None:
        """Have the application answer ``error``, with what is known of the request."""
        if not self._in_head:
            self.on_message_begin()
        self._in_head = False
        self.scope["method"] = self.scope["path"] = ""
        self.scope["raw_path"], self.scope["query_string"] = self.url.partition(b"?")[0], b""
        self._extensions[REFUSAL] = error
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)

    def _pass_over_upgrade(self, rest: bytes) -> None:
        """Read the body of a request that offered an upgrade; the parser takes it for another protocol's bytes.

        A second parser reads ``rest`` and what follows, behind a head with the same framing as the one that was read.
        """
        framing, self._framing = self._framing, b""
        if not framing:
            self._at_end = True
            return
        callbacks = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        self.parser = httptools.HttpRequestParser(callbacks)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        if not self._at_end and rest:
            self.parser.feed_data(rest)

    # Timers

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.request_head_seconds_max, self._head_took_too_long)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_took_too_long(self) -> None:
        self._head_timer = None
        self._fail(RequestTimeout(f"no request came within {self.limits.request_head_seconds_max:g} seconds"))

    def _watch_output(self) -> None:
        """From now on, until resumed, abort the connection when the client takes too little of what was written.

        A client that is still sending what is being answered meanwhile may take it later: what it sends counts as well.
        The operating system's buffer stands between: it takes more only once a third of it (of up to some MiB) is free.
        """
        if self._output_timer is None and not self.lost:
            self._output_left = self.transport.get_write_buffer_size()
            self._output_body_bytes = self._body_bytes
            self._output_timer = self.loop.call_later(self.limits.client_stall_seconds_max, self._check_output)

    def _check_output(self) -> None:
        self._output_timer = None
        taken = self._output_left - self.transport.get_write_buffer_size()
        if self.cycle is self._answering:
            taken += self._body_bytes - self._output_body_bytes
        if taken < self.limits.client_stall_seconds_max * self.limits.body_bytes_per_second_min:
            self.transport.abort()
        else:
            self._watch_output()

    def _stop_output_timer(self) -> None:
        if self._output_timer is not None:
            self._output_timer.cancel()
            self._output_timer = None


def bounded(limits: Limits, clock: Clock) -> type[BoundedConnection]:
    """The protocol for a server: each of its connections is within ``limits``, and so are all of them together."""
    return type("BoundedConnection", (BoundedConnection,), {"limits": limits, "crowd": Crowd(limits, clock)})


def _translated(error: httptools.HttpParserError, cause: BaseException | None, received: bytes) -> Exception:
    """What to answer when the parser stops: what a callback of ours raised, or what it found itself."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(received) is not None:
        return NotOffered("this method is not known here")
    if isinstance(cause, httptools.HttpParserInvalidURLError):
        return InvalidRequest("the request target is malformed")
    if isinstance(error, httptools.HttpParserCallbackError) and isinstance(cause, Exception):
        return cause
    return InvalidRequest(f"this is no HTTP/1.1 request: {error}")
