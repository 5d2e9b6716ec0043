"""Upload ids as clients hold them, and the order of parts."""

import base64
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import InvalidPartOrder, InvalidRequest
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.multipart import PartName, UploadId, check_part_order

LIMITS = Limits()
OBJECT = ObjectId("testing", (Scope("org", "1"),), "a/key with %2F")
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=200)
UUID_8 = st.integers(0, (1 << 128) - 1).map(lambda bits: SeededIds(bits).upload_uuid())


def _upload(uuid: UUID | None = None, store_id: str = "the-store's-id") -> UploadId:
    return UploadId(Revision(OBJECT, uuid or SeededIds(1).upload_uuid()), store_id)


@given(UUID_8, VISIBLE)
def test_an_id_decodes_to_what_was_encoded(uuid: UUID, store_id: str) -> None:
    """`decode` is the inverse of `encode`, for any id that a store may give."""
    upload = _upload(uuid, store_id)
    assert UploadId.decode(upload.encode(), OBJECT, LIMITS) == upload


def test_an_id_is_short_and_safe_in_a_query() -> None:
    """28 characters for a store that needs no id of its own, all of them unreserved in URLs."""
    text = _upload(store_id="").encode()
    assert len(text) == 28
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize("store_id", ["", "x", "xy", "xyz"])
def test_no_bit_of_an_id_may_change(store_id: str) -> None:
    """Every id that differs in one bit is refused."""
    raw = base64.urlsafe_b64decode(_upload(store_id=store_id).encode() + "==")
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidRequest):
            UploadId.decode(base64.urlsafe_b64encode(flipped).rstrip(b"=").decode(), OBJECT, LIMITS)


@pytest.mark.parametrize("store_id", ["", "x", "xy", "xyz"])
def test_an_id_is_whole_and_written_one_way(store_id: str) -> None:
    """A cut-off, lengthened, padded or otherwise spelled id is refused."""
    text = _upload(store_id=store_id).encode()
    wrong = [text[:end] for end in range(len(text))]
    wrong += [text + "A", text + "=", text + "==", " " + text, text + "\n", text[:-1] + chr(ord(text[-1]) + 1)]
    for other in wrong:
        with pytest.raises(InvalidRequest):
            UploadId.decode(other, OBJECT, LIMITS)


@pytest.mark.parametrize(
    "other",
    [
        ObjectId("testing", (Scope("org", "1"),), "another key"),
        ObjectId("testing", (Scope("org", "2"),), OBJECT.key),
        ObjectId("testing", (), OBJECT.key),
        ObjectId("testinh", (Scope("org", "1"),), OBJECT.key),
    ],
)
def test_an_id_belongs_to_one_object(other: ObjectId) -> None:
    """The id of another object's upload is refused, whichever part of the address differs."""
    with pytest.raises(InvalidRequest):
        UploadId.decode(_upload().encode(), other, LIMITS)


def test_an_id_names_an_upload() -> None:
    """The revision of a plain large write is no upload."""
    with pytest.raises(InvalidRequest):
        UploadId.decode(_upload(SystemIds().uuid()).encode(), OBJECT, LIMITS)


def test_an_id_is_bounded() -> None:
    """A text beyond the limit is refused, though it would decode."""
    text = _upload(store_id="x" * LIMITS.upload_id_bytes_max).encode()
    with pytest.raises(InvalidRequest):
        UploadId.decode(text, OBJECT, LIMITS)


@given(st.text(max_size=100) | st.from_regex(r"[A-Za-z0-9_-]{0,100}", fullmatch=True))
def test_any_text_is_refused_cleanly(text: str) -> None:
    """What was never made here is `InvalidRequest`, and no other exception."""
    with pytest.raises(InvalidRequest):
        UploadId.decode(text, OBJECT, LIMITS)


@pytest.mark.parametrize("ids", [SystemIds(), SeededIds(3)])
def test_an_uploads_revision_is_told_by_its_name(ids: SystemIds | SeededIds) -> None:
    """A UUID that was drawn for an upload says so, and is unique; others never do."""
    for session in (False, True):
        drawn = {ids.upload_uuid(session=session) for _ in range(1000)}
        assert len(drawn) == 1000
        assert all(Revision(OBJECT, uuid).is_upload for uuid in drawn)
        assert all(Revision(OBJECT, uuid).is_session is session for uuid in drawn)
    others = [Revision(OBJECT, ids.uuid()) for _ in range(1000)]
    assert not any(other.is_upload or other.is_session for other in others)


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 3], [5, 10_000]])
def test_ascending_parts_are_in_order(numbers: list[int]) -> None:
    """Gaps are fine."""
    check_part_order([PartName(number, "etag") for number in numbers])


@pytest.mark.parametrize("numbers", [[2, 1], [1, 1], [1, 3, 2], [1, 2, 2]])
def test_other_parts_are_not(numbers: list[int]) -> None:
    """Descending and repeated numbers are `InvalidPartOrder`."""
    with pytest.raises(InvalidPartOrder):
        check_part_order([PartName(number, "etag") for number in numbers])
