"""A bucket of Google Cloud Storage for one test: behind a strict server, with credentials, and short waits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_tokens import credentials_file
from tests.engines.gcs_xml import StrictGcs
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.gcs import GcsLongTerm
from tierstore.clock import Clock, SystemClock
from tierstore.limits import KIB, Limits
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import Source, object_id, payload
from tierstore.types.ids import Revision
from tierstore.types.multipart import PartName, UploadId

LIMITS = replace(Limits(), object_store_pause_seconds_max=0.02, operation_wait_seconds_max=0.5)
TIMEOUT_SECONDS = 0.5
CONTENT = payload(300 * KIB)


class Bench:
    """A bucket, and what is before it."""

    def __init__(self, server: StrictGcs, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self.ids = SeededIds(5)

    def revision(self, *, upload: bool = False) -> Revision:
        """One that nobody has had."""
        return Revision(object_id(), self.ids.upload_uuid() if upload else self.ids.uuid())

    async def open(
        self,
        endpoint: str = "",
        *,
        bucket: str = "",
        clock: Clock | None = None,
        connections: int = 16,
        limits: Limits = LIMITS,
    ) -> GcsLongTerm:
        """One instance, which reaches the bucket at ``endpoint``."""
        return await GcsLongTerm.open(
            bucket=bucket or self.bucket,
            endpoint=endpoint or self.server.address,
            timeout_seconds=TIMEOUT_SECONDS,
            connections_max=connections,
            limits=limits,
            clock=clock or SystemClock(),
            ids=SeededIds(6),
        )

    @asynccontextmanager
    async def opened(
        self, endpoint: str = "", *, clock: Clock | None = None, connections: int = 16, limits: Limits = LIMITS
    ) -> AsyncIterator[GcsLongTerm]:
        """Likewise, closed at the end."""
        store = await self.open(endpoint, clock=clock, connections=connections, limits=limits)
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def new_bench(engine: FakeGcs, directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A new bucket behind a strict server; credentials for it are where google-auth looks for them."""
    async with StrictGcs(engine.url) as server:
        bucket = engine.new_bucket()
        await server.make_bucket(bucket)
        file = credentials_file(directory, server.token_uri)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        yield Bench(server, bucket)


async def begun(store: LongTermBackend, bench: Bench, *sizes: int) -> tuple[UploadId, list[PartName]]:
    """An upload in progress, with parts of these sizes."""
    revision = bench.revision(upload=True)
    upload = UploadId(revision, await store.initiate(revision))
    names = []
    for number, size in enumerate(sizes, start=1):
        part = await store.upload_part(upload, number, Source([payload(size)]), size, None)
        names.append(PartName(number, part.etag))
    return upload, names
