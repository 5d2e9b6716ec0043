"""Where the payload is in a blob: in one piece, or in parts with a `tierstore.object_storage.trailer.Trailer` behind
each.

The blob of an upload is its parts, as the store has put them together. Trailers tell the layout from the end to the
beginning. So that nobody has to go that way, it is also kept in an object of its own beside the blob, which says of
which state of the blob (ETag) it is true. That object can be lost, and is made again from the blob.

======= ===== ====================================================================
offset  bytes
======= ===== ====================================================================
0       8     ``TIERPART``
8       1     version of the format, 1
9       1     1 if the blob's ETag is known to be made of those of its parts, else 0
10      2     bytes of the ETag, n
12      4     parts, m
16      n     ETag of the blob, in ASCII, without quotes
16 + n  8 m   bytes of the payload of each part
…       8     XXH3-64 of all before, and of the storage path
======= ===== ====================================================================
"""

import hashlib
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import xxhash

from tierstore.errors import CorruptObject
from tierstore.object_storage.trailer import trailer_bytes
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span

_MAGIC = b"TIERPART"
_VERSION = 1
_HEAD = struct.Struct(">8sB?HI")
_SEAL_BYTES = 8
_MD5_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Frame:
    """A part, or a piece of one, as it lies in the store: payload, and after it the trailer, if it is read as well."""

    number: int
    """Of the part among the blob's, from 0."""
    payload_bytes: int
    trailer_bytes: int


class Layout:
    """The sizes of the payloads of one blob's parts, in order."""

    __slots__ = ("_ends", "size", "sizes", "stored_bytes", "trailer_bytes")

    def __init__(self, revision: Revision, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.trailer_bytes = trailer_bytes(revision)
        self._ends = list(accumulate(sizes))
        self.size = self._ends[-1]
        """Bytes of the whole payload."""
        self.stored_bytes = self.size + len(sizes) * self.trailer_bytes
        """Bytes of the blob in the store."""

    def __len__(self) -> int:
        return len(self.sizes)

    def trailer_starts(self) -> Iterator[int]:
        """Where in the store each part's trailer begins."""
        return (end + number * self.trailer_bytes for number, end in enumerate(self._ends))

    def stored_span(self, span: Span) -> Span:
        """Where in the store a span of the payload is, with the trailers that are between."""
        first, last = self._part_of(span.start), self._part_of(span.stop - 1)
        return Span(span.start + first * self.trailer_bytes, span.stop + last * self.trailer_bytes)

    def frames(self, span: Span | None) -> Iterator[Frame]:
        """What is read for a span of the payload, or with None all that is stored."""
        if span is None:
            for number, size in enumerate(self.sizes):
                yield Frame(number, size, self.trailer_bytes)
            return
        start, number = span.start, self._part_of(span.start)
        while start < span.stop:
            end = min(span.stop, self._ends[number])
            yield Frame(number, end - start, self.trailer_bytes if end < span.stop else 0)
            start, number = end, number + 1

    def _part_of(self, position: int) -> int:
        """The part that byte ``position`` of the payload is in."""
        return bisect_right(self._ends, position)


@dataclass(frozen=True, slots=True)
class KnownLayout:
    """The layout of a state of a blob."""

    layout: Layout
    etag: str
    of_parts: bool
    """Whether the ETag is known to be made of those of the parts, as `etag_of_parts` makes it."""
    is_kept: bool = False
    """Whether it is known to be beside the blob."""

    def encode(self, revision: Revision) -> bytes:
        """What is kept beside the blob."""
        etag, sizes = self.etag.encode("ascii"), self.layout.sizes
        fields = _HEAD.pack(_MAGIC, _VERSION, self.of_parts, len(etag), len(sizes)) + etag
        fields += struct.pack(f">{len(sizes)}Q", *sizes)
        return fields + _seal(fields, revision)

    @classmethod
    def decode(cls, raw: bytes, revision: Revision) -> "KnownLayout":
        """The inverse. Raises `CorruptObject` for what is none of this revision."""
        fields, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
        if len(fields) < _HEAD.size or seal != _seal(fields, revision):
            raise CorruptObject(f"blob {revision.uuid}: the layout of its parts is damaged, or is another's")
        magic, version, of_parts, etag_bytes, count = _HEAD.unpack_from(fields)
        sizes = fields[_HEAD.size + etag_bytes :]
        if magic != _MAGIC or version != _VERSION or count == 0 or len(sizes) != 8 * count:
            raise CorruptObject(f"blob {revision.uuid}: the format of the layout of its parts is unknown")
        etag = fields[_HEAD.size : _HEAD.size + etag_bytes].decode("ascii")
        return cls(Layout(revision, struct.unpack(f">{count}Q", sizes)), etag, of_parts, is_kept=True)


def _seal(fields: bytes, revision: Revision) -> bytes:
    return xxhash.xxh3_64_digest(fields + revision.storage_path.encode())


def etag_of_parts(etags: Sequence[str]) -> str | None:
    """The ETag that most stores give to a blob of parts with these ETags; None if they are not made so.

    It is the MD5 of the parts' MD5s, and their count. Stores that encrypt with keys of their own make others.
    """
    try:
        digests = [bytes.fromhex(etag) for etag in etags if len(etag) == _MD5_CHARACTERS]
    except ValueError:
        return None
    if len(digests) != len(etags):
        return None
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(etags)}"


class LayoutCache:
    """The layouts that were used last, of ``parts_max`` parts in all."""

    def __init__(self, parts_max: int) -> None:
        self._parts_max = parts_max
        self._parts = 0
        self._kept: OrderedDict[Revision, KnownLayout] = OrderedDict()

    def get(self, revision: Revision) -> KnownLayout | None:
        """The layout that was put last for a revision, if it is still here."""
        if (found := self._kept.get(revision)) is not None:
            self._kept.move_to_end(revision)
        return found

    def put(self, revision: Revision, known: KnownLayout) -> None:
        """Keep a layout, in the place of others."""
        self.forget(revision)
        self._kept[revision] = known
        self._parts += len(known.layout)
        while self._parts > self._parts_max and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._parts -= len(dropped.layout)

    def forget(self, revision: Revision) -> None:
        """Drop what is kept of a revision."""
        if (dropped := self._kept.pop(revision, None)) is not None:
            self._parts -= len(dropped.layout)
