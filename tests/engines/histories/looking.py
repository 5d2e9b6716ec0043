"""Looks at what stores hold, as operators and their tools take them. They change nothing."""

from collections.abc import Sequence
from random import Random
from typing import Any
from uuid import UUID

from tests.engines.histories.scene import Scene
from tierstore.backends.long_term.contract import BlobInfo
from tierstore.clock import MICROS_PER_SECOND
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.multipart import UploadId
from tierstore.types.ranges import Span

_BY = "an operator"
_ALL = 256


async def look_around(scene: Scene, random: Random, *, everywhere: bool = False) -> None:
    """Some looks, or ``everywhere`` all."""
    looks = [_rows, _expired, _blobs, _one_blob, _parts, _entries, _due, _found, _sums]
    for look in looks if everywhere else random.sample(looks, 3):
        await look(scene, random)


async def rows(scene: Scene, prefix: str, limit: int) -> Sequence[ObjectId]:
    """All rows, page after page."""
    found: list[ObjectId] = []
    while True:
        after = found[-1].storage_path if found else None
        page = await scene.ask(_BY, "high_volume.scan", prefix=prefix, after=after, limit=limit)
        found += [one.object_id for one in page]
        if len(page) < limit:
            return found


async def blobs(scene: Scene, prefix: str, limit: int) -> Sequence[BlobInfo]:
    """All blobs, page after page, to the one that is empty."""
    found: list[BlobInfo] = []
    while True:
        after = found[-1].revision if found else None
        page = await scene.ask(_BY, "long_term.list", prefix=prefix, after=after, limit=limit)
        if not page:
            return found
        found += page


async def _rows(scene: Scene, random: Random) -> None:
    found = await rows(scene, "", random.choice([1, 2, 5, _ALL]))
    if found:
        one = random.choice(found)
        await rows(scene, one.storage_path, 2)
        await rows(scene, one.storage_path.partition("/")[0] + "/", random.choice([1, 3]))


async def _expired(scene: Scene, random: Random) -> None:
    by = scene.clock.now() + random.choice([-1, 0, 1, 1000]) * MICROS_PER_SECOND
    await scene.ask(_BY, "high_volume.expired", by=by, limit=random.choice([1, 2, _ALL]))


async def _blobs(scene: Scene, random: Random) -> None:
    found = await blobs(scene, "", random.choice([1, 2, 5, _ALL]))
    if found:
        one = random.choice(found).revision
        await blobs(scene, one.object_id.storage_path + "/", 2)
        await blobs(scene, one.object_id.storage_path.rpartition("/")[0], 1)


async def _one_blob(scene: Scene, random: Random) -> None:
    revision = _drawn(scene, random, "revision", Revision)
    if revision is None:
        return
    head = await scene.ask(_BY, "long_term.head", revision=revision)
    await scene.ask(_BY, "long_term.get", revision=revision)
    if head is not None and head.size:
        start = random.randrange(head.size)
        await scene.ask(_BY, "long_term.get", revision=revision, span=Span(start, random.randint(start + 1, head.size)))
        await scene.ask(_BY, "long_term.get", revision=revision, span=Span(0, head.size))
        await scene.ask(_BY, "long_term.get", revision=revision, span=Span(start, head.size + 1))


async def _parts(scene: Scene, random: Random) -> None:
    upload = _drawn(scene, random, "upload", UploadId)
    if upload is not None:
        for after, limit in ((0, _ALL), (0, 1), (random.randrange(3), 2)):
            await scene.ask(_BY, "long_term.list_parts", upload=upload, after=after, limit=limit)


async def _entries(scene: Scene, random: Random) -> None:
    for uploads in (False, True):
        limit = random.choice([1, 2, 5, _ALL])
        page: Sequence[Any] = []
        while True:
            after = page[-1] if page else None
            page = await scene.ask(_BY, "changelog.list", after=after, limit=limit, uploads=uploads)
            if len(page) < limit:
                break


async def _due(scene: Scene, random: Random) -> None:
    now = scene.clock.now() + random.choice([-1, 0, 1, 10_000]) * MICROS_PER_SECOND
    await scene.ask(_BY, "changelog.due", now=now, limit=random.choice([1, 2, _ALL]))


async def _found(scene: Scene, random: Random) -> None:
    revision = _drawn(scene, random, "revision", Revision)
    if revision is not None:
        await scene.ask(_BY, "changelog.find", revision=revision)


async def _sums(scene: Scene, random: Random) -> None:
    await scene.ask(_BY, "changelog.backlog")
    for store in ("high_volume", "long_term", "changelog"):
        await scene.ask(_BY, f"{store}.check")
        await scene.ask(_BY, f"{store}.identity")
        for _ in range(random.randrange(3)):
            uuid = _drawn(scene, random, "owner", UUID)
            if uuid is not None:
                await scene.ask(_BY, f"{store}.adopt", identity=uuid)


def _drawn(scene: Scene, random: Random, name: str, sort: type[Any]) -> Any:
    """Something of the ``sort`` that calls were given as ``name``; rather a recent one."""
    there = [one.kept.arguments[name] for one in scene.asked if isinstance(one.kept.arguments.get(name), sort)]
    return random.choice(there[-12:]) if there else None
