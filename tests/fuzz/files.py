"""Fuzzers of the filesystem store's files: blobs, parts and uploads, damaged in every way a disk or a person can.

What is read afterwards is what was written, or nothing, with an error that says so: never other bytes, never an
exception of another kind. A file that was forged, with checksums that fit, may have other bytes, but does no worse.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal
from uuid import UUID

import xxhash
from hypothesis import strategies as st

from tests.fuzz.captured import captured_logs
from tests.fuzz.fuzzers import Fuzzer, parsed
from tests.fuzz.mutations import damaged
from tests.unit.types import strategies as values
from tierstore.backends.long_term.blob_file import Header, parse_header
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.backends.long_term.part_file import PartHeader, parse_part_header
from tierstore.errors import ClientMistake, CorruptObject, Unavailable
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span

LIMITS = Limits.tiny()
_CLEAN = (CorruptObject, Unavailable, ClientMistake)
_BLOB_PREFIX, _BLOB_FIXED, _PART_FIXED, _PART_PREFIX, _UPLOAD_FIXED, _UPLOAD_PREFIX = 56, 48, 88, 96, 24, 32
"""The formats' sizes, as their pages say them."""

How = Literal["bytes", "forged", "other file", "gone", "directory", "link"]


@dataclass(frozen=True)
class Damage:
    """What becomes of one file of the store."""

    which: int
    how: How
    changes: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """A store and what happens to it."""

    size: int
    """Bytes of the object that was put."""
    parts: tuple[int, ...]
    """Bytes of the parts of the object that was uploaded, and of those of the upload that is in progress."""
    damage: Damage


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    size = draw(st.sampled_from([0, 1, 15, 16, 17, 100]))
    parts = tuple(draw(st.lists(st.sampled_from([0, 1, 16, 40]), min_size=1, max_size=3)))
    how: How = draw(st.sampled_from(["bytes", "bytes", "forged", "other file", "gone", "directory", "link"]))
    at, bit, length = draw(st.integers(0, 300)), draw(st.integers(0, 7)), draw(st.sampled_from([1, 1, 8, 1000]))
    kind = draw(st.sampled_from(["flip", "zero", "ones", "cut", "insert", "append", "remove"]))

    def changes(raw: bytes) -> bytes:
        changed = bytearray(raw)
        start = at % (len(raw) + 1)
        end = min(start + length, len(raw))
        match kind:
            case "flip" if start < len(raw):
                changed[start] ^= 1 << bit
            case "zero":
                changed[start:end] = bytes(end - start)
            case "ones":
                changed[start:end] = b"\xff" * (end - start)
            case "cut":
                del changed[start:]
            case "remove":
                del changed[start:end]
            case "insert":
                changed[start:start] = b"\x00" * length
            case _:
                changed += raw[start:end] or b"x"
        return bytes(changed)

    return Case(size, parts, Damage(draw(st.integers(0, 20)), how, changes))


def _law(case: Case) -> None:
    with (
        TemporaryDirectory(prefix="tierstore-fuzz-") as directory,
        captured_logs() as logs,
        asyncio.Runner() as runner,
    ):
        runner.run(_damage_and_read(case, Path(directory, "store")))
        assert not logs.grave


async def _damage_and_read(case: Case, root: Path) -> None:
    ids, clock = SeededIds(1), ManualClock()
    store = await FilesystemLongTerm.open(root, limits=LIMITS, clock=clock, ids=ids, threads=1)
    try:
        whole, made, open_upload = _revisions(ids)
        await store.put(whole, _chunks(_payload(1, case.size)), case.size)
        done = await _upload(store, made, case.parts)
        await store.complete(*done)
        begun = await _upload(store, open_upload, case.parts)
        payloads = {whole: _payload(1, case.size), made: _of_parts(case.parts), open_upload: _of_parts(case.parts)}
        changed = _inflict(case.damage, root)
        forged = case.damage.how == "forged"
        for revision in (whole, made):
            with _clean():
                await _read(store, revision, payloads[revision], may_differ=forged)
        with _clean():
            listed = await store.list_parts(begun[0], 0, 10)
            assert {part.number for part in listed.parts} <= set(range(1, len(case.parts) + 1))
        with _clean():
            assert {blob.revision for blob in await store.list("", None, 10)} <= {whole, made} or forged
        with _clean():
            await store.complete(*begun)
            await _read(store, open_upload, payloads[open_upload], may_differ=forged)
        if not changed.is_dir():  # which nothing removes that is not known to be ours
            await _remove_all(store, done[0], begun[0], whole)
    finally:
        await store.close()


async def _remove_all(store: FilesystemLongTerm, done: UploadId, begun: UploadId, whole: Revision) -> None:
    """Damage does not keep anything from being removed."""
    for upload in (done, begun):
        with _clean():
            await store.abort(upload)
        await store.abort(upload.revision)
    for revision in (whole, done.revision, begun.revision):
        await store.delete(revision)
        assert await store.get(revision) is None
        assert await store.head(revision) is None
    await store.remove_debris()
    assert await store.list("", None, 10) == []


async def _read(store: FilesystemLongTerm, revision: Revision, payload: bytes, *, may_differ: bool) -> None:
    """Read it in all ways. Raises what the store does."""
    found = await store.head(revision)
    stream = await store.get(revision)
    if found is None or stream is None:  # its file has gone
        assert found is None
        assert stream is None
        return
    try:
        read = b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()
    assert len(read) == stream.size == found.size
    assert may_differ or (read == payload and found.size == len(payload)), "other bytes than were written"
    if read:
        span = Span(len(read) // 2, len(read))
        part = await store.get(revision, span)
        assert part is not None
        try:
            assert b"".join([chunk async for chunk in part]) == read[span.start : span.stop]
        finally:
            await part.aclose()


def _inflict(damage: Damage, root: Path) -> Path:
    files = sorted(path for path in (root / "blobs").rglob("*") if path.is_file())
    file = files[damage.which % len(files)]
    raw = file.read_bytes()
    match damage.how:
        case "bytes":
            file.write_bytes(damage.changes(raw))
        case "forged":
            file.write_bytes(_forged(file, damage.changes(raw)))
        case "other file":
            file.write_bytes(files[(damage.which + 1) % len(files)].read_bytes())
        case "gone":
            file.unlink()
        case "directory":
            file.unlink()
            file.mkdir()
        case "link":
            file.unlink()
            file.symlink_to(files[(damage.which + 1) % len(files)])
    return file


def _forged(file: Path, raw: bytes) -> bytes:
    """With checksums that fit what they cover."""
    if file.suffix == ".blob" and len(raw) >= _BLOB_PREFIX:
        path_bytes = int.from_bytes(raw[12:16])
        raw = raw[:32] + xxhash.xxh3_128_digest(raw[_BLOB_PREFIX + path_bytes :]) + raw[_BLOB_FIXED:]
        path = raw[_BLOB_PREFIX : _BLOB_PREFIX + path_bytes]
        return raw[:_BLOB_FIXED] + xxhash.xxh3_64_digest(raw[:_BLOB_FIXED] + path) + raw[_BLOB_PREFIX:]
    if file.suffix == ".part" and len(raw) >= _PART_PREFIX:
        return raw[:_PART_FIXED] + xxhash.xxh3_64_digest(raw[:_PART_FIXED]) + raw[_PART_PREFIX:]
    if file.name == "upload" and len(raw) >= _UPLOAD_PREFIX:
        checksum = xxhash.xxh3_64_digest(raw[:_UPLOAD_FIXED] + raw[_UPLOAD_PREFIX:])
        return raw[:_UPLOAD_FIXED] + checksum + raw[_UPLOAD_PREFIX:]
    return raw


@contextmanager
def _clean() -> Iterator[None]:
    """Errors that are clean, and say something."""
    try:
        yield
    except _CLEAN as error:
        if not str(error):
            raise AssertionError("an error that does not say why") from error


async def _upload(
    store: FilesystemLongTerm, revision: Revision, sizes: tuple[int, ...]
) -> tuple[UploadId, list[PartName]]:
    upload = UploadId(revision, await store.initiate(revision))
    names = []
    for number, size in enumerate(sizes, start=1):
        part = await store.upload_part(upload, number, _chunks(_payload(number, size)), size, None)
        names.append(PartName(number, part.etag))
    return upload, names


def _revisions(ids: SeededIds) -> tuple[Revision, Revision, Revision]:
    def object_id(key: str) -> ObjectId:
        return ObjectId("testing", (Scope("org", "1"),), key)

    return (
        Revision(object_id("put"), ids.uuid()),
        Revision(object_id("made"), ids.upload_uuid()),
        Revision(object_id("open"), ids.upload_uuid()),
    )


def _of_parts(sizes: tuple[int, ...]) -> bytes:
    return b"".join(_payload(number, size) for number, size in enumerate(sizes, start=1))


def _payload(seed: int, size: int) -> bytes:
    return bytes((seed * 37 + at * 11 + 5) % 251 for at in range(size))


async def _chunks(payload: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(payload), 16):
        yield payload[at : at + 16]


# Headers alone: many more of them


def _blob_headers(raw: bytes) -> None:
    """A header is read as it was written, or is corrupt."""
    header = parsed(lambda: parse_header(raw), CorruptObject)
    if header is not None:
        assert raw.startswith(header.encode())


def _part_headers(raw: bytes) -> None:
    """Likewise that of a part; three bytes that mean nothing yet are not looked at."""
    header = parsed(lambda: parse_part_header(raw), CorruptObject)
    if header is not None:
        again = header.encode()
        assert raw[:9] == again[:9]
        assert raw[12:_PART_FIXED] == again[12:_PART_FIXED]


_BLOB_HEADERS = st.builds(
    lambda revision, size, stored, parts: Header(revision.storage_path, size, stored, bytes(16), parts).encode(),
    values.revisions(),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**16 - 1),
)
_PART_HEADERS = st.builds(
    lambda number, uuid, size: PartHeader(number, uuid, size, 1, bytes(16), bytes(range(16)), bytes(8)).encode(),
    st.integers(0, 2**32 - 1),
    st.uuids() | st.just(UUID(int=0)),
    st.integers(0, 2**64 - 1),
)

FUZZERS = (
    Fuzzer("damaged files", _cases(), _law, 0.6),
    Fuzzer(
        "blob headers",
        damaged(_BLOB_HEADERS) | damaged(_BLOB_HEADERS).map(lambda raw: _forged(Path("x.blob"), raw)),
        _blob_headers,
    ),
    Fuzzer(
        "part headers",
        damaged(_PART_HEADERS) | damaged(_PART_HEADERS).map(lambda raw: _forged(Path("x.part"), raw)),
        _part_headers,
    ),
)
