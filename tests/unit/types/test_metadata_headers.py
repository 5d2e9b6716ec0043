"""Metadata as headers, both ways and for the public client, and download names."""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import objectstore_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.types.strategies import LIMITS, fresh_infos, metadata, texts
from tierstore.clock import MICROS_PER_SECOND
from tierstore.errors import HeadersTooLarge, InvalidRequest, InvariantBroken
from tierstore.limits import Limits
from tierstore.testing.hostile import HOSTILE_KEYS
from tierstore.types.metadata import Expiration, Manual, Metadata, ObjectInfo, TimeToIdle, TimeToLive
from tierstore.types.metadata_headers import Header, content_disposition, headers_from_info, metadata_from_headers

CREATED = 1_767_323_045_678_901
"""2026-01-02T03:04:05.678901Z"""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def described(metadata: Metadata, time_expires: int | None = None, size: int = 0) -> dict[bytes, bytes]:
    """The headers of an object created at `CREATED`; each name is there once."""
    info = ObjectInfo(metadata=metadata, size=size, time_created=CREATED, time_expires=time_expires)
    headers = headers_from_info(info)
    assert len(dict(headers)) == len(headers)
    return dict(headers)


def read(*headers: Header) -> Metadata:
    """The metadata of a request with these headers."""
    return metadata_from_headers(headers, LIMITS)


@given(fresh_infos())
def test_headers_read_back(info: ObjectInfo) -> None:
    """What an answer says of an object is what a request with the same headers stores.

    And it is safe: names are lower-case tokens, values visible ASCII and spaces, no space at an end, no line ends.
    """
    headers = headers_from_info(info)
    assert metadata_from_headers(headers, Limits(metadata_bytes_max=2**30)) == info.metadata
    for name, value in headers:
        assert re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name)
        assert re.fullmatch(rb"[ -~]*" if name != b"content-type" else rb"[\t -~]+", value)
        assert value == value.strip(b" \t")


@given(metadata())
def test_free_text_is_percent_encoded_utf_8(given_metadata: Metadata) -> None:
    """Origin, file name and custom values are what any percent-decoder makes of the headers."""
    headers = described(given_metadata)
    for name, text in (("x-sn-origin", given_metadata.origin), ("x-sn-filename", given_metadata.filename)):
        assert (text is None) == (name.encode() not in headers)
        if text is not None:
            assert unquote(headers[name.encode()].decode(), errors="strict") == text
    for name, text in given_metadata.custom:
        assert unquote(headers[b"x-snme-" + name.encode()].decode(), errors="strict") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", b"plain"), ("two words", b"two words"), ("100%", b"100%25"), ("%41", b"%2541"),
        ("caf\u00e9", b"caf%C3%A9"),
        ("a\tb", b"a%09b"), ("a\r\nx: y", b"a%0D%0Ax: y"), ("\x00", b"%00"), ("\x7f", b"%7F"),
        ("\U0001f600", b"%F0%9F%98%80"),
        (" a ", b"%20a%20"), ("  a  ", b"%20 a %20"), (" ", b"%20"), ("  ", b"%20%20"), ("", b""),
        ("!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", b"!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    ],
)  # fmt: skip
def test_the_encoded_form(text: str, value: bytes) -> None:
    """Every byte outside visible ASCII and space, the percent sign, and a space that HTTP would strip, is encoded."""
    assert described(Metadata(origin=text))[b"x-sn-origin"] == value
    assert read((b"x-sn-origin", value)).origin == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"%41%62", "Ab"), (b"%c3%a9", "\u00e9"), (b" a ", "a"), (b"\ta\t", "a"), (b"a+b", "a+b"), (b"%2B%2b", "++")],
)
def test_other_encodings_are_read_too(value: bytes, text: str) -> None:
    """Escapes of any byte and any case are decoded, once; white space around a value is HTTP's."""
    assert read((b"x-sn-filename", value)).filename == text


@pytest.mark.parametrize("header", [b"x-sn-origin", b"x-sn-filename", b"x-snme-k"])
@pytest.mark.parametrize(
    "value",
    [
        b"%", b"%4", b"a%", b"%zz", b"%4 1", b"%%41", b"%u0041", b"%FF", b"%C3", b"%C3%28", b"%ED%A0%80", b"%C0%80",
        b"\xc3\xa9",
        b"\xff", b"a\x00", b"a\tb", b"a\nb", b"a\rb", b"a\r\nb", b"\x7f", b"%41\x80", b"\x0b", b"a\x1f",
    ],
)  # fmt: skip
def test_malformed_free_text(header: bytes, value: bytes) -> None:
    """Broken escapes, bytes that are not UTF-8, raw control characters and raw bytes beyond ASCII are refused."""
    with pytest.raises(InvalidRequest, match=header.decode()):
        read((header, value))


def test_hostile_texts() -> None:
    """Every text of the corpus survives in each place."""
    for text in HOSTILE_KEYS:
        metadata = Metadata(origin=text, filename=text, custom=(("k", text),))
        assert metadata_from_headers(described(metadata).items(), Limits(metadata_bytes_max=2**20)) == metadata


def test_defaults() -> None:
    """Without metadata headers an object is an octet stream that stays; other headers do not matter."""
    assert read() == Metadata()
    assert read((b"host", b"\xff"), (b"accept", b"a"), (b"accept", b"b"), (b"x-sn-unknown", b"%")) == Metadata()
    assert Metadata().content_type == "application/octet-stream"
    assert Metadata().expiration == Manual()


def test_server_made_headers_are_ignored_on_requests() -> None:
    """Times and size are the server's to say."""
    ignored = [(b"x-sn-time-created", b"?"), (b"x-sn-time-expires", b"?"), (b"x-sn-size", b"-1")]
    assert read(*ignored, *ignored) == Metadata()


def test_all_headers_of_an_answer() -> None:
    """Every header of the wire protocol, as it is written."""
    metadata = Metadata(
        content_type="text/plain; charset=utf-8",
        compression="zstd",
        expiration=TimeToIdle(90_000),
        origin="10.0.0.1",
        filename="a/\u00e9",
        custom=(("foo", "1"), ("foo-bar", "100%")),
    )
    assert described(metadata, CREATED + 90_000 * MICROS_PER_SECOND, 12) == {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-encoding": b"zstd",
        b"x-sn-expiration": b"tti:1d 1h",
        b"x-sn-time-created": b"2026-01-02T03:04:05.678901Z",
        b"x-sn-time-expires": b"2026-01-03T04:04:05.678901Z",
        b"x-sn-origin": b"10.0.0.1",
        b"x-sn-filename": b"a/%C3%A9",
        b"x-sn-size": b"12",
        b"x-snme-foo": b"1",
        b"x-snme-foo-bar": b"100%25",
    }
    assert described(Metadata()) == {
        b"content-type": b"application/octet-stream",
        b"x-sn-time-created": b"2026-01-02T03:04:05.678901Z",
        b"x-sn-size": b"0",
    }


@pytest.mark.parametrize(
    ("value", "expiration"),
    [
        (b"manual", Manual()), (b"ttl:30s", TimeToLive(30)), (b"tti:1d 2h", TimeToIdle(93_600)),
        (b"ttl:0s", TimeToLive(0)),
        (b"ttl: 2 weeks", TimeToLive(1_209_600)), (b"tti:15min", TimeToIdle(900)), (b"ttl:1M", TimeToLive(2_630_016)),
        (b"ttl:1s" + b" 1s" * 100, TimeToLive(101)),
    ],
)  # fmt: skip
def test_expirations(value: bytes, expiration: Expiration) -> None:
    """The three kinds, with durations as the wire protocol reads them, long ones too."""
    assert read((b"x-sn-expiration", value)).expiration == expiration


@pytest.mark.parametrize(
    "value",
    [
        b"", b"ttl", b"tti", b"ttl:", b"ttl:5", b"ttl:-5s", b"TTL:5s", b"ttl=5s", b"Manual", b"manual:",
        b"manual:5s", b"never",
        b"ttl:5s,tti:5s", b"ttl:1.5s", b"ttl:5\xb5s", b"tti:99999999y", b"ttl:\xff", b"ttl:5s\x00", b" :5s",
    ],
)  # fmt: skip
def test_no_expirations(value: bytes) -> None:
    """Other kinds, no duration, a malformed or too long one: refused, however often."""
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            read((b"x-sn-expiration", value))


def test_the_bound_of_a_duration_is_that_of_the_call() -> None:
    """A remembered expiration is still measured against the limits of each call."""
    header = (b"x-sn-expiration", b"ttl:2d")
    assert read(header).expiration == TimeToLive(172_800)
    with pytest.raises(InvalidRequest, match="at most 1d"):
        metadata_from_headers([header], Limits(duration_seconds_max=86_400))


@given(st.integers(0, LIMITS.duration_seconds_max), st.integers(0, 10**15))
def test_an_extended_ttl_shows_its_total(seconds: int, extension: int) -> None:
    """A ttl is shown as the whole seconds from creation to the deadline of now; a fresh one exactly as given."""
    expires = CREATED + seconds * MICROS_PER_SECOND + extension
    value = described(Metadata(expiration=TimeToLive(seconds)), expires)[b"x-sn-expiration"]
    shown = metadata_from_headers([(b"x-sn-expiration", value)], Limits(duration_seconds_max=2**40))
    assert shown.expiration == TimeToLive(seconds + extension // MICROS_PER_SECOND)


def test_a_bumped_tti_shows_what_was_given() -> None:
    """A tti stays what it was, however often its deadline has moved."""
    shown = described(Metadata(expiration=TimeToIdle(60)), CREATED + 10**12)
    assert shown[b"x-sn-expiration"] == b"tti:1m"


def test_a_deadline_before_creation_is_shown_as_no_lifetime() -> None:
    """Clocks differ between servers: a ttl is never shown as negative."""
    assert described(Metadata(expiration=TimeToLive(5)), CREATED - 1)[b"x-sn-expiration"] == b"ttl:0s"


@pytest.mark.parametrize("value", [b"zstd", b"ZSTD", b" zstd "])
def test_zstd(value: bytes) -> None:
    """Zstandard is recorded; codings are case-insensitive (RFC 9110, section 8.4.1)."""
    assert read((b"content-encoding", value)).compression == "zstd"


@pytest.mark.parametrize("value", [b"", b"identity", b"gzip", b"zstd, gzip", b"zstd,zstd", b"br", b"zstd;q=1", b"\xff"])
def test_no_other_coding(value: bytes) -> None:
    """Everything else is refused, `identity` too."""
    with pytest.raises(InvalidRequest, match="content-encoding"):
        read((b"content-encoding", value))


@pytest.mark.parametrize(
    "value",
    [b"", b"text", b"text/plain, text/html", b"a/\xff", b"a/b\r\nx: y", b"a/b;c", b"a/b" + b";c=d" * 50 + b" e"],
)
def test_no_media_types(value: bytes) -> None:
    """A content type that is no media type is refused."""
    with pytest.raises(InvalidRequest, match="content-type"):
        read((b"content-type", value))


def test_content_types_are_kept_as_they_are() -> None:
    """Case, spaces and parameters of a content type come back unchanged, of short and long ones."""
    for value in (b"Text/HTML ;Charset=UTF-8", b"a/b" + b";c=d" * 50):
        assert read((b"content-type", value)).content_type == value.decode()


@pytest.mark.parametrize(
    "name", [b"content-type", b"content-encoding", b"x-sn-expiration", b"x-sn-origin", b"x-sn-filename", b"x-snme-k"]
)
def test_no_header_twice(name: bytes) -> None:
    """Which of two would count is for nobody to guess, even of equal ones."""
    value = {b"content-type": b"a/b", b"content-encoding": b"zstd", b"x-sn-expiration": b"manual"}.get(name, b"v")
    assert read((name, value)) != Metadata() or name == b"x-sn-expiration"
    with pytest.raises(InvalidRequest, match="more than once"):
        read((name, value), (b"host", b"h"), (name, value))


@pytest.mark.parametrize(
    "name", [b"", b"A", b"a b", b"a:b", b"\xc3\xa9", b"a\x00", b"a\r\n", b"(a)", b"n" * 200 + b" "]
)
def test_no_custom_names(name: bytes) -> None:
    """A custom name is a lower-case token, and not empty."""
    with pytest.raises(InvalidRequest, match="x-snme-"):
        read((b"x-snme-" + name, b"v"))


def test_custom_metadata_is_sorted() -> None:
    """The order in which headers come is HTTP's business; metadata is compared and stored in one order."""
    long_name = "n" * 200
    headers = [(b"x-snme-b", b"2"), (b"x-snme-" + long_name.encode(), b"3"), (b"x-snme-a", b"")]
    assert read(*headers).custom == (("a", ""), ("b", "2"), (long_name, "3"))


def test_the_number_of_custom_entries_is_bounded() -> None:
    """As many as the limit are read; one more is too large."""
    headers = [(b"x-snme-%d" % number, b"v") for number in range(LIMITS.custom_metadata_max + 1)]
    assert len(read(*headers[:-1]).custom) == LIMITS.custom_metadata_max
    with pytest.raises(HeadersTooLarge):
        read(*headers)


@given(metadata())
def test_the_size_of_metadata_is_bounded(given_metadata: Metadata) -> None:
    """The bytes in UTF-8 of all texts together may reach the limit exactly, and not a byte more."""
    texts = [given_metadata.content_type, given_metadata.origin or "", given_metadata.filename or ""]
    texts += [text for entry in given_metadata.custom for text in entry]
    size = len("".join(texts).encode())
    headers = described(given_metadata).items()
    assert metadata_from_headers(headers, Limits(metadata_bytes_max=size)) == given_metadata
    with pytest.raises(HeadersTooLarge):
        metadata_from_headers(headers, Limits(metadata_bytes_max=size - 1))


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata(content_type="a/b\r\nx-forged: 1"), Metadata(content_type="\u00e9/b"), Metadata(content_type=""),
        Metadata(custom=(("a\r\nx-forged", "1"),)), Metadata(custom=(("\u00e9", "1"),)), Metadata(custom=(("", "1"),)),
    ],
)  # fmt: skip
def test_nothing_forged_is_ever_written(metadata: Metadata) -> None:
    """Metadata that never came through a parser, and could break a header, fails instead."""
    with pytest.raises(InvariantBroken):
        described(metadata)


names = st.sampled_from(
    [
        b"content-type",
        b"content-encoding",
        b"x-sn-expiration",
        b"x-sn-origin",
        b"x-sn-filename",
        b"x-sn-size",
        b"x-snme-a",
    ]
) | st.binary(max_size=5).map(lambda tail: b"x-snme-" + tail)
values = (
    st.binary(max_size=30)
    | texts(20).map(str.encode)
    | st.text('ttli:0123456789 dhms%/;="ab', max_size=20).map(str.encode)
)


@given(st.lists(st.tuples(names, values), max_size=5))
@example([(b"x-snme-", b"")])
def test_any_headers(headers: list[Header]) -> None:
    """Headers are metadata that can be written and read again, or an invalid request, nothing else."""
    try:
        metadata = metadata_from_headers(headers, LIMITS)
    except (InvalidRequest, HeadersTooLarge):
        return
    assert metadata_from_headers(described(metadata).items(), LIMITS) == metadata


@pytest.mark.parametrize(
    ("filename", "value"),
    [
        ("report.pdf", b'attachment; filename="report.pdf"'),
        ("two words.txt", b'attachment; filename="two words.txt"'),
        ("a/b\\c", b'attachment; filename="a-b-c"'),
        ("../../etc/passwd", b'attachment; filename="..-..-etc-passwd"'),
        (".", b'attachment; filename="-"'),
        ("..", b'attachment; filename="--"'),
        ("....", b'attachment; filename="----"'),
        (".profile", b'attachment; filename=".profile"'),
        ('say "hi"', b'attachment; filename="say \\"hi\\""'),
        ("a\r\nx-forged: 1\x00", b'attachment; filename="a--x-forged: 1-"'),
        ("100%.txt", b'attachment; filename="100%.txt"'),
        ("", b'attachment; filename=""'),
        ("caf\u00e9.txt", b"attachment; filename=\"caf_.txt\"; filename*=UTF-8''caf%C3%A9.txt"),
        ("\u65e5 1'*%(\"", b"attachment; filename=\"_ 1'*%(\\\"\"; filename*=UTF-8''%E6%97%A5%201%27%2A%25%28%22"),
        ("\u00e9/\u00e9", b"attachment; filename=\"_-_\"; filename*=UTF-8''%C3%A9-%C3%A9"),
    ],
)  # fmt: skip
def test_download_names(filename: str, value: bytes) -> None:
    """Quotes escaped, separators and control characters replaced, no dots alone, other scripts written twice."""
    assert content_disposition(filename) == value


@given(texts() | st.text('./\\"\r\n\x00\u00e9 ;'))
def test_any_download_name(filename: str) -> None:
    """One quoted name, and the extended one for names beyond ASCII; neither leads elsewhere or breaks the header."""
    value = content_disposition(filename).decode("ascii")
    match = re.fullmatch(
        r"""attachment; filename="((?:[ !#-\[\]-~]|\\")*)"(?:; filename\*=UTF-8''([!#$&+.^_`|~0-9A-Za-z%-]+))?""", value
    )
    assert match is not None
    offered = [match[1].replace('\\"', '"')]
    assert len(offered[0]) == len(filename)
    if match[2] is not None:
        offered.append(unquote(match[2], errors="strict"))
    for name in offered:
        assert not set(name) & set("/\\\r\n\x00\x7f\x85")
        assert not re.fullmatch(r"\.+", name)
    if re.fullmatch(r"[^/\\\x00-\x1f\x7f-\x9f]*[^/\\.\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f]*", filename):
        assert offered[-1] == filename


def test_hostile_download_names() -> None:
    """No text of the corpus breaks the header."""
    for filename in HOSTILE_KEYS:
        assert re.fullmatch(
            rb'attachment; filename="[ -~]*"(; filename\*=UTF-8\'\'[!-~]+)?', content_disposition(filename)
        )


def expected_policy(expiration: Expiration) -> object:
    """The client's own value for an expiration."""
    match expiration:
        case Manual():
            return None
        case TimeToLive(seconds):
            return objectstore_client.TimeToLive(timedelta(seconds=seconds))
        case TimeToIdle(seconds):
            return objectstore_client.TimeToIdle(timedelta(seconds=seconds))


def check_understood(info: ObjectInfo) -> None:
    """Check that each field that the client reads from our headers is the one that we meant."""
    received = {name.decode("ascii"): value.decode("ascii") for name, value in headers_from_info(info)}
    understood = objectstore_client.Metadata.from_headers(received)
    assert understood.content_type == info.metadata.content_type
    assert understood.compression == info.metadata.compression
    assert understood.expiration_policy == expected_policy(info.metadata.expiration)
    assert understood.time_created == EPOCH + timedelta(microseconds=info.time_created)
    expires = None if info.time_expires is None else EPOCH + timedelta(microseconds=info.time_expires)
    assert understood.time_expires == expires
    assert understood.origin == info.metadata.origin
    assert understood.filename == info.metadata.filename
    assert understood.size == info.size
    assert understood.custom == dict(info.metadata.custom)


@given(fresh_infos())
def test_the_client_understands_us(info: ObjectInfo) -> None:
    """Every field of any object's metadata reaches the user of the public client."""
    check_understood(info)


def test_the_client_understands_hostile_texts() -> None:
    """The same for every text of the corpus."""
    for text in HOSTILE_KEYS:
        metadata = Metadata(origin=text, filename=text, custom=(("k", text),))
        check_understood(ObjectInfo(metadata=metadata, size=1, time_created=0, time_expires=None))


@pytest.mark.parametrize("expiration", [TimeToLive(0), TimeToLive(90_061), TimeToIdle(60), TimeToIdle(36_600 * 86_400)])
def test_the_client_understands_durations(expiration: Expiration) -> None:
    """Durations too: none, all units at once, one unit, the longest."""
    metadata = Metadata(expiration=expiration)
    check_understood(ObjectInfo(metadata=metadata, size=1, time_created=0, time_expires=None))
