"""Extending an object's expiry: PATCH.

Guarantees: a document that is malformed in any way, or that says more than is known here, is refused before an object
is looked at. A content type means nothing: whether it is JSON is decided by the bytes, so that ``curl -d`` will do.
"""

from typing import Literal

import msgspec

from tierstore.admission.admitted import AdmittedService
from tierstore.errors import InvalidRequest
from tierstore.http.exchange import Exchange
from tierstore.limits import Limits
from tierstore.types.durations import parse_duration
from tierstore.types.expiry import AfterCreation, AfterNow, AtInstant, ExpiryTarget
from tierstore.types.ids import ObjectId
from tierstore.types.timestamps import parse_timestamp


class _Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from"}):
    at: str | msgspec.UnsetType = msgspec.UNSET
    after: str | msgspec.UnsetType = msgspec.UNSET
    start: Literal["creation", "now"] | msgspec.UnsetType = msgspec.UNSET


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    extend_expiry: _Extension


_decode = msgspec.json.Decoder(_Document).decode


async def extend_expiry(exchange: Exchange, service: AdmittedService, object_id: ObjectId) -> None:
    """Let an object live longer: 204, once that is durable, or if it lives so long already."""
    limits = exchange.limits
    body = exchange.open_body("an extension of an expiry", limits.extension_body_bytes_max)
    target = parse_extension(b"".join([chunk async for chunk in body]), limits)
    exchange.tier = await service.extend_expiry(object_id, target)
    await exchange.respond(204, [])


def parse_extension(raw: bytes, limits: Limits) -> ExpiryTarget:
    """What the body ``raw`` asks for. Raises `InvalidRequest`."""
    try:
        extension = _decode(raw).extend_expiry
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"this extends no expiry: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON that can be read: {error}") from None
    match extension:
        case _Extension(at=str(at), after=msgspec.UNSET, start=msgspec.UNSET):
            return AtInstant(parse_timestamp(at))
        case _Extension(at=msgspec.UNSET, after=str(after), start="creation"):
            return AfterCreation(parse_duration(after, limits))
        case _Extension(at=msgspec.UNSET, after=str(after), start="now"):
            return AfterNow(parse_duration(after, limits))
        case _:
            raise InvalidRequest(
                'an expiry is extended to {"at": TIME}, or {"after": DURATION, "from": "creation" or "now"}'
            )
