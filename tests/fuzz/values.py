"""Fuzzers of what parses values: addresses, headers, durations, ranges, upload ids, documents, stored metadata.

The law is the same for each: a value of ours or a documented refusal, at once, and what was written is read back. Where
a parser can be told otherwise what to say (the standard library has one too), it is.
"""

import base64
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID
from zlib import crc32

import msgspec
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.fuzzers import Fuzzer, parsed
from tests.fuzz.mutations import LongText, any_text, damaged, damaged_text, long_winded
from tests.unit.types import strategies as values
from tierstore.errors import CorruptObject, HeadersTooLarge, InvalidRequest, RangeNotSatisfiable
from tierstore.http.expiry import parse_extension
from tierstore.http.parsing import OBJECTS_PREFIX, AddressParser, object_path, parse_query, parse_single, percent_decode
from tierstore.http.uploads import parse_parts
from tierstore.limits import Limits
from tierstore.types.durations import format_duration, parse_duration, read_duration
from tierstore.types.expiry import AfterNow, AtInstant
from tierstore.types.ids import AS_STORED, SESSION_UUID_BIT, ObjectId, Revision, parse_scopes, parse_usecase
from tierstore.types.metadata import ObjectInfo, deadline
from tierstore.types.metadata_headers import Header, content_disposition, headers_from_info, metadata_from_headers
from tierstore.types.metadata_storage import decode_metadata, encode_metadata
from tierstore.types.multipart import UploadId
from tierstore.types.ranges import Span, parse_range, resolve
from tierstore.types.resumable import Progress, SessionId, decode_session, encode_session
from tierstore.types.sizes import format_size, parse_size
from tierstore.types.timestamps import EARLIEST, LATEST, format_timestamp, parse_timestamp

LIMITS = Limits()
_ADDRESSES = AddressParser(LIMITS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEADER_BYTES = re.compile(rb"[\t -~]*")
_USECASE_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_SCOPE_CHARACTERS = _USECASE_CHARACTERS | frozenset("()$!+'")


# Addresses


def _addresses(raw: bytes) -> None:
    """The key is what the standard library decodes; written by us, the address reads the same."""
    address = parsed(lambda: _ADDRESSES.parse(raw, b""), InvalidRequest)
    if address is None:
        return
    raw_key = raw.split(b"/", 2)[2] if raw.count(b"/") > 1 else b""
    assert (address.key or "").encode() == unquote_to_bytes(raw_key)
    assert (address.key is None) == (not raw_key)
    if address.key is not None:
        object_id = address.object_id(address.key)
        assert _ADDRESSES.parse(object_path(object_id)) == address
        assert ObjectId.from_storage_path(object_id.storage_path) == object_id


def _written_addresses(object_id: ObjectId) -> None:
    """An address that a client writes of an object is that object's, whatever its key."""
    path = object_path(object_id)
    assert path.isascii()
    address = _ADDRESSES.parse(path)
    assert address is not None
    assert address.key is not None
    assert address.object_id(address.key) == object_id


def _queries(raw: bytes) -> None:
    """Names and values are decoded once, and what is given twice is refused where it matters."""
    every = parsed(lambda: parse_query(raw), InvalidRequest)
    single = parsed(lambda: parse_single(raw, ("upload_id", "part_number")), InvalidRequest)
    if single is not None:
        assert every is not None
        assert all(every[name] == value for name, value in single.items())
    if every is not None:
        pairs = [pair.partition(b"=") for pair in raw.split(b"&") if pair]
        decoded = {unquote_to_bytes(name).decode(): unquote_to_bytes(value).decode() for name, _, value in pairs}
        assert every == decoded


def _escapes(raw: bytes) -> None:
    """What is decoded is what the standard library makes of it, and holds no escape that was malformed."""
    text = parsed(lambda: percent_decode(raw), InvalidRequest)
    if text is not None:
        assert text.encode() == unquote_to_bytes(raw)
        assert re.search(rb"%(?![0-9A-Fa-f]{2})", raw) is None


def _usecases(text: str) -> None:
    """A usecase has 3 to 64 of some characters, and nothing else is one."""
    expected = 3 <= len(text) <= 64 and set(text) <= _USECASE_CHARACTERS
    assert (parsed(lambda: parse_usecase(text), InvalidRequest) == text) == expected


def _scopes(text: str) -> None:
    """Scopes are pairs in an order; nothing is lost or added."""
    scopes = parsed(lambda: parse_scopes(text, LIMITS), InvalidRequest)
    if scopes is None:
        return
    assert (";".join(f"{scope.name}={scope.value}" for scope in scopes) or "_") == text
    assert all(scope.name and scope.value and set(scope.name + scope.value) <= _SCOPE_CHARACTERS for scope in scopes)


def _storage_paths(path: str) -> None:
    """A storage path names one object, or one revision, or none; what is read writes the same path."""
    object_id = parsed(lambda: ObjectId.from_storage_path(path), InvalidRequest)
    assert object_id is None or object_id.storage_path == path
    for limits in (LIMITS, AS_STORED):
        revision = parsed(partial(Revision.from_storage_path, path, limits), InvalidRequest)
        assert revision is None or revision.storage_path == path


_RAW_ADDRESSES = values.object_ids().map(lambda object_id: object_path(object_id).removeprefix(OBJECTS_PREFIX))
_QUERIES = st.lists(
    st.tuples(
        st.sampled_from([b"upload_id", b"part_number", b"os_auth", b"upload%5Fid", b"", b"a"]),
        st.sampled_from([b"", b"=", b"=1", b"=%41", b"=a=b", b"=+", b"=%C3%A9"]),
    ).map(b"".join),
    max_size=5,
).map(b"&".join)
_PATHS = st.builds(lambda revision: revision.storage_path, values.revisions())


# Metadata headers


def _headers(headers: list[Header]) -> None:
    """What is read is written in bytes that a header may hold, and read the same again."""
    metadata = parsed(lambda: metadata_from_headers(headers, LIMITS), (InvalidRequest, HeadersTooLarge))
    if metadata is None:
        return
    info = ObjectInfo(metadata=metadata, size=1, time_created=0, time_expires=deadline(metadata.expiration, 0))
    check_written(info)
    assert metadata_from_headers(headers_from_info(info), LIMITS) == metadata
    stored = encode_metadata(metadata, size=1, time_created=0)
    assert decode_metadata(stored, info.time_expires) == info


def _long_headers(headers: list[tuple[bytes, LongText]]) -> None:
    """The same, and quickly."""
    _headers([(name, value.text.encode("latin-1")) for name, value in headers])


def check_written(info: ObjectInfo) -> None:
    """Fail unless all headers of the object are names and values that can stand in an answer."""
    written = headers_from_info(info)
    if info.metadata.filename is not None:
        written.append((b"content-disposition", content_disposition(info.metadata.filename)))
    names = [name for name, _ in written]
    assert len(names) == len(set(names))
    for name, value in written:
        assert re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name), name
        assert _HEADER_BYTES.fullmatch(value), (name, value)
        assert value == value.strip(b" \t"), (name, value)


_HEADER_NAMES = st.sampled_from([
    b"content-type", b"content-encoding", b"x-sn-expiration", b"x-sn-origin", b"x-sn-filename", b"x-snme-a", b"x-snme-",
    b"x-snme-A", b"x-snme-\xff", b"x-snme-a b", b"x-sn-size", b"x-sn-time-created", b"x-snme-" + b"n" * 200,
])  # fmt: skip
_WRITTEN_HEADERS = values.fresh_infos().map(headers_from_info)
_HEADER_VALUES = st.sampled_from([
    b"text/plain; charset=utf-8", b'a/b;c="d\\"e" ; f=g;', b"application/octet-stream", b"zstd", b"ZSTD", b"manual",
    b"ttl:1d 1h 1m 1s", b"tti:30s", b"ttl:36500d", b"plain text", b"%C3%A9%20%25", b"", b"..%2F..%5C", b"%0D%0Ax: y",
])  # fmt: skip
_LONG_HEADERS = long_winded(
    "a/b", ";", " ", "\t", "a=", '"', "\\", '\\"', "a", "%41", "%", "%4", "%C3", "é", "1d ", "ttl:", "1", " 1s"
)


# Durations, sizes, timestamps, ranges


def _durations(text: str) -> None:
    """Seconds within the bound, which are written and read again."""
    seconds = parsed(lambda: parse_duration(text, LIMITS), InvalidRequest)
    if seconds is not None:
        assert 0 <= seconds <= LIMITS.duration_seconds_max
        assert parse_duration(format_duration(seconds), LIMITS) == seconds
        terms = re.findall(r"[0-9]+[ \t]*[A-Za-zµ]+", text)
        assert sum(read_duration(term) for term in terms) - len(terms) < seconds or not seconds
    assert (parsed(lambda: read_duration(text), InvalidRequest) is not None) >= (seconds is not None)


def _sizes(text: str) -> None:
    """Whole bytes, which are written and read again."""
    size = parsed(lambda: parse_size(text), InvalidRequest)
    if size is not None and size < 10**20:  # beyond all settings, sizes are written with more digits than are read
        assert size >= 0
        assert parse_size(format_size(size)) == size


def _timestamps(text: str) -> None:
    """An instant that can be written, and that the standard library reads alike where it reads such a text."""
    instant = parsed(lambda: parse_timestamp(text), InvalidRequest)
    if instant is None:
        return
    assert EARLIEST <= instant <= LATEST
    assert parse_timestamp(format_timestamp(instant)) == instant
    plain = re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text.upper())
    if not re.search(r":60(?:\.|Z|[+-])", plain):
        assert (datetime.fromisoformat(plain) - _EPOCH) // timedelta(microseconds=1) == instant


def _number(digits: str) -> int:
    """The number, or one that is beyond every size."""
    return int(digits.lstrip("0")[:30] or "0")


def _ranges(case: tuple[str, int]) -> None:
    """A range lies in the object; it is the bytes that its numbers say."""
    header, size = case
    wanted = parsed(lambda: parse_range(header), InvalidRequest)
    if wanted is None:
        return
    span = parsed(lambda: resolve(wanted, size), RangeNotSatisfiable)
    first, last = re.search(r"([0-9]*)-([0-9]*)", header).groups()  # type: ignore[union-attr]  # because it was parsed
    start, end = _number(first), _number(last)
    kept = [at for at in range(size) if (start <= at <= (end if last else size) if first else at >= size - end)]
    assert span == (Span(kept[0], kept[-1] + 1) if kept else None)


_UNITS = st.sampled_from(["s", "min", "M", "d", "weeks", "y", "ms", "µs", "ns", "D", "x", "", "\u0645"])
_DURATIONS = st.lists(
    st.builds("{}{}{}{}".format, st.integers(0, 10**21), st.sampled_from(["", " ", "\t"]), _UNITS, st.just(" ")),
    max_size=4,
).map("".join)
_TIMESTAMPS = st.builds(
    lambda instant, form: format_timestamp(instant).replace("Z", form[0]).replace("T", form[1])[: form[2]],
    values.instants(),
    st.tuples(
        st.sampled_from(["Z", "z", "+00:00", "-23:59", "+24:00", "123456789Z", ""]),
        st.sampled_from(["T", "t", " ", "_"]),
        st.sampled_from([99, 99, 99, 20, 10]),
    ),
)
_POSITIONS = st.sampled_from(["", "0", "1", "9", "10", "007", "12345678901234567890123", "-1", "x", "\u0663"])
_RANGES = st.builds(
    lambda unit, ranges, comma: unit + comma.join(f"{first}-{last}" for first, last in ranges),
    st.sampled_from(["bytes=", "BYTES=", " bytes=", "bytes =", "rows=", "bytes", ""]),
    st.lists(st.tuples(_POSITIONS, _POSITIONS), max_size=3),
    st.sampled_from([",", ", ", ",,"]),
)
_SIZES = st.builds(
    "{}{}{}".format,
    st.integers(0, 10**21) | st.decimals(0, 10**6, places=3),
    st.sampled_from(["", " "]),
    st.sampled_from(["", "B", "KiB", "mb", "TIB", "K", "x"]),
)


# Upload ids and documents


def _damaged_upload_ids(case: tuple[UploadId, str]) -> None:
    """Nothing but the id itself decodes to it, and nothing else decodes at all."""
    upload, text = case
    decoded = parsed(lambda: UploadId.decode(text, upload.revision.object_id, LIMITS), InvalidRequest)
    assert decoded == (upload if text == upload.encode() else None)


def _others_upload_ids(case: tuple[UploadId, ObjectId]) -> None:
    """An id is good for its own object alone."""
    upload, object_id = case
    decoded = parsed(lambda: UploadId.decode(upload.encode(), object_id, LIMITS), InvalidRequest)
    assert decoded == (upload if object_id == upload.revision.object_id else None)


def _damaged_tokens(case: tuple[UploadId, str]) -> None:
    """Nothing but a token itself names its session, and least of all the id of the same upload."""
    upload, text = case
    revision = upload.revision
    marked = replace(revision, uuid=UUID(int=revision.uuid.int | SESSION_UUID_BIT))
    session = SessionId(replace(upload, revision=marked))
    token = text if len(text) % 2 else session.encode()[: len(text)] + text[len(session.encode()) :]
    for candidate in (text, token, session.encode()):
        decoded = parsed(partial(SessionId.decode, candidate, upload.revision.object_id, LIMITS))
        assert decoded == (session if candidate == session.encode() else None)


def _stored_sessions(raw: bytes) -> None:
    """Bytes of a store are a session that makes sense, and is written again as it was, or corrupt."""
    found = parsed(lambda: decode_session(raw), CorruptObject)
    if found is not None:
        progress, wanted = found
        assert 0 <= progress.offset <= progress.length
        numbers = [number for ends in progress.counted for number in ends]
        assert numbers == sorted(numbers)
        assert all(0 < number < progress.next_number for number in numbers)
        assert decode_session(encode_session(progress, wanted)) == found


def _documents(raw: bytes) -> None:
    """A list of parts is what the standard library reads in the same bytes."""
    parts = parsed(lambda: parse_parts(raw, LIMITS))
    if parts is not None:
        assert 1 <= len(parts) <= LIMITS.parts_max
        read = json.loads(raw)["parts"]
        assert [(part["part_number"], part["etag"]) for part in read] == [(part.number, part.etag) for part in parts]
        assert all(1 <= part.number <= LIMITS.parts_max and part.etag.isascii() for part in parts)


def _extensions(raw: bytes) -> None:
    """An extension has the form of one, says nothing besides, and means what the standard library reads in it."""
    target = parsed(lambda: parse_extension(raw, LIMITS), InvalidRequest)
    if target is None:
        return
    document = json.loads(raw)
    assert list(document) == ["extend_expiry"]
    said = document["extend_expiry"]
    if isinstance(target, AtInstant):
        assert list(said) == ["at"]
        assert target.instant == parse_timestamp(said["at"])
        return
    assert sorted(said) == ["after", "from"]
    assert target.seconds == parse_duration(said["after"], LIMITS) <= LIMITS.duration_seconds_max
    assert said["from"] == ("now" if isinstance(target, AfterNow) else "creation")


@st.composite
def _upload_ids(draw: st.DrawFn) -> UploadId:
    revision = draw(values.revisions())
    uuid = UUID(int=revision.uuid.int & ~(0xF << 76 | 3 << 62 | SESSION_UUID_BIT) | 8 << 76 | 2 << 62)
    store_id = draw(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40))
    return UploadId(Revision(revision.object_id, uuid), store_id)


def _with_damage(upload: UploadId) -> SearchStrategy[tuple[UploadId, str]]:
    text = upload.encode()
    reframed = damaged(st.just(_bytes_of(text))).map(_text_of)
    respelled = st.sampled_from([text, text + "=", text + "A", text[:-1], text.swapcase(), text.replace("_", "/")])
    return st.tuples(st.just(upload), damaged_text(st.just(text)) | reframed | respelled | any_text())


def _bytes_of(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


_NAMED: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({
    "part_number": st.integers(-1, 10_002) | st.sampled_from([2**63, 2**64, 1.0, 1.5, True, None, "1", [], 10**400]),
    "etag": any_text(8) | st.sampled_from([None, 1, "x" * 300, '"quoted"', "\x00", "\x7f"]),
})  # fmt: skip
_DOCUMENTS = st.builds(
    lambda parts, more: json.dumps({"parts": parts} | more).encode(),
    st.lists(_NAMED | st.fixed_dictionaries({"part_number": st.integers(1, 9), "etag": st.just("e")}), max_size=3),
    st.sampled_from([{}, {"x": 1}, {"Parts": []}]),
)
_NESTED = st.builds(
    lambda opening, depth, prefix: (prefix + opening * depth).encode(),
    st.sampled_from(["[", '{"parts":', '{"x":[', '[{"a":']),
    st.sampled_from([10, 1_000, 100_000]),
    st.sampled_from(["", '{"parts":', '{"parts":[{"part_number":', '{"x":']),
)
_EXTENDED_TO = st.fixed_dictionaries(
    {},
    optional={
        "at": st.sampled_from(["2030-01-02T03:04:05Z", "2030-01-02T03:04:05.678901+02:00", "2030-01-02", "", 0, None]),
        "after": st.sampled_from(["30d", "1h 30min", "0s", "36600d", "36601d", "1.5h", "", 5, None]),
        "from": st.sampled_from(["now", "creation", "Now", "", None]),
        "more": st.just(1),
    },
)
_EXTENSIONS = st.builds(
    lambda said, name, spaces: json.dumps({name: said}, indent=spaces).encode(),
    _EXTENDED_TO | st.sampled_from([{"at": "2030-01-02T03:04:05Z"}, {"after": "30d", "from": "now"}]),
    st.sampled_from(["extend_expiry", "extend_expiry", "extend_expiry", "extend"]),
    st.sampled_from([None, 0, 3]),
)
_ENCODED_OTHERWISE = _DOCUMENTS.flatmap(
    lambda raw: st.sampled_from(["utf-16", "utf-32-le", "utf-8-sig", "utf-7"]).map(raw.decode().encode)
)


# Stored metadata


def _stored_metadata(raw: bytes) -> None:
    """Bytes of a store are metadata that can be shown, or corrupt."""
    info = parsed(lambda: decode_metadata(raw, None), CorruptObject)
    if info is not None:
        check_written(info)


def _damaged_metadata(case: tuple[bytes, bytes]) -> None:
    """Damage is found out."""
    whole, raw = case
    if raw != whole:
        assert parsed(lambda: decode_metadata(raw, None), CorruptObject) is None


def _checksummed(raw: bytes) -> bytes:
    return raw + crc32(raw).to_bytes(4)


_STORED = st.builds(
    lambda metadata, size, created: encode_metadata(metadata, size=size, time_created=created),
    values.metadata(),
    st.integers(0, LIMITS.object_bytes_max),
    values.instants(),
)
_FORGED = damaged(_STORED.map(lambda raw: raw[:-4]), 4).map(_checksummed)
"""With a checksum that fits: as if another program had written it."""
_BUILT = st.lists(
    st.one_of(
        st.integers(-(2**63), 2**64 - 1), any_text(6).filter(str.isascii), st.none(), st.booleans(), st.floats(),
        st.binary(max_size=4), st.sampled_from(["text/plain", "zstd", 0, 1, 2]),
        st.lists(st.lists(st.sampled_from(["a", "b", "A", "\n"]), max_size=3), max_size=3),
    ),
    min_size=7, max_size=10,
)  # fmt: skip


def _forged(fields: list[Any]) -> bytes:
    return _checksummed(b"\x01" + msgspec.msgpack.encode(fields))


_PROGRESSES = st.lists(
    st.one_of(
        st.integers(-1, 5), st.sampled_from([2**63, 10_000, 70]), st.none(), st.binary(max_size=4),
        st.lists(st.lists(st.integers(-1, 6), min_size=2, max_size=2), max_size=3),
    ),
    min_size=4, max_size=6,
)  # fmt: skip
_SESSIONS = st.sampled_from(
    [
        Progress(70),
        Progress(70, 60, 7, ((1, 2), (4, 6))),
        Progress(0, 0, 2, ((1, 1),)),
        Progress(5 << 40, 1, 9_999, ((1, 1),)),
    ]
).map(lambda progress: encode_session(progress, b"wanted"))


def _forged_session(fields: list[Any]) -> bytes:
    return _checksummed(b"\x81" + msgspec.msgpack.encode(fields))


FUZZERS = (
    Fuzzer("addresses", damaged(_RAW_ADDRESSES) | st.binary(max_size=60), _addresses),
    Fuzzer("addresses, written", values.object_ids(), _written_addresses),
    Fuzzer(
        "addresses, long",
        long_winded("/", "%41", "%", "a", "=", ";", "abc/"),
        lambda long: _addresses(long.text.encode()),
        0.2,
    ),
    Fuzzer("queries", damaged(_QUERIES) | _QUERIES | st.binary(max_size=40), _queries),
    Fuzzer("escapes", damaged(_RAW_ADDRESSES) | st.binary(max_size=40), _escapes),
    Fuzzer("usecases", any_text() | damaged_text(st.sampled_from(["testing", "a-b_0", "x" * 64])), _usecases),
    Fuzzer("scopes", any_text() | damaged_text(st.sampled_from(["org=1", "a=1;b=2", "_", "_=_;(=$"])), _scopes),
    Fuzzer("storage paths", _PATHS | damaged_text(_PATHS) | any_text(), _storage_paths),
    Fuzzer("metadata headers, written", _WRITTEN_HEADERS, _headers),
    Fuzzer(
        "metadata headers",
        st.lists(
            st.tuples(_HEADER_NAMES, _HEADER_VALUES | damaged(_HEADER_VALUES) | st.binary(max_size=20)), max_size=4
        ),
        _headers,
    ),
    Fuzzer(
        "metadata headers, long",
        st.lists(st.tuples(_HEADER_NAMES, _LONG_HEADERS), min_size=1, max_size=2),
        _long_headers,
        0.2,
    ),
    Fuzzer("durations", _DURATIONS | damaged_text(_DURATIONS) | any_text(), _durations),
    Fuzzer(
        "durations, long",
        long_winded("1", "d", " ", "1s", "\t", "0", "9" * 19 + "y"),
        lambda long: _durations(long.text),
        0.2,
    ),
    Fuzzer("sizes", _SIZES | damaged_text(_SIZES) | any_text(), _sizes),
    Fuzzer("sizes, long", long_winded("1", ".", " ", "K", "iB", "0"), lambda long: _sizes(long.text), 0.2),
    Fuzzer("timestamps", _TIMESTAMPS | damaged_text(_TIMESTAMPS) | any_text(), _timestamps),
    Fuzzer(
        "timestamps, long",
        long_winded("1", ".", "2026-01-02T03:04:05", "Z", "+00:00", "0"),
        lambda long: _timestamps(long.text),
        0.2,
    ),
    Fuzzer("ranges", st.tuples(_RANGES | damaged_text(_RANGES) | any_text(), st.integers(0, 12)), _ranges),
    Fuzzer(
        "ranges, long",
        long_winded("bytes=", "1", "-", ",", " ", "0-", "1-1,"),
        lambda long: _ranges((long.text, 9)),
        0.2,
    ),
    Fuzzer("upload ids", _upload_ids().flatmap(_with_damage), _damaged_upload_ids),
    Fuzzer("upload ids of others", st.tuples(_upload_ids(), values.object_ids()), _others_upload_ids),
    Fuzzer("session tokens", _upload_ids().flatmap(_with_damage), _damaged_tokens),
    Fuzzer(
        "stored sessions",
        _SESSIONS
        | damaged(_SESSIONS)
        | damaged(_SESSIONS.map(lambda raw: raw[:-4]), 4).map(_checksummed)
        | _PROGRESSES.map(_forged_session),
        _stored_sessions,
    ),
    Fuzzer("documents", _DOCUMENTS | damaged(_DOCUMENTS) | _ENCODED_OTHERWISE | st.binary(max_size=40), _documents),
    Fuzzer("documents, nested", _NESTED, _documents, 0.1),
    Fuzzer("extensions", _EXTENSIONS | damaged(_EXTENSIONS) | st.binary(max_size=40), _extensions),
    Fuzzer("stored metadata", st.binary(max_size=60) | _FORGED | _BUILT.map(_forged), _stored_metadata),
    Fuzzer(
        "stored metadata, damaged",
        _STORED.flatmap(lambda raw: st.tuples(st.just(raw), damaged(st.just(raw)))),
        _damaged_metadata,
    ),
)
