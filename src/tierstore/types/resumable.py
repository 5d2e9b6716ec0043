"""Resumable uploads: their tokens as clients hold them, and how far one has come, as the change log keeps it.

A session is a multipart upload of the long-term store whose parts the server makes, and whose own entry in the change
log says which of them count. What the entry holds is one byte of format version (another than that of metadata, by
which a session is told from a multipart upload), a MessagePack array, and a CRC-32 of both (4 bytes, big-endian).

Guarantees: a token was made for one object, and is no upload id, nor the other way round, whatever its holder makes
of it (the UUID of its revision says what it is); reading a progress that was written gives the same, and anything else
is `CorruptObject`. A token is no secret and grants nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated
from zlib import crc32

import msgspec

from tierstore.errors import CorruptObject, InvalidRequest, NoSuchUpload
from tierstore.limits import Limits
from tierstore.types.ids import ObjectId
from tierstore.types.multipart import UploadId, decode_token, encode_token

_TOKEN_FORMAT = b"\x02"
_STORED_VERSION = b"\x81"
_CHECKSUM_BYTES = 4
_NO_SESSION = "there is no such session of this object"


@dataclass(frozen=True, slots=True)
class SessionId:
    """What names one resumable upload of a known object."""

    upload: UploadId

    def encode(self) -> str:
        """The token as clients get it: as an upload id, with a format byte of its own."""
        return encode_token(_TOKEN_FORMAT, self.upload)

    @classmethod
    def decode(cls, text: str, object_id: ObjectId, limits: Limits) -> "SessionId":
        """The session that ``text`` names. Raises `NoSuchUpload` for what is no token of this object."""
        try:
            upload = decode_token(_TOKEN_FORMAT, text, object_id, limits)
        except InvalidRequest:
            raise NoSuchUpload(_NO_SESSION) from None
        if not upload.revision.is_session:
            raise NoSuchUpload(_NO_SESSION)
        return cls(upload)


@dataclass(frozen=True, slots=True)
class Stored:
    """The upload goes on: the server holds its first ``offset`` bytes, durably."""

    offset: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The object has been committed by this upload, now or before."""


Advance = Stored | Completed
"""What has become of a session."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a session has come. Part numbers are given out once, so that nothing is ever stored over a part."""

    length: int
    """Bytes of the whole object."""
    offset: int = 0
    """Bytes that are stored: those of the parts that count, one after the other."""
    next_number: int = 1
    """The lowest part number that nobody has been given."""
    counted: tuple[tuple[int, int], ...] = ()
    """The parts that count, as ranges of their numbers: the first and the last, ascending, with gaps between."""

    @property
    def full(self) -> bool:
        """Whether all bytes are stored, be it none, in parts that count."""
        return self.offset == self.length and bool(self.counted)

    def counts(self, number: int) -> bool:
        """Whether the part with this number counts."""
        return any(first <= number <= last for first, last in self.counted)

    def numbers(self) -> Iterator[int]:
        """The numbers of the parts that count."""
        for first, last in self.counted:
            yield from range(first, last + 1)

    def with_number_given(self) -> "Progress":
        """After ``next_number`` has been given to somebody."""
        return replace(self, next_number=self.next_number + 1)

    def with_part(self, number: int, size: int) -> "Progress":
        """After part ``number``, of ``size`` bytes, has been counted: it was given out since the last one was."""
        counted = self.counted
        if counted and counted[-1][1] + 1 == number:
            counted = (*counted[:-1], (counted[-1][0], number))
        else:
            counted = (*counted, (number, number))
        return replace(self, offset=self.offset + size, counted=counted)


_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Stored(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """The order of the fields is the format: never change it, make a new version."""

    length: _Natural
    offset: _Natural
    next_number: Annotated[int, msgspec.Meta(ge=1)]
    counted: tuple[tuple[_Natural, _Natural], ...]
    wanted: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


def is_session(raw: bytes) -> bool:
    """Whether what an upload's own entry holds is that of a session. False for one that is done: it holds nothing."""
    return raw[:1] == _STORED_VERSION


def encode_session(progress: Progress, wanted: bytes) -> bytes:
    """What the entry of a session holds; ``wanted`` is what its object is to be, as for any upload."""
    body = _STORED_VERSION + _encode((progress.length, progress.offset, progress.next_number, progress.counted, wanted))
    return body + crc32(body).to_bytes(_CHECKSUM_BYTES)


def decode_session(raw: bytes) -> tuple[Progress, bytes]:
    """Read what `encode_session` wrote. Raises `CorruptObject` for anything else."""
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if not is_session(raw) or crc32(body).to_bytes(_CHECKSUM_BYTES) != checksum:
        raise CorruptObject("what is kept of a session is damaged, or of no format that this release knows")
    try:
        stored = _decode(body[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptObject("what is kept of a session does not have the form of its version") from error
    progress = Progress(stored.length, stored.offset, stored.next_number, stored.counted)
    if not _makes_sense(progress):
        raise CorruptObject("what is kept of a session contradicts itself")
    return progress, stored.wanted


def _makes_sense(progress: Progress) -> bool:
    counted = progress.counted
    return (
        progress.offset <= progress.length
        and (bool(counted) or not progress.offset)
        and all(0 < first <= last < progress.next_number for first, last in counted)
        and all(before[1] + 1 < after[0] for before, after in pairwise(counted))
    )
