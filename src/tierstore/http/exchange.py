"""One request and its response, over ASGI.

Guarantees: every response carries the request's id; a connection on which much of a request body is left unread is
closed, and in a way that lets the client see the response first (RFC 9112, section 9.6); ``status`` and ``bytes_out``
tell what was sent; sending ends, with `ClientDisconnected`, when the client has gone or takes too little (the bounds
are `tierstore.http.connection`'s); no header holds a byte that could end its line, whoever has stored it; while the
client is waited for, the request gives its place to others (`tierstore.http.places`). Does not: know what is served, or
work on another server's connections.
"""

import asyncio
import re
from typing import Any
from uuid import UUID

from starlette.types import Message, Receive, Scope, Send

from tierstore.clock import Clock
from tierstore.errors import ClientDisconnected, InvalidRequest, LengthRequired, Refusal, UnreadableCredentials
from tierstore.http.bodies import RequestBody, announced_size, announces_body
from tierstore.http.browsers import NOSNIFF
from tierstore.http.connection import EXTENSION, REFUSAL, BoundedConnection
from tierstore.http.parsing import Address
from tierstore.http.places import Place
from tierstore.http.responses import UNSAFE_IN_HEADERS, Headers
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.types.objects import Tier

_SINGLE = (
    b"host",
    b"range",
    b"content-range",
    b"content-length",
    b"expect",
    b"authorization",
    b"x-os-auth",
    b"x-downstream-service",
    b"upload-length",
    b"upload-offset",
)
"""Header fields that have one value, and mean something else to each reader when they are repeated."""
_FRAMING = (b"content-length", b"transfer-encoding")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class Exchange:
    """A request, as it arrived, and the means to answer it. Lives as long as its request.

    ``started`` is the request's start on the monotonic clock.
    """

    __slots__ = (
        "_clock",
        "_connection",
        "_http_version",
        "_linger",
        "_receive",
        "_send",
        "address",
        "audited",
        "body",
        "bytes_out",
        "client",
        "error",
        "fields",
        "headers",
        "internal",
        "key",
        "kid",
        "limits",
        "method",
        "mutation",
        "operation",
        "outcome",
        "passed_over",
        "place",
        "query",
        "raw_path",
        "refusal",
        "request_id",
        "responding",
        "started",
        "status",
        "tier",
        "upload",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, limits: Limits, ids: IdSource, clock: Clock
    ) -> None:
        self._receive = receive
        self._send = send
        extensions = scope["extensions"]
        self._connection: BoundedConnection = extensions[EXTENSION]
        self.refusal: Exception | None = extensions.get(REFUSAL)
        """Why it is no request at all, if the server's parser says so."""
        self._http_version: str = scope["http_version"]
        self._linger = self.refusal is not None
        self.limits = limits
        self._clock = clock
        self.started = clock.monotonic()
        self.client: tuple[str, int] | None = scope["client"]
        """Host and port of the peer, which may be a proxy."""
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        """The path as on the wire, percent-encoded."""
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.fields: dict[bytes, bytes] = dict(self.headers)
        """The headers by name; of a repeated one the last. `check_form` refuses repetition where it matters."""
        self.request_id = _request_id(self.fields.get(b"x-request-id"), ids)
        self.body: RequestBody | None = None
        self.responding = False
        """Whether the head of the response has been sent."""
        self.status = 0
        """The status that was sent, or 499 if the caller went away; 0 before."""
        self.bytes_out = 0
        """Bytes of an object's payload that were sent."""
        self.operation = "unknown"
        self.internal = False
        """Whether it went to an internal route."""
        self.place: Place | None = None
        """Its place among the requests at work, if those of its kind are bounded."""
        self.address: Address | None = None
        self.key: str | None = None
        """The object's key, once it is known: that which the request names, or one that was made here."""
        self.kid: str | None = None
        """The id of the key that speaks for the caller, once it has been admitted."""
        self.passed_over: Refusal | UnreadableCredentials | None = None
        """Why it would have been refused if refusals were enforced."""
        self.audited = False
        """Whether its mutations are to be found in the audit log."""
        self.mutation: asyncio.Task[Any] | None = None
        """What it has begun to do to the stores, which may outlive it."""
        self.tier: Tier | None = None
        self.upload: UUID | None = None
        """The revision's UUID of the upload that it is about, once that is known."""
        self.outcome: str | None = None
        """What a body says that follows a status which was sent before it was known (`tierstore.http.uploads`)."""
        self.error: BaseException | None = None

    def check_form(self) -> None:
        """Raise `InvalidRequest` for a missing host (RFC 9112, section 3.2), and for what may not be repeated."""
        fields = self.fields
        if b"host" not in fields and self._http_version == "1.1":
            raise InvalidRequest("an HTTP/1.1 request has a host header")
        if len(fields) == len(self.headers):
            return
        names = [name for name, _ in self.headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise InvalidRequest(f"the header {name.decode()} is given more than once")
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings:  # of one list, wherever it is split
            fields[b"transfer-encoding"] = b", ".join(codings)

    @property
    def open_ended(self) -> bool:
        """Whether the client can take a response whose length is not known when it begins, and keep the connection.

        HTTP/1.0 has no chunks (RFC 9112, section 6.1).
        """
        return self._http_version != "1.0"

    @property
    def gone(self) -> bool:
        """Whether the connection has ended: nobody is there any more to be answered."""
        return self._connection.lost

    def open_body(
        self, what: str = "an object", bytes_max: int | None = None, kept_bytes_max: int | None = None
    ) -> RequestBody:
        """The request's body, to be read once; the parameters are as for `RequestBody`.

        Raises `InvalidRequest`, `LengthRequired`, `NotOffered` and `ObjectTooLarge` before anything is read. Reading
        raises what the server's parser finds wrong with the body, too.
        """
        if self._http_version == "1.0" and not any(name in self.fields for name in _FRAMING):
            raise LengthRequired("an HTTP/1.0 request with a body has a content-length")
        size = announced_size(self.fields)
        if size != 0:
            self._connection.check_room()
        self.body = RequestBody(
            self._receive_body,
            size,
            self.limits,
            self._clock,
            what=what,
            bytes_max=bytes_max,
            kept_bytes_max=kept_bytes_max,
            keep=self._connection.keep_body,
        )
        return self.body

    async def _receive_body(self) -> Message:
        connection = self._connection
        if self.place is None or connection.body_has_come:
            message = await self._receive()
        else:
            self.place.leave()
            connection.wait_for_body()
            try:
                message = await self._receive()
            finally:
                connection.go_on()
                self.place.resume()
        if self._connection.body_error is not None:
            raise self._connection.body_error
        return message

    def note_mutation(self, task: asyncio.Task[Any]) -> None:
        """Keep what it has begun to do to the stores."""
        self.mutation = task

    async def respond(self, status: int, headers: Headers, payload: bytes = b"") -> None:
        """Send a whole response. ``headers`` is added to. Raises `ClientDisconnected`."""
        if self._linger or self._body_left():
            self._linger = True
            headers.append((b"connection", b"close"))
        await self.start(status, headers)
        await self.send(payload, last=not self._linger)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of a response; `write` sends the payload of an object, `send` what is none.

        ``headers`` is added to. Raises `ClientDisconnected`.
        """
        headers += (NOSNIFF, (b"x-request-id", self.request_id.encode()))
        # Before anything of it is sent, so that another answer can be given.
        joined = b"".join([part for header in headers for part in header])
        invariant(UNSAFE_IN_HEADERS.search(joined) is None, "a header is one line")
        self.responding = True
        self.status = status
        await self._send_on({"type": "http.response.start", "status": status, "headers": headers})
        if self._connection.lost:
            raise ClientDisconnected("the caller went away before the response")

    async def write(self, chunk: bytes, *, last: bool) -> None:
        """Send a chunk of an object's payload. Raises `ClientDisconnected`."""
        await self.send(chunk, last=last)
        self.bytes_out += len(chunk)

    async def send(self, chunk: bytes, *, last: bool) -> None:
        """Send a chunk of a response that is no object's payload. Raises `ClientDisconnected`."""
        await self._send_on({"type": "http.response.body", "body": chunk, "more_body": not last})
        if self._connection.lost:
            raise ClientDisconnected("the caller went away, or stopped reading, before the response had ended")

    async def _send_on(self, message: Message) -> None:
        """Send, with the place left to others while the client is waited for to take what was sent before."""
        if self.place is None or not self._connection.output_is_full:
            await self._send(message)
            return
        self.place.leave()
        try:
            await self._send(message)
        finally:
            self.place.resume()

    def cut_off(self) -> None:
        """End a response that has begun and cannot be whole: its connection is closed."""
        self._connection.cut_off()

    async def until_disconnected(self) -> None:
        """Return once the caller has gone. What is left of the request's body is thrown away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def finish(self) -> None:
        """End a response on a connection that is to be closed: take in what the client still sends, within bounds."""
        if not self._linger:
            return
        left = self.limits.linger_bytes_max
        try:
            async with asyncio.timeout(self.limits.linger_seconds_max):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except (TimeoutError, asyncio.CancelledError):
            pass  # it has had its time, or the server is stopping and has no more
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def relay(self, message: Message) -> None:
        """An ASGI ``send`` for an application inside this one."""
        if message["type"] == "http.response.start":
            self.responding = True
            self.status = message["status"]
            headers = [*message.get("headers", ()), NOSNIFF, (b"x-request-id", self.request_id.encode())]
            if self._body_left():
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await self._send(message)

    def _body_left(self) -> bool:
        """Whether so much of the body is unread, or may come, that the connection cannot be used again.

        A client that waits for ``100 Continue`` may send its body or not after another answer: closing ends the doubt
        (RFC 9110, section 10.1.1). What little is left otherwise is thrown away by the server.
        """
        if self.body is not None:
            if self.body.complete:
                return False
        elif not announces_body(self.fields):
            return False
        length = self.fields.get(b"content-length", b"")
        if not length.isdigit() or b"expect" in self.fields:
            return True
        received = 0 if self.body is None else self.body.received
        return int(length) - received > self.limits.unread_body_bytes_max


def _request_id(given: bytes | None, ids: IdSource) -> str:
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        return given.decode("ascii")
    return str(ids.uuid())
