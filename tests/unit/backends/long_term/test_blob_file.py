"""The format of blob files, and the reader and writer of one."""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tierstore.backends.long_term.blob_file import BlobReader, BlobWriter, Header, parse_header, read_header
from tierstore.backends.long_term.store_directory import StoreDirectory
from tierstore.errors import CorruptObject, InvariantBroken, Unavailable
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.ranges import Span

headers = st.builds(
    Header,
    path=st.text(max_size=300),
    size=st.integers(0, 2**64 - 1),
    stored=st.integers(0, 2**64 - 1),
    checksum=st.binary(min_size=16, max_size=16),
)


@pytest.fixture
def directory(root: Path) -> Iterator[StoreDirectory]:
    """The directory of a store."""
    directory = StoreDirectory.open(root, SeededIds(5).uuid())
    assert directory is not None
    yield directory
    directory.close()


def published(directory: StoreDirectory, revision: Revision, content: bytes) -> Path:
    """The file of a blob that was just published."""
    BlobWriter(directory, revision).publish([content], 1)
    return directory.blob_file(revision.uuid)


def temporary_files(root: Path) -> list[Path]:
    """The files of writes that have not ended."""
    return [file for file in (root / "tmp").rglob("*") if file.is_file() and file.name != "lock"]


def test_header_as_written() -> None:
    """The header's bytes are those of the format: files that exist must stay readable."""
    header = Header("photos/objects/k/0", 5, 1_700_000_000_000_000, bytes(range(16)))
    assert header.encode().hex(" ", -8) == (
        "54494552424c4f42 0101000000000012 0000000000000005 00060a24181e4000 0001020304050607 "
        "08090a0b0c0d0e0f f863e6bc2b709cea 70686f746f732f6f 626a656374732f6b 2f30"
    )
    assert header.byte_count == 74


@given(headers, st.binary(max_size=40))
def test_header_round_trip(header: Header, following: bytes) -> None:
    """A header is parsed as it was, whatever follows it, and knows its length."""
    raw = header.encode()
    assert parse_header(raw + following) == header
    assert header.byte_count == len(raw)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"TIERBLOB\1\1\0\0" + tail))
def test_parsing_anything(raw: bytes) -> None:
    """Bytes that are no header are corrupt, and nothing worse."""
    with pytest.raises(CorruptObject):
        parse_header(raw)


@given(headers, st.data())
def test_damaged_header(header: Header, data: st.DataObject) -> None:
    """A header with a flipped bit, or cut off anywhere, is corrupt."""
    raw = header.encode()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptObject):
        parse_header(bytes(damaged))
    with pytest.raises(CorruptObject):
        parse_header(raw[: data.draw(st.integers(0, len(raw) - 1))])


def test_header_of_another_format() -> None:
    """A version or kind that a later release may write is not guessed at."""
    for offset in (8, 9):
        raw = bytearray(Header("a", 0, 0, bytes(16)).encode())
        raw[offset] = 2
        with pytest.raises(CorruptObject, match="which this release does not read"):
            parse_header(bytes(raw))


def test_path_that_is_not_text() -> None:
    """A path that is not UTF-8 is damage, even under a checksum that matches."""
    fixed = Header("?", 0, 0, bytes(16)).encode()[:48]
    with pytest.raises(CorruptObject, match="not UTF-8"):
        parse_header(fixed + xxhash.xxh3_64_digest(fixed + b"\xff") + b"\xff")


def test_path_too_long_for_a_header() -> None:
    """A path beyond what a header holds is refused when it is written, not when it is read."""
    with pytest.raises(InvariantBroken):
        Header("x" * (64 * 1024 + 1), 0, 0, bytes(16)).encode()
    longest = Header("x" * 64 * 1024, 0, 0, bytes(16))
    assert parse_header(longest.encode()) == longest


def test_header_longer_than_a_page(directory: StoreDirectory) -> None:
    """A header that the first read does not hold is read to its end."""
    revision = Revision(ObjectId("photos", (), "k" * 4096), SeededIds(1).uuid())
    file = published(directory, revision, b"content")
    header = read_header(file)
    assert header is not None
    assert (header.path, header.size) == (revision.storage_path, 7)
    assert BlobReader(file, revision, None, 100).open() == b"content"
    file.write_bytes(file.read_bytes()[:4100])
    with pytest.raises(CorruptObject):
        read_header(file)


def test_every_flipped_bit_is_found(directory: StoreDirectory, revision: Revision) -> None:
    """Whatever bit of a blob's file is flipped, a full read fails."""
    file = published(directory, revision, b"the content")
    raw = file.read_bytes()
    with file.open("r+b", buffering=0) as opened:
        for bit in range(8 * len(raw)):
            damaged = raw[bit // 8] ^ 1 << bit % 8
            os.pwrite(opened.fileno(), bytes([damaged]), bit // 8)
            with pytest.raises(CorruptObject):
                BlobReader(file, revision, None, 100).open()
            os.pwrite(opened.fileno(), raw[bit // 8 : bit // 8 + 1], bit // 8)
    assert BlobReader(file, revision, None, 100).open() == b"the content"


def test_every_shortened_file_is_found(directory: StoreDirectory, revision: Revision) -> None:
    """A file cut off anywhere, to nothing too, is corrupt, to reads of a header as well."""
    file = published(directory, revision, b"the content")
    raw = file.read_bytes()
    for length in reversed(range(len(raw))):
        os.truncate(file, length)
        with pytest.raises(CorruptObject):
            BlobReader(file, revision, Span(0, 1), 100).open()
        with pytest.raises(CorruptObject):
            read_header(file)


def test_file_without_a_header(directory: StoreDirectory, revision: Revision, root: Path) -> None:
    """The header is written last: a file that was not finished does not look like a blob."""
    writer = BlobWriter(directory, revision)
    writer.write([b"all", b"of", b"it"])
    (unfinished,) = temporary_files(root)
    assert unfinished.read_bytes().endswith(b"allofit")
    assert not unfinished.read_bytes().strip(b"\0").startswith(b"TIERBLOB")
    writer.discard()
    assert temporary_files(root) == []


def test_blob_of_another_object(directory: StoreDirectory, revision: Revision) -> None:
    """A file that says it belongs to another object is not served, even if its UUID is right."""
    file = published(directory, revision, b"content")
    other = Revision(ObjectId("photos", (), "another"), revision.uuid)
    with pytest.raises(CorruptObject, match="another object"):
        BlobReader(file, other, None, 100).open()


def test_file_under_another_name(directory: StoreDirectory, revision: Revision) -> None:
    """A blob's file under the name of another revision is corrupt, however whole it is."""
    file = published(directory, revision, b"content")
    moved = Revision(revision.object_id, SeededIds(9).uuid())
    copy = directory.blob_file(moved.uuid)
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(file.read_bytes())
    with pytest.raises(CorruptObject, match="another blob"):
        read_header(copy)
    with pytest.raises(CorruptObject, match="another blob"):
        BlobReader(copy, moved, None, 100).open()


def test_symbolic_links_are_not_followed(directory: StoreDirectory, revision: Revision, tmp_path: Path) -> None:
    """A link in the place of a blob leads nowhere."""
    file = published(directory, revision, b"content")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        BlobReader(file, revision, None, 100).open()


def test_reading_after_close(directory: StoreDirectory, revision: Revision) -> None:
    """A reader that was closed says so, and does not look exhausted."""
    reader = BlobReader(published(directory, revision, b"0123456789"), revision, None, 4)
    assert reader.open() == b"0123"
    assert not reader.exhausted
    reader.close()
    reader.close()
    with pytest.raises(Unavailable):
        reader.next_chunk()


def test_reading_to_the_end(directory: StoreDirectory, revision: Revision) -> None:
    """A reader is exhausted with its last chunk, and not before."""
    reader = BlobReader(published(directory, revision, b"0123456789"), revision, None, 4)
    assert (reader.open(), reader.exhausted) == (b"0123", False)
    assert (reader.next_chunk(), reader.exhausted) == (b"4567", False)
    assert (reader.next_chunk(), reader.exhausted) == (b"89", True)


def test_discarded_after_it_was_published(directory: StoreDirectory, revision: Revision) -> None:
    """A blob that nobody wants any more when it has just been published is taken back."""
    writer = BlobWriter(directory, revision)
    writer.publish([b"content"], 1)
    assert directory.blob_file(revision.uuid).exists()
    writer.discard()
    assert not directory.blob_file(revision.uuid).exists()


def test_discarding_leaves_what_was_there_before(directory: StoreDirectory, revision: Revision) -> None:
    """A repeated write that is discarded takes back nothing that an earlier one has put there."""
    first, repeated = BlobWriter(directory, revision), BlobWriter(directory, revision)
    first.publish([b"content"], 1)
    repeated.publish([b"content"], 2)
    repeated.discard()
    assert directory.blob_file(revision.uuid).exists()


def test_discarding_leaves_what_came_after(directory: StoreDirectory, revision: Revision) -> None:
    """A write that is discarded does not take back the blob of another attempt that has replaced its own."""
    first, repeated = BlobWriter(directory, revision), BlobWriter(directory, revision)
    first.publish([b"content"], 1)
    repeated.publish([b"content"], 2)
    first.discard()
    assert directory.blob_file(revision.uuid).exists()
    directory.remove(directory.blob_file(revision.uuid))
    first.discard()


@pytest.mark.parametrize("allowed", [1, 150, 399])
def test_short_writes(directory: StoreDirectory, revision: Revision, allowed: int) -> None:
    """A write that the system cuts short is continued where it stopped."""
    parts = [bytes([n]) * 100 for n in range(8)]
    offset = 56 + len(revision.storage_path.encode())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = 0

    def lift_after_the_first(_frame: FrameType, event: str, called: Any) -> None:
        nonlocal calls
        if event == "c_return" and called.__name__ == "pwritev":
            calls += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    writer = BlobWriter(directory, revision)
    writer.write([])
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset + allowed, hard))
    sys.setprofile(lift_after_the_first)
    try:
        writer.write(parts)
    finally:
        sys.setprofile(None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert calls == 2, "the first call was cut short"
    writer.publish([b"end"], 1)
    reader = BlobReader(directory.blob_file(revision.uuid), revision, None, 10_000)
    assert reader.open() == b"".join(parts) + b"end"


def test_empty_buffers(directory: StoreDirectory, revision: Revision) -> None:
    """Chunks without bytes add nothing, alone and among others."""
    writer = BlobWriter(directory, revision)
    writer.write([b"", b""])
    writer.write([b"", b"a", b"", b"b", b""])
    assert writer.publish([b""], 1) == 2
    assert BlobReader(directory.blob_file(revision.uuid), revision, None, 100).open() == b"ab"


def test_more_buffers_than_one_call_takes(directory: StoreDirectory, revision: Revision) -> None:
    """Any number of chunks can be written at once."""
    parts = [bytes([n % 256]) for n in range(5_000)]
    file = published(directory, revision, b"")
    BlobWriter(directory, revision).publish(parts, 1)
    assert BlobReader(file, revision, None, 10_000).open() == b"".join(parts)
