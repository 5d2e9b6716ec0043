"""The long-term store in a bucket of Google Cloud Storage keeps the laws: beside fake-gcs-server, and on the real one.

The code under test talks to `tests.engines.gcs_xml`, which demands tokens and adds what fake-gcs-server lacks; the back
door asks fake-gcs-server itself.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import aiohttp
import pytest
from yarl import URL

from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_tokens import credentials_file
from tests.engines.gcs_xml import StrictGcs
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.gcs import GcsLongTerm
from tierstore.limits import Limits
from tierstore.object_storage.names import Names
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import LongTermLaws
from tierstore.types.ids import Revision
from tierstore.types.multipart import UploadId

_PREFIX = "of/a-test"


class TestGcs(LongTermLaws):
    """A bucket."""

    tells_parts = False
    heads_look_at_payloads = False
    races = 8
    moments = 16
    stored_seconds_apart = 2.0
    """The service's answer to a part has its ``Date``, to the second; its listing has milliseconds."""

    @pytest.fixture(autouse=True)
    async def _store(self, fake_gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        self.clock = ManualClock()
        self.names = Names(_PREFIX)
        self.bucket = fake_gcs.new_bucket()
        self.seeds = iter(range(100, 10_000))
        async with AsyncExitStack() as stack:
            self.server = await stack.enter_async_context(StrictGcs(fake_gcs.url, part_bytes_min=0))
            self.raw = await stack.enter_async_context(aiohttp.ClientSession(fake_gcs.url))
            await self.server.make_bucket(self.bucket)
            file = credentials_file(tmp_path, self.server.token_uri)
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
            yield

    async def open(self, limits: Limits) -> LongTermBackend:
        return await GcsLongTerm.open(
            bucket=self.bucket,
            endpoint=self.server.address,
            prefix=_PREFIX,
            limits=limits,
            clock=self.clock,
            ids=SeededIds(next(self.seeds)),
        )

    async def stored(self) -> Mapping[UUID, bytes]:
        found = {}
        token = ""
        while True:
            query = {"prefix": self.names.blobs} | ({"pageToken": token} if token else {})
            async with self.raw.get(f"/storage/v1/b/{self.bucket}/o", params=query) as answer:
                page = await answer.json()
            for each in page.get("items", ()):
                uuid = Names.uuid(each["name"])
                assert uuid is not None
                found[UUID(int=uuid.int)] = await self.payload(each["name"])
            token = page.get("nextPageToken", "")
            if not token:
                return found

    async def payload(self, name: str) -> bytes:
        """The bytes of an object."""
        async with self.raw.get(self.url(name, "?alt=media")) as answer:
            assert answer.status == 200
            return await answer.read()

    def url(self, name: str, query: str = "") -> URL:
        """An object, where the back door finds it."""
        return URL(f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}{query}", encoded=True)

    async def plant(self, revision: Revision, content: bytes) -> None:
        query = {"uploadType": "media", "name": self.names.blob(revision)}
        async with self.raw.post(f"/upload/storage/v1/b/{self.bucket}/o", params=query, data=content) as answer:
            assert answer.status == 200

    async def replace_payload(self, revision: Revision, content: bytes) -> None:
        await self.server.damage(self.bucket, self.names.blob(revision), payload=content)

    async def damage_header(self, revision: Revision) -> None:
        await self.server.damage(self.bucket, self.names.blob(revision), checksum=True)

    async def damage_upload(self, upload: UploadId) -> bool:
        return False

    @contextmanager
    def watched(self, revision: Revision) -> Iterator[Callable[[], bool]]:
        yield lambda: True  # the service answers when it is durable

    async def leftovers(self) -> int:
        uploads = self.server.uploads.all_in_progress(self.bucket)
        return len(uploads) + sum(len(upload.parts) for upload in uploads)
