"""Where the payload is in a blob of parts."""

import hashlib
import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import CorruptObject
from tierstore.object_storage.layout import KnownLayout, Layout, LayoutCache, etag_of_parts
from tierstore.object_storage.trailer import FIXED_BYTES
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.ranges import Span

REVISION = Revision(ObjectId("photos", (), "k"), SeededIds(1).upload_uuid())


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    bounds=st.tuples(st.integers(0, 400), st.integers(0, 400)),
)
def test_every_span_is_found_in_what_is_stored(sizes: list[int], bounds: tuple[int, int]) -> None:
    """The frames of a span, cut out of what is stored there, are its bytes; those of None are all parts."""
    layout = Layout(REVISION, sizes)
    payload = bytes(number % 251 for number in range(sum(sizes)))
    stored, start = b"", 0
    for size in sizes:
        stored += payload[start : start + size] + b"T" * FIXED_BYTES
        start += size
    assert (layout.size, layout.stored_bytes) == (len(payload), len(stored))
    assert [stored[at : at + FIXED_BYTES] for at in layout.trailer_starts()] == [b"T" * FIXED_BYTES] * len(sizes)
    assert [(frame.payload_bytes, frame.trailer_bytes) for frame in layout.frames(None)] == [
        (size, FIXED_BYTES) for size in sizes
    ]
    span = Span(min(bounds), min(max(bounds), len(payload)))
    if span.start >= span.stop:
        return
    where = layout.stored_span(span)
    read, found = stored[where.start : where.stop], b""
    for frame in layout.frames(span):
        found += read[: frame.payload_bytes]
        read = read[frame.payload_bytes + frame.trailer_bytes :]
    assert found == payload[span.start : span.stop]
    assert read == b""


@given(
    sizes=st.lists(st.integers(0, 2**40), min_size=1, max_size=50),
    etag=st.text(st.characters(codec="ascii"), max_size=60),
    of_parts=st.booleans(),
)
def test_what_is_kept_is_read_back(sizes: list[int], etag: str, of_parts: bool) -> None:
    """With the state of the blob that it is true of."""
    raw = KnownLayout(Layout(REVISION, sizes), etag, of_parts).encode(REVISION)
    known = KnownLayout.decode(raw, REVISION)
    assert (list(known.layout.sizes), known.etag, known.of_parts) == (sizes, etag, of_parts)


def test_what_is_kept_is_as_its_table_says() -> None:
    """So that other releases read it."""
    fields = b"TIERPART\x01\x01\x00\x03" + (2).to_bytes(4, "big") + b"abc" + struct.pack(">2Q", 5, 7)
    raw = fields + xxhash.xxh3_64_digest(fields + REVISION.storage_path.encode())
    assert KnownLayout(Layout(REVISION, [5, 7]), "abc", of_parts=True).encode(REVISION) == raw


def test_what_is_damaged_is_no_layout() -> None:
    """Whichever byte it is, and that of another blob."""
    raw = KnownLayout(Layout(REVISION, [5, 7]), "abc", of_parts=True).encode(REVISION)
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        with pytest.raises(CorruptObject):
            KnownLayout.decode(bytes(damaged), REVISION)
    for other in (b"", raw[:-1], raw[1:]):
        with pytest.raises(CorruptObject):
            KnownLayout.decode(other, REVISION)
    with pytest.raises(CorruptObject):
        KnownLayout.decode(raw, Revision(REVISION.object_id, SeededIds(2).upload_uuid()))
    later = b"TIERPART\x02" + raw[9:-8]
    with pytest.raises(CorruptObject):
        KnownLayout.decode(later + xxhash.xxh3_64_digest(later + REVISION.storage_path.encode()), REVISION)


def test_the_etag_of_parts() -> None:
    """The MD5 of the parts' MD5s and their count; of ETags that are none there is nothing to be said."""
    digests = [hashlib.md5(part, usedforsecurity=False) for part in (b"one", b"two")]
    joined = b"".join(digest.digest() for digest in digests)
    etags = [digest.hexdigest() for digest in digests]
    assert etag_of_parts(etags) == f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-2"
    for other in ("x" * 32, "ab", "", f"{etags[0]}-1"):
        assert etag_of_parts([etags[0], other]) is None


def test_the_cache_keeps_what_was_used_last() -> None:
    """Of as many parts as it may; one layout is kept whatever its size."""
    revisions = [Revision(REVISION.object_id, SeededIds(seed).upload_uuid()) for seed in range(4)]
    cache = LayoutCache(10)
    known = [KnownLayout(Layout(revision, [1] * 4), "e", of_parts=False) for revision in revisions]
    for revision, each in zip(revisions[:2], known, strict=False):
        cache.put(revision, each)
    assert cache.get(revisions[0]) is known[0]
    cache.put(revisions[2], known[2])
    assert [cache.get(revision) for revision in revisions] == [known[0], None, known[2], None]
    cache.forget(revisions[0])
    assert cache.get(revisions[0]) is None
    large = KnownLayout(Layout(revisions[3], [1] * 99), "e", of_parts=False)
    cache.put(revisions[3], large)
    assert [cache.get(revision) for revision in revisions] == [None, None, None, large]
