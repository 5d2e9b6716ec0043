"""The filesystem store's multipart uploads: what they do beyond the laws of every long-term store."""

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import xxhash
from structlog.testing import capture_logs

from tests.unit.backends.long_term.conftest import Open
from tierstore.backends.long_term.blob_file import BlobReader, read_header
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.errors import (
    ChecksumMismatch,
    CorruptObject,
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    InvariantBroken,
    NoSuchUpload,
    ObjectTooLarge,
    StorageFull,
    TierstoreError,
    Unavailable,
)
from tierstore.limits import GIB, KIB, MIB, Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import Boom, Source, listed, opened, payload, read
from tierstore.testing.mounts import small_disk
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span

CONTENTS = {1: payload(40), 2: b"", 4: payload(33), 7: b""}
WHOLE = b"".join(CONTENTS.values())
PART_HEADER_BYTES = 96


@pytest.fixture
def upload(revision: Revision, ids: SeededIds) -> UploadId:
    """The upload that most tests work on; `begun` and the like begin it."""
    return UploadId(Revision(revision.object_id, ids.upload_uuid()), "")


def blob_file(root: Path, upload: UploadId) -> Path:
    """Where the blob's file is."""
    uuid = str(upload.revision.uuid)
    return root / "blobs" / uuid[-3:] / f"{uuid}.blob"


def parts_of(root: Path, upload: UploadId) -> Path:
    """Where the parts are."""
    return blob_file(root, upload).with_suffix(".parts")


def part_file(root: Path, upload: UploadId, number: int) -> Path:
    """Where a part is."""
    return parts_of(root, upload) / f"{number:05d}.part"


def temporary_files(root: Path) -> list[Path]:
    """What has not ended, or was left behind."""
    return [path for path in (root / "tmp").glob("*/*") if path.name != "lock"]


async def add(store: FilesystemLongTerm, upload: UploadId, number: int, content: bytes) -> PartName:
    """Upload a part."""
    part = await store.upload_part(upload, number, Source([content] if content else []), len(content), None)
    assert (part.number, part.size) == (number, len(content))
    return PartName(number, part.etag)


async def begun(store: FilesystemLongTerm, upload: UploadId) -> list[PartName]:
    """Begin an upload and give it the parts of `CONTENTS`."""
    assert await store.initiate(upload.revision) == ""
    return [await add(store, upload, number, content) for number, content in CONTENTS.items()]


async def completed(store: FilesystemLongTerm, upload: UploadId) -> Sequence[PartName]:
    """Make the blob of `WHOLE`."""
    names = await begun(store, upload)
    await store.complete(upload, names)
    return names


@contextmanager
def held(directory: Path, mode: int) -> Iterator[None]:
    """Another one's lock on an upload."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, mode)
        yield
    finally:
        os.close(fd)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1 << bit
    file.write_bytes(raw)


async def gone(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """Check that nothing is left of an upload."""
    assert await store.head(upload.revision) is None
    assert not blob_file(root, upload).exists()
    assert not parts_of(root, upload).exists()
    assert temporary_files(root) == []
    with pytest.raises(NoSuchUpload):
        await store.list_parts(upload, 0, 10)


# Reading


async def test_every_span(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """Whatever is asked for of a blob made of parts, empty ones among them, these bytes are delivered."""
    await completed(store, upload)
    assert await read(store, upload.revision) == WHOLE
    file = blob_file(root, upload)
    for start in range(len(WHOLE)):
        for stop in range(start + 1, len(WHOLE) + 1):
            reader = BlobReader(file, upload.revision, Span(start, stop), 16)
            chunk = reader.open()
            found = [chunk]
            while not reader.exhausted:
                found.append(reader.next_chunk())
            assert b"".join(filter(None, found)) == WHOLE[start:stop]
            assert reader.size == len(WHOLE)
    with pytest.raises(InvariantBroken):
        await store.get(upload.revision, Span(0, len(WHOLE) + 1))


async def test_only_empty_parts(store: FilesystemLongTerm, upload: UploadId) -> None:
    """A blob of empty parts is an empty blob."""
    await store.initiate(upload.revision)
    names = [await add(store, upload, number, b"") for number in (1, 8)]
    await store.complete(upload, names)
    assert await read(store, upload.revision) == b""


async def test_no_byte_is_copied(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """The blob is made of the very files that were uploaded, and of a small one; a part that is not named goes."""
    await store.initiate(upload.revision)
    names = [await add(store, upload, number, payload(20 * KIB)) for number in (1, 2, 3)]
    before = {number: part_file(root, upload, number).stat() for number in (1, 3)}
    await store.complete(upload, [names[0], names[2]])
    for number, status in before.items():
        after = part_file(root, upload, number).stat()
        assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert not part_file(root, upload, 2).exists()
    assert blob_file(root, upload).stat().st_size < 256
    assert await read(store, upload.revision) == payload(20 * KIB) * 2


async def test_a_listing_shows_blobs(store: FilesystemLongTerm, upload: UploadId, ids: SeededIds) -> None:
    """An upload in progress is in no listing of blobs, and a completed one is there once."""
    await begun(store, UploadId(Revision(upload.revision.object_id, ids.upload_uuid()), ""))
    await completed(store, upload)
    assert [(blob.revision, blob.size) for blob in await store.list("", None, 100)] == [(upload.revision, len(WHOLE))]


async def test_ten_thousand_parts(open_store: Open, root: Path, upload: UploadId) -> None:
    """An upload may have ten thousand parts, and each of them is found again."""
    store = await open_store(root, Limits(), threads=4)
    await store.initiate(upload.revision)
    names = [await add(store, upload, 1, b"the first")]
    numbers = range(2, 10_001)
    directory = parts_of(root, upload)
    template = part_file(root, upload, 1).read_bytes()
    for number in numbers:  # without the syncs of as many requests
        content = number.to_bytes(2)
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        header, name = part_header(template, number, len(content), xxh3_128(content), md5)
        (directory / f"{number:05d}.part").write_bytes(header + content)
        names.append(name)
    page = await store.list_parts(upload, 9_000, 1_000)
    assert [PartName(part.number, part.etag) for part in page.parts] == names[9_000:]
    assert not page.truncated
    await store.complete(upload, names)
    assert blob_file(root, upload).stat().st_size < 36 * 10_000 + 256
    expected = b"the first" + b"".join(number.to_bytes(2) for number in numbers)
    assert await read(store, upload.revision, Span(len(expected) - 3, len(expected))) == expected[-3:]
    known = await store.head(upload.revision)
    assert known is not None
    assert known.size == len(expected)
    await store.delete(upload.revision)
    assert not directory.exists()
    assert temporary_files(root) == []


async def test_completing_costs_nothing_by_the_byte(open_store: Open, root: Path, upload: UploadId) -> None:
    """10 GiB are completed for less than a fiftieth of the CPU time that copying them takes.

    The parts are sparse files of zeros, as whole as any; what is copied is one of them, 160 times in thought.
    """
    store = await open_store(root, Limits(), threads=4)
    await store.initiate(upload.revision)
    await add(store, upload, 1, b"template")
    template = part_file(root, upload, 1).read_bytes()
    size, count = 64 * MIB, 160
    checksum, md5 = xxh3_128(bytes(size)), hashlib.md5(bytes(size), usedforsecurity=False).digest()
    names = []
    for number in range(1, count + 1):
        header, name = part_header(template, number, size, checksum, md5)
        with part_file(root, upload, number).open("wb") as file:
            file.write(header)
            file.truncate(PART_HEADER_BYTES + size)
        names.append(name)
    begun_at = time.process_time()
    await store.complete(upload, names)
    completing_seconds = time.process_time() - begun_at
    begun_at = time.process_time()
    with part_file(root, upload, 1).open("rb") as source, (root / "copy").open("wb") as target:
        shutil.copyfileobj(source, target, MIB)
    copying_seconds = (time.process_time() - begun_at) * count
    assert completing_seconds * 50 < copying_seconds
    known = await store.head(upload.revision)
    assert known is not None
    assert known.size == 10 * GIB
    assert await read(store, upload.revision, Span(size - 1, 2 * size + 1)) == bytes(size + 2)


def part_header(template: bytes, number: int, size: int, checksum: bytes, md5: bytes) -> tuple[bytes, PartName]:
    """The header of another part of the upload of which ``template`` is one, and how the part is named."""
    fixed = bytearray(template[:88])
    fixed[12:16] = number.to_bytes(4)
    fixed[32:40] = size.to_bytes(8)
    fixed[48:64] = checksum
    fixed[64:80] = md5
    return bytes(fixed) + xxh3_64(bytes(fixed)), PartName(number, f"{md5.hex()}-{fixed[80:88].hex()}")


def xxh3_128(content: bytes) -> bytes:
    """The checksum of a payload."""
    return xxhash.xxh3_128_digest(content)


def xxh3_64(content: bytes) -> bytes:
    """The checksum of a header."""
    return xxhash.xxh3_64_digest(content)


# Damage


async def test_a_damaged_manifest(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """A flipped bit anywhere in the blob's file, and a byte more or less, is found before a byte is delivered."""
    await completed(store, upload)
    file = blob_file(root, upload)
    raw = file.read_bytes()
    for offset in range(len(raw)):
        flip(file, offset, offset % 8)
        with pytest.raises(CorruptObject):
            await store.get(upload.revision)
        file.write_bytes(raw)
    for damaged in (raw[:-1], raw + b"\0", raw[:-36]):
        file.write_bytes(damaged)
        with pytest.raises(CorruptObject):
            await store.head(upload.revision)


async def test_a_damaged_part(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """A flipped bit anywhere in a part, empty ones among them, keeps the blob from being delivered as a whole."""
    await completed(store, upload)
    for number, content in CONTENTS.items():
        file = part_file(root, upload, number)
        raw = file.read_bytes()
        assert len(raw) == PART_HEADER_BYTES + len(content)
        for offset in range(0, len(raw), 5):
            flip(file, offset, offset % 8)
            with pytest.raises(CorruptObject):
                await read(store, upload.revision)
            file.write_bytes(raw)
        file.write_bytes(raw + b"\0")
        with pytest.raises(CorruptObject):
            await read(store, upload.revision)
        file.write_bytes(raw)
    assert await read(store, upload.revision) == WHOLE


async def test_a_span_verifies_the_parts_that_it_covers(
    store: FilesystemLongTerm, root: Path, upload: UploadId
) -> None:
    """Damage is found on a read of all of a part, whatever else is read; damage elsewhere keeps nobody from a span."""
    await completed(store, upload)
    flip(part_file(root, upload, 4), PART_HEADER_BYTES + 32)
    assert await read(store, upload.revision, Span(0, 41)) == WHOLE[:41]
    with pytest.raises(CorruptObject):
        await read(store, upload.revision, Span(1, len(WHOLE)))


async def test_parts_of_others(store: FilesystemLongTerm, root: Path, upload: UploadId, ids: SeededIds) -> None:
    """A whole part of another number or upload, or stored by another request, is not taken for the right one."""
    await completed(store, upload)
    other = UploadId(Revision(upload.revision.object_id, ids.upload_uuid()), "")
    names = await begun(store, other)
    first = part_file(root, other, 1).read_bytes()
    again = await add(store, other, 1, CONTENTS[1])
    assert again.etag != names[0].etag
    await store.complete(other, [again, *names[1:]])
    for wrong in (part_file(root, other, 4).read_bytes(), part_file(root, upload, 1).read_bytes(), first):
        right = part_file(root, other, 1).read_bytes()
        part_file(root, other, 1).write_bytes(wrong)
        with pytest.raises(CorruptObject):
            await read(store, other.revision)
        part_file(root, other, 1).write_bytes(right)
    assert await read(store, other.revision) == WHOLE


async def test_a_missing_part(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """A part that is lost is damage, an empty one too, and no end of the blob; if the blob went with it, it is none."""
    await completed(store, upload)
    part_file(root, upload, 7).rename(root / "aside")
    with pytest.raises(CorruptObject, match="missing"):
        await read(store, upload.revision)
    (root / "aside").rename(part_file(root, upload, 7))
    stream = await opened(store, upload.revision)
    await store.delete(upload.revision)
    with pytest.raises(Unavailable, match="deleted"):
        b"".join([chunk async for chunk in stream])
    assert await store.get(upload.revision) is None


async def test_damage_before_completion(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """A part whose header is damaged counts as not uploaded: it is logged, and can be uploaded again."""
    names = await begun(store, upload)
    flip(part_file(root, upload, 4), 40)
    with capture_logs() as logs:
        assert [part.number for part in (await store.list_parts(upload, 0, 10)).parts] == [1, 2, 7]
        with pytest.raises(InvalidPart):
            await store.complete(upload, names)
    assert [entry["event"] for entry in logs] == ["damaged part passed over"] * 2
    names[2] = await add(store, upload, 4, CONTENTS[4])
    await store.complete(upload, names)
    assert await read(store, upload.revision) == WHOLE


async def test_a_damaged_upload(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """An upload whose file is damaged, or missing, can only be aborted."""
    names = await begun(store, upload)
    file = parts_of(root, upload) / "upload"
    raw = file.read_bytes()
    for offset in range(len(raw)):
        flip(file, offset, offset % 8)
        with pytest.raises(CorruptObject):
            await store.list_parts(upload, 0, 1)
        file.write_bytes(raw)
    file.unlink()
    with pytest.raises(CorruptObject):
        await store.complete(upload, names)
    with capture_logs() as logs:
        await store.abort(upload)
    assert [entry["event"] for entry in logs] == ["damaged upload is aborted"]
    await gone(store, root, upload)


async def test_an_upload_of_another_object(store: FilesystemLongTerm, upload: UploadId) -> None:
    """A UUID that two objects share, which cannot be, gives neither the other's upload."""
    names = await begun(store, upload)
    other = UploadId(Revision(HOSTILE_IDS[0], upload.revision.uuid), "")
    source = Source([b"x"])
    with pytest.raises(NoSuchUpload):
        await store.upload_part(other, 1, source, 1, None)
    assert source.taken == 0
    with pytest.raises(NoSuchUpload):
        await store.list_parts(other, 0, 1)
    with pytest.raises(NoSuchUpload):
        await store.complete(other, names)
    with pytest.raises(NoSuchUpload):
        await store.abort(other)
    await store.abort(other.revision)
    await store.complete(upload, names)
    await store.abort(other.revision)
    assert await read(store, upload.revision) == WHOLE


async def test_a_damaged_upload_is_aborted_by_its_revision(
    store: FilesystemLongTerm, root: Path, upload: UploadId
) -> None:
    """Of whom it was cannot be told any more; it is logged and removed, for it can never be completed."""
    for damage in (lambda file: flip(file, 40), Path.unlink):
        await begun(store, upload)
        damage(parts_of(root, upload) / "upload")
        with capture_logs() as logs:
            await store.abort(upload.revision)
        assert [entry["event"] for entry in logs] == ["damaged upload is aborted"]
        await gone(store, root, upload)


# Parts


async def test_client_mistakes(open_store: Open, root: Path, upload: UploadId) -> None:
    """What is wrong with a list of parts is said, and leaves the upload as it was."""
    store = await open_store(root, replace(Limits.tiny(), part_bytes_min=33, object_bytes_max=70))
    names = await begun(store, upload)
    for mistake, wrong in (
        (InvalidPartOrder, [names[2], names[0]]),
        (InvalidPartOrder, [names[0], names[0]]),
        (InvalidPart, [names[0], PartName(3, names[0].etag)]),
        (InvalidPart, [PartName(4, names[0].etag)]),
        (InvalidPart, [PartName(-1, ""), PartName(10**9, "")]),
        (EntityTooSmall, names),
        (ObjectTooLarge, [names[0], names[2]]),
    ):
        with pytest.raises(mistake):
            await store.complete(upload, wrong)
        assert await store.head(upload.revision) is None
        assert len((await store.list_parts(upload, 0, 10)).parts) == len(names)
    await store.complete(upload, [names[0], names[1]])
    assert await read(store, upload.revision) == CONTENTS[1]


@pytest.mark.parametrize("earlier", [False, True])
async def test_a_part_that_fails(store: FilesystemLongTerm, root: Path, upload: UploadId, earlier: bool) -> None:
    """A part whose source fails or is cancelled, or whose digest is wrong, is not stored; the one before stays."""
    await store.initiate(upload.revision)
    before = [await add(store, upload, 1, b"before")] if earlier else []
    with pytest.raises(Boom):
        await store.upload_part(upload, 1, Source([b"x" * 20, b"y"], fail_at=1), 21, None)
    with pytest.raises(ChecksumMismatch):
        await store.upload_part(upload, 1, Source([b"x"]), 1, hashlib.md5(b"y", usedforsecurity=False).digest())
    with pytest.raises(InvariantBroken):
        await store.upload_part(upload, 1, Source([b"x"]), 2, None)
    waiting = Source([b"x" * 20, b"y"], pause_at=1)
    task = asyncio.create_task(store.upload_part(upload, 1, waiting, 21, None))
    await waiting.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert temporary_files(root) == []
    assert [PartName(part.number, part.etag) for part in (await store.list_parts(upload, 0, 10)).parts] == before
    digest = hashlib.md5(b"x", usedforsecurity=False)
    part = await store.upload_part(upload, 1, Source([b"x"]), 1, digest.digest())
    assert part.etag.startswith(digest.hexdigest())


@pytest.mark.parametrize("earlier", [False, True])
async def test_cancelled_at_any_moment(store: FilesystemLongTerm, root: Path, upload: UploadId, earlier: bool) -> None:
    """Whenever an upload of a part is cancelled, it is not stored, the part before stays, and nothing is left."""
    await store.initiate(upload.revision)
    before = [await add(store, upload, 1, b"before")] if earlier else []
    ended = False
    for turns in range(200):
        task = asyncio.create_task(store.upload_part(upload, 1, Source([b"x" * 40]), 40, None))
        for _ in range(turns):
            await asyncio.sleep(0)
            await asyncio.sleep(0.0001 * (turns % 7))
        task.cancel()
        try:
            await task
            ended = True
            break
        except asyncio.CancelledError:
            found = [PartName(part.number, part.etag) for part in (await store.list_parts(upload, 0, 10)).parts]
            assert found == before
            assert temporary_files(root) == []
    assert ended, "the last one was not cancelled"


async def test_a_cancelled_part_leaves_the_one_that_replaced_it(
    store: FilesystemLongTerm, root: Path, upload: UploadId
) -> None:
    """Taking a part back takes back that part only."""
    await store.initiate(upload.revision)
    await add(store, upload, 1, b"before")
    replaced = False

    def replace_it(frame: FrameType, event: str, called: Any) -> None:
        nonlocal replaced
        if event == "c_call" and called.__name__ == "fsync" and "directory" in frame.f_locals and task and not replaced:
            replaced = True
            raw = part_file(root, upload, 1).read_bytes()
            (root / "new").write_bytes(raw)
            (root / "new").rename(part_file(root, upload, 1))
            loop.call_soon_threadsafe(task.cancel)

    loop = asyncio.get_running_loop()
    task: asyncio.Task[object] | None = None
    threading.setprofile(replace_it)
    try:
        other = await FilesystemLongTerm.open(
            root, limits=Limits.tiny(), clock=ManualClock(), ids=SeededIds(6), threads=1
        )
    finally:
        threading.setprofile(None)
    try:
        task = asyncio.create_task(other.upload_part(upload, 1, Source([b"after"]), 5, None))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert replaced
        assert part_file(root, upload, 1).read_bytes().endswith(b"after")
    finally:
        await other.close()
    assert temporary_files(root) == []


@pytest.mark.parametrize("earlier", [False, True])
async def test_cancelled_while_it_becomes_durable(
    store: FilesystemLongTerm, root: Path, upload: UploadId, earlier: bool
) -> None:
    """A part that has its name already when its caller is cancelled is taken back, and the one before is put back."""
    await store.initiate(upload.revision)
    before = [await add(store, upload, 1, b"before")] if earlier else []
    await store.check()
    loop = asyncio.get_running_loop()
    task: asyncio.Task[object] | None = None

    def cancel_it(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ == "fsync" and "directory" in frame.f_locals and task is not None:
            loop.call_soon_threadsafe(task.cancel)

    threading.setprofile(cancel_it)
    try:
        other = await FilesystemLongTerm.open(
            root, limits=Limits.tiny(), clock=ManualClock(), ids=SeededIds(6), threads=1
        )
    finally:
        threading.setprofile(None)
    try:
        task = cancelled = asyncio.create_task(other.upload_part(upload, 1, Source([b"after"]), 5, None))
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        page = await other.list_parts(upload, 0, 10)
        assert [PartName(part.number, part.etag) for part in page.parts] == before
    finally:
        await other.close()


async def test_full_disk(open_store: Open, tmp_path: Path, upload: UploadId) -> None:
    """A part that does not fit is refused, leaves nothing, and the upload goes on."""
    with small_disk(tmp_path / "disk", "4m,nr_inodes=64") as disk:
        store = await open_store(disk.path / "store", Limits(stream_chunk_bytes=64 * KIB))
        await store.initiate(upload.revision)
        name = await add(store, upload, 1, payload(MIB))
        with pytest.raises(StorageFull):
            await store.upload_part(upload, 2, Source([payload(8 * MIB)]), 8 * MIB, None)
        assert temporary_files(disk.path / "store") == []
        await store.complete(upload, [name])
        assert await read(store, upload.revision) == payload(MIB)
        await store.close()


# Crashes: the state that one leaves is built on the disk


async def test_initiate_that_was_cut_short(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """An upload whose directory was not in its place yet does not exist, and is debris."""
    dead = root / "tmp" / "018f3c2e-0000-7000-8000-000000000001"
    for files in ((), ("upload",)):
        (dead / "0").mkdir(parents=True)
        (dead / "lock").touch()
        for name in files:
            (dead / "0" / name).write_bytes(b"TIERUPLD")
        with pytest.raises(NoSuchUpload):
            await store.upload_part(upload, 1, Source([b"x"]), 1, None)
        await store.abort(upload.revision)
        assert await store.remove_debris() == 2 + len(files)
        assert not dead.exists()


async def test_complete_that_was_cut_short(open_store: Open, root: Path, upload: UploadId) -> None:
    """Before the blob's file has its name the upload is in progress; from then on it is completed for good."""
    store = await open_store(root)
    names = await begun(store, upload)
    extra = await add(store, upload, 8, b"not named")
    dead = root / "tmp" / "018f3c2e-0000-7000-8000-000000000001"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "0").write_bytes(b"TIERBLOB")
    await store.complete(upload, [*names, extra])
    assert await store.remove_debris() == 2
    # As if the process had died before the parts that are not named were removed.
    stray = part_file(root, upload, 9)
    shutil.copy(part_file(root, upload, 8), stray)
    again = await open_store(root)
    assert await read(again, upload.revision) == WHOLE + b"not named"
    await again.complete(upload, [*names, extra])
    assert not stray.exists()
    assert await read(again, upload.revision) == WHOLE + b"not named"
    with pytest.raises(NoSuchUpload):
        await again.abort(upload)
    await again.abort(upload.revision)
    with pytest.raises(NoSuchUpload):
        await again.upload_part(upload, 1, Source([b"x"]), 1, None)
    with pytest.raises(NoSuchUpload):
        await again.list_parts(upload, 0, 1)
    assert await read(again, upload.revision) == WHOLE + b"not named"
    await again.delete(upload.revision)
    await gone(again, root, upload)


async def test_abort_that_was_cut_short(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """Once the directory has been moved the upload is gone, and aborting again succeeds or says so."""
    names = await begun(store, upload)
    dead = root / "tmp" / "018f3c2e-0000-7000-8000-000000000001"
    dead.mkdir()
    (dead / "lock").touch()
    parts_of(root, upload).rename(dead / "0")
    (dead / "0" / "upload").unlink()
    with pytest.raises(NoSuchUpload):
        await store.complete(upload, names)
    with pytest.raises(NoSuchUpload):
        await store.abort(upload)
    await store.abort(upload.revision)
    assert await store.remove_debris() == 2 + len(names)
    await gone(store, root, upload)


async def test_delete_that_was_cut_short(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """A delete that removed the blob's file alone is finished by deleting, or aborting, again."""
    for again in (store.delete, store.abort):
        await completed(store, upload)
        blob_file(root, upload).unlink()
        assert await store.get(upload.revision) is None
        await again(upload.revision)
        await gone(store, root, upload)
        await store.delete(upload.revision)


async def test_what_complete_syncs(open_store: Open, root: Path, upload: UploadId) -> None:
    """The parts' names are durable before there is a blob, its file before it has a name, and its name on return."""
    calls: list[str] = []

    def record(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        if called.__name__ in {"pwritev", "rename", "unlink"}:
            calls.append(called.__name__)
        if called.__name__ == "fsync":
            synced = frame.f_locals.get("directory")
            calls.append(f"fsync {'file' if synced is None else synced.suffix or 'leaf'}")

    threading.setprofile(record)
    try:
        store = await open_store(root, threads=1)
        names = await begun(store, upload)
        await store.check()  # in the one thread, and so after what the last part left to be done
        calls.clear()
        await add(store, upload, 5, b"x")
        await store.check()
        assert calls == ["pwritev", "pwritev", "fsync file", "rename", "fsync .parts", "unlink", "unlink"]
        calls.clear()
        await store.complete(upload, names)
        assert calls == ["fsync .parts", "pwritev", "fsync file", "rename", "unlink", "fsync leaf", "unlink"]
        calls.clear()
        await store.complete(upload, names)
        assert calls == ["fsync leaf"]
        calls.clear()
        await store.delete(upload.revision)
        assert calls[:4] == ["unlink", "fsync leaf", "rename", "fsync leaf"]
    finally:
        threading.setprofile(None)


# Locks


async def test_a_part_waits_for_complete(
    store: FilesystemLongTerm, root: Path, clock: ManualClock, upload: UploadId
) -> None:
    """While another process completes or aborts, a part waits; it is stored if the upload goes on."""
    await begun(store, upload)
    with held(parts_of(root, upload), fcntl.LOCK_EX):
        task = asyncio.create_task(add(store, upload, 1, b"new"))
        for _ in range(20):
            clock.advance(0.02)
            await asyncio.sleep(0.005)
        assert not task.done()
    await advanced(clock, task)
    assert part_file(root, upload, 1).read_bytes().endswith(b"new")


async def test_a_part_that_waited_for_an_abort(
    store: FilesystemLongTerm, root: Path, clock: ManualClock, upload: UploadId
) -> None:
    """A lock on what was moved away counts for nothing: the part is refused, and nothing is left."""
    await begun(store, upload)
    with held(parts_of(root, upload), fcntl.LOCK_EX):
        task = asyncio.create_task(add(store, upload, 1, b"new"))
        for _ in range(10):
            clock.advance(0.02)
            await asyncio.sleep(0.005)
        parts_of(root, upload).rename(root / "aside")
    with pytest.raises(NoSuchUpload):
        await advanced(clock, task)
    assert not part_file(root, upload, 1).exists()
    assert temporary_files(root) == []


async def advanced(clock: ManualClock, task: asyncio.Task[Any]) -> None:
    """Let time pass until the task has ended, and raise what it raised."""
    while not task.done():
        clock.advance(0.1)
        await asyncio.sleep(0.005)
    await task


@pytest.mark.parametrize("name", ["upload_part", "complete", "abort", "delete"])
async def test_a_held_lock(
    store: FilesystemLongTerm, root: Path, clock: ManualClock, upload: UploadId, name: str
) -> None:
    """Who cannot get hold of an upload for long gives up with a retryable error, and has changed nothing."""
    names = await begun(store, upload)
    operations: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "upload_part": lambda: add(store, upload, 1, b"new"),
        "complete": lambda: store.complete(upload, names),
        "abort": lambda: store.abort(upload),
        "delete": lambda: store.delete(upload.revision),
    }
    with held(parts_of(root, upload), fcntl.LOCK_SH):
        task: asyncio.Task[Any] = asyncio.create_task(operations[name]())
        with pytest.raises(Unavailable, match="others"):
            await advanced(clock, task)
    page = await store.list_parts(upload, 0, 10)
    assert [PartName(part.number, part.etag) for part in page.parts] == names
    assert temporary_files(root) == []


class Stop:
    """Where a thread stops, once: before its first system call of a name about ``path``, until the test lets it go."""

    def __init__(self, call: str, path: Path) -> None:
        self._call, self.path = call, path
        self._reached, self._released = threading.Event(), threading.Event()

    def watch(self, frame: FrameType, called: str) -> None:
        """Wait, if it is that call."""
        about = [frame.f_locals.get(name) for name in ("directory", "file", "target")]
        about.append(getattr(frame.f_locals.get("self"), "_directory", None))
        if called == self._call and self.path in about and not self._reached.is_set():
            self._reached.set()
            assert self._released.wait(20)

    async def reached(self) -> None:
        """Until the thread has come so far."""
        while not self._reached.is_set():
            await asyncio.sleep(0.001)

    @property
    def is_released(self) -> bool:
        """Whether it was let go."""
        return self._released.is_set()

    def release(self) -> None:
        """Let it go on."""
        self._released.set()


@contextmanager
def stopping(*stops: Stop) -> Iterator[None]:
    """Let threads that are started within stop at these, for at most as long as the test goes well."""

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            for stop in stops:
                stop.watch(frame, called.__name__)

    threading.setprofile(watch)
    try:
        yield
    except BaseException:
        for stop in stops:
            stop.release()
        raise
    finally:
        threading.setprofile(None)


@contextmanager
def failing_syncs(directory: Path) -> Iterator[None]:
    """Let the first sync of a directory fail in every thread that is started within, as if the disk were full."""

    def fail(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ == "fsync" and frame.f_locals.get("directory") == directory:
            raise OSError(errno.ENOSPC, "of the disk")

    threading.setprofile(fail)
    try:
        yield
    finally:
        threading.setprofile(None)


@pytest.mark.parametrize("name", ["complete", "complete again", "head"])
async def test_a_blob_that_cannot_be_made_durable(open_store: Open, root: Path, upload: UploadId, name: str) -> None:
    """It is there, so nobody is told that nothing was stored, and nobody that it was until the disk works again."""
    other = await open_store(root)
    names = await begun(other, upload)
    if name != "complete":
        await other.complete(upload, names)
    with failing_syncs(blob_file(root, upload).parent):
        store = await open_store(root, threads=1)
        with pytest.raises(Unavailable) as raised:
            await (store.head(upload.revision) if name == "head" else store.complete(upload, names))
    assert type(raised.value) is Unavailable
    await store.complete(upload, names)
    known = await store.head(upload.revision)
    assert known is not None
    assert known.size == len(WHOLE)


async def test_completing_needs_no_reserve(open_store: Open, root: Path, clock: ManualClock, upload: UploadId) -> None:
    """The parts are there: a disk that is filled up to the reserve takes the small file that makes a blob of them."""
    names = await begun(await open_store(root), upload)
    full = await FilesystemLongTerm.open(
        root, limits=Limits.tiny(), clock=clock, ids=SeededIds(6), reserve_bytes=1 << 60
    )
    try:
        with pytest.raises(StorageFull):
            await add(full, upload, 8, b"x")
        await full.complete(upload, names)
        assert await read(full, upload.revision) == WHOLE
    finally:
        await full.close()


async def test_a_reader_whose_blob_goes_before_its_first_byte(open_store: Open, root: Path, upload: UploadId) -> None:
    """There is no blob for it, rather than a failure: so it looks for what has come in its place."""
    other = await open_store(root)
    await completed(other, upload)
    stop = Stop("open", part_file(root, upload, 1))
    with stopping(stop):
        store = await open_store(root)
        reading = asyncio.create_task(store.get(upload.revision))
        await stop.reached()
        await other.delete(upload.revision)
        stop.release()
        assert await reading is None


@pytest.mark.parametrize("name", ["complete", "abort", "delete"])
async def test_the_wait_for_the_own_process_is_bounded_too(
    open_store: Open, root: Path, upload: UploadId, name: str
) -> None:
    """While an operation of the same instance goes on and on with an upload, the next ones give up in time."""
    names = await begun(await open_store(root), upload)
    stop = Stop("fsync", parts_of(root, upload))
    with stopping(stop):
        store = await open_store(root, replace(Limits.tiny(), upload_lock_wait_seconds_max=0.05))
        completing = asyncio.create_task(store.complete(upload, names))
        await stop.reached()
        operations: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "complete": lambda: store.complete(upload, names),
            "abort": lambda: store.abort(upload),
            "delete": lambda: store.delete(upload.revision),
        }
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="others"):
                await operations[name]()
        assert not completing.done()
        stop.release()
        await completing
    assert await read(store, upload.revision) == WHOLE


@pytest.mark.parametrize("ends_well", [True, False])
async def test_a_part_that_has_come_waits_for_its_turn(
    open_store: Open, root: Path, upload: UploadId, ends_well: bool
) -> None:
    """It is not refused because its own process has been busy with the upload for long, but by how that ends."""
    names = await begun(await open_store(root), upload)
    wrong = [*names[:-1], PartName(names[-1].number, "none")]
    stop = Stop("flock", parts_of(root, upload))
    with stopping(stop):
        store = await open_store(root, replace(Limits.tiny(), upload_lock_wait_seconds_max=0.05))
        completing = asyncio.create_task(store.complete(upload, names if ends_well else wrong))
        await stop.reached()
        adding = asyncio.create_task(add(store, upload, 1, b"new"))
        await asyncio.sleep(0.3)
        assert not adding.done()
        stop.release()
        await asyncio.wait([completing, adding])
    if ends_well:
        assert isinstance(adding.exception(), NoSuchUpload)
        assert await read(store, upload.revision) == WHOLE
    else:
        assert isinstance(completing.exception(), InvalidPart)
        await store.complete(upload, [adding.result()])
        assert await read(store, upload.revision) == b"new"


async def test_many_parts_at_once_share_their_syncs(open_store: Open, root: Path, upload: UploadId) -> None:
    """Parts that are finished while others become durable get their names together, and one sync is enough for them."""
    count = 300
    syncs = []
    stop = Stop("fsync", parts_of(root, upload))

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ == "fsync" and frame.f_locals.get("directory") == stop.path:
            syncs.append(called)
            stop.watch(frame, "fsync")

    await (await open_store(root)).initiate(upload.revision)
    threading.setprofile(watch)
    try:
        store = await open_store(root, replace(Limits.tiny(), parts_max=count, upload_lock_wait_seconds_max=0.05))
        adding = [asyncio.create_task(add(store, upload, number, b"x")) for number in range(1, count + 1)]
        await stop.reached()
        while len((await store.list_parts(upload, 0, count)).parts) < count:
            await asyncio.sleep(0.05)
        assert not any(task.done() for task in adding)
        stop.release()
        names = await asyncio.gather(*adding)
    finally:
        threading.setprofile(None)
    assert len(syncs) == 2
    await store.complete(upload, names)
    assert await read(store, upload.revision) == b"x" * count


async def test_a_sync_that_fails_fails_all_that_it_was_for(open_store: Open, root: Path, upload: UploadId) -> None:
    """A part that had its name when the sync of another one failed may not be durable, and no later sync can tell."""
    await (await open_store(root)).initiate(upload.revision)
    stop = Stop("fsync", parts_of(root, upload))

    def fail(frame: FrameType, event: str, called: Any) -> None:
        synced = frame.f_locals.get("directory") if event == "c_call" and called.__name__ == "fsync" else None
        if synced == stop.path and not stop.is_released:
            stop.watch(frame, "fsync")
            raise OSError(errno.EIO, "of the disk")

    threading.setprofile(fail)
    try:
        store = await open_store(root)
        first = asyncio.create_task(add(store, upload, 1, b"first"))
        await stop.reached()
        second = asyncio.create_task(add(store, upload, 2, b"second"))
        while len((await store.list_parts(upload, 0, 10)).parts) < 2:
            await asyncio.sleep(0.001)
        stop.release()
        await asyncio.wait([first, second])
        assert type(first.exception()) is type(second.exception()) is Unavailable
        names = [await add(store, upload, number, b"again") for number in (1, 2)]
    finally:
        threading.setprofile(None)
    await store.complete(upload, names)


async def test_a_part_that_cannot_get_its_name(open_store: Open, root: Path, upload: UploadId) -> None:
    """It alone is refused, the one before it stays, and those that were to get theirs with it do."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    before = await add(other, upload, 1, b"before")
    stop = Stop("fsync", parts_of(root, upload))

    def fail(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        stop.watch(frame, called.__name__)
        if called.__name__ == "rename" and frame.f_locals.get("target") == part_file(root, upload, 1):
            raise OSError(errno.ENOSPC, "of the disk")

    threading.setprofile(fail)
    try:
        store = await open_store(root, threads=4)
        held_up = asyncio.create_task(add(store, upload, 7, b"7"))
        await stop.reached()
        with held(parts_of(root, upload), fcntl.LOCK_EX):
            adding = [asyncio.create_task(add(store, upload, number, b"new")) for number in (2, 1, 3)]
            while not all(len(path.read_bytes()) == PART_HEADER_BYTES + 3 for path in temporary_files(root)[:3]):
                await asyncio.sleep(0.001)
        stop.release()
        names = await asyncio.gather(*adding, return_exceptions=True)
        names.append(await held_up)
    finally:
        threading.setprofile(None)
    assert isinstance(names[1], StorageFull)
    await store.complete(upload, [before, *(name for name in names if isinstance(name, PartName))])
    assert await read(store, upload.revision) == b"beforenewnew7"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_two_cancelled_replacements(open_store: Open, root: Path, upload: UploadId, order: Sequence[int]) -> None:
    """When a part was replaced twice, by two processes, and both are cancelled in any order, it is there again."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    stored = await add(other, upload, 1, b"stored")
    stops = [Stop("fsync", parts_of(root, upload)) for _ in order]
    replacing = []
    for number, stop in enumerate(stops):
        with stopping(stop):
            store = await open_store(root)
            replacing.append(asyncio.create_task(add(store, upload, 1, b"doomed %d" % number)))
            await stop.reached()
    for number in order:
        replacing[number].cancel()
        stops[number].release()
        await asyncio.wait([replacing[number]])
        assert replacing[number].cancelled()
    await check_only_is(other, root, upload, stored, b"stored")


async def test_two_cancelled_replacements_of_one_process(
    open_store: Open, root: Path, clock: ManualClock, upload: UploadId
) -> None:
    """The same where one process has replaced it twice, and one sync would have been for both."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    stored = await add(other, upload, 1, b"stored")
    stop = Stop("fsync", parts_of(root, upload))
    with stopping(stop):
        store = await open_store(root)
        replacing = [asyncio.create_task(add(store, upload, 1, b"doomed 0"))]
        await stop.reached()
        replacing.append(asyncio.create_task(add(store, upload, 1, b"doomed 1")))
        while not part_file(root, upload, 1).read_bytes().endswith(b"doomed 1"):
            await asyncio.sleep(0.001)
        for task in replacing:
            task.cancel()
        stop.release()
        while not all(task.done() for task in replacing):
            clock.advance(0.02)
            await asyncio.sleep(0.002)
    assert [task.cancelled() for task in replacing] == [True, True]
    await check_only_is(other, root, upload, stored, b"stored")


async def check_only_is(
    store: FilesystemLongTerm, root: Path, upload: UploadId, name: PartName, content: bytes
) -> None:
    """Check that the upload has this part, and nothing is left of others; complete it."""
    assert temporary_files(root) == []
    assert {path.name for path in parts_of(root, upload).iterdir()} == {"upload", f"{name.number:05d}.part"}
    await store.complete(upload, [name])
    assert await read(store, upload.revision) == content


async def test_cancelled_again_and_again(open_store: Open, root: Path, clock: ManualClock, upload: UploadId) -> None:
    """A part is taken back however often its caller is cancelled while that waits for another process."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    stored = await add(other, upload, 1, b"stored")
    stop = Stop("fsync", parts_of(root, upload))
    with stopping(stop):
        store = await open_store(root)
        task = asyncio.create_task(add(store, upload, 1, b"doomed"))
        await stop.reached()
        with held(parts_of(root, upload), fcntl.LOCK_EX):
            task.cancel()
            stop.release()
            for _ in range(20):
                await asyncio.sleep(0.002)
                task.cancel()
            assert not task.done()
        while not task.done():
            clock.advance(0.02)
            await asyncio.sleep(0.002)
    assert task.cancelled()
    await other.complete(upload, [stored])
    assert await read(other, upload.revision) == b"stored"


async def test_a_cancelled_part_whose_upload_stays_held(
    open_store: Open, root: Path, clock: ManualClock, upload: UploadId
) -> None:
    """Taking a part back is given up in time, and said so."""
    await (await open_store(root)).initiate(upload.revision)
    stop = Stop("fsync", parts_of(root, upload))
    with stopping(stop):
        store = await open_store(root)
        task = asyncio.create_task(add(store, upload, 1, b"doomed"))
        await stop.reached()
        with held(parts_of(root, upload), fcntl.LOCK_EX), capture_logs() as logs:
            task.cancel()
            stop.release()
            while not task.done():
                clock.advance(0.5)
                await asyncio.sleep(0.002)
    assert task.cancelled()
    assert [line["event"] for line in logs] == ["cancelled part not withdrawn"]


async def test_a_part_that_is_cancelled_while_others_publish_it(
    open_store: Open, root: Path, clock: ManualClock, upload: UploadId
) -> None:
    """Whoever publishes it, it is taken back; and one that is not being published yet never is."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    busy, naming = Stop("flock", parts_of(root, upload)), Stop("rename", part_file(root, upload, 2))
    with stopping(busy, naming):
        store = await open_store(root, threads=6)
        adding = [asyncio.create_task(add(store, upload, 1, b"1"))]
        await busy.reached()
        for number in (2, 3):
            adding.append(asyncio.create_task(add(store, upload, number, b"new")))
            while len([path for path in temporary_files(root) if path.stat().st_size > PART_HEADER_BYTES]) < number:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # they wait for their turn by then
        adding[2].cancel()
        await asyncio.wait([adding[2]])
        busy.release()
        await naming.reached()
        adding[1].cancel()
        await asyncio.sleep(0.02)
        assert not adding[1].done()
        naming.release()
        name = await adding[0]
        while not adding[1].done():
            clock.advance(0.02)
            await asyncio.sleep(0.002)
    assert [task.cancelled() for task in adding] == [False, True, True]
    page = await store.list_parts(upload, 0, 10)
    assert [PartName(part.number, part.etag) for part in page.parts] == [name]


async def test_what_dead_writers_kept_goes_with_the_end(
    store: FilesystemLongTerm, root: Path, upload: UploadId
) -> None:
    """What a process that died kept of a part that it had replaced is removed when the upload is completed."""
    names = await begun(store, upload)
    os.link(part_file(root, upload, 1), parts_of(root, upload) / "00001.0001020304050607.before")
    await store.complete(upload, names)
    assert list(parts_of(root, upload).glob("*.before")) == []
    assert await read(store, upload.revision) == WHOLE


async def test_completing_again_with_another_name(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """Whatever is not the whole ETag of a part is no name of it, also when the upload has been completed."""
    names = await completed(store, upload)
    etag = names[0].etag
    digest, nonce = etag.split("-")
    others = [etag.upper(), f"garbage-{nonce}", f"{digest}-{'0' * 16}", nonce, f" {etag}", f"{etag}\n", ""]
    for other in others:
        with pytest.raises(InvalidPart):
            await store.complete(upload, [PartName(1, other), *names[1:]])
    await store.complete(upload, names)
    part_file(root, upload, 1).unlink()
    with pytest.raises(CorruptObject, match="part 1 is missing"):
        await store.complete(upload, names)


async def test_no_process_waits_for_the_sync_of_another_ones_part(
    open_store: Open, root: Path, upload: UploadId
) -> None:
    """The lock is held while a part gets its name, and not while the name is made durable."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    stop = Stop("fsync", parts_of(root, upload))
    with stopping(stop):
        slow = await open_store(root)
        waiting = asyncio.create_task(add(slow, upload, 1, b"slow"))
        await stop.reached()
        await add(other, upload, 2, b"quick")
        stop.release()
        await other.complete(upload, [await waiting])
    assert await read(slow, upload.revision) == b"slow"


@pytest.mark.parametrize("ended_by", ["abort", "delete"])
async def test_a_part_whose_upload_ends_before_it_is_durable(
    open_store: Open, root: Path, upload: UploadId, ended_by: str
) -> None:
    """It is refused, for it has gone with the upload, and nothing is left."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    stop = Stop("open", parts_of(root, upload))
    with stopping(stop):
        slow = await open_store(root)
        waiting = asyncio.create_task(add(slow, upload, 1, b"slow"))
        await stop.reached()
        await (other.abort if ended_by == "abort" else other.delete)(upload.revision)
        stop.release()
        with pytest.raises(NoSuchUpload):
            await waiting
    await gone(other, root, upload)


async def test_a_part_that_is_taken_back_takes_nothing_of_another_process(
    open_store: Open, root: Path, clock: ManualClock, upload: UploadId
) -> None:
    """No part comes between what a part remembers of the one before and its own name, so no stored part is lost."""
    other = await open_store(root)
    await other.initiate(upload.revision)
    await add(other, upload, 1, b"before")
    named, synced = Stop("rename", part_file(root, upload, 1)), Stop("fsync", parts_of(root, upload))
    with stopping(named, synced):
        store = await open_store(root)
        doomed = asyncio.create_task(add(store, upload, 1, b"doomed"))
        await named.reached()
        storing = asyncio.create_task(add(other, upload, 1, b"stored"))
        await asyncio.sleep(0.05)
        named.release()
        await synced.reached()
        await advanced(clock, storing)
        doomed.cancel()
        await asyncio.sleep(0.01)
        synced.release()
        await asyncio.wait([doomed])
    assert doomed.cancelled()
    (part,) = (await other.list_parts(upload, 0, 10)).parts
    assert PartName(part.number, part.etag) == storing.result()
    await other.complete(upload, [storing.result()])
    assert await read(other, upload.revision) == b"stored"


@pytest.mark.parametrize("seed", range(6))
async def test_two_instances_race(
    open_store: Open, root: Path, clock: ManualClock, upload: UploadId, seed: int
) -> None:
    """Of completes, aborts and parts through two instances, one end takes effect; a blob is whole, or nothing is."""
    stores = [await open_store(root), await open_store(root)]
    names = await begun(stores[0], upload)
    operations: list[asyncio.Task[Any]] = []
    for turn in range(8):
        store = stores[(turn + seed) % 2]
        operations.append(asyncio.create_task(store.complete(upload, names)))
        operations.append(asyncio.create_task(stores[turn % 2].abort(upload)))
        operations.append(asyncio.create_task(add(store, upload, 8, b"late")))
        if seed % 3:
            await asyncio.sleep(0.001 * (seed % 3))
    while not all(task.done() for task in operations):
        clock.advance(0.02)
        await asyncio.sleep(0.002)
    for task in operations:
        error = task.exception()
        assert error is None or isinstance(error, NoSuchUpload)
    if await stores[0].head(upload.revision) is None:
        await gone(stores[1], root, upload)
    else:
        assert await read(stores[1], upload.revision) == WHOLE
        assert not part_file(root, upload, 8).exists()
        with pytest.raises(NoSuchUpload):
            await stores[1].abort(upload)


async def test_cancelled_initiate(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """Whenever an upload's beginning is cancelled, there is none, and nothing is left."""
    ended = False
    for turns in range(100):
        task = asyncio.create_task(store.initiate(upload.revision))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
            ended = True
            break
        except asyncio.CancelledError:
            await gone(store, root, upload)
    if ended:
        assert parts_of(root, upload).exists()


async def test_kinds_of_headers(store: FilesystemLongTerm, root: Path, upload: UploadId, revision: Revision) -> None:
    """From a blob's file alone its object and size can be told, however it was made."""
    await completed(store, upload)
    await store.put(revision, Source([b"plain"]), None)
    header = read_header(blob_file(root, upload))
    assert header is not None
    assert (header.path, header.size, header.parts) == (upload.revision.storage_path, len(WHOLE), len(CONTENTS))
    plain = read_header(blob_file(root, UploadId(revision, "")))
    assert plain is not None
    assert (plain.size, plain.parts) == (5, 0)
    assert set(await listed(store)) == {upload.revision, revision}


async def test_begun_twice(store: FilesystemLongTerm, root: Path, upload: UploadId) -> None:
    """A second beginning of one upload, which is not to be, does not touch the first."""
    names = await begun(store, upload)
    with pytest.raises(TierstoreError):
        await store.initiate(upload.revision)
    assert temporary_files(root) == []
    await store.complete(upload, names)
    assert await read(store, upload.revision) == WHOLE
