"""Byte ranges, against what slices say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.types.strategies import texts
from tierstore.errors import InvalidRequest, RangeNotSatisfiable
from tierstore.types.ranges import ByteRange, FromStart, Span, Suffix, parse_range, resolve

PAYLOAD = bytes(range(20))


def ranges() -> st.SearchStrategy[ByteRange]:
    """Ranges about the size of `PAYLOAD`."""
    position = st.integers(0, 30)
    bounded = st.tuples(position, position).map(lambda pair: FromStart(min(pair), max(pair)))
    return bounded | st.builds(FromStart, position, st.none()) | st.builds(Suffix, position)


def written(byte_range: ByteRange) -> str:
    """The range as a client writes it, without its unit."""
    match byte_range:
        case FromStart(first, None):
            return f"{first}-"
        case FromStart(first, last):
            return f"{first}-{last}"
        case Suffix(length):
            return f"-{length}"


def sliced(byte_range: ByteRange, payload: bytes) -> bytes:
    """The bytes that the range means, possibly none."""
    match byte_range:
        case FromStart(first, last):
            return payload[first:] if last is None else payload[first : last + 1]
        case Suffix(length):
            return payload[-length:] if length else b""


@given(ranges())
def test_a_range_parses_back(byte_range: ByteRange) -> None:
    """What is written is what is read."""
    assert parse_range(f"bytes={written(byte_range)}") == byte_range


@given(ranges(), st.integers(0, 20))
def test_resolve_agrees_with_slices(byte_range: ByteRange, size: int) -> None:
    """A span is the slice that the range means; an empty one is not satisfiable, and says the whole size."""
    payload = PAYLOAD[:size]
    expected = sliced(byte_range, payload)
    if not expected:
        with pytest.raises(RangeNotSatisfiable) as caught:
            resolve(byte_range, size)
        assert caught.value.size == size
        return
    span = resolve(byte_range, size)
    assert 0 <= span.start < span.stop <= size
    assert payload[span.start : span.stop] == expected
    assert len(span) == len(expected)


@given(st.lists(ranges(), min_size=2, max_size=5))
def test_several_ranges_mean_the_whole_object(several: list[ByteRange]) -> None:
    """More than one range is answered with everything."""
    assert parse_range("bytes=" + ", ".join(map(written, several))) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", FromStart(0, 0)),
        ("BYTES=1-", FromStart(1, None)),
        (" bytes= -5 ", Suffix(5)),
        ("bytes=-0", Suffix(0)),
        ("bytes=007-008", FromStart(7, 8)),
        ("bytes=0-9223372036854775807", FromStart(0, 2**63 - 1)),
        ("bytes=0-99999999999999999999", FromStart(0, 10**19)),
        ("bytes=99999999999999999999-", FromStart(10**19, None)),
        (f"bytes=-{'9' * 60_000}", Suffix(10**19)),
        (f"bytes={'0' * 60_000}1-2", FromStart(1, 2)),
        ("bytes=0-1,", FromStart(0, 1)),
        ("bytes=, 0-1 ,,", FromStart(0, 1)),
    ],
)
def test_ranges(header: str, expected: ByteRange) -> None:
    """The unit is read in any case, spaces around elements and empty elements do not count."""
    assert parse_range(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        "", "bytes", "bytes=", "bytes=,", "bytes=-", "bytes=a-b", "bytes=1", "bytes=2-1", "bytes=--1", "bytes=1--2",
        "items=0-1",
        "0-1", "bytes =0-1", "bytes=0 - 1", "bytes=+1-2", "bytes=0x1-2", "bytes=\u0661-\u0662", "bytes=0-1;",
        "bytes=0-1,x",
        "bytes=0-1\n", "bytes:0-1",
    ],
)  # fmt: skip
def test_no_ranges(header: str) -> None:
    """Malformed, reversed, of another unit or another script's digits: refused."""
    with pytest.raises(InvalidRequest):
        parse_range(header)


@given(texts() | st.text("bytes=0123456789-, ").map(lambda text: "bytes=" + text))
def test_any_text_as_a_range(text: str) -> None:
    """Text is a range, several, or an invalid request; a range resolves within the object or not at all."""
    try:
        byte_range = parse_range(text)
    except InvalidRequest:
        return
    if byte_range is not None:
        try:
            span = resolve(byte_range, 100)
        except RangeNotSatisfiable:
            return
        assert 0 <= span.start < span.stop <= 100


@pytest.mark.parametrize("byte_range", [FromStart(0, None), FromStart(0, 0), Suffix(1), Suffix(2**63)])
def test_an_empty_object_has_no_ranges(byte_range: ByteRange) -> None:
    """No range of an empty object is satisfiable."""
    with pytest.raises(RangeNotSatisfiable):
        resolve(byte_range, 0)


def test_a_suffix_longer_than_the_object_is_all_of_it() -> None:
    """RFC 9110, section 14.1.2: then the whole representation is used."""
    assert resolve(Suffix(99), 20) == Span(0, 20)
