"""What the store keeps in Google Cloud Storage, beyond what the laws of every store say."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_bench import CONTENT, Bench, begun, new_bench
from tests.engines.gcs_uploads import StoredPart
from tierstore.errors import Unavailable
from tierstore.limits import Limits
from tierstore.object_storage.names import Names
from tierstore.testing.laws.long_term import CHUNK, Source, listed, payload, read, read_damaged
from tierstore.testing.laws.long_term import LIMITS as CHUNKED
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.multipart import PartName
from tierstore.types.ranges import Span
from tierstore.types.timestamps import format_timestamp


@pytest.fixture
async def bench(fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A new bucket behind a strict server, and credentials for it."""
    async with new_bench(fake_gcs, tmp_path, monkeypatch) as bench:
        yield bench


async def records(engine: FakeGcs, bucket: str) -> list[Mapping[str, Any]]:
    """What the engine itself says of all objects."""
    async with (
        aiohttp.ClientSession(engine.url) as session,
        session.get(f"/storage/v1/b/{bucket}/o") as answer,
    ):
        return list((await answer.json()).get("items", ()))


async def test_objects_have_the_time_of_their_write(bench: Bench, fake_gcs: FakeGcs) -> None:
    """``customTime``, for lifecycle rules, be it of a put or of an upload; and nothing but bytes for a type."""
    async with bench.opened() as store:
        await store.put(bench.revision(), Source([CONTENT]), len(CONTENT))
        upload, names = await begun(store, bench, 3)
        await store.complete(upload, names)
        known = await store.head(upload.revision)
    assert known is not None
    found = await records(fake_gcs, bench.bucket)
    assert len(found) == 2
    for record in found:
        assert record["contentType"] == "application/octet-stream"
        assert record["customTime"][:13] in {format_timestamp(known.stored + ago)[:13] for ago in (0, -600_000_000)}


async def test_the_identity_is_no_blob(bench: Bench, fake_gcs: FakeGcs) -> None:
    """It is an object of its own, without ``customTime``, so that no rule for blobs meets it, and in no listing."""
    async with bench.opened() as store:
        await store.adopt(bench.ids.uuid())
        assert await listed(store) == []
    (record,) = await records(fake_gcs, bench.bucket)
    assert record["name"] == "tierstore/identity"
    assert "customTime" not in record


async def test_what_was_stored_wrongly_is_not_acknowledged(bench: Bench, fake_gcs: FakeGcs) -> None:
    """Where the service has another checksum than what was sent, the put fails and is taken back, and a part fails."""
    async with bench.opened() as store:
        bench.server.checksums_wrong = 1
        with pytest.raises(Unavailable, match="other bytes"):
            await store.put(bench.revision(), Source([CONTENT]), len(CONTENT))
        assert await records(fake_gcs, bench.bucket) == []
        upload, _ = await begun(store, bench)
        bench.server.checksums_wrong = 1
        with pytest.raises(Unavailable, match="other bytes"):
            await store.upload_part(upload, 1, Source([CONTENT]), len(CONTENT), None)
        part = await store.upload_part(upload, 1, Source([CONTENT]), len(CONTENT), None)
        await store.complete(upload, [PartName(1, part.etag)])
        assert await read(store, upload.revision) == CONTENT


async def test_other_bytes_than_were_asked_for_are_not_handed_out(bench: Bench) -> None:
    """Where something between does not know ranges, a span is unavailable; the whole can be read."""
    async with bench.opened() as store:
        revision = bench.revision()
        await store.put(revision, Source([CONTENT]), len(CONTENT))
        bench.server.ignores_ranges = True
        with pytest.raises(Unavailable, match="other bytes"):
            await store.get(revision, Span(3, 5))
        assert await read(store, revision) == CONTENT


async def test_bytes_that_trickle_are_held_back(bench: Bench) -> None:
    """Of a damaged blob the last chunk is not handed out, however small the pieces are in which it comes."""
    content = payload(3 * CHUNK)
    async with bench.opened(limits=CHUNKED) as store:
        revision = bench.revision()
        await store.put(revision, Source([content]), len(content))
        name = Names("tierstore").blob(revision)
        bench.server.trickles = True
        await bench.server.damage(bench.bucket, name, payload=content)
        assert await read(store, revision) == content
        for position in (0, len(content) - 1):
            damaged = bytearray(content)
            damaged[position] ^= 1
            await bench.server.damage(bench.bucket, name, payload=bytes(damaged))
            assert 0 < await read_damaged(store, revision) <= 2 * CHUNK


async def test_the_longest_names(bench: Bench) -> None:
    """Blobs of the longest paths are stored and read and removed like any; only listings pass over them."""
    scopes = tuple(Scope(f"s{number}" + "n" * 250, "v" * 256) for number in range(Limits().scopes_max))
    revision = Revision(ObjectId("photos", scopes, "\U0001f600" * 1024), bench.ids.uuid())
    async with bench.opened() as store:
        await store.put(revision, Source([CONTENT]), len(CONTENT))
        assert await read(store, revision) == CONTENT
        assert await listed(store) == []
        await store.delete(revision)
        assert await store.head(revision) is None


async def test_thousands_of_things_are_listed_in_pages(bench: Bench) -> None:
    """More parts than the service lists at once are listed and counted, and more uploads of one object are ended."""
    async with bench.opened() as store:
        upload, _ = await begun(store, bench)
        raw = bench.server.uploads.in_progress(
            bench.bucket, bench.server.uploads.all_in_progress(bench.bucket)[0].name, upload.store_id
        )
        for number in range(1, 2_502):
            raw.parts[number] = StoredPart(number, b"x")
        page = await store.list_parts(upload, 0, 10_000)
        assert ([part.number for part in page.parts], page.truncated) == (list(range(1, 2_502)), False)
        page = await store.list_parts(upload, 100, 1_500)
        assert ([part.number for part in page.parts], page.truncated) == (list(range(101, 1_601)), True)
        for _ in range(1_200):
            bench.server.uploads.begin(bench.bucket, raw.name, {})
        await store.abort(upload.revision)
        assert bench.server.uploads.all_in_progress(bench.bucket) == []
