"""What Google Cloud Storage keeps of an object, as its APIs write it, and what we keep there of ours.

The service keeps a size and a CRC-32C of every object. Of ours there is one thing: where the name of a blob cannot hold
its storage path (see `tierstore.object_storage.names`), the path is in the object's own metadata, as base64url of
UTF-8, because one of the two APIs takes ASCII alone. Custom metadata is limited to 8 KiB
(https://cloud.google.com/storage/quotas#objects): so the rare path of more than `PATH_BYTES_MAX` is kept nowhere, and
its blob is passed over by listings, which are for tests and operators, and by nothing else.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID

from multidict import CIMultiDictProxy

from tierstore.backends.long_term.contract import BlobInfo
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import CorruptObject, InvalidRequest, Unavailable
from tierstore.object_storage.names import Names, is_cut
from tierstore.types.ids import AS_STORED, ObjectId, Revision
from tierstore.types.timestamps import parse_timestamp

PATH_BYTES_MAX = 6_000
_PATH = "tierstore-path"
_CRC32C_BYTES = 4
Resource = Mapping[str, Any]


def kept_path(revision: Revision) -> dict[str, str]:
    """The custom metadata of a blob."""
    path = revision.object_id.storage_path.encode()
    if not is_cut(revision.object_id) or len(path) > PATH_BYTES_MAX:
        return {}
    return {_PATH: base64.urlsafe_b64encode(path).decode()}


def told_revision(resource: Resource) -> Revision:
    """The revision that a blob itself says it is of. Raises `CorruptObject` if it does not."""
    name = str(resource.get("name"))
    uuid = Names.uuid(name)
    try:
        path = base64.urlsafe_b64decode(str(resource["metadata"][_PATH])).decode()
        object_id = ObjectId.from_storage_path(path, AS_STORED)
    except (KeyError, TypeError, ValueError, InvalidRequest):
        raise CorruptObject(f"{name} does not say which blob it is") from None
    if uuid is None:
        raise CorruptObject(f"{name} is not the name of a blob")
    return Revision(object_id, UUID(int=uuid.int))


def blob_of(revision: Revision, resource: Resource) -> BlobInfo:
    """What is known of a blob. Raises `CorruptObject` if that is not all there."""
    crc32c_of(resource)
    return BlobInfo(revision, size_of(resource), instant_of(str(resource.get("timeCreated"))))


def size_of(resource: Resource) -> int:
    """The bytes of an object's payload. Raises `CorruptObject`."""
    size = str(resource.get("size"))
    if not (size.isascii() and size.isdigit()):
        raise CorruptObject("the store does not know the size of an object")
    return int(size)


def crc32c_of(resource: Resource) -> bytes:
    """The CRC-32C of an object's payload. Raises `CorruptObject`."""
    found = _crc32c(str(resource.get("crc32c")))
    if found is None:
        raise CorruptObject("the store does not know the checksum of an object")
    return found


def instant_of(text: str) -> UnixMicros:
    """A moment by the service's clock. Raises `Unavailable` if it cannot be read."""
    try:
        return parse_timestamp(text)
    except InvalidRequest:
        raise Unavailable("the object store's answer cannot be read") from None


def date_of(headers: "CIMultiDictProxy[str]") -> UnixMicros:
    """When an answer was made, by the service's clock, to the second. Raises `Unavailable` if it does not say."""
    try:
        return round(parsedate_to_datetime(headers["Date"]).timestamp()) * MICROS_PER_SECOND
    except (KeyError, ValueError):
        raise Unavailable("the object store's answer cannot be read") from None


def checksum_of(headers: "CIMultiDictProxy[str]") -> bytes | None:
    """The CRC-32C that an answer names, be it of an object or of a part; None if it names none."""
    for line in headers.getall("x-goog-hash", ()):
        for each in line.split(","):
            name, _, value = each.strip().partition("=")
            if name == "crc32c":
                return _crc32c(value)
    return None


@dataclass(frozen=True, slots=True)
class MediaHead:
    """What the head of an answer says of the object whose bytes follow."""

    size: int
    """Bytes of the whole object, as this answer has them."""
    stored_size: int
    """Bytes of the whole object, as they were stored."""
    crc32c: bytes | None
    content_range: str | None
    """Which of them follow; None for all."""

    @classmethod
    def of(cls, headers: "CIMultiDictProxy[str]") -> "MediaHead | None":
        """None if the head does not say how long the object is."""
        content_range = headers.get("Content-Range")
        size = headers.get("Content-Length", "") if content_range is None else content_range.rpartition("/")[2]
        stored = headers.get("x-goog-stored-content-length", size)
        if not (size.isascii() and size.isdigit() and stored.isascii() and stored.isdigit()):
            return None
        return cls(int(size), int(stored), checksum_of(headers), content_range)


def _crc32c(text: str) -> bytes | None:
    """Four bytes in base64, big-endian."""
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return found if len(found) == _CRC32C_BYTES else None
