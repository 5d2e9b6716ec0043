"""The tokens of resumable uploads, and what is kept of how far one has come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.errors import CorruptObject, InvalidRequest, NoSuchUpload
from tierstore.limits import Limits
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.metadata import Metadata
from tierstore.types.metadata_storage import encode_metadata
from tierstore.types.multipart import UploadId
from tierstore.types.resumable import Progress, SessionId, decode_session, encode_session, is_session

LIMITS = Limits()
OBJECT = ObjectId("testing", (Scope("org", "1"),), "a/key with %2F")
UPLOAD = UploadId(Revision(OBJECT, SeededIds(1).upload_uuid(session=True)), "the-store's-id")
WANTED = encode_metadata(Metadata(), size=0, time_created=1)


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    """What any course of a session leads to: numbers that are given out, some of them counted, in their order."""
    progress = Progress(draw(st.integers(0, 1 << 45)))
    for size, gap in draw(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 3)), max_size=20)):
        for _ in range(gap + 1):
            progress = progress.with_number_given()
        if progress.offset + size <= progress.length:
            progress = progress.with_part(progress.next_number - 1, size)
    return progress


@given(progresses(), st.binary(max_size=100))
def test_what_is_kept_is_read_back(progress: Progress, wanted: bytes) -> None:
    """`decode_session` is the inverse of `encode_session`, and the entry of a session is told from all others."""
    raw = encode_session(progress, wanted)
    assert is_session(raw)
    assert decode_session(raw) == (progress, wanted)
    assert not is_session(WANTED)
    assert not is_session(b"")


@given(progresses())
def test_no_bit_of_it_may_change(progress: Progress) -> None:
    """A damaged record is `CorruptObject`, and so is one cut short, or lengthened."""
    raw = encode_session(progress, WANTED)
    wrong = [raw[:end] for end in range(len(raw))] + [raw + b"\0"]
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(flipped))
    for other in wrong:
        with pytest.raises(CorruptObject):
            decode_session(other)


@pytest.mark.parametrize(
    "progress",
    [
        Progress(5, 6, 2, ((1, 1),)),
        Progress(5, 1),
        Progress(5, 1, 1, ((1, 1),)),
        Progress(5, 1, 4, ((0, 1),)),
        Progress(5, 1, 4, ((2, 1),)),
        Progress(5, 1, 9, ((4, 5), (1, 2))),
        Progress(5, 1, 9, ((1, 2), (3, 4))),
        Progress(-1),
    ],
)
def test_what_contradicts_itself_is_corrupt(progress: Progress) -> None:
    """More than its length, bytes without parts, numbers that nobody was given, ranges that overlap or touch."""
    with pytest.raises(CorruptObject):
        decode_session(encode_session(progress, WANTED))


@given(progresses())
def test_ranges_hold_what_was_counted(progress: Progress) -> None:
    """One by one: as many numbers as were counted, ascending, and none of the others."""
    numbers = list(progress.numbers())
    assert numbers == sorted(set(numbers))
    assert [number for number in range(1, progress.next_number) if progress.counts(number)] == numbers
    assert progress.full is (progress.offset == progress.length and bool(numbers))
    given_out = progress.with_number_given()
    last = given_out.with_part(progress.next_number, 0)
    assert list(last.numbers()) == [*numbers, progress.next_number]
    assert given_out.next_number == progress.next_number + 1


def test_a_token_is_no_upload_id() -> None:
    """Each decodes as what it is, for its own object alone; what is no token names no session."""
    session = SessionId(UPLOAD)
    token = session.encode()
    assert SessionId.decode(token, OBJECT, LIMITS) == session
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    with pytest.raises(InvalidRequest):
        UploadId.decode(token, OBJECT, LIMITS)
    other = ObjectId("testing", (), OBJECT.key)
    cut, lengthened = token[:-1], token + "A"
    for text, of in ((UPLOAD.encode(), OBJECT), (token, other), (cut, OBJECT), (lengthened, OBJECT), ("", OBJECT)):
        with pytest.raises(NoSuchUpload):
            SessionId.decode(text, of, LIMITS)


def test_neither_can_be_made_into_the_other() -> None:
    """With the format byte and the checksum of the other kind it is refused: its revision says what it is."""
    with pytest.raises(InvalidRequest):
        UploadId.decode(UPLOAD.encode(), OBJECT, LIMITS)
    plain = UploadId(Revision(OBJECT, SeededIds(1).upload_uuid()), UPLOAD.store_id)
    assert UploadId.decode(plain.encode(), OBJECT, LIMITS) == plain
    with pytest.raises(NoSuchUpload):
        SessionId.decode(SessionId(plain).encode(), OBJECT, LIMITS)
