"""What a settled store must not have is found, each kind of it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from tests.engines.deployment import EMBEDDED, Deployment
from tests.kill.history import Violation, Write
from tests.kill.remains import check_remains
from tierstore.backends.high_volume.contract import Inline, Tombstone
from tierstore.build import Stores, open_stores
from tierstore.clock import SystemClock
from tierstore.config import Config, limits_from
from tierstore.idsource import SystemIds
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.metadata import Metadata
from tierstore.types.metadata_storage import encode_metadata

PAYLOAD = b"p" * 100
CLOCK, IDS = SystemClock(), SystemIds()
FUTURE = 2**52


@dataclass(frozen=True)
class Made:
    """Open stores, and where they are."""

    stores: Stores
    data: Path


def _object_id(key: str) -> ObjectId:
    return ObjectId("killed", (), key)


def _metadata(identity: str) -> bytes:
    return encode_metadata(Metadata(custom=(("write", identity),)), size=len(PAYLOAD), time_created=CLOCK.now())


async def _body() -> AsyncIterator[bytes]:
    yield PAYLOAD


async def _put_small(stores: Stores, key: str, identity: str) -> None:
    await stores.high_volume.put_inline(_object_id(key), Inline(_metadata(identity), PAYLOAD), None)


async def _put_large(stores: Stores, key: str, identity: str) -> None:
    revision = Revision(_object_id(key), IDS.uuid())
    await stores.long_term.put(revision, _body(), len(PAYLOAD))
    await _point(stores, key, identity, revision.uuid)


async def _point(stores: Stores, key: str, identity: str, uuid: UUID) -> None:
    assert await stores.high_volume.point(
        _object_id(key), None, Tombstone(_metadata(identity), uuid), None, not_after=FUTURE
    )


@pytest.fixture
def deployment() -> Deployment:
    """Where the stores are."""
    return EMBEDDED


async def _make(deployment: Deployment, data: Path, more: Callable[[Made], Awaitable[None]]) -> dict[str, Write]:
    """Stores with a small and a large object, and what ``more`` adds; return what is expected of them."""
    config = deployment.config(data)
    with deployment.environment_here():
        return await _made(config, data, more)


async def _made(config: Config, data: Path, more: Callable[[Made], Awaitable[None]]) -> dict[str, Write]:
    async with open_stores(config, limits_from(config), CLOCK, IDS) as stores:
        await _put_small(stores, "small", "w0")
        await _put_large(stores, "large", "w1")
        await more(Made(stores, data))
    return {"small": Write("w0", "small"), "large": Write("w1", "large")}


async def _nothing(made: Made) -> None:
    """Nothing is wrong."""


async def _what_a_sweeper_settles(made: Made) -> None:
    """An entry and a blob that a crash has left, and an upload that nobody has completed."""
    revision = Revision(_object_id("crashed"), IDS.uuid())
    await made.stores.changelog.record(IDS.uuid(), new=revision, old=None, not_before=CLOCK.now())
    await made.stores.long_term.put(revision, _body(), len(PAYLOAD))
    upload = Revision(_object_id("uploaded"), IDS.upload_uuid())
    await made.stores.changelog.begin_upload(upload, _metadata("w3"), CLOCK.now())
    await made.stores.long_term.initiate(upload)


async def _orphan(made: Made) -> None:
    """A blob that nobody knows of."""
    await made.stores.long_term.put(Revision(_object_id("orphan"), IDS.uuid()), _body(), len(PAYLOAD))


async def _dangling(made: Made) -> None:
    """A row that points to nothing, in the place of one that pointed to a blob."""
    revisions = [blob.revision for blob in await made.stores.long_term.list("", None, 10)]
    for revision in revisions:
        await made.stores.long_term.delete(revision)


async def _lost(made: Made) -> None:
    """An object that is not there."""
    await made.stores.high_volume.delete_inline(_object_id("small"))


async def _undead(made: Made) -> None:
    """An object that should not be there."""
    await _put_small(made.stores, "other", "w2")


async def _another(made: Made) -> None:
    """Another object than the one that should be there."""
    await _put_small(made.stores, "small", "w2")


async def _upload(made: Made) -> None:
    """An upload that nobody knows of: its parts take room."""
    await made.stores.long_term.initiate(Revision(_object_id("uploaded"), IDS.upload_uuid()))


async def _stray(made: Made) -> None:
    """A file that belongs to nothing."""
    (made.data / "long-term" / "blobs" / "stray").write_bytes(b"")


@pytest.mark.parametrize("more", [_nothing, _what_a_sweeper_settles], ids=lambda more: str(more.__name__))
async def test_what_is_settled_passes(
    deployment: Deployment, tmp_path: Path, more: Callable[[Made], Awaitable[None]]
) -> None:
    """The expected objects and nothing else pass, also when there was something to sweep first."""
    expected = await _make(deployment, tmp_path, more)
    await check_remains(tmp_path, expected, deployment)


@pytest.mark.parametrize(
    "more", [_orphan, _dangling, _lost, _undead, _another, _upload], ids=lambda more: str(more.__name__)
)
async def test_what_is_not_settled_is_found(
    deployment: Deployment, tmp_path: Path, more: Callable[[Made], Awaitable[None]]
) -> None:
    """An orphan, a dangling tombstone, an object too many, too few or another, parts of nothing: each is found."""
    expected = await _make(deployment, tmp_path, more)
    with pytest.raises(Violation):
        await check_remains(tmp_path, expected, deployment)


async def test_a_stray_file_is_found(tmp_path: Path) -> None:
    """So is a file below the directory that belongs to nothing."""
    expected = await _make(EMBEDDED, tmp_path, _stray)
    with pytest.raises(Violation):
        await check_remains(tmp_path, expected)
