"""Batches: many operations in one request, streamed both ways.

The request is a body of parts, each an operation on an object of the request's usecase and scopes. Operations begin
while the request is still arriving, and their results leave as they finish, in that order, each a part with the
operation's index. Reading and writing do not wait for each other (`tierstore.service.batch` says what is in memory).

Guarantees: a part that is no operation, or one whose operation fails, is answered by a part with a status and a JSON
error, and the others go on. A request that is malformed, too long or too slow:

- before its first part was whole: is refused as a whole, 400 (or 413), and nothing was done.
- later: what was whole is run and answered, the part that was not with the error; then the response is cut off: no last
  delimiter, no last chunk, the connection closed.

So an operation that has no part in a response which was cut off may have been run. A client that goes away: the
operations that have begun run to their end, the others are dropped. Nothing that was stored can add a header or a part
to a response: keys and metadata are encoded, and nobody can know its boundary beforehand.

Handlers get an admitted service, and every operation is admitted by itself.
"""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import assert_never
from urllib.parse import quote

from tierstore.admission.admitted import AdmittedService
from tierstore.backends.long_term.contract import BlobStream
from tierstore.errors import (
    Busy,
    ClientDisconnected,
    ClientMistake,
    HeadersTooLarge,
    InvalidRequest,
    InvariantBroken,
    NotOffered,
    ObjectTooLarge,
)
from tierstore.http.batch_log import OperationRecords, tell_of_failure
from tierstore.http.bodies import RequestBody
from tierstore.http.conditions import refuse_conditions
from tierstore.http.exchange import Exchange
from tierstore.http.multipart import PartEnd, PartHead, PartsParser, boundary_of
from tierstore.http.objects import checked
from tierstore.http.parsing import KEY_SAFE, percent_decode
from tierstore.http.responses import UNSAFE_IN_HEADERS, Headers, error_response, status_of
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import KIB, Limits
from tierstore.service.batch import (
    BatchKind,
    BatchRun,
    Delete,
    Deleted,
    Get,
    Head,
    HeldBody,
    Insert,
    Operation,
    Outcome,
    Result,
    Stored,
)
from tierstore.tasks import TaskOwner
from tierstore.tiering.objects import OpenObject
from tierstore.types.ids import ObjectId, check_key
from tierstore.types.metadata import ObjectInfo
from tierstore.types.metadata_headers import headers_from_info, metadata_from_headers
from tierstore.types.objects import FoundObject

_KIND = b"x-sn-batch-operation-kind"
_KEY = b"x-sn-batch-operation-key"
_INDEX = b"x-sn-batch-operation-index"
_STATUS = b"x-sn-batch-operation-status"
_TRANSFER_ENCODINGS = frozenset({b"binary", b"8bit", b"7bit"})
"""Those that leave the bytes as they are."""
_COLLECTED_BYTES_MAX = 16 * KIB
"""Small results that are ready at the same time leave together, up to this."""


class BatchHandler:
    """Serves batches. ``watchers`` owns the tasks that read requests and run operations."""

    def __init__(self, watchers: TaskOwner, ids: IdSource) -> None:
        self._watchers = watchers
        self._ids = ids
        self._under_way = 0

    async def batch(self, exchange: Exchange, service: AdmittedService, _object_id: ObjectId) -> None:
        """Run every operation of the body: 200, with a part for each."""
        exchange.key = None  # it is about many
        if not exchange.open_ended:
            raise NotOffered("a batch needs HTTP/1.1: nobody knows the length of its answer beforehand")
        limits = exchange.limits
        parser = PartsParser(boundary_of(_content_type(exchange)), limits)
        if self._under_way >= limits.batches_max:
            raise Busy("as many batches are under way as may; try again")
        body = exchange.open_body(
            "a batch", limits.batch_bytes_max, limits.batch_held_max * limits.batch_part_bytes_max
        )
        self._under_way += 1
        records = OperationRecords(exchange)
        run = BatchRun(
            service.in_bulk(),
            limits,
            self._watchers,
            gone=lambda: exchange.gone,
            mutates=records.note_mutation if exchange.audited else None,
        )
        try:
            await self._serve(exchange, run, _Reader(exchange, service, parser, body, run), records)
        finally:
            self._under_way -= 1
            for outcome in run.left:
                records.add_left(outcome)

    async def _serve(self, exchange: Exchange, run: BatchRun, reader: "_Reader", records: OperationRecords) -> None:
        async with run:
            reading = self._watchers.run("batch reader", reader.read())
            try:
                boundary = f"os-boundary-{self._ids.uuid().hex}".encode()
                await _Writer(exchange, run, boundary, records).write()
            except ClientMistake:
                if exchange.responding:
                    # Closed with bytes still coming, the connection could be reset before the results are seen.
                    await asyncio.wait((reading,), timeout=exchange.limits.linger_seconds_max)
                raise
            finally:
                reading.cancel()
                await asyncio.wait((reading,))


def _content_type(exchange: Exchange) -> bytes:
    values = [value for name, value in exchange.headers if name == b"content-type"]
    if len(values) != 1:
        raise InvalidRequest("a batch has one content-type: multipart/form-data, with a boundary")
    return values[0]


class _Part:
    """A part of the request that is being read, and what is known of its operation."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.kind: BatchKind | None = None
        self.key: str | None = None
        self.headers: Headers = []
        self.error: Exception | None = None
        """Why it is no operation that can be run."""
        self.chunks: list[bytes] = []
        self.size = 0
        self.held = False

    def failed(self, error: Exception) -> Outcome:
        """The outcome for one that is not run."""
        return Outcome(self.index, self.kind, self.key, error)


class _Reader:
    """Reads the request, and gives its operations to the run."""

    def __init__(
        self, exchange: Exchange, service: AdmittedService, parser: PartsParser, body: RequestBody, run: BatchRun
    ) -> None:
        self._exchange = exchange
        self._limits: Limits = exchange.limits
        self._service = service
        self._parser = parser
        self._body = body
        self._run = run
        self._parts = 0
        self._part: _Part | None = None
        """The one that is being read, from its head on."""
        self._part_bytes_max = min(self._limits.batch_part_bytes_max, self._limits.object_bytes_max)

    async def read(self) -> None:
        """Read the request to its end, then wait until the caller goes away."""
        try:
            await self._read_parts()
        except ClientMistake as error:
            if self._body.disconnected:
                self._run.give_up(error)
            else:
                self._break_off(error)
                await self._pass_over()
            return
        except Exception as error:  # noqa: BLE001  # because the writer raises it, whatever it is
            self._run.give_up(error)
            return
        self._run.end()
        await self._exchange.until_disconnected()
        self._run.give_up(ClientDisconnected("the caller went away before the batch had ended"))

    async def _read_parts(self) -> None:
        async for chunk in self._body:
            for event in self._parser.feed(chunk):
                match event:
                    case PartHead():
                        await self._part_begins(event)
                    case PartEnd():
                        self._part_ends()
                    case bytes():
                        self._bytes_come(event)
                    case _:
                        assert_never(event)
        self._parser.finish()

    def _break_off(self, error: ClientMistake) -> None:
        """The request has no further operations: the one that was being read is answered, unless it is the first."""
        if self._run.begun:
            part = self._part or _Part(self._parts)
            self._run.answer(part.failed(error))
        self._run.end(error)

    async def _pass_over(self) -> None:
        """Take in what the client still sends, within bounds."""
        left = self._limits.linger_bytes_max
        try:
            async for chunk in self._body:
                left -= len(chunk)
                if left < 0:
                    return
        except (ClientMistake, ClientDisconnected):
            return

    async def _part_begins(self, head: PartHead) -> None:
        limits = self._limits
        if self._parts >= limits.batch_operations_max + limits.batch_refused_max:
            raise ObjectTooLarge(f"a batch has at most {limits.batch_operations_max} operations, and this has far more")
        part = self._part = _Part(self._parts)
        self._parts += 1
        try:
            if part.index >= limits.batch_operations_max:
                raise ObjectTooLarge(f"a batch has at most {limits.batch_operations_max} operations")
            self._interpret(part, head)
        except (ClientMistake, NotOffered) as error:
            part.error = error
        if part.kind is BatchKind.INSERT and part.error is None:
            await self._run.hold()
            part.held = True

    def _interpret(self, part: _Part, head: PartHead) -> None:
        """What the part's headers say. Raises what is wrong with them."""
        if head.too_large:
            raise HeadersTooLarge(f"the headers of a part have at most {self._limits.header_bytes_max} bytes")
        part.headers = head.headers
        kind = _value(head.headers, _KIND)
        try:
            part.kind = BatchKind((kind or b"").decode("latin-1"))
        except ValueError:
            raise InvalidRequest("x-sn-batch-operation-kind is get, head, insert or delete") from None
        key = _value(head.headers, _KEY)
        if key is not None:
            part.key = self._key(key)
        elif part.kind is BatchKind.INSERT:
            part.key = self._service.new_key()
        else:
            raise InvalidRequest("x-sn-batch-operation-key is missing")
        coding = _value(head.headers, b"content-transfer-encoding")
        if coding is not None and coding.lower() not in _TRANSFER_ENCODINGS:
            raise InvalidRequest("the bytes of a part are sent as they are, without a content-transfer-encoding")
        names = [name for name, _ in head.headers]
        if part.kind in {BatchKind.INSERT, BatchKind.DELETE}:
            refuse_conditions(names)
        if part.kind is BatchKind.INSERT and b"content-range" in names:
            raise InvalidRequest("an object is written as a whole, and never a range of it")

    def _key(self, raw: bytes) -> str:
        if not raw.isascii():
            raise InvalidRequest("x-sn-batch-operation-key is percent-encoded UTF-8")
        return check_key(percent_decode(raw), self._limits)

    def _bytes_come(self, chunk: bytes) -> None:
        part = self._open_part()
        part.size += len(chunk)
        if part.error is not None:
            return
        if part.kind is not BatchKind.INSERT:
            part.error = InvalidRequest("only an insert has a body")
        elif part.size > self._part_bytes_max:
            self._fail(part, ObjectTooLarge(f"an object of a batch has at most {self._part_bytes_max} bytes"))
        else:
            part.chunks.append(chunk)

    def _part_ends(self) -> None:
        part = self._open_part()
        self._part = None
        operation: Operation | None = None
        if part.error is None:
            try:
                operation = self._operation(part)
            except ClientMistake as error:
                self._fail(part, error)
        if operation is not None:
            self._run.begin(operation)
        elif part.error is not None:
            self._run.answer(part.failed(part.error))

    def _open_part(self) -> _Part:
        if self._part is None:
            raise InvariantBroken("what is in a part, and its end, come behind its head")
        return self._part

    def _operation(self, part: _Part) -> Operation:
        """The operation of a part that is whole. Raises `InvalidRequest`, `HeadersTooLarge`."""
        length = _value(part.headers, b"content-length")
        if length is not None and length != b"%d" % part.size:
            raise InvalidRequest(f"the part has {part.size} bytes, and not as many as its content-length says")
        if self._exchange.address is None or part.key is None or part.kind is None:
            raise InvariantBroken("an operation has a kind, and an object")
        object_id = self._exchange.address.object_id(part.key)
        match part.kind:
            case BatchKind.GET:
                return Get(part.index, object_id)
            case BatchKind.HEAD:
                return Head(part.index, object_id)
            case BatchKind.DELETE:
                return Delete(part.index, object_id)
            case BatchKind.INSERT:
                metadata = metadata_from_headers(part.headers, self._limits)
                return Insert(part.index, object_id, metadata, HeldBody(b"".join(part.chunks)))
            case _:
                assert_never(part.kind)

    def _fail(self, part: _Part, error: Exception) -> None:
        part.error = error
        part.chunks = []
        if part.held:
            part.held = False
            self._run.let_go()


def _value(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header that may be there once. Raises `InvalidRequest`."""
    values = [value for found, value in headers if found == name]
    if len(values) > 1:
        raise InvalidRequest(f"the header {name.decode()} is given more than once")
    return values[0] if values else None


class _Writer:
    """Writes the response: a part for each outcome."""

    def __init__(self, exchange: Exchange, run: BatchRun, boundary: bytes, records: OperationRecords) -> None:
        self._exchange = exchange
        self._records = records
        self._run = run
        self._boundary = boundary
        self._delimiter = b"\r\n--" + boundary
        """Sent right behind each part, so that its end is seen at once."""
        self._collected = bytearray(b"--" + boundary)

    async def write(self) -> None:
        """Write what there is to be answered, and the end. Raises what ends the batch otherwise."""
        try:
            async with aclosing(self._run.outcomes()) as outcomes:
                async for outcome in outcomes:
                    await self._write_part(outcome)
        except ClientMistake:
            if self._exchange.responding:  # the last part that is whole can be told from one that is not
                self._collected += b"\r\n"
                await self._flush()
            raise
        self._collected += b"--\r\n"
        await self._flush(last=True)

    async def _write_part(self, outcome: Outcome) -> None:
        result = outcome.result
        if isinstance(result, OpenObject) and isinstance(result.payload, BlobStream):
            await self._write_stream(outcome, result.info, result.payload)
        else:
            await self._write_whole(outcome)
        if not self._run.ready or len(self._collected) >= _COLLECTED_BYTES_MAX:
            await self._flush()

    async def _write_whole(self, outcome: Outcome) -> None:
        """Write a part whose payload is in memory."""
        try:
            status, headers, payload = self._described(outcome.result)
            head = _head_of(outcome, status, headers)
        except InvariantBroken as broken:  # what is stored cannot be said in headers
            outcome = replace(outcome, result=broken)
            status, headers, payload = self._described(broken)
            head = _head_of(outcome, status, headers)
        self._records.add(outcome, status)
        self._collected += head
        if len(payload) > _COLLECTED_BYTES_MAX:
            await self._flush()
            await self._exchange.send(payload, last=False)
        else:
            self._collected += payload
        self._collected += self._delimiter
        if isinstance(outcome.result, OpenObject):
            self._exchange.bytes_out += len(payload)

    async def _write_stream(self, outcome: Outcome, info: ObjectInfo, stream: BlobStream) -> None:
        """Write a part whose payload is read meanwhile. Raises what ends it early: the response has to be cut off.

        What is found wrong before a byte of it was sent is an outcome like any other.
        """
        async with aclosing(checked(stream, info.size)) as chunks:
            try:
                head = _head_of(outcome, 200, headers_from_info(info))
                first = await anext(chunks, b"")
            except Exception as error:  # noqa: BLE001  # because every failure is the outcome of its operation
                await self._write_whole(replace(outcome, result=error))
                return
            try:
                self._collected += head
                await self._flush()
                await self._exchange.write(first, last=False)
                async for chunk in chunks:
                    await self._exchange.write(chunk, last=False)
            except Exception as error:
                self._records.add(replace(outcome, result=error), status_of(error))
                raise
        self._collected += self._delimiter
        self._records.add(outcome, 200)

    def _described(self, result: Result) -> tuple[int, Headers, bytes]:
        """Status, headers and payload of a part."""
        match result:
            case OpenObject(info=info, payload=bytes() as payload):
                invariant(len(payload) == info.size, "a payload in memory is as long as its object")
                return 200, headers_from_info(info), payload
            case OpenObject():
                raise InvariantBroken("a payload that is a stream is written as one")
            case FoundObject(info=info):
                return 204, headers_from_info(info), b""
            case Stored():
                return 201, [], b""
            case Deleted():
                return 204, [], b""
            case Exception():
                tell_of_failure(result)
                status, headers, payload = error_response(result, self._exchange.request_id)
                return status, [header for header in headers if header[0] != b"content-length"], payload
            case _:
                assert_never(result)

    async def _flush(self, *, last: bool = False) -> None:
        """Send what is collected; the head of the response in front of the first of it."""
        exchange = self._exchange
        if not exchange.responding:
            await exchange.start(200, [(b"content-type", b'multipart/form-data; boundary="%s"' % self._boundary)])
        collected, self._collected = self._collected, bytearray()
        if collected:
            await exchange.send(bytes(collected), last=last)


def _head_of(outcome: Outcome, status: int, headers: Headers) -> bytes:
    """What stands between the delimiter of a part and its payload. Raises `InvariantBroken` for what is no header."""
    lines = [(b"content-disposition", b"form-data; name=part"), (_INDEX, b"%d" % outcome.index)]
    if outcome.key is not None:
        lines.append((_KEY, quote(outcome.key, KEY_SAFE).encode()))
    if outcome.kind is not None:
        lines.append((_KIND, outcome.kind.value.encode()))
    lines.append((_STATUS, f"{status} {HTTPStatus(status).phrase}".encode()))
    head = b""
    for name, value in (*lines, *headers):
        invariant(UNSAFE_IN_HEADERS.search(name + value) is None, "a header is one line")
        head += b"%s: %s\r\n" % (name, value)
    return b"\r\n" + head + b"\r\n"
