"""One request and its response, over ASGI.

Guarantees: every response carries the request's id; a connection on which much of a request body is left unread is
closed, and in a way that lets the client see the response first (RFC 9112, section 9.6); ``status`` and ``bytes_out``
tell what was sent. Does not: know what is served.
"""

import asyncio
import re

from starlette.types import Message, Receive, Scope, Send

from tierstore.errors import ClientDisconnected
from tierstore.http.bodies import RequestBody, announced_size, announces_body
from tierstore.http.parsing import Address
from tierstore.http.responses import Headers
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.types.objects import Tier

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class Exchange:
    """A request, as it arrived, and the means to answer it. Lives as long as its request.

    ``started`` is the request's start on the monotonic clock.
    """

    __slots__ = (
        "_linger",
        "_receive",
        "_send",
        "address",
        "body",
        "bytes_out",
        "error",
        "fields",
        "headers",
        "internal",
        "limits",
        "method",
        "operation",
        "query",
        "raw_path",
        "request_id",
        "responding",
        "started",
        "status",
        "tier",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, limits: Limits, ids: IdSource, started: float
    ) -> None:
        self._receive = receive
        self._send = send
        self._linger = False
        self.limits = limits
        self.started = started
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        """The path as on the wire, percent-encoded."""
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.fields: dict[bytes, bytes] = dict(self.headers)
        """The headers by name; of a repeated one the last."""
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
        self.address: Address | None = None
        self.tier: Tier | None = None
        self.error: BaseException | None = None

    def open_body(self) -> RequestBody:
        """The request's body, to be read once. Raises `InvalidRequest` and `ObjectTooLarge` before anything is read."""
        self.body = RequestBody(self._receive, announced_size(self.fields), self.limits)
        return self.body

    async def respond(self, status: int, headers: Headers, payload: bytes = b"") -> None:
        """Send a whole response. ``headers`` is added to."""
        if self._body_left():
            self._linger = True
            headers.append((b"connection", b"close"))
        await self.start(status, headers)
        await self._send({"type": "http.response.body", "body": payload, "more_body": self._linger})

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of a response; `write` sends its payload. ``headers`` is added to."""
        headers.append((b"x-request-id", self.request_id.encode()))
        self.responding = True
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes, *, last: bool) -> None:
        """Send a chunk of an object's payload.

        Raises `ClientDisconnected` when the client has taken nothing for too long. Otherwise a client that has gone
        goes unnoticed here, by ASGI's rules: `until_disconnected` notices.
        """
        try:
            async with asyncio.timeout(self.limits.client_stall_seconds_max):
                await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
        except TimeoutError:
            raise ClientDisconnected("the caller has stopped reading the response") from None
        self.bytes_out += len(chunk)

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
        except TimeoutError:
            pass
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def relay(self, message: Message) -> None:
        """An ASGI ``send`` for an application inside this one."""
        if message["type"] == "http.response.start":
            self.responding = True
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
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
        if not length.isdigit() or b"expect" in self.fields or b"upgrade" in self.fields:
            return True
        received = 0 if self.body is None else self.body.received
        return int(length) - received > self.limits.unread_body_bytes_max


def _request_id(given: bytes | None, ids: IdSource) -> str:
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        return given.decode("ascii")
    return str(ids.uuid())
