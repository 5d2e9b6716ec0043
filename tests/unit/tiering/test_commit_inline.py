"""The laws of bringing small objects inline: readers see the same object throughout, and nothing is lost or left."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.tiering.test_resumable import COMPLETED, LIMITS, WHOLE, created, send
from tests.unit.tiering.world import LARGE, SMALL, World, object_id, open_world, payload_of
from tierstore.backends.high_volume.contract import Inline, Tombstone
from tierstore.changelog.entries import State
from tierstore.errors import CorruptObject, OutcomeUnknown, Unavailable
from tierstore.testing.faults import ArriveLate, FailBefore, Fault, Interpose, LoseReply, Pause
from tierstore.types.ids import Revision
from tierstore.types.metadata import Metadata, TimeToIdle, TimeToLive
from tierstore.types.objects import Tier

CALLS = ["high_volume.head", "changelog.record", "long_term.get", "high_volume.bring_inline", "changelog.mark_done"]
CALLS += ["long_term.delete", "changelog.forget"]
"""What it calls, in order."""


async def _committed(world: World, length: int = 40, metadata: Metadata | None = None) -> Revision:
    """An object of ``length`` bytes that was just committed by a resumable upload, and is not brought inline yet."""
    session = await world.resumable.create(object_id("k"), metadata or Metadata(), length)
    fails = FailBefore(Unavailable("not now"))
    world.script.at("high_volume.bring_inline", fails)
    assert await send(world, session, 0, length) == COMPLETED
    await world.drain()
    assert [name for name, _ in world.failures] == ["finish_upload"]
    world.failures.clear()
    return session.upload.revision


async def _is_inline(world: World) -> bool:
    row = await world.raw_high_volume.read(object_id("k"))
    assert row is not None
    return isinstance(row.content, Inline)


@pytest.mark.parametrize("length", [0, 1, 64, 65])
async def test_small_objects_end_up_inline(length: int) -> None:
    """Up to the same size as with a put; larger ones stay where they are. The blob is gone, the outcome is kept."""
    async with open_world(LIMITS) as world:
        session = await created(world, length)
        assert await send(world, session, 0, length) == COMPLETED
        await world.drain()
        assert not world.failures
        small = length <= LIMITS.inline_bytes_max
        assert (await world.store.head(object_id("k"))).tier is (Tier.HIGH_VOLUME if small else Tier.LONG_TERM)
        assert bool(await world.blobs()) is not small
        [entry] = await world.raw_changelog.find(session.upload.revision)
        assert entry.state is State.DONE
        assert await world.resumable.query(session) == COMPLETED
        assert await world.get("k") == WHOLE[:length]
        await world.sweep()
        await world.check_settled()


async def test_a_multipart_upload_stays() -> None:
    """Its client has chosen parts."""
    async with open_world(LIMITS) as world:
        await world.begin_upload("k", b"x" * 30)
        await world.complete()
        await world.drain()
        assert not await _is_inline(world)


@pytest.mark.parametrize("expiration", [TimeToLive(60), TimeToIdle(60)])
async def test_nothing_changes_for_readers(expiration: TimeToLive | TimeToIdle) -> None:
    """Metadata, creation and deadline are what they were; a deadline that moved meanwhile stays moved."""
    async with open_world(LIMITS) as world:
        wanted = Metadata(content_type="text/plain", expiration=expiration, custom=(("a", "b"),))
        revision = await _committed(world, 40, wanted)
        before = await world.store.head(object_id("k"))
        row = await world.raw_high_volume.head(object_id("k"))
        assert row is not None
        assert row.expires is not None
        extended = row.expires + 1_000_000
        moved = Interpose(lambda: world.raw_high_volume.extend(object_id("k"), row.version, extended))
        world.script.at("high_volume.bring_inline", moved)
        world.clock.advance(5)
        assert await world.committer.bring_inline(revision)
        after = await world.store.get(object_id("k"), None)
        assert (after.info.metadata, after.info.time_created) == (wanted, before.info.time_created)
        assert after.info.time_expires == extended
        assert await payload_of(after) == WHOLE[:40]
        world.clock.advance(57)
        assert await world.get("k") is None


async def _put_small(world: World) -> None:
    await world.put("k", SMALL)


async def _put_large(world: World) -> None:
    await world.put("k", LARGE)


async def _delete(world: World) -> None:
    await world.delete("k")


async def _fence(world: World) -> None:
    await world.raw_high_volume.fence(object_id("k"))


async def _bring_too(world: World) -> None:
    row = await world.raw_high_volume.head(object_id("k"))
    if row is not None and isinstance(row.content, Tombstone):
        assert await world.committer.bring_inline(Revision(object_id("k"), row.content.revision))


OTHERS: dict[str, tuple[Callable[[World], Awaitable[None]], bytes | None]] = {
    "small put": (_put_small, SMALL),
    "large put": (_put_large, LARGE),
    "delete": (_delete, None),
    "fence": (_fence, WHOLE[:40]),
    "itself": (_bring_too, WHOLE[:40]),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("call", CALLS)
async def test_others_come_between(call: str, other: str) -> None:
    """Whoever writes the row first wins, and at any step nothing of the other is lost; nothing is left over."""
    act, content = OTHERS[other]
    async with open_world(LIMITS) as world:
        revision = await _committed(world)
        world.script.at(call, Interpose(lambda: act(world)))
        await world.committer.bring_inline(revision)
        await world.drain()
        await world.check_no_dangling()
        assert await world.get("k") == content
        await world.sweep()
        assert await world.get("k") == content
        await world.check_settled()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "fault",
    [FailBefore(Unavailable("x")), LoseReply(OutcomeUnknown("x")), ArriveLate(OutcomeUnknown("x"))],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_step_fails(call: str, fault: Fault) -> None:
    """The object is there before, after, when the call arrives late, and when all is settled."""
    async with open_world(LIMITS) as world:
        revision = await _committed(world)
        world.script.at(call, fault)
        with pytest.raises(Unavailable):
            await world.committer.bring_inline(revision)
        await world.drain()
        for _ in range(2):
            await world.check_no_dangling()
            assert await world.get("k") == WHOLE[:40]
            await world.script.arrive()
        await world.sweep()
        assert await world.get("k") == WHOLE[:40]
        await world.check_settled()


async def test_late_after_the_sweeper() -> None:
    """A write that arrives when the sweeper has settled the entry has no effect: it was fenced."""
    async with open_world(LIMITS) as world:
        revision = await _committed(world)
        world.script.at("high_volume.bring_inline", ArriveLate(OutcomeUnknown("x")))
        with pytest.raises(OutcomeUnknown):
            await world.committer.bring_inline(revision)
        await world.sweep()
        assert await world.script.arrive() == 1
        assert not await _is_inline(world)
        assert await world.get("k") == WHOLE[:40]
        await world.check_settled()


async def test_a_read_that_is_under_way() -> None:
    """One that has read the tombstone follows it to the row when the blob is gone."""
    async with open_world(LIMITS) as world:
        revision = await _committed(world)
        pause = Pause()
        world.script.at("long_term.get", pause)
        reading = asyncio.get_running_loop().create_task(world.get("k"))
        await pause.reached.wait()
        assert await world.committer.bring_inline(revision)
        assert not await world.blobs()
        pause.release.set()
        assert await reading == WHOLE[:40]


async def test_a_damaged_blob_stays_where_it_is() -> None:
    """What does not verify is not made to look whole."""
    async with open_world(LIMITS) as world:
        revision = await _committed(world)
        blob = world.disk.by_revision[revision]
        world.disk.by_revision[revision] = type(blob)(b"?" * 40, 40, blob.checksum, blob.stored)
        with pytest.raises(CorruptObject):
            await world.committer.bring_inline(revision)
        assert not await _is_inline(world)


async def test_what_it_no_longer_points_to() -> None:
    """Nothing is recorded for a row that points elsewhere, or nowhere."""
    async with open_world(LIMITS) as world:
        revision = await _committed(world)
        await world.delete("k")
        await world.drain()
        before = await world.raw_changelog.list(None, 10)
        assert not await world.committer.bring_inline(revision)
        assert list(await world.raw_changelog.list(None, 10)) == list(before)
