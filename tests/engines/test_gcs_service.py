"""What Google's service is taken to do: asked of the service itself, if one wishes, and of its strict stand-in always.

``TIERSTORE_TEST_GCS_BUCKET`` names a bucket, which the application default credentials may use; the tests work below a
prefix of their own, and remove what they have made. Without it they are skipped, also with ``CI=true``.
"""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_bench import new_bench
from tierstore.backends.long_term.gcs import GcsLongTerm
from tierstore.clock import SystemClock
from tierstore.errors import ChecksumMismatch, EntityTooSmall, InvalidPart, InvalidPartOrder, NoSuchUpload
from tierstore.idsource import SystemIds
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.laws.long_term import Boom, Source, cut, listed, object_id, payload, read
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span

BUCKET = "TIERSTORE_TEST_GCS_BUCKET"
SERVICES = ("stand-in", "google")
PART = 5 * MIB


@pytest.fixture(params=SERVICES)
async def store(
    request: pytest.FixtureRequest, fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[GcsLongTerm]:
    """A store that is empty, and whose objects are gone afterwards."""
    bucket, endpoint = os.environ.get(BUCKET, ""), ""
    async with AsyncExitStack() as stack:
        if request.param == "stand-in":
            bench = await stack.enter_async_context(new_bench(fake_gcs, tmp_path, monkeypatch))
            bucket, endpoint = bench.bucket, bench.server.address
        elif not bucket:
            pytest.skip(f"{BUCKET} names no bucket of Google Cloud Storage")
        prefix = f"tierstore-tests/{SystemIds().uuid()}"
        store = await GcsLongTerm.open(
            bucket=bucket, endpoint=endpoint, prefix=prefix, limits=Limits(), clock=SystemClock(), ids=SystemIds()
        )
        stack.push_async_callback(store.close)
        yield store
        for revision in await listed(store):
            await store.delete(revision)
        identity = store._addresses.resource(store._names.identity)  # because no method removes it
        await store._transport.ask("DELETE", identity)  # because of the same


def new_revision(*, upload: bool = False) -> Revision:
    """One that nobody has had."""
    return Revision(object_id(), SystemIds().upload_uuid() if upload else SystemIds().uuid())


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
@pytest.mark.parametrize("known_size", [True, False])
async def test_puts(store: GcsLongTerm, size: int, known_size: bool) -> None:
    """A payload of known or unknown length is stored by one request, read whole and in ranges, listed and removed."""
    revision, content = new_revision(), payload(size)
    known = await store.put(revision, Source(cut(content, 100 * KIB)), size if known_size else None)
    assert known.size == size
    assert await store.head(revision) == known
    assert await read(store, revision) == content
    if size > 1:
        assert await read(store, revision, Span(1, size - 1)) == content[1:-1]
        assert await read(store, revision, Span(0, size)) == content
    assert list(await store.list("", None, 10)) == [known]
    await store.delete(revision)
    await store.delete(revision)
    assert await store.head(revision) is None
    assert await store.get(revision) is None


@pytest.mark.parametrize("known_size", [True, False])
async def test_a_put_that_is_cut_short_leaves_nothing(store: GcsLongTerm, known_size: bool) -> None:
    """Neither with a length that was announced, nor without."""
    revision, content = new_revision(), payload(2 * MIB)
    source = Source(cut(content, 100 * KIB), fail_at=12)
    with pytest.raises(Boom):
        await store.put(revision, source, len(content) if known_size else None)
    assert await store.head(revision) is None


async def test_an_upload(store: GcsLongTerm) -> None:
    """Its parts are checked, listed, replaced and named by their ETags; repeating its end is no error."""
    revision = new_revision(upload=True)
    upload = UploadId(revision, await store.initiate(revision))
    one, two, three = payload(PART), payload(PART + 1), payload(7)
    with pytest.raises(ChecksumMismatch):
        await store.upload_part(upload, 1, Source([one]), len(one), bytes(16))
    stale = await store.upload_part(upload, 1, Source([two]), len(two), None)
    parts = [
        await store.upload_part(upload, number, Source(cut(part, 100 * KIB)), len(part), None)
        for number, part in enumerate((one, two, three), start=1)
    ]
    page = await store.list_parts(upload, 0, 2)
    assert [(part.number, part.etag, part.size) for part in page.parts] == [
        (part.number, part.etag, part.size) for part in parts[:2]
    ]
    assert page.truncated
    names = [PartName(part.number, part.etag) for part in parts]
    with pytest.raises(InvalidPart):
        await store.complete(upload, [PartName(1, stale.etag), *names[1:]])
    with pytest.raises(InvalidPartOrder):
        await store.complete(upload, names[::-1])
    last = await store.upload_part(upload, 4, Source([b"last"]), 4, None)
    with pytest.raises(EntityTooSmall):
        await store.complete(upload, [*names, PartName(4, last.etag)])
    assert await store.head(revision) is None
    await store.complete(upload, names)
    await store.complete(upload, names)
    assert await read(store, revision) == one + two + three
    with pytest.raises(NoSuchUpload):
        await store.list_parts(upload, 0, 3)
    with pytest.raises(NoSuchUpload):
        await store.upload_part(upload, 1, Source([one]), len(one), None)
    with suppress(NoSuchUpload):
        await store.abort(upload)
    await store.abort(revision)
    assert await read(store, revision) == one + two + three
    await store.delete(revision)
    with suppress(NoSuchUpload):
        await store.complete(upload, names)
    assert await store.head(revision) is None


async def test_an_upload_that_is_aborted(store: GcsLongTerm) -> None:
    """By its id or by its revision, once or twice: no blob comes of it."""
    for by_revision in (False, True):
        revision = new_revision(upload=True)
        upload = UploadId(revision, await store.initiate(revision))
        part = await store.upload_part(upload, 1, Source([b"part"]), 4, None)
        for _ in range(2):
            with suppress(NoSuchUpload):
                await store.abort(revision if by_revision else upload)
        with pytest.raises(NoSuchUpload):
            await store.list_parts(upload, 0, 3)
        with pytest.raises(NoSuchUpload):
            await store.complete(upload, [PartName(1, part.etag)])
        assert await store.head(revision) is None


async def test_an_empty_part(store: GcsLongTerm) -> None:
    """An upload of one part without bytes is a blob without bytes."""
    revision = new_revision(upload=True)
    upload = UploadId(revision, await store.initiate(revision))
    part = await store.upload_part(upload, 1, Source([]), 0, None)
    await store.complete(upload, [PartName(1, part.etag)])
    assert await read(store, revision) == b""


async def test_the_identity_is_kept_once(store: GcsLongTerm) -> None:
    """By a precondition of the service."""
    assert await store.identity() is None
    one, other = SystemIds().uuid(), SystemIds().uuid()
    assert await store.adopt(one) == one
    assert await store.adopt(other) == one
    assert await store.identity() == one
    await store.check()


async def test_names(store: GcsLongTerm) -> None:
    """A sample of names that have broken stores before, the longest among them, be it of a put or of an upload."""
    ids = [HOSTILE_IDS[number] for number in range(0, len(HOSTILE_IDS), 9)]
    ids += sorted(HOSTILE_IDS, key=lambda each: len(each.storage_path))[-3:]
    revisions = [Revision(each, SystemIds().uuid()) for each in ids]
    for revision in revisions:
        await store.put(revision, Source([b"x"]), 1)
    assert set(await listed(store, page=7)) == set(revisions)
    longest = Revision(ids[-1], SystemIds().upload_uuid())
    upload = UploadId(longest, await store.initiate(longest))
    part = await store.upload_part(upload, 1, Source([b"x"]), 1, None)
    await store.complete(upload, [PartName(1, part.etag)])
    assert longest in await listed(store)
