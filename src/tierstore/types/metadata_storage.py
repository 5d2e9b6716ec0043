"""Metadata as the stores keep it: a versioned compact form.

One byte of format version, a MessagePack array, and a CRC-32 of both (4 bytes, big-endian).

Guarantees: reading what was written gives the same metadata; anything else is `CorruptObject`, never an exception of
another kind, and never a value of the wrong type or with names that could not have been written. Does not: hold the
deadline, which moves while the content stays and so lives in the row; or the payload's checksum, which is the store's.
"""

from typing import Annotated, Literal, assert_never
from zlib import crc32

import msgspec

from tierstore.clock import UnixMicros
from tierstore.errors import CorruptObject
from tierstore.types.metadata import (
    MANUAL,
    Expiration,
    Manual,
    Metadata,
    ObjectInfo,
    TimeToIdle,
    TimeToLive,
    is_custom_name,
    is_media_type,
)
from tierstore.types.timestamps import EARLIEST, LATEST

_VERSION = b"\x01"
_CHECKSUM_BYTES = 4
_MANUAL, _TIME_TO_LIVE, _TIME_TO_IDLE = 0, 1, 2


class _Stored(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Format version 1. The order of the fields is the format: never change it, make a new version."""

    size: Annotated[int, msgspec.Meta(ge=0)]
    time_created: Annotated[int, msgspec.Meta(ge=EARLIEST, le=LATEST)]
    content_type: str
    compression: Literal["zstd"] | None
    expiration: Literal[0, 1, 2]
    seconds: Annotated[int, msgspec.Meta(ge=0)]
    origin: str | None
    filename: str | None
    custom: tuple[tuple[str, str], ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


def encode_metadata(metadata: Metadata, *, size: int, time_created: UnixMicros) -> bytes:
    """Write what a row keeps beside the payload; ``size`` is the payload's length in bytes."""
    match metadata.expiration:
        case Manual():
            expiration, seconds = _MANUAL, 0
        case TimeToLive(seconds):
            expiration = _TIME_TO_LIVE
        case TimeToIdle(seconds):
            expiration = _TIME_TO_IDLE
        case _:
            assert_never(metadata.expiration)
    body = _VERSION + _encode(
        (
            size,
            time_created,
            metadata.content_type,
            metadata.compression,
            expiration,
            seconds,
            metadata.origin,
            metadata.filename,
            metadata.custom,
        )
    )
    return body + crc32(body).to_bytes(_CHECKSUM_BYTES)


def decode_metadata(raw: bytes, time_expires: UnixMicros | None) -> ObjectInfo:
    """Read what `encode_metadata` wrote; ``time_expires`` is the row's deadline.

    Raises `CorruptObject` for an unknown format version, and for bytes that were damaged.
    """
    if raw[:1] != _VERSION:
        raise CorruptObject("stored metadata has a format version that this release does not know")
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if crc32(body).to_bytes(_CHECKSUM_BYTES) != checksum:
        raise CorruptObject("stored metadata does not match its checksum")
    try:
        stored = _decode(body[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptObject("stored metadata does not have the form of its version") from error
    if not is_media_type(stored.content_type) or not _are_custom_entries(stored.custom):
        raise CorruptObject("stored metadata holds what no header can hold")
    metadata = Metadata(
        content_type=stored.content_type,
        compression=stored.compression,
        expiration=_expiration(stored),
        origin=stored.origin,
        filename=stored.filename,
        custom=stored.custom,
    )
    return ObjectInfo(metadata=metadata, size=stored.size, time_created=stored.time_created, time_expires=time_expires)


def _are_custom_entries(custom: tuple[tuple[str, str], ...]) -> bool:
    previous = ""
    for name, _ in custom:
        if name <= previous or not is_custom_name(name):
            return False
        previous = name
    return True


def _expiration(stored: _Stored) -> Expiration:
    match stored.expiration:
        case 0:
            return MANUAL
        case 1:
            return TimeToLive(stored.seconds)
        case 2:
            return TimeToIdle(stored.seconds)
