"""Multipart uploads: their ids as clients hold them, their parts, and what a list of parts must be like.

Guarantees: `UploadId.encode` and `UploadId.decode` are inverse for one object; a text that was cut short, damaged,
made for another object or by another version of the format does not decode. That is a protection against mistakes, not
against malice: an id is no secret and grants nothing.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID
from zlib import crc32

from tierstore.clock import UnixMicros
from tierstore.errors import InvalidPartOrder, InvalidRequest
from tierstore.limits import Limits
from tierstore.types.ids import ObjectId, Revision

_FORMAT = b"\x01"
_UUID_BYTES = 16
_CHECKSUM_BYTES = 4
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class UploadId:
    """What names one upload of a known object: the revision it makes, and the long-term store's own upload id."""

    revision: Revision
    store_id: str
    """Visible ASCII; empty if the store needs none."""

    def encode(self) -> str:
        """The id as clients get it: base64url without padding of format byte, UUID, store id and CRC-32.

        The checksum also covers the object's storage path, which is not part of the id.
        """
        return encode_token(_FORMAT, self)

    @classmethod
    def decode(cls, text: str, object_id: ObjectId, limits: Limits) -> "UploadId":
        """The id that ``text`` is for ``object_id``. Raises `InvalidRequest` for anything else."""
        upload = decode_token(_FORMAT, text, object_id, limits)
        if upload.revision.is_session:
            raise InvalidRequest("this is no upload id: the upload is resumable, and its parts are not its client's")
        return upload


def encode_token(form: bytes, upload: UploadId) -> str:
    """What names ``upload`` to clients, with ``form`` as its format byte; see `UploadId.encode`."""
    content = form + upload.revision.uuid.bytes + upload.store_id.encode("ascii")
    return base64.urlsafe_b64encode(content + _checksum(content, upload.revision.object_id)).rstrip(b"=").decode()


def decode_token(form: bytes, text: str, object_id: ObjectId, limits: Limits) -> UploadId:
    """The upload that ``text``, with this format byte, names. Raises `InvalidRequest` for anything else."""
    raw = b""
    if len(text) <= limits.upload_id_bytes_max and _BASE64URL.fullmatch(text) and len(text) % 4 != 1:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    uuid, store_id = content[1 : 1 + _UUID_BYTES], content[1 + _UUID_BYTES :]
    if (
        len(uuid) != _UUID_BYTES
        or content[:1] != form
        or checksum != _checksum(content, object_id)
        or not store_id.isascii()
    ):
        raise InvalidRequest("this is no upload id of this object: it is damaged, or belongs to another object")
    upload = UploadId(Revision(object_id, UUID(bytes=uuid)), store_id.decode("ascii"))
    if not upload.revision.is_upload or encode_token(form, upload) != text:  # another spelling of the last bits
        raise InvalidRequest("this is no upload id of this object: it is damaged, or belongs to another object")
    return upload


def _checksum(content: bytes, object_id: ObjectId) -> bytes:
    return crc32(object_id.storage_path.encode(), crc32(content)).to_bytes(_CHECKSUM_BYTES)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an upload, as the long-term store has it."""

    number: int
    etag: str
    """Visible ASCII, without quotes."""
    size: int
    stored: UnixMicros


@dataclass(frozen=True, slots=True)
class PartName:
    """A part as a client names it to complete its upload."""

    number: int
    etag: str


@dataclass(frozen=True, slots=True)
class PartsPage:
    """Some parts of an upload, in ascending order."""

    parts: Sequence[Part]
    truncated: bool
    """Whether there are more after the last of them."""
    store_id: str = field(default="", compare=False)
    """The store's own id of the upload, for who did not know it."""


def check_part_order(parts: Sequence[PartName]) -> None:
    """Raise `InvalidPartOrder` unless ``parts`` are in ascending order, each number once."""
    for before, after in pairwise(parts):
        if before.number >= after.number:
            raise InvalidPartOrder(
                f"part {after.number} is named after part {before.number}; parts go in ascending order"
            )
