"""The laws of uploads on two tiers: exactly once, whoever tries again, races, or fails half-way."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, POINT, SMALL, BytesBody, World, object_id, open_world
from tierstore.backends.long_term.memory import Repeats
from tierstore.build import Stores, build_tiering
from tierstore.changelog.entries import State
from tierstore.clock import MICROS_PER_SECOND
from tierstore.errors import (
    Busy,
    ClientMistake,
    GivenUp,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    OutcomeUnknown,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.testing.faults import ArriveLate, FailBefore, Interpose, Pause
from tierstore.testing.ids import SeededIds
from tierstore.tiering.uploads import Uploads
from tierstore.types.metadata import Metadata, TimeToIdle, TimeToLive
from tierstore.types.multipart import PartName

UPLOADED = b"u" * 100
OTHER = b"t" * 300

COMPLETE_CALLS = ["high_volume.head", "changelog.claim", "long_term.complete", "long_term.head", POINT]
"""What an attempt to complete calls, in order."""


async def _overwrite_small(world: World) -> None:
    await world.put("k", SMALL)


async def _overwrite_large(world: World) -> None:
    await world.put("k", OTHER)


async def _overwrite_by_upload(world: World) -> None:
    mine, parts = world.upload, world.parts
    await world.begin_upload("k", OTHER)
    await world.complete()
    world.upload, world.parts = mine, parts


async def _delete(world: World) -> None:
    await world.delete("k")


async def _expire(world: World) -> None:
    world.clock.advance(61)
    await world.sweeper.run_once()


async def _nothing(world: World) -> None:
    await world.drain()


LATER: dict[str, Callable[[World], Awaitable[None]]] = {
    "nothing": _nothing,
    "small": _overwrite_small,
    "large": _overwrite_large,
    "upload": _overwrite_by_upload,
    "delete": _delete,
    "expiry": _expire,
}


async def _settle_upload(world: World) -> None:
    """What a sweeper does that finds the upload's own entry due."""
    for entry in await world.raw_changelog.find(world.upload.revision):
        if entry.owner_is_upload:
            await world.settler.settle(entry)


async def _sweep_due(world: World) -> None:
    """Let what operations have left become due and sweep it; outcomes are still remembered."""
    await world.drain()
    world.clock.advance(world.limits.entry_grace_seconds + 1)
    await world.sweeper.run_once()


def _another_instance(world: World, seed: int) -> Uploads:
    """Another process's uploads over the same stores."""
    stores = Stores(world.high_volume, world.long_term, world.changelog)
    ids = SeededIds(seed)
    return build_tiering(stores, limits=world.limits, clock=world.clock, ids=ids, cleanup=world.cleanup).uploads


@pytest.mark.parametrize("expiration", [TimeToLive(60), TimeToIdle(60)])
async def test_creation_and_expiry_count_from_the_commit(expiration: TimeToLive | TimeToIdle) -> None:
    """The metadata is that of the initiator; the time between beginning and completing does not count."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED, Metadata(content_type="text/plain", expiration=expiration))
        world.clock.advance(300)
        completed = world.clock.now()
        await world.complete()
        world.clock.advance(59)
        found = await world.store.head(object_id("k"))
        assert found.info.metadata == Metadata(content_type="text/plain", expiration=expiration)
        assert found.info.time_created == completed
        assert found.info.size == len(UPLOADED)
        world.clock.advance(61)
        assert await world.get("k") is None
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("repeats", Repeats)
@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("cleaned", [True, False])
async def test_completing_again_succeeds_and_changes_nothing(later: str, repeats: Repeats, cleaned: bool) -> None:
    """Whatever has become of the object since: the client that lost the answer learns that it was completed."""
    async with open_world(repeats=repeats) as world:
        await world.begin_upload("k", UPLOADED, Metadata(expiration=TimeToLive(60)))
        await world.complete()
        if cleaned:
            await world.drain()
        await LATER[later](world)
        if cleaned:
            await world.drain()
        seen = await world.get("k")
        for _ in range(2):
            await world.complete()
            assert await world.get("k") == seen
        await _sweep_due(world)
        await world.complete()
        await world.check_no_dangling()
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("repeats", Repeats)
@pytest.mark.parametrize("attempts", [2, 3, 8])
async def test_of_attempts_at_once_all_succeed_and_one_commits(attempts: int, repeats: Repeats) -> None:
    """Two instances, any number of attempts: one revision, committed once."""
    async with open_world(repeats=repeats) as world:
        await world.put("k", OTHER)
        await world.begin_upload("k", UPLOADED)
        other = _another_instance(world, 8)
        await asyncio.gather(
            *[
                (world.uploads if number % 2 else other).complete(world.upload, world.parts)
                for number in range(attempts)
            ]
        )
        assert await world.get("k") == UPLOADED
        await world.drain()
        await world.check_settled()
        assert world.failures == []


@pytest.mark.parametrize("repeats", Repeats)
@pytest.mark.parametrize("how", ["abort", "settle"])
@pytest.mark.parametrize("call", COMPLETE_CALLS)
async def test_an_abort_or_a_sweeper_that_comes_between_decides_it_either_way(
    call: str, how: str, repeats: Repeats
) -> None:
    """Before the commit it wins: the attempt fails, the object stays, and no blob, part or entry remains."""
    async with open_world(repeats=repeats) as world:
        await world.put("k", OTHER)
        await world.drain()
        await world.begin_upload("k", UPLOADED)

        async def come_between() -> None:
            await (world.uploads.abort(world.upload) if how == "abort" else _settle_upload(world))

        world.script.at(call, Interpose(come_between))
        with pytest.raises(NoSuchUpload):
            await world.complete()
        assert world.script.unused == []
        assert await world.get("k") == OTHER
        with pytest.raises(NoSuchUpload):
            await world.complete()
        await world.drain()
        await world.check_no_dangling()
        await world.sweep()
        await world.sweep()
        await world.check_settled()
        await world.begin_upload("k", UPLOADED)
        await world.complete()
        assert await world.get("k") == UPLOADED


@pytest.mark.parametrize("repeats", Repeats)
@pytest.mark.parametrize("later", ["nothing", "small", "large", "upload", "delete"])
@pytest.mark.parametrize("call", COMPLETE_CALLS)
async def test_a_faster_attempt_that_is_overwritten_is_not_repeated(call: str, later: str, repeats: Repeats) -> None:
    """Between any two steps another attempt commits and others write: the slower one succeeds and changes nothing."""
    async with open_world(repeats=repeats) as world:
        await world.begin_upload("k", UPLOADED)

        async def overtake() -> None:
            await world.uploads.complete(world.upload, world.parts)
            await LATER[later](world)
            await world.drain()

        world.script.at(call, Interpose(overtake))
        await world.complete()
        assert world.script.unused == []
        expected = {"nothing": UPLOADED, "small": SMALL, "large": OTHER, "upload": OTHER, "delete": None}[later]
        assert await world.get("k") == expected
        await world.sweep()
        await world.check_settled()
        assert await world.get("k") == expected


async def test_a_client_that_overwrites_between_without_the_upload_is_overwritten() -> None:
    """The upload is not committed yet, so it comes after the write that slipped in."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)

        async def overtake() -> None:
            await world.put("k", OTHER)
            await world.drain()

        world.script.at(POINT, Interpose(overtake))
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.drain()
        await world.check_settled()


async def test_an_abort_ends_the_upload_and_may_be_repeated() -> None:
    """Its parts go, later parts and attempts are refused, and a second abort is fine until it is forgotten."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        await world.uploads.abort(world.upload)
        await world.uploads.abort(world.upload)
        assert world.disk.uploads == {}
        with pytest.raises(NoSuchUpload):
            await world.uploads.upload_part(world.upload, 4, BytesBody(b"late"), None)
        with pytest.raises(NoSuchUpload):
            await world.complete()
        await world.sweep()
        await world.check_settled()
        with pytest.raises(NoSuchUpload):
            await world.uploads.abort(world.upload)


async def test_an_abort_after_complete_does_not_touch_the_object() -> None:
    """Completed is final, whether its entry was marked done yet or not."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        world.script.at("changelog.mark_done", FailBefore(Unavailable("scripted")))
        await world.complete()
        await world.drain()
        for _ in range(2):
            with pytest.raises(NoSuchUpload):
                await world.abort()
        assert await world.get("k") == UPLOADED
        await world.sweep()
        await world.check_settled()
        assert await world.get("k") == UPLOADED


async def test_an_upload_nobody_completed_is_aborted_after_its_retention() -> None:
    """Not before; and its parts go."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        world.clock.advance(world.limits.upload_retention_seconds - 1)
        await world.sweeper.run_once()
        assert len(world.disk.uploads) == 1
        world.clock.advance(2)
        assert await world.sweeper.run_once() == {"deleted": 1}
        assert world.disk.uploads == {}
        with pytest.raises(NoSuchUpload):
            await world.complete()
        await world.sweep()
        await world.check_settled()


async def test_an_outcome_is_forgotten_after_its_retention_and_the_row_still_tells() -> None:
    """While the object is there, completing it again succeeds for ever; after it has gone, the upload is unknown."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        await world.complete()
        await world.drain()
        assert (await world.raw_changelog.backlog()).outcomes == 1
        world.clock.advance(world.limits.outcome_retention_seconds + 1)
        assert await world.sweeper.run_once() == {"forgotten": 1}
        assert (await world.raw_changelog.backlog()).outcomes == 0
        await world.complete()
        await world.put("k", SMALL)
        await world.sweep()
        world.clock.advance(world.limits.outcome_retention_seconds + 1)
        await world.sweeper.run_once()
        with pytest.raises(NoSuchUpload):
            await world.complete()
        assert await world.get("k") == SMALL


async def test_a_sweeper_that_died_after_condemning_makes_attempts_ask_for_a_retry() -> None:
    """Nobody knows yet whether it was committed, so the answer is neither success nor failure."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        [entry] = await world.raw_changelog.find(world.upload.revision)
        lease = world.clock.now() + int(world.limits.sweep_lease_seconds * MICROS_PER_SECOND)
        assert await world.raw_changelog.condemn(entry, lease) is not None
        begun = world.clock.monotonic()
        with pytest.raises(Unavailable, match="being settled"):
            await world.complete()
        assert world.clock.monotonic() - begun >= world.limits.complete_wait_seconds_max
        await world.sweep()
        with pytest.raises(NoSuchUpload):
            await world.complete()
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("call", ["high_volume.fence", "changelog.find", "long_term.abort", "long_term.delete"])
async def test_an_abort_that_failed_half_way_can_be_repeated_at_once(call: str) -> None:
    """Not only when the lease of the first one is over: nobody else could end or complete the upload until then."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        begun = world.clock.monotonic()
        world.script.at(call, *([None] if call == "changelog.find" else []), FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable, match="scripted"):
            await world.abort()
        assert world.script.unused == []
        await world.abort()
        assert world.clock.monotonic() - begun < world.limits.sweep_lease_seconds / 2
        assert world.disk.uploads == {}
        with pytest.raises(NoSuchUpload):
            await world.complete()
        await world.sweep()
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("committed", [False, True])
async def test_an_abort_that_settles_what_another_is_settling_does_no_harm(committed: bool) -> None:
    """It has waited, and the other one has not died but goes on afterwards; a completed upload stays completed."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        if committed:
            world.script.at("changelog.mark_done", FailBefore(Unavailable("scripted")))
            await world.complete()
            await world.drain()
        pause = Pause(after_effect=True)
        world.script.at("high_volume.fence", pause)
        settling = asyncio.create_task(_settle_upload(world))
        await pause.reached.wait()
        if committed:
            with pytest.raises(NoSuchUpload, match="was completed"):
                await world.abort()
        else:
            await world.abort()
        pause.release.set()
        await settling
        assert await world.get("k") == (UPLOADED if committed else None)
        await world.sweep()
        await world.sweep()
        await world.check_settled()
        assert await world.get("k") == (UPLOADED if committed else None)


async def _assembled(world: World) -> None:
    """An upload that was assembled, and whose commit failed."""
    await world.begin_upload("k", UPLOADED)
    world.script.at(POINT, FailBefore(Unavailable("scripted")))
    with pytest.raises(Unavailable, match="scripted"):
        await world.complete()


@pytest.mark.parametrize("mistake", [InvalidPart, InvalidPartOrder])
async def test_an_object_is_not_made_of_other_parts_than_its_client_names(mistake: type[ClientMistake]) -> None:
    """That of an earlier attempt is there already: the store tells, and so is the client told; the first list works."""
    async with open_world() as world:
        await world.put("k", OTHER)
        await _assembled(world)
        world.script.at("long_term.complete", FailBefore(mistake("made of other parts")))
        with pytest.raises(mistake):
            await world.complete()
        await world.drain()
        assert await world.get("k") == OTHER
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("later", ["nothing", "small", "large", "upload", "delete"])
@pytest.mark.parametrize("cleaned", [True, False])
@pytest.mark.parametrize("call", ["long_term.complete", "long_term.head"])
async def test_of_an_upload_that_is_committed_meanwhile_no_attempt_fails(call: str, cleaned: bool, later: str) -> None:
    """Not even one with other parts, which the store has refused: it comes too late to be told of its mistake."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)

        async def overtake() -> None:
            if not cleaned:
                failures = [FailBefore(Unavailable("scripted"))] * (1 if later == "nothing" else 2)
                world.script.at("changelog.mark_done", *failures)
            await world.uploads.complete(world.upload, world.parts)
            await world.drain()
            await LATER[later](world)
            await world.drain()

        if call == "long_term.complete":
            world.script.at(call, Interpose(overtake))
        else:
            world.script.at("long_term.complete", FailBefore(InvalidPart("made of other parts")))
            world.script.at(call, Interpose(overtake))
        await world.complete()
        expected = {"nothing": UPLOADED, "small": SMALL, "large": OTHER, "upload": OTHER, "delete": None}[later]
        assert await world.get("k") == expected
        await world.sweep()
        await world.check_settled()


async def test_an_assembled_upload_that_is_not_committed_is_not_told_to_be_gone() -> None:
    """Its client is told to complete it again, which helps; of one that is gone it is told so."""
    async with open_world() as world:
        await _assembled(world)
        for _ in range(2):
            with pytest.raises(Unavailable, match="complete it again"):
                await world.uploads.list_parts(world.upload, 0, 3)
            with pytest.raises(Unavailable, match="complete it again"):
                await world.uploads.upload_part(world.upload, 1, BytesBody(b"late"), None)
        await world.complete()
        await world.drain()
        with pytest.raises(NoSuchUpload):
            await world.uploads.list_parts(world.upload, 0, 3)
        with pytest.raises(NoSuchUpload):
            await world.uploads.upload_part(world.upload, 1, BytesBody(b"late"), None)


@pytest.mark.parametrize("call", ["long_term.complete", "long_term.head"])
async def test_an_attempt_does_not_wait_for_a_store_without_end(call: str) -> None:
    """It gives up when the time of an operation is over; a retry has its own."""
    async with open_world(replace(Limits.tiny(), operation_deadline_seconds=0.05)) as world:
        await world.begin_upload("k", UPLOADED)
        pause = Pause()
        world.script.at(call, pause)
        async with asyncio.timeout(10):
            with pytest.raises(GivenUp):
                await world.uploads.complete(world.upload, world.parts)
        assert pause.reached.is_set()
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.drain()
        await world.check_settled()


async def test_attempts_at_one_upload_are_bounded() -> None:
    """More of them are told to try again before anything is done for them; other uploads go on, and so do retries."""
    async with open_world(replace(Limits.tiny(), upload_attempts_max=2)) as world:
        await world.begin_upload("other", UPLOADED)
        other, its_parts = world.upload, world.parts
        await world.begin_upload("k", UPLOADED)
        pauses = [Pause(), Pause()]
        world.script.at("long_term.complete", *pauses)
        attempts = [asyncio.create_task(world.uploads.complete(world.upload, world.parts)) for _ in pauses]
        for pause in pauses:
            await pause.reached.wait()
        calls = len(world.script.trace)
        for _ in range(3):
            with pytest.raises(Busy):
                await world.uploads.complete(world.upload, world.parts)
        assert len(world.script.trace) == calls
        await world.uploads.complete(other, its_parts)
        for pause in pauses:
            pause.release.set()
        await asyncio.gather(*attempts)
        for _ in range(3):
            await world.uploads.complete(world.upload, world.parts)
        assert await world.get("k") == await world.get("other") == UPLOADED


@pytest.mark.parametrize("repeats", Repeats)
@pytest.mark.parametrize("call", COMPLETE_CALLS)
async def test_after_any_failure_nothing_is_deleted_and_a_retry_succeeds(call: str, repeats: Repeats) -> None:
    """Above all when the blob was assembled, and cannot be looked at."""
    async with open_world(repeats=repeats) as world:
        await world.put("k", OTHER)
        await world.drain()
        await world.begin_upload("k", UPLOADED)
        world.script.at(call, FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable, match="scripted"):
            await world.complete()
        await world.drain()
        assert await world.get("k") == OTHER
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.sweep()
        await world.check_settled()


async def test_a_clients_mistake_passes_with_its_kind_and_leaves_the_upload() -> None:
    """The upload can still be completed with the right parts."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        with pytest.raises(InvalidPart):
            await world.uploads.complete(world.upload, [PartName(1, "wrong")])
        with pytest.raises(InvalidPart):
            await world.uploads.complete(world.upload, [*world.parts, PartName(8, "missing")])
        with pytest.raises(InvalidPartOrder):
            await world.uploads.complete(world.upload, list(reversed(world.parts)))
        await world.drain()
        assert await world.logged() == 0
        await world.complete()
        assert await world.get("k") == UPLOADED


@pytest.mark.parametrize("arrives", ["before the retry", "within the retry", "after the retry", "after a sweep"])
async def test_a_commit_that_arrives_late_is_committed_once(arrives: str) -> None:
    """The client is told to try again; whenever the first write arrives, another client's later write stays."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        world.script.at(POINT, ArriveLate(OutcomeUnknown("scripted")))
        with pytest.raises(OutcomeUnknown):
            await world.complete()
        await world.drain()
        if arrives == "before the retry":
            await world.script.arrive()
        if arrives == "within the retry":
            world.script.at(POINT, Interpose(world.script.arrive))
        await world.complete()
        await world.put("k", OTHER)
        await world.drain()
        if arrives == "after a sweep":
            await _sweep_due(world)
        await world.script.arrive()
        assert await world.get("k") == OTHER
        await world.complete()
        assert await world.get("k") == OTHER
        await world.sweep()
        await world.check_settled()


async def test_endless_writers_end_in_a_retry() -> None:
    """The number of rounds is bounded, and the upload lives."""
    async with open_world(replace(Limits.tiny(), commit_attempts_max=3)) as world:
        await world.begin_upload("k", UPLOADED)

        async def overtake() -> None:
            await world.put("k", OTHER)
            await world.drain()

        world.script.at(POINT, *[fault for _ in range(3) for fault in (Interpose(overtake), None)])
        with pytest.raises(Unavailable, match="too many concurrent writers"):
            await world.complete()
        assert world.script.trace.count("long_term.complete") == 1, "the blob is not assembled again"
        await world.drain()
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.sweep()
        await world.check_settled()


async def test_an_attempt_gives_up_after_the_operation_deadline() -> None:
    """No write of the row is sent later; a retry has its own time."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)

        async def dawdle() -> None:
            world.clock.advance(world.limits.operation_deadline_seconds + 1)

        world.script.at("long_term.head", Interpose(dawdle))
        with pytest.raises(GivenUp):
            await world.complete()
        assert POINT not in world.script.trace
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.drain()
        await world.check_settled()


async def test_with_the_cleanup_owner_full_the_caller_does_it_and_its_failure_changes_nothing() -> None:
    """The upload was committed: what fails afterwards is the sweeper's."""
    async with open_world(replace(Limits.tiny(), background_tasks_max=0)) as world:
        await world.put("k", OTHER)
        await world.begin_upload("k", UPLOADED)
        world.script.at("changelog.mark_done", FailBefore(Unavailable("scripted")))
        await world.complete()
        assert await world.get("k") == UPLOADED
        await world.complete()
        await world.sweep()
        await world.check_settled()


async def test_the_blob_of_an_upload_goes_only_after_its_outcome_is_recorded() -> None:
    """An attempt that looks for the blob and finds none must learn that it was there."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        world.script.at("changelog.mark_done", FailBefore(Unavailable("scripted")))
        await world.complete()
        await world.drain()
        [entry] = await world.raw_changelog.find(world.upload.revision)
        assert entry.state is not State.DONE
        world.script.trace.clear()
        await world.put("k", LARGE)
        await world.drain()
        calls = world.script.trace
        assert calls.index("changelog.mark_done") < calls.index("long_term.delete")


async def _committed_and_overwritten_without_cleanup(world: World) -> None:
    """The upload was committed and swapped out, but nothing of what follows a commit has been done yet."""
    await world.begin_upload("k", UPLOADED)
    world.script.at("changelog.mark_done", FailBefore(Unavailable("scripted")), FailBefore(Unavailable("scripted")))
    await world.complete()
    await world.drain()
    await world.put("k", OTHER)
    await world.drain()
    assert world.script.unused == []


async def test_a_sweeper_that_deletes_what_an_upload_made_records_its_outcome() -> None:
    """When the entry that listed it as old has been forgotten, the upload's own still tells that it was committed."""
    async with open_world() as world:
        await _committed_and_overwritten_without_cleanup(world)
        await _sweep_due(world)
        world.clock.advance(world.limits.sweep_second_visit_seconds + 1)
        await world.sweeper.run_once()
        await world.complete()
        assert await world.get("k") == OTHER
        await world.sweep()
        await world.check_settled()


async def test_an_abort_of_what_is_being_swapped_out_says_that_it_was_completed() -> None:
    """Another's entry lists the revision as old: that decides, although the row points elsewhere."""
    async with open_world() as world:
        await _committed_and_overwritten_without_cleanup(world)
        with pytest.raises(NoSuchUpload, match="was completed"):
            await world.abort()
        await world.complete()
        assert await world.get("k") == OTHER
        await world.sweep()
        await world.check_settled()


async def test_an_attempt_waits_for_a_sweeper_that_is_settling_the_upload() -> None:
    """Its client gets the final answer rather than the advice to try again."""
    async with open_world() as world:
        await world.begin_upload("k", UPLOADED)
        pause = Pause()
        world.script.at("long_term.abort", pause)
        settling = asyncio.create_task(_settle_upload(world))
        await pause.reached.wait()
        world.script.at("changelog.claim", None, Interpose(_release(pause, settling)))
        with pytest.raises(NoSuchUpload):
            await world.complete()
        assert world.script.unused == []
        await world.sweep()
        await world.check_settled()


def _release(pause: Pause, settling: asyncio.Task[None]) -> Callable[[], Awaitable[None]]:
    async def release() -> None:
        pause.release.set()
        await settling

    return release
