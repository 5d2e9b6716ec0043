"""The commit protocol's races and rules, one by one."""

import asyncio
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, SMALL, BytesBody, object_id, open_world
from tierstore.errors import GivenUp, InvariantBroken, OutcomeUnknown, StorageFull, Unavailable
from tierstore.limits import Limits
from tierstore.testing.faults import Answer, ArriveLate, FailBefore, Interpose, LoseReply, Pause
from tierstore.types.metadata import Metadata, TimeToIdle, TimeToLive
from tierstore.types.streams import Body

OLD = b"o" * 200


async def test_both_revisions_are_recorded_before_anything_is_written() -> None:
    """Recording comes first, deleting last: what a crash leaves is always in the log."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()
        world.script.trace.clear()
        await world.put("k", LARGE)
        await world.drain()
        assert world.script.trace == [
            "high_volume.head",
            "changelog.record",
            "long_term.put",
            "high_volume.compare_and_write",
            "long_term.delete",
            "changelog.forget",
        ]


async def test_of_racing_large_writers_the_last_to_commit_wins_and_the_others_are_cleaned_up() -> None:
    """Every writer is acknowledged, one object remains, no blob of the others does."""
    async with open_world() as world:
        payloads = [bytes([number]) * 100 for number in range(20)]
        await asyncio.gather(*[world.put("k", payload) for payload in payloads])
        assert await world.get("k") in payloads
        await world.drain()
        await world.check_settled()
        assert world.failures == []


@pytest.mark.parametrize("other", [b"small", b"t" * 300, None])
@pytest.mark.parametrize("mine", [LARGE, SMALL, None])
async def test_a_writer_that_is_overtaken_commits_on_top(mine: bytes | None, other: bytes | None) -> None:
    """A write that slips in before the compare-and-write is overwritten, not lost silently and not orphaned."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()

        async def overtake() -> None:
            await (world.delete("k") if other is None else world.put("k", other))
            await world.drain()

        world.script.at("high_volume.compare_and_write", Interpose(overtake))
        await (world.delete("k") if mine is None else world.put("k", mine))
        assert await world.get("k") == mine
        await world.drain()
        await world.check_settled()


async def test_a_write_whose_reply_was_lost_is_recognised() -> None:
    """Outcome unknown, but the row has the revision: the write is acknowledged and cleaned up after."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()
        world.script.at("high_volume.compare_and_write", LoseReply(OutcomeUnknown("scripted")))
        await world.put("k", LARGE)
        assert await world.get("k") == LARGE
        await world.drain()
        await world.check_settled()


@pytest.mark.parametrize("look_fails", [False, True])
async def test_nothing_is_deleted_on_a_guess(look_fails: bool) -> None:
    """Outcome unknown, and the row does not have the revision: the write may still arrive, so its blob stays."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()
        world.script.at("high_volume.compare_and_write", ArriveLate(OutcomeUnknown("scripted")))
        if look_fails:
            world.script.at("high_volume.head", None, FailBefore(Unavailable("scripted")))
        with pytest.raises(OutcomeUnknown):
            await world.put("k", LARGE)
        await world.drain()
        assert len(await world.blobs()) == 2
        await world.script.arrive()
        assert await world.get("k") == LARGE
        await world.sweep()
        await world.check_settled()
        assert await world.get("k") == LARGE


async def test_a_write_that_arrives_after_the_fence_is_dead() -> None:
    """The sweeper's fence comes before its delete: a late compare-and-write cannot point to a deleted blob."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()
        world.script.at("high_volume.compare_and_write", ArriveLate(OutcomeUnknown("scripted")))
        with pytest.raises(OutcomeUnknown):
            await world.put("k", LARGE)
        await world.sweep()
        await world.script.arrive()
        assert await world.get("k") == OLD
        await world.check_settled()


@pytest.mark.parametrize("before", [None, b"small", OLD])
async def test_a_slow_write_that_a_sweeper_has_settled_fails_cleanly(before: bytes | None) -> None:
    """A live write whose entry was condemned is told so; the object stays as it was, and a retry works."""
    async with open_world() as world:
        if before is not None:
            await world.put("k", before)
            await world.drain()
        pause = Pause(after_effect=True)
        world.script.at("long_term.put", pause)
        write = asyncio.create_task(world.put("k", LARGE))
        await pause.reached.wait()
        world.clock.advance(world.limits.entry_grace_seconds + 1)
        results = await world.sweeper.run_once()
        assert results["deleted"] >= 1
        pause.release.set()
        with pytest.raises(GivenUp, match="settled as abandoned"):
            await write
        assert await world.get("k") == before
        await world.drain()
        await world.check_settled()
        await world.put("k", LARGE)
        assert await world.get("k") == LARGE
        await world.sweep()
        await world.check_settled()


async def test_a_write_gives_up_after_the_operation_deadline() -> None:
    """No compare-and-write is sent later than the operation deadline: markers are kept only so long."""
    for payload in (LARGE, SMALL):
        async with open_world() as world:
            await world.put("k", OLD)
            await world.drain()
            pause = Pause()
            world.script.at("changelog.record", pause)
            write = asyncio.create_task(world.put("k", payload))
            await pause.reached.wait()
            world.clock.advance(world.limits.operation_deadline_seconds + 1)
            pause.release.set()
            with pytest.raises(GivenUp):
                await write
            assert await world.get("k") == OLD
            await world.sweep()
            await world.check_settled()


async def test_a_body_that_takes_too_long_is_given_up() -> None:
    """A blob that is not whole by the operation deadline is never written: the sweeper need not wait for it longer."""

    class Endless(Body):
        size: int | None = None

        async def __anext__(self) -> bytes:
            await asyncio.sleep(0.01)
            return b"x" * 10

    async with open_world(replace(Limits.tiny(), operation_deadline_seconds=0.1)) as world:
        with pytest.raises(GivenUp):
            await world.store.put(object_id("k"), Metadata(), Endless())
        await world.drain()
        assert await world.get("k") is None
        await world.check_settled()


@pytest.mark.parametrize(
    ("error", "certain"),
    [
        (StorageFull("scripted"), True),
        (InvariantBroken("scripted"), True),
        (asyncio.CancelledError(), True),
        (Unavailable("scripted"), False),
        (RuntimeError("a bug in a backend"), False),
    ],
)
async def test_a_failed_put_is_undone_at_once_only_if_no_blob_can_appear(error: BaseException, certain: bool) -> None:
    """Where the long-term store cannot promise that nothing appears, the entry stays for the sweeper, due at once."""
    async with open_world() as world:
        world.script.at("long_term.put", FailBefore(error))
        with pytest.raises(type(error)):
            await world.put("k", LARGE)
        await world.drain()
        assert await world.logged() == (not certain)
        assert len(await world.raw_changelog.due(world.clock.now(), 9)) == (not certain)
        await world.sweep()
        await world.check_settled()


async def test_creation_and_deadline_count_from_the_commit() -> None:
    """A blob that took a minute to arrive is created, and its ttl begins, when it is committed."""
    async with open_world() as world:
        for expiration in (TimeToLive(100), TimeToIdle(100)):
            pause = Pause(after_effect=True)
            world.script.at("long_term.put", pause)
            write = asyncio.create_task(world.put("k", LARGE, expiration))
            await pause.reached.wait()
            world.clock.advance(60)
            pause.release.set()
            await write
            info = (await world.store.head(object_id("k"))).info
            assert info.time_created == world.clock.now()
            assert info.time_expires == world.clock.now() + 100_000_000


async def test_an_extension_that_comes_first_wins_against_expiry() -> None:
    """Settling an expired object loses against a deadline that was moved before, in both tiers."""
    for payload in (SMALL, LARGE):
        async with open_world() as world:
            await world.put("k", payload, TimeToIdle(100))
            await world.drain()
            row = await world.raw_high_volume.head(object_id("k"))
            assert row is not None
            assert row.expires is not None
            found = await world.raw_high_volume.expired(row.expires, 9)
            assert await world.raw_high_volume.extend(object_id("k"), row.version, row.expires + 50_000_000)
            world.clock.advance(101)
            assert not await world.committer.settle_expired(found[0], world.clock.now())
            assert await world.get("k") == payload
            await world.drain()
            await world.check_settled()


async def test_a_conflict_on_a_row_that_never_existed_is_retried() -> None:
    """A first write that loses against another first write records again and commits on top."""
    async with open_world() as world:
        world.script.at("high_volume.compare_and_write", Answer(None))
        await world.store.put(object_id("k"), Metadata(), BytesBody(LARGE))
        assert await world.get("k") == LARGE
        await world.drain()
        await world.check_settled()
