"""What stands behind a payload in the store, and behind each part of an upload: its length and its checksum.

====== ===== =====================================================================
offset bytes
====== ===== =====================================================================
0      n     the blob's storage path, where its name does not hold it; else nothing
n      8     ``TIERBLOB``
n + 8  1     version of the format, 1
n + 9  1     zero
n + 10 2     n
n + 12 4     number of the part; 0 for a whole payload
n + 16 8     bytes of the payload, or of the part's
n + 24 16    their XXH3-128
n + 40 16    nonce: no two trailers of parts are equal, so equal parts have different ETags
n + 56 8     XXH3-64 of the 56 bytes before, and of the storage path
====== ===== =====================================================================

Numbers are big-endian.

Guarantees: a trailer that was damaged, was cut, or belongs to another blob is not taken for one. It comes last, so what
a store has taken for whole without its end has none.
"""

import struct
from dataclasses import dataclass

import xxhash

from tierstore.errors import CorruptObject
from tierstore.object_storage.names import is_cut
from tierstore.types.ids import Revision

_MAGIC = b"TIERBLOB"
_VERSION = 1
_FIELDS = struct.Struct(">8sBxHIQ16s16s")
_SEAL_BYTES = 8
FIXED_BYTES = _FIELDS.size + _SEAL_BYTES
NONCE_BYTES = 16
NO_NONCE = bytes(NONCE_BYTES)
TRAILER_BYTES_MAX = 16 * 1024
"""Longer than a trailer with the longest path: a key of 4 KiB, and 16 scopes of half a KiB."""


@dataclass(frozen=True, slots=True)
class Trailer:
    """What is known of a payload, or of a part's."""

    number: int
    size: int
    checksum: bytes
    nonce: bytes = NO_NONCE

    def encode(self, revision: Revision) -> bytes:
        """The bytes that follow the payload."""
        path = revision.storage_path.encode()
        kept = path if is_cut(revision.object_id) else b""
        fields = _FIELDS.pack(_MAGIC, _VERSION, len(kept), self.number, self.size, self.checksum, self.nonce)
        return kept + fields + _seal(fields, path)

    @classmethod
    def decode(cls, raw: bytes, revision: Revision) -> "Trailer":
        """The trailer that ``raw`` is. Raises `CorruptObject` if it is none of this revision."""
        fields, seal = raw[-FIXED_BYTES:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
        if len(raw) != trailer_bytes(revision) or seal != _seal(fields, revision.storage_path.encode()):
            raise CorruptObject(f"blob {revision.uuid}: what should be at its end is damaged, or is another's")
        magic, version, _, number, size, checksum, nonce = _FIELDS.unpack(fields)
        if magic != _MAGIC or version != _VERSION:
            raise CorruptObject(f"blob {revision.uuid}: its format is unknown")
        return cls(number, size, checksum, nonce)


def trailer_bytes(revision: Revision) -> int:
    """How long the trailers of a revision are."""
    return FIXED_BYTES + (len(revision.storage_path.encode()) if is_cut(revision.object_id) else 0)


def kept_path(end: bytes) -> str | None:
    """The storage path in the trailer that the last bytes of a blob are; None if there is none. Nothing is verified."""
    fields = end[-FIXED_BYTES:-_SEAL_BYTES]
    if len(fields) != _FIELDS.size:
        return None
    length = _FIELDS.unpack(fields)[2]
    path = end[:-FIXED_BYTES][-length:] if length else b""
    try:
        return path.decode() or None
    except UnicodeDecodeError:
        return None


def _seal(fields: bytes, path: bytes) -> bytes:
    return xxhash.xxh3_64_digest(fields + path)
