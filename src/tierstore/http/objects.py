"""Single objects: insert, read, look at, delete.

Guarantees: a response that has begun is whole or visibly cut off: as many bytes follow as its ``content-length`` says,
or the connection is closed early; a payload of one chunk is read and verified before its head is sent, so that a small
damaged blob is a clean 500; no browser runs what is stored (`tierstore.http.browsers`). A client that goes away during
a download ends it. Handlers get an admitted service.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from tierstore.admission.admitted import AdmittedService
from tierstore.backends.long_term.contract import BlobStream
from tierstore.errors import ClientDisconnected, InvalidRequest
from tierstore.http.browsers import headers_for_browsers
from tierstore.http.exchange import Exchange
from tierstore.http.parsing import object_path
from tierstore.http.responses import Headers, json_response
from tierstore.invariants import invariant
from tierstore.tasks import TaskOwner
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId
from tierstore.types.metadata import ObjectInfo
from tierstore.types.metadata_headers import headers_from_info, metadata_from_headers
from tierstore.types.ranges import parse_range

Handler = Callable[[Exchange, AdmittedService, ObjectId], Awaitable[None]]


class ObjectHandlers:
    """What is done with one object. ``watchers`` owns the tasks that watch for clients that go away."""

    def __init__(self, watchers: TaskOwner) -> None:
        self._watchers = watchers

    async def post(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Insert an object whose key was made here: 201, with the key and its address."""
        await self._insert(exchange, service, object_id)
        headers, payload = json_response({"key": object_id.key})
        headers.append((b"location", object_path(object_id)))
        await exchange.respond(201, headers, payload)

    async def put(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Insert or replace an object: 200, once it is durable."""
        await self._insert(exchange, service, object_id)
        await exchange.respond(200, *json_response({"key": object_id.key}))

    async def _insert(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        if b"content-range" in exchange.fields:  # RFC 9110, section 14.5
            raise InvalidRequest("an object is written as a whole, and never a range of it")
        metadata = metadata_from_headers(exchange.headers, exchange.limits)
        exchange.tier = await service.put(object_id, metadata, exchange.open_body())

    async def head(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Metadata headers only: 204. ``Range`` means nothing here (RFC 9110, section 14.2)."""
        found = await service.head(object_id)
        exchange.tier = found.tier
        await exchange.respond(204, _object_headers(found.info))

    async def delete(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """204, also where there was nothing."""
        await service.delete(object_id)
        await exchange.respond(204, [])

    async def get(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """The payload, or one range of it.

        ``If-Range`` never matches, for objects have no validators: with it, the whole object is the answer (RFC 9110,
        section 13.1.5).
        """
        wanted = exchange.fields.get(b"range")
        byte_range = None
        if wanted is not None and b"if-range" not in exchange.fields:
            byte_range = parse_range(wanted.decode("latin-1"))
        opened = await service.get(object_id, byte_range)
        exchange.tier = opened.tier
        payload = opened.payload
        status, length, headers = _head_of(opened)
        if isinstance(payload, bytes):
            invariant(len(payload) == length, "a payload in memory is as long as its object or span")
            exchange.bytes_out = length
            await exchange.respond(status, headers, payload)
            return
        try:
            async with aclosing(checked(payload, length)) as chunks:
                first = await anext(chunks, b"")
                await exchange.start(status, headers)
                await self._stream(exchange, first, chunks, length - len(first))
        finally:
            await payload.aclose()

    async def _stream(self, exchange: Exchange, chunk: bytes, rest: AsyncIterator[bytes], left: int) -> None:
        """Send ``chunk``, and the ``left`` bytes of ``rest``, for as long as the client is there."""
        if left:
            gone = self._watchers.run("disconnect watcher", exchange.until_disconnected())
            try:
                while left:
                    await exchange.write(chunk, last=False)
                    if gone.done():
                        raise ClientDisconnected("the caller went away before the whole object was sent")
                    chunk = await anext(rest)
                    left -= len(chunk)
            finally:
                gone.cancel()
        await exchange.write(chunk, last=True)


async def checked(stream: BlobStream, length: int) -> AsyncGenerator[bytes, None]:
    """The chunks of ``stream``, which must be ``length`` bytes in all: `InvariantBroken` in place of a wrong one."""
    left = length
    async for chunk in stream:
        left -= len(chunk)
        invariant(left >= 0, "a blob has no more bytes than its object or span")
        yield chunk
    invariant(left == 0, "a blob has no fewer bytes than its object or span")


def _head_of(opened: OpenObject) -> tuple[int, int, Headers]:
    """Status, content length and headers for an opened object."""
    info, span = opened.info, opened.span
    headers = _object_headers(info)
    status, length = 200, info.size
    if span is not None:
        status, length = 206, len(span)
        headers.append((b"content-range", b"bytes %d-%d/%d" % (span.start, span.stop - 1, info.size)))
    headers.append((b"content-length", b"%d" % length))
    return status, length, headers


def _object_headers(info: ObjectInfo) -> Headers:
    headers = headers_from_info(info)
    headers.append((b"accept-ranges", b"bytes"))
    headers += headers_for_browsers(info.metadata)
    return headers
