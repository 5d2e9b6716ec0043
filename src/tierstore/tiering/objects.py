"""What tiering hands out: an object opened for reading."""

from dataclasses import dataclass

from tierstore.backends.long_term.contract import BlobStream
from tierstore.types.metadata import ObjectInfo
from tierstore.types.objects import Tier
from tierstore.types.ranges import Span


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An object, or a span of it, ready to be read. Whoever gets one reads ``payload`` to its end or closes it."""

    info: ObjectInfo
    tier: Tier
    span: Span | None
    """The bytes that ``payload`` holds; None for the whole object."""
    payload: bytes | BlobStream
    """In memory (high-volume tier), or a stream that must be closed (long-term tier)."""
