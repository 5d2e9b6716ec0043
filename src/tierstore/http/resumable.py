"""Resumable uploads: create, append, query, cancel.

Guarantees: what cannot be stored is refused before anything of a body is read. Of a body that does not arrive whole,
what came is the session's, as far as the store can keep it (`tierstore.tiering.resumable`): its client asks for the
offset and goes on from there. 201 says that the object is committed, and nothing else does. Handlers get an admitted
service. Does not: take a body with the request that creates a session.
"""

import re

from tierstore.admission.admitted import AdmittedService
from tierstore.errors import InvalidRequest
from tierstore.http.bodies import announces_body
from tierstore.http.exchange import Exchange
from tierstore.http.parsing import parse_single
from tierstore.http.responses import json_response
from tierstore.types.ids import ObjectId
from tierstore.types.metadata_headers import metadata_from_headers
from tierstore.types.objects import Tier
from tierstore.types.resumable import Advance, Completed, SessionId

SESSION = "session"
"""The parameter that names a session."""
UPLOAD_TYPE = "upload_type"
"""The parameter that asks for a session, when it is ``resumable``."""
RESUMABLE = "resumable"

UPLOAD_OFFSET = b"upload-offset"
"""Where in a resumable upload the body of a request belongs."""

_LENGTH = b"upload-length"
_QUERY = b"*"
_NUMBER = re.compile(rb"[0-9]{1,18}")


async def create_session(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
    """Begin a resumable upload: 200, with the key, the session's token and the granularity."""
    parse_single(exchange.query, (UPLOAD_TYPE,))
    length = _number(exchange, _LENGTH)
    if announces_body(exchange.fields):
        raise InvalidRequest("a resumable upload is begun without a body; its bytes follow with its session")
    metadata = metadata_from_headers(exchange.headers, exchange.limits)
    session = await service.create_session(object_id, metadata, length)
    exchange.upload = session.upload.revision.uuid
    content = {"key": object_id.key, "session": session.encode(), "granularity": service.granularity(length)}
    await exchange.respond(200, *json_response(content))


async def append(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
    """Store the body from ``upload-offset`` on, or tell the offset if that is ``*``.

    201 once the object is committed, by this request or an earlier one; else 204, with ``upload-offset``.
    """
    session = _session_of(exchange, object_id)
    if b"content-range" in exchange.fields:
        raise InvalidRequest("where the bytes of a resumable upload belong is said by upload-offset alone")
    if exchange.fields.get(UPLOAD_OFFSET, b"").strip(b" \t") == _QUERY:
        if announces_body(exchange.fields):
            raise InvalidRequest("a request for the offset has no body")
        await _tell(exchange, object_id, await service.query_session(session))
        return
    offset = _number(exchange, UPLOAD_OFFSET, " or *")
    if b"content-length" not in exchange.fields or b"transfer-encoding" in exchange.fields:
        raise InvalidRequest("the bytes of a resumable upload are sent with their content-length")
    await _tell(exchange, object_id, await service.append(session, offset, exchange.open_body("an upload")))


async def cancel(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
    """End the session and remove its bytes: 204. The object, if there is one, is not touched."""
    await service.cancel_session(_session_of(exchange, object_id))
    await exchange.respond(204, [])


async def _tell(exchange: Exchange, object_id: ObjectId, advance: Advance) -> None:
    if isinstance(advance, Completed):
        exchange.tier = Tier.LONG_TERM
        await exchange.respond(201, *json_response({"key": object_id.key}))
    else:
        await exchange.respond(204, [(UPLOAD_OFFSET, b"%d" % advance.offset)])


def _session_of(exchange: Exchange, object_id: ObjectId) -> SessionId:
    """The session that the request names, which is kept for the log. Raises `InvalidRequest`, `NoSuchUpload`."""
    parameters = parse_single(exchange.query, (SESSION, UPLOAD_TYPE))
    if UPLOAD_TYPE in parameters:
        raise InvalidRequest(f"{UPLOAD_TYPE} begins an upload, and {SESSION} goes on with one: not both")
    session = SessionId.decode(parameters[SESSION], object_id, exchange.limits)
    exchange.upload = session.upload.revision.uuid
    return session


def _number(exchange: Exchange, name: bytes, otherwise: str = "") -> int:
    """The header's value. Raises `InvalidRequest` if it is missing, or no number of bytes."""
    value = exchange.fields.get(name, b"").strip(b" \t")
    if _NUMBER.fullmatch(value) is None:
        raise InvalidRequest(f"{name.decode()} is a number of bytes{otherwise}")
    return int(value)
