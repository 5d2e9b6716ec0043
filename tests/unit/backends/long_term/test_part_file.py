"""The format of part files, and the writer of one."""

import hashlib
import itertools
from pathlib import Path
from uuid import UUID

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tierstore.backends.long_term.part_file import PartHeader, PartWriter, parse_part_header, read_part_header
from tierstore.backends.long_term.store_directory import StoreDirectory
from tierstore.errors import CorruptObject
from tierstore.types.ids import ObjectId, Revision

headers = st.builds(
    PartHeader,
    number=st.integers(0, 2**32 - 1),
    uuid=st.uuids(),
    size=st.integers(0, 2**64 - 1),
    stored=st.integers(0, 2**64 - 1),
    checksum=st.binary(min_size=16, max_size=16),
    md5=st.binary(min_size=16, max_size=16),
    nonce=st.binary(min_size=8, max_size=8),
)


def header_of(content: bytes) -> PartHeader:
    """A header for ``content``."""
    md5 = hashlib.md5(content, usedforsecurity=False).digest()
    return PartHeader(7, UUID(int=1), len(content), 1, xxhash.xxh3_128_digest(content), md5, bytes(range(8)))


def test_header_as_written() -> None:
    """The header's bytes are those of the format: uploads in progress and blobs of parts must stay readable."""
    header = PartHeader(
        7, UUID(int=0x0102), 5, 1_700_000_000_000_000, bytes(range(16)), bytes(range(16, 32)), b"8 random"
    )
    fixed = bytes.fromhex(
        "5449455250415254 01000000 00000007 00000000000000000000000000000102 0000000000000005 00060a24181e4000"
        "000102030405060708090a0b0c0d0e0f 101112131415161718191a1b1c1d1e1f 382072616e646f6d"
    )
    assert header.encode() == fixed + xxhash.xxh3_64_digest(fixed)
    assert header.etag == "101112131415161718191a1b1c1d1e1f-382072616e646f6d"


@given(headers, st.binary(max_size=40))
def test_header_round_trip(header: PartHeader, following: bytes) -> None:
    """A header is parsed as it was, whatever follows it."""
    assert parse_part_header(header.encode() + following) == header


@given(headers, st.data())
def test_damaged_header(header: PartHeader, data: st.DataObject) -> None:
    """A header with a flipped bit, or cut off anywhere, is corrupt."""
    raw = header.encode()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptObject):
        parse_part_header(bytes(damaged))
    with pytest.raises(CorruptObject):
        parse_part_header(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary(max_size=200))
def test_parsing_anything(raw: bytes) -> None:
    """Bytes that are no header are corrupt, and nothing worse."""
    with pytest.raises(CorruptObject):
        parse_part_header(raw)


@pytest.mark.parametrize(("offset", "reason"), [(0, "does not begin like"), (8, "does not read")])
def test_header_of_another_format(offset: int, reason: str) -> None:
    """What is no part, or a later version, is not guessed at, although its checksum matches."""
    fixed = bytearray(header_of(b"").encode()[:88])
    fixed[offset] += 1
    with pytest.raises(CorruptObject, match=reason):
        parse_part_header(bytes(fixed) + xxhash.xxh3_64_digest(bytes(fixed)))


def test_a_file_of_another_name_or_length(tmp_path: Path) -> None:
    """A part is found out that stands in another's place, or is longer or shorter than it says."""
    file = tmp_path / "part"
    header = header_of(b"content")
    file.write_bytes(header.encode() + b"content")
    assert read_part_header(file, UUID(int=1), 7) == header
    for uuid, number in ((UUID(int=2), 7), (UUID(int=1), 8)):
        with pytest.raises(CorruptObject, match="another part"):
            read_part_header(file, uuid, number)
    for content in (b"conten", b"content+"):
        file.write_bytes(header.encode() + content)
        with pytest.raises(CorruptObject, match="longer or shorter"):
            read_part_header(file, UUID(int=1), 7)
    with pytest.raises(FileNotFoundError):
        read_part_header(tmp_path / "absent", UUID(int=1), 7)


@pytest.mark.parametrize("earlier", [False, True])
def test_withdrawn_in_any_order(tmp_path: Path, earlier: bool) -> None:
    """Of parts that have replaced each other, the last one that is not withdrawn is left, or the one before them."""
    store = StoreDirectory.open(tmp_path / "store", UUID(int=7))
    assert store is not None
    runs = itertools.product(itertools.permutations(range(3)), itertools.product([True, False], repeat=3))
    for run, (order, stays) in enumerate(runs):
        revision = Revision(ObjectId("uploaded", (), "k"), UUID(int=run))
        directory = store.upload_directory(revision.uuid)
        directory.mkdir(parents=True)
        part = directory / "00001.part"
        if earlier:
            part.write_bytes(b"before")
        writers = [PartWriter(store, revision, 1, 1, bytes([number] * 8)) for number in range(3)]
        for number, writer in enumerate(writers):
            writer.finish([str(number).encode()], 0, None)
            writer.publish()
        for number in order:
            if not stays[number]:
                writers[number].withdraw()
            writers[number].discard()
        left = [number for number in range(3) if stays[number]]
        found = part.read_bytes()[-6:] if part.exists() else b""
        assert found[-1:] == (str(left[-1]).encode() if left else b"e" if earlier else b""), (order, stays)
        assert [path.name for path in directory.iterdir()] == (["00001.part"] if left or earlier else [])
    store.close()


def test_a_part_that_is_withdrawn_too_soon(tmp_path: Path) -> None:
    """Of a part that was never published there is nothing to be taken back."""
    store = StoreDirectory.open(tmp_path / "store", UUID(int=7))
    assert store is not None
    revision = Revision(ObjectId("uploaded", (), "k"), UUID(int=1))
    store.upload_directory(revision.uuid).mkdir(parents=True)
    writer = PartWriter(store, revision, 1, 1, bytes(8))
    writer.finish([b"x"], 0, None)
    writer.withdraw()
    writer.discard()
    assert list(store.upload_directory(revision.uuid).iterdir()) == []
    store.close()
