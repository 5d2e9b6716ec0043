"""An object's metadata: what clients give with it, its expiration, and the two codecs (headers, storage)."""

from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a client says of an object."""

    content_type: str = "application/octet-stream"
    compression: Literal["zstd"] | None = None
    expiration: Expiration = field(default_factory=Manual)
    origin: str | None = None
    filename: str | None = None
    custom: tuple[tuple[str, str], ...] = ()
    """Names in lower case, sorted by name, and their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
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
