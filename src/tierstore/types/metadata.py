"""An object's metadata: what clients give with it, and its expiration.

Its two codecs are `tierstore.types.metadata_headers` (the wire) and `tierstore.types.metadata_storage` (the stores).
Both check with `is_media_type` and `is_custom_name`, so that neither lets in or out what cannot stand in a header.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import msgspec

from tierstore.clock import MICROS_PER_SECOND, UnixMicros


@dataclass(frozen=True, slots=True)
class Manual:
    """Stays until it is deleted."""


@dataclass(frozen=True, slots=True)
class TimeToLive:
    """Expires ``seconds`` after its creation."""

    seconds: int


@dataclass(frozen=True, slots=True)
class TimeToIdle:
    """Expires ``seconds`` after its last GET or HEAD."""

    seconds: int


Expiration = Manual | TimeToLive | TimeToIdle

MANUAL: Final = Manual()
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"


# These two are made for every request, and a msgspec structure is made in a tenth of a frozen dataclass's time.


class Metadata(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a client says of an object."""

    content_type: str = DEFAULT_CONTENT_TYPE
    compression: Literal["zstd"] | None = None
    expiration: Expiration = MANUAL
    origin: str | None = None
    filename: str | None = None
    custom: tuple[tuple[str, str], ...] = ()
    """Names in lower case, sorted by name, and their values."""


class ObjectInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All there is to know of a stored object but its payload."""

    metadata: Metadata
    size: int
    """Bytes of the whole stored object."""
    time_created: UnixMicros
    time_expires: UnixMicros | None
    """The deadline as the store has it now; None for `Manual`."""


def deadline(expiration: Expiration, start: UnixMicros) -> UnixMicros | None:
    """When an object of this expiration expires, counted from ``start`` (its creation, or its last access)."""
    match expiration:
        case Manual():
            return None
        case TimeToLive(seconds) | TimeToIdle(seconds):
            return start + seconds * MICROS_PER_SECOND


_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
"""A ``token`` (RFC 9110, section 5.6.2). Possessive throughout: hostile text cannot make a match slow."""
_QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*+"'
_MEDIA_TYPE = re.compile(rf"{_WORD}/{_WORD}(?:[ \t]*+;[ \t]*+(?:{_WORD}=(?:{_WORD}|{_QUOTED}))?)*+")
_CUSTOM_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]++")
_REMEMBERED_CHARACTERS_MAX = 128
"""Only names up to this long are remembered, so that the caches stay small whatever clients send."""


def is_media_type(text: str) -> bool:
    """Whether ``text`` is a media type with or without parameters (RFC 9110, section 8.3.1), all of it ASCII."""
    if len(text) > _REMEMBERED_CHARACTERS_MAX:
        return _matches_media_type(text)
    return _media_type_remembered(text)


def is_custom_name(text: str) -> bool:
    """Whether ``text`` can name custom metadata: a token (RFC 9110, section 5.6.2) without upper-case letters."""
    if len(text) > _REMEMBERED_CHARACTERS_MAX:
        return _matches_custom_name(text)
    return _custom_name_remembered(text)


def _matches_media_type(text: str) -> bool:
    return _MEDIA_TYPE.fullmatch(text) is not None


def _matches_custom_name(text: str) -> bool:
    return _CUSTOM_NAME.fullmatch(text) is not None


_media_type_remembered = lru_cache(maxsize=512)(_matches_media_type)
_custom_name_remembered = lru_cache(maxsize=1024)(_matches_custom_name)
