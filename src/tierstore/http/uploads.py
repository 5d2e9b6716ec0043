"""Multipart uploads: initiate, parts, list, complete, abort.

Guarantees: an upload id or a number that is malformed is refused before anything of a body is read; what a client says
of its parts reaches the stores as typed values within bounds. Handlers get an admitted service.

Completing is answered in its own way. To assemble and commit an upload can take longer than a client, or a proxy
between, waits for the first byte of an answer. So once the list of parts is known to be well-formed, status 200 and the
headers are sent at once, then a space every ``complete_keep_alive_seconds`` (JSON allows it in front), until the
outcome is known. The status has been sent by then: the body alone tells success, ``{"key"}``, from failure,
``{"error": {"code", "message"}}``, with S3's codes (`CODE_BY_ERROR`); never both, never neither unless the response is
cut off. HTTP/1.0 cannot take such a response: its client waits, and gets the same body in one piece. Nobody waits for
longer than an operation may take, and a little.

A client that goes away ends only the wait: the completion goes on, and repeating it tells its outcome.
"""

import asyncio
import base64
import binascii
import math
from collections.abc import Mapping, Sequence

import msgspec
import orjson
import structlog

from tierstore import errors
from tierstore.admission.admitted import AdmittedService
from tierstore.errors import ClientDisconnected, ClientMistake, InvalidDocument, InvalidRequest, Unavailable
from tierstore.http.exchange import Exchange
from tierstore.http.parsing import parse_single
from tierstore.http.responses import fault_detail, json_response, told
from tierstore.limits import Limits
from tierstore.tasks import TaskOwner
from tierstore.types.ids import ObjectId
from tierstore.types.metadata_headers import metadata_from_headers
from tierstore.types.multipart import Part, PartName, UploadId
from tierstore.types.objects import Tier
from tierstore.types.timestamps import format_timestamp

_log = structlog.get_logger(__name__)

COMPLETED = "completed"
"""The outcome, for the log, of a completion that succeeded; otherwise it is the code."""
INTERNAL_ERROR = "InternalError"
CODE_BY_ERROR: dict[type[errors.TierstoreError], str] = {
    errors.NoSuchUpload: "NoSuchUpload",
    errors.InvalidPart: "InvalidPart",
    errors.InvalidPartOrder: "InvalidPartOrder",
    errors.EntityTooSmall: "EntityTooSmall",
    errors.ObjectTooLarge: "EntityTooLarge",
    errors.ClientMistake: "MalformedRequest",
    errors.Unavailable: "ServiceUnavailable",
    errors.TierstoreError: INTERNAL_ERROR,
}
"""What a failed completion is called, by the error's class or its nearest base. After a ``ServiceUnavailable`` trying
again is safe and useful."""

_UPLOAD_ID, _PART_NUMBER = "upload_id", "part_number"
_MAX_PARTS, _MARKER = "max_parts", "part_number_marker"
_NUMBER_DIGITS_MAX = 18
_MD5_BYTES = 16
_CONTENT_MD5 = b"content-md5"


class _NamedPart(msgspec.Struct, frozen=True, gc=False):
    part_number: int
    etag: str


class _PartsDocument(msgspec.Struct, frozen=True):
    """What completes an upload. Fields that are not known are passed over."""

    parts: list[_NamedPart]


_decode = msgspec.json.Decoder(_PartsDocument).decode


class UploadHandlers:
    """What is done with uploads of one object.

    ``watchers`` owns the tasks that wait for completions, and that watch for clients that go away.
    """

    def __init__(self, watchers: TaskOwner) -> None:
        self._watchers = watchers

    async def initiate(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Begin an upload: 200, with the key and the upload's id. A body means nothing here and is not read."""
        _refuse_range(exchange)
        metadata = metadata_from_headers(exchange.headers, exchange.limits)
        upload = await service.initiate_upload(object_id, metadata)
        exchange.upload = upload.revision.uuid
        await exchange.respond(200, *json_response({"key": object_id.key, "upload_id": upload.encode()}))

    async def upload_part(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Store the body as one part: 200, with its ETag, once it is durable."""
        limits = exchange.limits
        parameters = parse_single(exchange.query, (_UPLOAD_ID, _PART_NUMBER))
        upload = _upload_of(exchange, parameters, object_id)
        number = _number(parameters, _PART_NUMBER, f"a number from 1 to {limits.parts_max}", 1, limits.parts_max)
        if number is None:
            raise _missing(_PART_NUMBER)
        _refuse_range(exchange)
        md5 = _md5_of(exchange)
        if b"content-length" not in exchange.fields or b"transfer-encoding" in exchange.fields:
            raise InvalidRequest("a part is sent with its content-length")
        part = await service.upload_part(upload, number, exchange.open_body("a part", limits.part_bytes_max), md5)
        await exchange.respond(200, *json_response({"etag": part.etag}))

    async def list_parts(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Some of the parts, ascending: 200."""
        limits = exchange.limits
        parameters = parse_single(exchange.query, (_UPLOAD_ID, _MAX_PARTS, _MARKER))
        upload = _upload_of(exchange, parameters, object_id)
        most = limits.parts_listed_max
        wanted = _number(parameters, _MAX_PARTS, f"a number from 1; more than {most} counts as {most}", 1)
        after = _number(parameters, _MARKER, "a number from 0")
        limit = most if wanted is None else min(wanted, most)
        page = await service.list_parts(upload, min(after or 0, limits.parts_max), limit)
        content: dict[str, object] = {"parts": [_described(part) for part in page.parts]}
        content["is_truncated"] = page.truncated
        if page.truncated:
            content["next_part_number_marker"] = page.parts[-1].number
        await exchange.respond(200, *json_response(content))

    async def abort(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """End the upload and remove its parts: 204."""
        parameters = parse_single(exchange.query, (_UPLOAD_ID,))
        await service.abort_upload(_upload_of(exchange, parameters, object_id))
        await exchange.respond(204, [])

    async def complete(self, exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
        """Make the object of the parts that the body names: 200, then the outcome."""
        limits = exchange.limits
        parameters = parse_single(exchange.query, (_UPLOAD_ID,))
        upload = _upload_of(exchange, parameters, object_id)
        body = exchange.open_body("a list of parts", limits.complete_body_bytes_max)
        parts = parse_parts(b"".join([chunk async for chunk in body]), limits)
        completion = self._watchers.run("complete_upload", service.complete_upload(upload, parts))
        gone = self._watchers.run("disconnect watcher", exchange.until_disconnected())
        try:
            error = await _outcome(exchange, completion, gone)
        except ClientDisconnected:
            self._watchers.disown(completion, ClientMistake, ClientDisconnected)
            raise
        finally:
            gone.cancel()
            completion.cancel()  # the wait alone: the service keeps a mutation under way when its caller is cancelled
        await _tell(exchange, object_id, error)


async def _outcome(
    exchange: Exchange, completion: asyncio.Task[None], gone: asyncio.Task[None]
) -> BaseException | None:
    """Wait for the completion, and keep the client waiting with a response that has begun; return what it raised.

    Raises `ClientDisconnected`.
    """
    limits = exchange.limits
    seconds = limits.complete_keep_alive_seconds
    waits = math.ceil((limits.operation_deadline_seconds + limits.complete_overtime_seconds_max) / seconds)
    try:
        if exchange.open_ended:
            await exchange.start(200, _headers())
        for _ in range(waits):
            await asyncio.wait((completion, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if completion.done():
                break
            if gone.done():
                raise ClientDisconnected("the caller went away before its upload was complete")
            if exchange.open_ended:
                await exchange.send(b" ", last=False)
    except asyncio.CancelledError:
        # The server's time to stop is up (nobody else cancels). It does not wait, but what is said now still arrives.
        if not completion.done():
            return Unavailable("the server is stopping before the upload was complete; try again")
    if not completion.done():
        return Unavailable("completing the upload takes longer than it may; try again")
    if completion.cancelled():
        return Unavailable("the server has stopped completing the upload; try again")
    return completion.exception()


async def _tell(exchange: Exchange, object_id: ObjectId, error: BaseException | None) -> None:
    """End the response with the outcome, and keep it for the log. Raises `ClientDisconnected`."""
    exchange.error = error
    content: dict[str, object]
    if error is None:
        exchange.outcome = COMPLETED
        exchange.tier = Tier.LONG_TERM
        content = {"key": object_id.key}
    else:
        code = exchange.outcome = code_of(error)
        message = fault_detail(exchange.request_id) if code == INTERNAL_ERROR else told(error)
        content = {"error": {"code": code, "message": message}}
        if code == INTERNAL_ERROR:
            _log.error("request failed", exc_info=error)
        elif isinstance(error, Unavailable) and error.__cause__ is not None:  # what the client is not told
            _log.warning("store failed", error=str(error), cause=repr(error.__cause__))
    payload = orjson.dumps(content)
    if exchange.responding:
        await exchange.send(payload, last=True)
    else:
        await exchange.respond(200, [*_headers(), (b"content-length", b"%d" % len(payload))], payload)


def _headers() -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


def code_of(error: BaseException) -> str:
    """What a failed completion is called: by the error's class, else its nearest base; or a fault of ours."""
    for kind in type(error).__mro__:
        if issubclass(kind, errors.TierstoreError) and kind in CODE_BY_ERROR:
            return CODE_BY_ERROR[kind]
    return INTERNAL_ERROR


def parse_parts(raw: bytes, limits: Limits) -> Sequence[PartName]:
    """The parts that the body ``raw`` names, in its order, which is not checked.

    Raises `InvalidRequest` for what is no JSON, `InvalidDocument` for JSON that is no list of parts within bounds.
    """
    try:
        document = _decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidDocument(f"this is no list of parts: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON that can be read: {error}") from None
    if not 1 <= len(document.parts) <= limits.parts_max:
        raise InvalidDocument(f"an upload is completed with 1 to {limits.parts_max} parts")
    for part in document.parts:
        if not 1 <= part.part_number <= limits.parts_max:
            raise InvalidDocument(f"part_number is a number from 1 to {limits.parts_max}")
        if not (part.etag.isascii() and part.etag.isprintable()):
            raise InvalidDocument(f"the etag of part {part.part_number} is none that this server gave")
    return [PartName(part.part_number, part.etag) for part in document.parts]


def _upload_of(exchange: Exchange, parameters: Mapping[str, str], object_id: ObjectId) -> UploadId:
    """The upload that the request names, which is kept for the log. Raises `InvalidRequest`."""
    text = parameters.get(_UPLOAD_ID)
    if text is None:
        raise _missing(_UPLOAD_ID)
    upload = UploadId.decode(text, object_id, exchange.limits)
    exchange.upload = upload.revision.uuid
    return upload


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"the parameter {name} is missing")


def _number(
    parameters: Mapping[str, str], name: str, described: str, lowest: int = 0, highest: int | None = None
) -> int | None:
    """The parameter's value within bounds; None if it is missing. Raises `InvalidRequest`, with what it has to be."""
    text = parameters.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS_MAX:
        number = int(text)
        if number >= lowest and (highest is None or number <= highest):
            return number
    raise InvalidRequest(f"{name} is {described}")


def _refuse_range(exchange: Exchange) -> None:
    if b"content-range" in exchange.fields:  # RFC 9110, section 14.5
        raise InvalidRequest("an object and a part are written as a whole, and never a range of them")


def _md5_of(exchange: Exchange) -> bytes | None:
    """The digest that the request announces (RFC 1864); None if it announces none."""
    values = [value for name, value in exchange.headers if name == _CONTENT_MD5]
    if not values:
        return None
    try:
        digest = base64.b64decode(values[0].strip(b" \t"), validate=True)
    except binascii.Error:
        digest = b""
    if len(values) > 1 or len(digest) != _MD5_BYTES:
        raise InvalidRequest("content-md5 is the MD5 digest of the body, 16 bytes in base64, once")
    return digest


def _described(part: Part) -> dict[str, object]:
    return {
        "part_number": part.number,
        "etag": part.etag,
        "last_modified": format_timestamp(part.stored),
        "size": part.size,
    }
