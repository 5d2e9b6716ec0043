"""The stored form of metadata, and what damage does to it."""

from zlib import crc32

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.types.strategies import fresh_infos
from tierstore.errors import CorruptObject
from tierstore.testing.hostile import HOSTILE_KEYS
from tierstore.types.metadata import Metadata, ObjectInfo, TimeToLive, is_custom_name, is_media_type
from tierstore.types.metadata_storage import decode_metadata, encode_metadata
from tierstore.types.timestamps import format_timestamp

EXAMPLE = ObjectInfo(
    metadata=Metadata(
        content_type="text/plain",
        compression="zstd",
        expiration=TimeToLive(86_400),
        origin="10.0.0.1",
        filename="caf\u00e9.txt",
        custom=(("a", "1"), ("b", "\x00")),
    ),
    size=12,
    time_created=1_767_323_045_678_901,
    time_expires=7,
)
STORED = bytes.fromhex(
    "0199"
    "0c"
    "cf0006475ef6574f35"
    "aa746578742f706c61696e"
    "a47a737464"
    "01"
    "ce00015180"
    "a831302e302e302e31"
    "a9636166c3a92e747874"
    "92"
    "92a161a131"
    "92a162a100"
)


def encoded(info: ObjectInfo) -> bytes:
    """What a row keeps for ``info``."""
    return encode_metadata(info.metadata, size=info.size, time_created=info.time_created)


def sealed(body: bytes) -> bytes:
    """``body`` with a checksum that matches, as a faulty writer would leave it."""
    return body + crc32(body).to_bytes(4, "big")


def decoded_or_corrupt(raw: bytes) -> ObjectInfo | None:
    """The value of ``raw``, checked to be one that could have been written, or None for `CorruptObject`."""
    try:
        info = decode_metadata(raw, None)
    except CorruptObject:
        return None
    assert is_media_type(info.metadata.content_type)
    assert all(is_custom_name(name) for name, _ in info.metadata.custom)
    assert list(info.metadata.custom) == sorted(dict(info.metadata.custom).items())
    assert info.size >= 0
    assert format_timestamp(info.time_created)
    assert encoded(info)
    return info


@given(fresh_infos())
def test_stored_metadata_reads_back(info: ObjectInfo) -> None:
    """What was written is read as the same value; the deadline is the one given."""
    assert decode_metadata(encoded(info), info.time_expires) == info


def test_hostile_texts() -> None:
    """Every text of the corpus survives as origin, file name and custom value."""
    for text in HOSTILE_KEYS:
        metadata = Metadata(origin=text, filename=text, custom=(("k", text),))
        assert decode_metadata(encode_metadata(metadata, size=0, time_created=0), None).metadata == metadata


def test_the_format_does_not_change() -> None:
    """Version 1 is these bytes for ever: rows outlive releases."""
    assert encoded(EXAMPLE) == sealed(STORED)
    assert decode_metadata(sealed(STORED), 7) == EXAMPLE


@settings(max_examples=40)
@given(fresh_infos(), st.data())
def test_truncation_is_found(info: ObjectInfo, data: st.DataObject) -> None:
    """Any shorter form is corrupt."""
    raw = encoded(info)
    length = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(CorruptObject):
        decode_metadata(raw[:length], None)


@settings(max_examples=40)
@given(fresh_infos(), st.data())
def test_a_flipped_bit_is_found(info: ObjectInfo, data: st.DataObject) -> None:
    """Any single flipped bit makes it corrupt."""
    raw = bytearray(encoded(info))
    position = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[position // 8] ^= 1 << position % 8
    with pytest.raises(CorruptObject):
        decode_metadata(bytes(raw), None)


def test_every_flipped_bit_of_one_row_is_found() -> None:
    """The same, for each bit and each truncation of an example, and for bytes that were added."""
    raw = encoded(EXAMPLE)
    for position in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        assert decoded_or_corrupt(bytes(damaged)) is None
    for length in range(len(raw)):
        assert decoded_or_corrupt(raw[:length]) is None
    assert decoded_or_corrupt(raw + b"\x00") is None


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    """Bytes that nobody wrote are corrupt."""
    assume(raw != sealed(raw[:-4]))
    assert decoded_or_corrupt(raw) is None


@given(st.data())
def test_damage_under_a_valid_checksum(data: st.DataObject) -> None:
    """Even damage that the checksum does not show gives `CorruptObject` or a value that could have been written."""
    body = bytearray(STORED)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(1, len(body) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_corrupt(sealed(bytes(body)))


packed = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(packed)
def test_any_message_under_a_valid_checksum(message: object) -> None:
    """A well-formed message of another shape is corrupt, or a value that could have been written."""
    decoded_or_corrupt(sealed(b"\x01" + msgspec.msgpack.encode(message)))


FIELDS: list[object] = [12, 0, "a/b", None, 0, 0, None, None, []]


def test_the_fields_as_they_should_be() -> None:
    """The base of the next test is fine."""
    assert decoded_or_corrupt(sealed(b"\x01" + msgspec.msgpack.encode(FIELDS))) is not None


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, -1), (0, "1"), (0, 1.5), (1, -(2**63)), (1, 2**63), (1, None), (2, ""), (2, "a"), (2, "a/b\r\nx: y"), (2,
        None),
        (3, "gzip"), (3, ""), (4, 3), (4, None), (5, -1), (6, 1), (6, b"x"), (7, []), (8, None), (8, [["a"]]),
        (8, [["A", "1"]]), (8, [["a:\r\n", "1"]]), (8, [["b", "1"], ["a", "1"]]), (8, [["a", "1"], ["a", "2"]]),
        (8, [["a", "1", "2"]]), (8, [["", "1"]]), (8, {"a": "1"}),
    ],
)  # fmt: skip
def test_each_field_is_checked(position: int, value: object) -> None:
    """A field of another type or out of its bounds makes the whole corrupt, whatever the checksum says."""
    fields = FIELDS.copy()
    fields[position] = value
    assert decoded_or_corrupt(sealed(b"\x01" + msgspec.msgpack.encode(fields))) is None


@pytest.mark.parametrize("fields", [FIELDS[:-1], [*FIELDS, 0], [], {}, None, 1])
def test_the_number_of_fields_is_checked(fields: object) -> None:
    """Fewer or more fields are another format, and so corrupt."""
    assert decoded_or_corrupt(sealed(b"\x01" + msgspec.msgpack.encode(fields))) is None


@pytest.mark.parametrize("body", [b"\x01" + b"\x91" * 100_000, b"\x01" + STORED[1:-1] + b"\xff", b"\x01\xc1", b"\x01"])
def test_hostile_messages(body: bytes) -> None:
    """Deep nesting, invalid UTF-8, reserved codes: corrupt, no other error."""
    assert decoded_or_corrupt(sealed(body)) is None


def test_deep_nesting_in_surplus_fields() -> None:
    """A message that is nested beyond every bound after the last field is corrupt."""
    surplus = b"\x9a" + msgspec.msgpack.encode(FIELDS)[1:] + b"\x91" * 100_000 + b"\xc0"
    assert decoded_or_corrupt(sealed(b"\x01" + surplus)) is None


@pytest.mark.parametrize("version", [0, 2, 0x99, 0xFF])
def test_unknown_versions(version: int) -> None:
    """A form that a later release wrote is refused, and the error says so."""
    with pytest.raises(CorruptObject, match="format version"):
        decode_metadata(sealed(bytes([version]) + STORED[1:]), None)
    with pytest.raises(CorruptObject, match="format version"):
        decode_metadata(b"", None)
