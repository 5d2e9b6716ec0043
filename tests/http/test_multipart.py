"""Bodies of parts as streams: however they are cut, broken off or malformed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.errors import InvalidRequest
from tierstore.http.multipart import PartEnd, PartHead, PartsParser, boundary_of
from tierstore.limits import KIB, Limits

LIMITS = Limits()
BOUNDARY = b"bo-undary"
DELIMITER = b"--" + BOUNDARY


@dataclass
class Read:
    """What was read of one part."""

    head: PartHead
    content: bytes = b""
    whole: bool = False


@dataclass
class Reading:
    """What was read of a body."""

    parts: list[Read] = field(default_factory=list)
    error: str | None = None

    @property
    def whole(self) -> list[Read]:
        """The parts that were whole."""
        return [part for part in self.parts if part.whole]


def read(chunks: Iterable[bytes], limits: Limits = LIMITS) -> Reading:
    """Read a body that comes in these chunks."""
    parser, reading = PartsParser(BOUNDARY, limits), Reading()
    try:
        for chunk in chunks:
            for event in parser.feed(chunk):
                match event:
                    case PartHead():
                        assert not reading.parts or reading.parts[-1].whole
                        reading.parts.append(Read(event))
                    case PartEnd():
                        reading.parts[-1].whole = True
                    case bytes():
                        assert event
                        assert not reading.parts[-1].whole
                        reading.parts[-1].content += event
        parser.finish()
    except InvalidRequest as error:
        reading.error = str(error)
    return reading


def encode(parts: Sequence[tuple[Sequence[tuple[bytes, bytes]], bytes]]) -> bytes:
    """A body of these parts: headers, and what is in them."""
    raw = b""
    for headers, content in parts:
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        raw += DELIMITER + b"\r\n" + lines + b"\r\n" + content + b"\r\n"
    return raw + DELIMITER + b"--\r\n"


PARTS = [
    ([(b"x-a", b"1"), (b"x-b", b"")], b"hello"),
    ([], b""),
    ([(b"x-c", b'a: b; c="d"')], b"\r\n\r\n--\r\n--bo-un\r\n-\r\r\n"),
    ([(b"x-d", b"4")], b"-bo-undary--\r\n--bo-undarX\r\n--bo-undar"),
    ([(b"x-e", b"5")], b"\n--bo-undary\n" + bytes(range(256))),
]
BODY = encode(PARTS)
EXPECTED = [Read(PartHead(list(headers)), content, whole=True) for headers, content in PARTS]


def test_what_was_encoded_is_read() -> None:
    """Headers and contents come out as they went in, whatever resembles a delimiter in them."""
    assert read([BODY]) == Reading(EXPECTED)


def test_it_does_not_matter_where_a_body_is_cut() -> None:
    """Cut in two at any byte, or into single bytes, a body says the same."""
    for cut in range(len(BODY) + 1):
        assert read([BODY[:cut], BODY[cut:]]) == Reading(EXPECTED), cut
    for size in (1, 2, 3, 7, len(DELIMITER), len(DELIMITER) + 2):
        assert read([BODY[at : at + size] for at in range(0, len(BODY), size)]) == Reading(EXPECTED), size


def test_a_body_may_end_too_early_at_any_byte() -> None:
    """Broken off anywhere, it is malformed, and the parts whose delimiter came are whole, and no others."""
    end = BODY.rindex(DELIMITER + b"--") + len(DELIMITER) + 2
    for length in range(end):
        reading = read([BODY[:length]])
        assert reading.error == "the body is malformed: it ends before the last delimiter", length
        complete = BODY[:length].count(b"\r\n" + DELIMITER + b"\r\n")
        assert reading.whole == EXPECTED[:complete], length
        assert read([BODY[:length][at : at + 1] for at in range(length)]) == reading, length
    assert read([BODY[:end]]) == Reading(EXPECTED)


@settings(max_examples=300)
@given(st.data())
def test_a_byte_may_be_another_one(data: st.DataObject) -> None:
    """With any bytes in place of others, a body has parts or is malformed, the same however it is cut."""
    raw = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(
                st.binary(max_size=3), st.sampled_from([b"\r\n", b"\n", b":", b"--", DELIMITER, b"\r\n" + DELIMITER])
            )
        )
    whole = read([bytes(raw)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [bytes(raw[start:end]) for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    cut = read(pieces)
    assert (cut.whole, cut.error) == (whole.whole, whole.error)


_tokens = st.sampled_from(
    [b"\r", b"\n", b"-", b"--", b"bo", BOUNDARY, b"\r\n--", b"\r\n--bo-undarx", b"x", b"\0", b" "]
)


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.lists(_tokens, max_size=12).map(b"".join)), max_size=4),
    st.lists(st.integers(0, 400), max_size=5),
)
def test_anything_may_be_in_a_part(contents: list[bytes], cuts: list[int]) -> None:
    """A content without a delimiter of its own comes out as it went in, wherever the body is cut."""
    contents = [content for content in contents if b"\r\n" + DELIMITER not in b"\r\n" + content]
    raw = encode([([(b"n", b"%d" % number)], content) for number, content in enumerate(contents)])
    places = sorted(min(cut, len(raw)) for cut in cuts)
    reading = read([raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)])
    assert reading.error is None
    assert [part.content for part in reading.whole] == contents


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"hello",
        b"a preamble\r\n" + BODY,
        b"\r\nx" + BODY,
        b"\n" + BODY,
        b"\r\n\r\n" + BODY,
        b"--another" + BODY,
        BODY.replace(b"\r\n", b"\n"),
        DELIMITER + b"\r\nno colon\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\n: no name\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx : space\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx: a\r\n folded\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx: a\ny: b\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx: a\rb\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx: a\0b\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx\xff: a\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"x\r\nx: a\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"-x",
        DELIMITER + b"\r\nx: a\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\nx: a\r\n\r\n" + DELIMITER + b"\r\nx: b\r\n\r\n\r\n" + DELIMITER + b"--",
        DELIMITER + b"\r\n\r\n" + DELIMITER + b"x\r\n" + DELIMITER + b"--",
    ],
)
def test_malformed_bodies(raw: bytes) -> None:
    """What is not made of parts from its first byte on is malformed, however it is cut, and no part of it is whole."""
    assert read([raw[at : at + 1] for at in range(len(raw))]).whole == []
    reading = read([raw])
    assert reading.error is not None
    assert reading.error.startswith("the body is malformed: ")
    assert reading.whole == []


def test_what_came_before_a_malformed_byte_comes_before_the_error() -> None:
    """In one chunk with a malformed part, the parts in front of it are whole."""
    raw = BODY.removesuffix(b"--\r\n") + b"\r\nno colon\r\n\r\n" + DELIMITER + b"--\r\n"
    reading = read([raw])
    assert reading.error is not None
    assert reading.parts == EXPECTED


def test_a_line_end_may_stand_in_front_and_anything_behind() -> None:
    """Some clients begin with an empty line; what follows the last delimiter is passed over."""
    assert read([b"\r\n" + BODY]) == Reading(EXPECTED)
    assert read([b"\r", b"\n-", b"-" + BODY[2:]]) == Reading(EXPECTED)
    assert read([BODY + b"an epilogue\r\n" + BODY, BODY]) == Reading(EXPECTED)
    assert read([DELIMITER + b"--"]) == Reading([])


def test_white_space_behind_a_delimiter_is_passed_over() -> None:
    """RFC 2046, section 5.1.1, allows it between parts."""
    assert read([BODY.replace(DELIMITER + b"\r\nx-d", DELIMITER + b" \t\r\nx-d")]) == Reading(EXPECTED)


def test_headers_are_those_of_http() -> None:
    """Names come in lower case, values without white space around them, bytes beyond ASCII as they are, in order."""
    raw = DELIMITER + b"\r\nX-Name:  a b \t\r\nother:\xff\r\nX-NAME:\t2\r\n\r\n\r\n" + DELIMITER + b"--"
    assert read([raw]).parts[0].head.headers == [(b"x-name", b"a b"), (b"other", b"\xff"), (b"x-name", b"2")]


def test_long_headers_are_the_failure_of_their_part() -> None:
    """Headers beyond the bound are not kept, and the next part is read like any other."""
    limits = replace(LIMITS, header_bytes_max=64)
    for headers in (
        [(b"x" * 100, b"")],
        [(b"x", b"y" * (10 * KIB))],
        [(b"x", b"y")] * 20,
        [(b"x", b"y" * 60), (b"z", b"")],
    ):
        raw = encode([(headers, b"long"), ([(b"x", b"y" * 59)], b"short")])
        for size in (1, 100, len(raw)):
            reading = read([raw[at : at + size] for at in range(0, len(raw), size)], limits)
            assert reading == Reading(
                [
                    Read(PartHead([], too_large=True), b"long", whole=True),
                    Read(PartHead([(b"x", b"y" * 59)]), b"short", whole=True),
                ]
            )


def test_a_header_without_end_is_not_kept() -> None:
    """Of a header that goes on and on, no more stays in memory than a head may have."""
    parser = PartsParser(BOUNDARY, replace(LIMITS, header_bytes_max=KIB))
    assert list(parser.feed(DELIMITER + b"\r\nx: ")) == []
    for _ in range(100):
        assert list(parser.feed(b"y" * (64 * KIB))) == []
        assert len(parser._value) <= KIB
    assert [type(event) for event in parser.feed(b"\r\n\r\nz\r\n" + DELIMITER + b"--")] == [PartHead, bytes, PartEnd]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"Multipart/Form-Data;boundary=abc", b"abc"),
        (b'multipart/form-data; charset=utf-8; Boundary="a b:c"', b"a b:c"),
        (b"multipart/form-data; boundary=" + b"x" * 70, b"x" * 70),
        (b"multipart/form-data; boundary='()+_,-./:=?9", b"'()+_,-./:=?9"),
    ],
)
def test_boundaries(content_type: bytes, boundary: bytes) -> None:
    """A boundary is what RFC 2046 allows, quoted or not."""
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/mixed; boundary=abc",
        b"multipart/form-data-x; boundary=abc",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=" + b"x" * 71,
        b'multipart/form-data; boundary="abc "',
        b'multipart/form-data; boundary="a\tb"',
        b'multipart/form-data; boundary="a\\"b"',
        b"multipart/form-data; boundary=a<b",
        b"multipart/form-data; boundary=\xe9",
        b"multipart/form-data; boundary=abc; boundary=def",
        b"multipart/form-data; boundary=abc; boundary=abc",
        b"multipart/form-data; boundary*=utf-8''abc",
    ],
)
def test_no_boundaries(content_type: bytes) -> None:
    """Anything else, or another media type, is refused."""
    with pytest.raises(InvalidRequest):
        boundary_of(content_type)
