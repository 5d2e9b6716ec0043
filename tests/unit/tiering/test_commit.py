"""The commit protocol's races and rules, one by one."""

import asyncio
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, POINT, SMALL, BytesBody, World, commit_point, object_id, open_world
from tierstore.errors import GivenUp, InvariantBroken, OutcomeUnknown, StorageFull, Unavailable
from tierstore.limits import Limits
from tierstore.testing.faults import Answer, ArriveLate, Crash, Effect, FailBefore, Interpose, LoseReply, Pause
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
            POINT,
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

        world.script.at(commit_point(mine), Interpose(overtake))
        await (world.delete("k") if mine is None else world.put("k", mine))
        assert world.script.unused == []
        assert await world.get("k") == mine
        await world.drain()
        await world.check_settled()


async def test_a_write_whose_reply_was_lost_is_recognised() -> None:
    """Outcome unknown, but the row has the revision: the write is acknowledged and cleaned up after."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()
        world.script.at(POINT, LoseReply(OutcomeUnknown("scripted")))
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
        world.script.at(POINT, ArriveLate(OutcomeUnknown("scripted")))
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
        world.script.at(POINT, ArriveLate(OutcomeUnknown("scripted")))
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


async def test_a_constant_stream_of_small_writes_does_not_starve_a_large_one() -> None:
    """Inline writes and deletes that come between do not make a large write lose: it needs no luck to get done."""
    async with open_world() as world:
        await world.put("k", b"first")
        writing = True

        async def write() -> None:
            number = 0
            while writing:
                number += 1
                await (world.put("k", b"%d" % number) if number % 3 else world.delete("k"))

        writers = [asyncio.create_task(write()) for _ in range(4)]
        for _ in range(20):
            await world.put("k", LARGE)
            await world.drain()
        writing = False
        await asyncio.gather(*writers)
        await world.put("k", LARGE)
        assert await world.get("k") == LARGE
        assert world.script.trace.count("changelog.record_again") <= 20 * 4, "it lost against tombstones' removal only"
        await world.drain()
        await world.check_settled()


def _suspend(world: World, seconds: float) -> None:
    """The machine sleeps, or its wall clock is set: the monotonic clock stands still meanwhile."""
    world.clock.set_now(world.clock.now() + int(seconds * 1_000_000))


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("payload", [SMALL, LARGE, None])
@pytest.mark.parametrize("suspended", [False, True])
async def test_a_commit_that_was_on_its_way_for_days_writes_nothing(
    before: bytes | None, payload: bytes | None, suspended: bool
) -> None:
    """A compare-and-write that a pause held back until even the markers had gone finds the row as if it never was."""
    if before is None and payload != LARGE:
        return  # one blind write: nothing that was read before could be outdated
    async with open_world() as world:
        if before is not None:
            await world.put("k", before)
            await world.drain()
        advance = (lambda seconds: _suspend(world, seconds)) if suspended else world.clock.advance
        pause = Pause()
        world.script.at(commit_point(payload), pause)
        write = asyncio.create_task(world.delete("k") if payload is None else world.put("k", payload))
        await pause.reached.wait()
        await world.raw_high_volume.fence(object_id("k"))
        advance(world.limits.entry_grace_seconds + 1)
        await world.sweeper.run_once()
        advance(world.limits.new_entry_kept_seconds_min + 1)
        await world.sweeper.run_once()
        advance(world.limits.marker_retention_seconds + 1)
        await world.sweeper.run_once()
        pause.release.set()
        with pytest.raises(Unavailable):
            await write
        await world.drain()
        await world.check_no_dangling()
        assert await world.get("k") == before
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("payload", [LARGE, SMALL, None])
async def test_what_was_met_at_the_second_attempt_is_in_the_log(payload: bytes | None) -> None:
    """A write that lost a race, won the next and then died leaves no blob that nobody lists."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()

        async def overtake() -> None:
            await world.put("k", b"1" * 99)
            await world.drain()

        async def arm() -> None:
            world.script.at(commit_point(payload), Crash(Effect.DONE))

        world.script.at(commit_point(payload), Interpose(overtake))
        world.script.at("changelog.record_again", Interpose(arm))
        with pytest.raises(asyncio.CancelledError):
            await (world.delete("k") if payload is None else world.put("k", payload))
        world.script.restart()
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("call", ["high_volume.head", "changelog.record_again"])
async def test_an_error_after_a_lost_race_undoes_the_write_at_once(call: str) -> None:
    """Nothing was committed, and that is certain: the blob does not stay until a grace has passed."""
    async with open_world() as world:
        await world.put("k", OLD)
        await world.drain()

        async def overtake() -> None:
            await world.put("k", b"small")
            await world.drain()

        world.script.at(POINT, Interpose(overtake))
        world.script.at(call, *[None] * (call == "high_volume.head"), FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable):
            await world.put("k", LARGE)
        await world.drain()
        assert world.script.unused == []
        await world.check_settled()
        assert await world.get("k") == b"small"


async def test_a_commit_that_the_store_refuses_is_undone_at_once() -> None:
    """Certain that nothing happened: blob and entries go without a sweeper."""
    async with open_world() as world:
        world.script.at(POINT, FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable):
            await world.put("k", LARGE)
        await world.drain()
        await world.check_settled()


async def test_what_cannot_be_undone_stays_in_the_log() -> None:
    """The blob goes before its entry: where deleting fails, the entry is still there for the sweeper."""
    async with open_world() as world:
        world.script.at(POINT, FailBefore(Unavailable("scripted")))
        world.script.at("long_term.delete", FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable):
            await world.put("k", LARGE)
        await world.drain()
        assert (len(await world.blobs()), await world.logged()) == (1, 1)
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
        (TimeoutError("the store's own, which promises nothing"), False),
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
        world.script.at(POINT, Answer(False))
        await world.store.put(object_id("k"), Metadata(), BytesBody(LARGE))
        assert await world.get("k") == LARGE
        await world.drain()
        await world.check_settled()
