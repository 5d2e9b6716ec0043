"""What stands behind a payload."""

import pytest
import xxhash

from tierstore.errors import CorruptObject
from tierstore.object_storage.trailer import FIXED_BYTES, TRAILER_BYTES_MAX, Trailer, kept_path, trailer_bytes
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope

SHORT = Revision(ObjectId("photos", (), "k"), SeededIds(1).uuid())
LONG = Revision(
    ObjectId("photos", tuple(Scope("n" * 256, "v" * 256) for _ in range(16)), "k" * 4_096), SeededIds(2).uuid()
)
TRAILER = Trailer(7, 12, xxhash.xxh3_128_digest(b"the payload."), b"n" * 16)


@pytest.mark.parametrize("revision", [SHORT, LONG])
def test_a_trailer_is_read_back(revision: Revision) -> None:
    """As long as it was said to be, and with the path where the name does not hold it."""
    raw = TRAILER.encode(revision)
    assert len(raw) == trailer_bytes(revision) <= TRAILER_BYTES_MAX
    assert Trailer.decode(raw, revision) == TRAILER
    assert kept_path(b"payload" + raw) == (revision.storage_path if revision is LONG else None)


def test_a_trailer_is_as_its_table_says() -> None:
    """So that other releases read it."""
    raw = TRAILER.encode(SHORT)
    fields = b"TIERBLOB\x01\x00\x00\x00" + (7).to_bytes(4, "big") + (12).to_bytes(8, "big")
    fields += TRAILER.checksum + b"n" * 16
    assert raw == fields + xxhash.xxh3_64_digest(fields + SHORT.storage_path.encode())


@pytest.mark.parametrize("position", range(FIXED_BYTES))
def test_a_damaged_trailer_is_none(position: int) -> None:
    """Whichever byte it is."""
    raw = bytearray(TRAILER.encode(SHORT))
    raw[position] ^= 1
    with pytest.raises(CorruptObject):
        Trailer.decode(bytes(raw), SHORT)


def test_a_trailer_is_of_one_revision() -> None:
    """Another blob's is none, nor is a part of one, nor what a later format may be."""
    raw = TRAILER.encode(SHORT)
    for other in (raw[1:], raw[:-1], b"", raw + b"x", TRAILER.encode(LONG)):
        with pytest.raises(CorruptObject):
            Trailer.decode(other, SHORT)
    with pytest.raises(CorruptObject):
        Trailer.decode(raw, Revision(SHORT.object_id, SeededIds(3).uuid()))
    later = raw[:8] + b"\x02" + raw[9:-8]
    with pytest.raises(CorruptObject):
        Trailer.decode(later + xxhash.xxh3_64_digest(later + SHORT.storage_path.encode()), SHORT)


@pytest.mark.parametrize("end", [b"", b"x" * 10, b"\xff" * 200, b"\x00" * FIXED_BYTES])
def test_what_is_no_trailer_keeps_no_path(end: bytes) -> None:
    """Nothing is made of what is not there."""
    assert kept_path(end) is None
