"""Metadata as HTTP headers, both ways (the wire protocol's "Metadata headers").

Guarantees: reading what was written gives the same metadata; free text of any Unicode survives; nothing that is written
holds CR, LF, NUL or any other byte outside visible ASCII and space (a content type may hold a tab, as it was given).
Headers come and go as ASGI has them: pairs of bytes, names in lower case.

Does not: write `content_disposition` with the others, since an answer to a batch has its own there; or judge what may
be stored beyond form and size (policies are admission's).

Every GET and PUT passes here, so what recurs between requests is remembered: content types, expirations, custom names.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, assert_never
from urllib.parse import quote, unquote_to_bytes

from tierstore.clock import MICROS_PER_SECOND
from tierstore.errors import HeadersTooLarge, InvalidRequest
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.types.durations import check_duration, format_duration, read_duration
from tierstore.types.metadata import (
    DEFAULT_CONTENT_TYPE,
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
from tierstore.types.timestamps import format_timestamp

Header = tuple[bytes, bytes]

_CONTENT_TYPE = b"content-type"
_CONTENT_ENCODING = b"content-encoding"
_EXPIRATION = b"x-sn-expiration"
_ORIGIN = b"x-sn-origin"
_FILENAME = b"x-sn-filename"
_SINGLE_VALUED = frozenset((_CONTENT_TYPE, _CONTENT_ENCODING, _EXPIRATION, _ORIGIN, _FILENAME))
_CUSTOM_PREFIX = b"x-snme-"
_ZSTD_HEADER = (_CONTENT_ENCODING, b"zstd")

_ENCODED = re.compile(rb"[ -$&-~]*+(?:%[0-9A-Fa-f]{2}[ -$&-~]*+)*+")
_VISIBLE = re.compile(rb"[ -~]*+")
_ENCODED_BYTES = tuple(
    bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != ord("%") else b"%%%02X" % byte for byte in range(256)
)

_REMEMBERED_BYTES_MAX = 128
"""Only values up to this long are remembered, so that the caches stay small whatever clients send."""


def metadata_from_headers(headers: Iterable[Header], limits: Limits) -> Metadata:
    """Read the metadata headers of a request that inserts; other headers are passed over.

    Raises `InvalidRequest` for a malformed or repeated one, `HeadersTooLarge` beyond ``limits.metadata_bytes_max`` or
    ``limits.custom_metadata_max``.
    """
    single: dict[bytes, bytes] = {}
    custom: dict[str, str] = {}
    encoded_bytes = 0
    for name, raw in headers:
        if name in _SINGLE_VALUED:
            if name in single:
                raise InvalidRequest(f"the header {name.decode()} was given more than once")
            value = single[name] = raw.strip(b" \t")
        elif name.startswith(_CUSTOM_PREFIX):
            if len(custom) >= limits.custom_metadata_max:
                raise HeadersTooLarge(f"an object has at most {limits.custom_metadata_max} custom metadata entries")
            custom_name = _custom_name(name)
            if custom_name in custom:
                raise InvalidRequest(f"the header x-snme-{custom_name} was given more than once")
            value = raw.strip(b" \t")
            custom[custom_name] = _decode(name, value)
            encoded_bytes += len(custom_name)
        else:
            continue
        encoded_bytes += len(value)
    given = single.get
    content_type, coding, expiration = given(_CONTENT_TYPE), given(_CONTENT_ENCODING), given(_EXPIRATION)
    origin, filename = given(_ORIGIN), given(_FILENAME)
    metadata = Metadata(
        content_type=DEFAULT_CONTENT_TYPE if content_type is None else _media_type(content_type),
        compression=None if coding is None else _compression(coding),
        expiration=MANUAL if expiration is None else _expiration(expiration, limits),
        origin=None if origin is None else _decode(_ORIGIN, origin),
        filename=None if filename is None else _decode(_FILENAME, filename),
        custom=tuple(sorted(custom.items())) if custom else (),
    )
    # Decoded text is never longer than its encoded form, so most requests need no exact count.
    if encoded_bytes + len(DEFAULT_CONTENT_TYPE) > limits.metadata_bytes_max:
        _check_size(metadata, limits)
    return metadata


def headers_from_info(info: ObjectInfo) -> list[Header]:
    """The headers that describe ``info`` in an answer; what is default or absent is left out, but the content type.

    A `TimeToLive` is shown as the lifetime from creation to the deadline of now, so that it tells of extensions; a
    `TimeToIdle` is shown as it was given.
    """
    metadata = info.metadata
    headers = [(_CONTENT_TYPE, _content_type_value(metadata.content_type))]
    if metadata.compression is not None:
        headers.append(_ZSTD_HEADER)
    match metadata.expiration:
        case Manual():
            pass
        case TimeToLive(seconds):
            if info.time_expires is not None:
                seconds = max(info.time_expires - info.time_created, 0) // MICROS_PER_SECOND
            headers.append((_EXPIRATION, _expiration_value("ttl", seconds)))
        case TimeToIdle(seconds):
            headers.append((_EXPIRATION, _expiration_value("tti", seconds)))
        case _:
            assert_never(metadata.expiration)
    headers.append((b"x-sn-time-created", format_timestamp(info.time_created).encode()))
    if info.time_expires is not None:
        headers.append((b"x-sn-time-expires", format_timestamp(info.time_expires).encode()))
    if metadata.origin is not None:
        headers.append((_ORIGIN, _encode(metadata.origin)))
    if metadata.filename is not None:
        headers.append((_FILENAME, _encode(metadata.filename)))
    headers.append((b"x-sn-size", b"%d" % info.size))
    for name, value in metadata.custom:
        headers.append((_custom_header_name(name), _encode(value)))
    return headers


_UNSAFE_IN_FILE_NAMES = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
_NOT_VISIBLE = re.compile(r"[^ -~]")
_ATTR_CHARS = "!#$&+-.^_`|~"
"""With letters and digits, what an extended parameter holds unencoded (``attr-char``, RFC 8187, section 3.2.1)."""


def content_disposition(filename: str) -> bytes:
    """The value of a ``content-disposition`` header that offers the payload for download as ``filename``.

    The name can not lead a browser to another folder: ``/``, backslashes and control characters become ``-``, and so
    do all dots of a name of dots only. A name beyond ASCII is written twice (RFC 6266, section 4.3, and its appendix
    D): as ``filename`` with ``_`` for what ASCII has not, and whole as ``filename*``.
    """
    name = _UNSAFE_IN_FILE_NAMES.sub("-", filename)
    if not name.strip("."):
        name = "-" * len(name)
    fallback = _NOT_VISIBLE.sub("_", name).replace('"', '\\"')
    extended = "" if name.isascii() else f"; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"
    return f'attachment; filename="{fallback}"{extended}'.encode("ascii")


def _decode(header_name: bytes, value: bytes) -> str:
    if b"%" not in value and value.isascii() and (text := value.decode("ascii")).isprintable():
        return text
    if _ENCODED.fullmatch(value) is None:
        if _VISIBLE.fullmatch(value) is None:
            what = "holds only visible ASCII and spaces; percent-encode everything else as UTF-8"
        else:
            what = "has a % that is not followed by two hexadecimal digits; write %25 for the sign itself"
        raise InvalidRequest(f"the value of {header_name.decode()} {what}")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"the value of {header_name.decode()} is not UTF-8 once percent-decoded") from None


def _encode(text: str) -> bytes:
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip(" "):
        return text.encode("ascii")
    encoded = b"".join([_ENCODED_BYTES[byte] for byte in text.encode()])
    # HTTP strips spaces at the ends of a value (RFC 9110, section 5.5).
    if encoded.startswith(b" "):
        encoded = b"%20" + encoded[1:]
    if encoded.endswith(b" "):
        encoded = encoded[:-1] + b"%20"
    return encoded


def _check_size(metadata: Metadata, limits: Limits) -> None:
    texts = [metadata.content_type, metadata.origin or "", metadata.filename or ""]
    for entry in metadata.custom:
        texts.extend(entry)
    if sum(len(text.encode()) for text in texts) > limits.metadata_bytes_max:
        raise HeadersTooLarge(f"an object's metadata has at most {limits.metadata_bytes_max} bytes")


def _compression(value: bytes) -> Literal["zstd"]:
    # Content codings are case-insensitive (RFC 9110, section 8.4.1). `identity` is refused with all others: the same
    # section keeps it out of this header.
    if value.lower() != b"zstd":
        raise InvalidRequest("content-encoding is zstd; leave the header out for a payload that is not compressed")
    return "zstd"


def _media_type(value: bytes) -> str:
    return _media_type_remembered(value) if len(value) <= _REMEMBERED_BYTES_MAX else _read_media_type(value)


def _read_media_type(value: bytes) -> str:
    text = value.decode("latin-1")
    if not is_media_type(text):
        raise InvalidRequest("content-type is a media type, such as text/plain; charset=utf-8")
    return text


def _expiration(value: bytes, limits: Limits) -> Expiration:
    expiration = _expiration_remembered(value) if len(value) <= _REMEMBERED_BYTES_MAX else _read_expiration(value)
    if not isinstance(expiration, Manual):
        check_duration(expiration.seconds, limits)
    return expiration


def _read_expiration(value: bytes) -> Expiration:
    if not value.isascii():
        raise InvalidRequest("x-sn-expiration holds ASCII only; microseconds are written us")
    text = value.decode("latin-1")
    if text == "manual":
        return MANUAL
    kind, colon, duration = text.partition(":")
    if colon and kind == "ttl":
        return TimeToLive(read_duration(duration))
    if colon and kind == "tti":
        return TimeToIdle(read_duration(duration))
    raise InvalidRequest("x-sn-expiration is manual, ttl:DURATION or tti:DURATION, as in ttl:30d")


def _custom_name(header_name: bytes) -> str:
    if len(header_name) <= _REMEMBERED_BYTES_MAX:
        return _custom_name_remembered(header_name)
    return _read_custom_name(header_name)


def _read_custom_name(header_name: bytes) -> str:
    name = header_name[len(_CUSTOM_PREFIX) :].decode("latin-1")
    if not is_custom_name(name):
        raise InvalidRequest("the name of custom metadata, after x-snme-, is a lower-case token as in RFC 9110")
    return name


_media_type_remembered = lru_cache(maxsize=512)(_read_media_type)
_expiration_remembered = lru_cache(maxsize=512)(_read_expiration)
_custom_name_remembered = lru_cache(maxsize=1024)(_read_custom_name)


@lru_cache(maxsize=512)
def _expiration_value(kind: str, seconds: int) -> bytes:
    return f"{kind}:{format_duration(seconds)}".encode("ascii")


def _content_type_value(content_type: str) -> bytes:
    invariant(is_media_type(content_type), "a stored content type is a media type")
    return content_type.encode("ascii")


def _custom_header_name(name: str) -> bytes:
    invariant(is_custom_name(name), "a stored custom metadata name is a token")
    return _CUSTOM_PREFIX + name.encode("ascii")
