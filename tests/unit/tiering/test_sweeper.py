"""The sweeper: what it settles, what it leaves alone, and that several may run at once under live operations."""

import asyncio
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, POINT, SMALL, BytesBody, World, object_id, open_world
from tierstore import telemetry
from tierstore.backends.high_volume.contract import Gone
from tierstore.errors import CorruptObject, Unavailable
from tierstore.limits import Limits
from tierstore.testing.faults import Crash, Effect, FailBefore, Interpose, Pause
from tierstore.types.ids import Revision
from tierstore.types.metadata import TimeToLive


async def _crash_after_upload(world: World, key: str = "k") -> Revision:
    """What a process leaves that dies between writing its blob and committing it."""
    revision = Revision(object_id(key), world.ids.uuid())
    await world.raw_changelog.record(world.ids.uuid(), new=revision, old=None, not_before=world.clock.now())
    await world.raw_long_term.put(revision, BytesBody(LARGE), None)
    return revision


async def test_entries_are_left_alone_until_they_are_due() -> None:
    """Politeness: an operation's entries are not touched before its grace has ended."""
    async with open_world() as world:
        pause = Pause(after_effect=True)
        world.script.at("long_term.put", pause)
        write = asyncio.create_task(world.put("k", LARGE))
        await pause.reached.wait()
        world.clock.advance(world.limits.entry_grace_seconds - 1)
        assert await world.sweeper.run_once() == {}
        pause.release.set()
        await write
        assert await world.get("k") == LARGE


async def test_an_orphan_is_deleted_at_the_first_visit_and_forgotten_at_the_second() -> None:
    """One sweep removes the blob; the entry stays until the blob has stayed away."""
    async with open_world() as world:
        revision = await _crash_after_upload(world)
        assert await world.sweeper.run_once() == {"deleted": 1}
        assert await world.blobs() == []
        assert await world.logged() == 1
        world.clock.advance(world.limits.operation_deadline_seconds)
        assert await world.sweeper.run_once() == {}, "until then its owner may live, and still be writing"
        await world.raw_long_term.put(revision, BytesBody(LARGE), None)
        world.clock.advance(world.limits.operation_deadline_seconds / 2 + world.limits.sweep_second_visit_seconds + 1)
        assert await world.sweeper.run_once() == {"deleted": 1}, "it came back: another visit follows"
        world.clock.advance(world.limits.sweep_second_visit_seconds + 1)
        assert await world.sweeper.run_once() == {"forgotten": 1}
        await world.check_settled()


async def test_a_blob_that_is_written_after_the_first_visit_is_not_orphaned() -> None:
    """A slow writer whose entry was settled under it writes its blob and dies: the entry is still there to find it."""
    async with open_world() as world:
        pause = Pause()
        world.script.at("long_term.put", pause)
        world.script.at(POINT, Crash(Effect.NEVER))
        write = asyncio.create_task(world.put("k", LARGE))
        await pause.reached.wait()
        world.clock.advance(world.limits.entry_grace_seconds + 1)
        assert await world.sweeper.run_once() == {"deleted": 1}
        for _ in range(3):
            world.clock.advance(world.limits.sweep_second_visit_seconds + 1)
            assert await world.sweeper.run_once() == {}
        pause.release.set()
        with pytest.raises(asyncio.CancelledError):
            await write
        world.script.restart()
        assert len(await world.blobs()) == 1
        await world.sweep()
        await world.sweep()
        await world.check_settled()


async def test_a_committed_blob_is_kept() -> None:
    """An entry whose revision the row points to is forgotten and the object untouched, an expired one too."""
    async with open_world() as world:
        world.script.at("changelog.forget", FailBefore(Unavailable("scripted")))
        await world.put("k", LARGE)
        await world.drain()
        assert await world.logged() == 1
        world.clock.advance(world.limits.entry_grace_seconds + 1)
        assert await world.sweeper.run_once() == {"kept": 1}
        assert await world.get("k") == LARGE
        await world.check_settled()


async def test_fencing_a_row_that_never_existed_leaves_a_marker() -> None:
    """The fence works on absent rows too: a compare-and-write that expects none dies."""
    async with open_world() as world:
        await _crash_after_upload(world)
        await world.sweeper.run_once()
        row = await world.raw_high_volume.head(object_id("k"))
        assert row is not None
        assert isinstance(row.content, Gone)


async def test_a_hot_key_is_fenced_all_the_same() -> None:
    """However often a row is overwritten, its orphan is settled at the first try."""
    async with open_world() as world:
        await _crash_after_upload(world)
        writing = True

        async def write() -> None:
            while writing:
                await world.put("k", SMALL)

        writer = asyncio.create_task(write())
        assert await world.sweeper.run_once() == {"deleted": 1}
        writing = False
        await writer
        assert await world.get("k") == SMALL


async def test_a_damaged_blob_is_deleted_at_the_second_visit() -> None:
    """A blob that came back damaged, so that it cannot even be looked at, is no reason to keep its entry for ever."""
    async with open_world() as world:
        revision = await _crash_after_upload(world)
        await world.sweeper.run_once()
        await world.raw_long_term.put(revision, BytesBody(LARGE), None)
        world.script.at("long_term.head", FailBefore(CorruptObject("scripted")))
        world.clock.advance(world.limits.new_entry_kept_seconds_min + 1)
        assert await world.sweeper.run_once() == {"deleted": 1}
        assert await world.blobs() == []
        await world.sweep()
        await world.check_settled()


async def test_a_step_that_fails_does_not_keep_the_others_from_running() -> None:
    """Without the change log expiry goes on; with debris that cannot be removed everything does, and it is reported."""
    async with open_world() as world:
        for call in ("changelog.due", "long_term.remove_debris", "high_volume.remove_markers"):
            await world.put("k", LARGE, TimeToLive(60))
            await world.drain()
            world.clock.advance(61)
            expired = telemetry.sweep_results.labels("expired")._value.get()
            ok = telemetry.sweep_runs.labels("ok")._value.get()
            world.script.at(call, FailBefore(Unavailable("scripted")))
            with pytest.raises(ExceptionGroup):
                await world.sweeper.run_once()
            assert telemetry.sweep_results.labels("expired")._value.get() == expired + 1
            assert telemetry.sweep_runs.labels("ok")._value.get() == ok
            await world.check_settled()


async def test_a_sweep_ends_when_nothing_gets_less() -> None:
    """Items that fail every time, a whole batch of them, do not keep a run going."""
    async with open_world() as world:
        for number in range(world.limits.sweep_batch * 2):
            await _crash_after_upload(world, f"k{number}")
        world.script.at("changelog.condemn", *[FailBefore(Unavailable("scripted"))] * 1000)
        results = await world.sweeper.run_once()
        assert results == {"error": world.limits.sweep_batch}


async def test_a_sweep_is_bounded() -> None:
    """One run takes so many batches; the next one goes on."""
    limits = replace(Limits.tiny(), sweep_batches_max=2)
    async with open_world(limits) as world:
        for number in range(limits.sweep_batch * 3):
            await _crash_after_upload(world, f"k{number}")
            await world.delete("k")
            await world.put(f"gone-{number}", SMALL)
            await world.delete(f"gone-{number}")
        assert (await world.sweeper.run_once())["deleted"] == limits.sweep_batch * 2
        assert (await world.sweeper.run_once())["deleted"] == limits.sweep_batch
        world.clock.advance(limits.marker_retention_seconds + limits.operation_deadline_seconds)
        assert (await world.sweeper.run_once())["marker_removed"] == limits.sweep_batch * 2


@pytest.mark.parametrize(
    "call", ["changelog.condemn", "high_volume.fence", "long_term.delete", "changelog.resume_later"]
)
async def test_a_sweeper_that_fails_anywhere_is_succeeded_by_another(call: str) -> None:
    """An entry that could not be settled is counted, logged and settled later."""
    async with open_world() as world:
        await _crash_after_upload(world)
        world.script.at(call, FailBefore(Unavailable("scripted")))
        assert await world.sweeper.run_once() == {"error": 1}
        world.clock.advance(world.limits.sweep_lease_seconds + 1)
        await world.sweep()
        await world.check_settled()


async def test_one_bad_entry_does_not_stop_the_others() -> None:
    """Failures are by entry, whatever is raised: a sweep goes on with the next."""
    async with open_world() as world:
        for number in range(10):
            await _crash_after_upload(world, f"k{number}")
        world.script.at("long_term.delete", FailBefore(RuntimeError("a bug")))
        results = await world.sweeper.run_once()
        assert (results["deleted"], results["error"]) == (9, 1)


async def test_many_entries_are_settled_in_batches_by_several_sweepers() -> None:
    """More entries than a batch, three sweepers at once: each entry is settled by exactly one."""
    async with open_world() as world:
        for number in range(30):
            await _crash_after_upload(world, f"k{number}")
        results = await asyncio.gather(*[world.sweeper.run_once() for _ in range(3)])
        while await world.blobs():
            results.append(await world.sweeper.run_once())
        assert sum(result["deleted"] for result in results) == 30
        assert world.script.trace.count("long_term.delete") == 30


async def test_an_adversarial_sweeper_under_live_writers_can_only_make_them_fail() -> None:
    """Entries settled while their writers live: nothing dangles, an acknowledged write is there."""
    async with open_world() as world:
        acknowledged: list[bytes] = []
        unknown: list[bytes] = []

        async def write(number: int) -> None:
            payload = bytes([number]) * 100
            try:
                await world.put("k", payload)
            except Unavailable:
                unknown.append(payload)
            else:
                acknowledged.append(payload)

        async def sweep() -> None:
            for _ in range(40):
                for entry in await world.raw_changelog.due(2**62, 100):
                    await world.settler.settle(entry)
                await world.check_no_dangling()
                await world.clock.sleep(0)

        await asyncio.gather(sweep(), *[write(number) for number in range(40)])
        assert await world.get("k") in acknowledged
        await world.sweep()
        await world.check_settled()


@pytest.mark.parametrize("payload", [SMALL, LARGE])
async def test_expired_objects_are_removed_physically(payload: bytes) -> None:
    """After a sweep neither payload nor blob of an expired object is left; a day later neither is its row."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(60))
        await world.put("stays", payload)
        await world.drain()
        world.clock.advance(60)
        assert (await world.sweeper.run_once())["expired"] == 1
        row = await world.raw_high_volume.head(object_id("k"))
        assert row is not None
        assert isinstance(row.content, Gone)
        await world.check_settled()
        world.clock.advance(world.limits.marker_retention_seconds - 1)
        assert await world.sweeper.run_once() == {}
        world.clock.advance(2)
        assert await world.sweeper.run_once() == {"marker_removed": 1}
        assert await world.raw_high_volume.head(object_id("k")) is None
        assert await world.get("stays") == payload


async def test_settling_that_was_on_its_way_for_too_long_writes_nothing() -> None:
    """A sweeper that was frozen leaves an expired object to the next one."""
    async with open_world() as world:
        await world.put("k", LARGE, TimeToLive(60))
        await world.drain()
        world.clock.advance(61)
        pause = Pause()
        world.script.at("high_volume.compare_and_write", pause)
        sweep = asyncio.create_task(world.sweeper.run_once())
        await pause.reached.wait()
        world.clock.advance(world.limits.operation_deadline_seconds + 1)
        pause.release.set()
        assert await sweep == {"lost": 1}
        assert await world.pointed_to() == await world.blobs() != []
        await world.sweep()
        await world.check_settled()


async def test_expired_objects_are_removed_in_batches() -> None:
    """More expired objects than a batch are all removed in one run, and those that fail are left for the next."""
    async with open_world() as world:
        for number in range(10):
            await world.put(f"k{number}", LARGE, TimeToLive(60))
        await world.drain()
        world.clock.advance(61)
        world.script.at("long_term.delete", FailBefore(Unavailable("scripted")))
        results = await world.sweeper.run_once()
        assert (results["expired"], results["error"]) == (9, 1)
        await world.sweep()
        await world.check_settled()


async def test_an_expired_object_that_is_overwritten_meanwhile_is_left_alone() -> None:
    """The sweeper's settling of an expired object loses against a new write."""
    async with open_world() as world:
        await world.put("k", LARGE, TimeToLive(60))
        await world.drain()
        world.clock.advance(61)

        async def overwrite() -> None:
            await world.put("k", b"new")
            await world.drain()

        world.script.at("high_volume.compare_and_write", Interpose(overwrite))
        assert (await world.sweeper.run_once())["lost"] == 1
        assert await world.get("k") == b"new"
        await world.check_settled()


async def test_the_loop_survives_a_failing_run_and_ends_when_cancelled() -> None:
    """A run that fails is counted; the next one comes after the period."""
    async with open_world() as world:
        failed = telemetry.sweep_runs.labels("failed")._value.get()
        ok = telemetry.sweep_runs.labels("ok")._value.get()
        world.script.at("changelog.due", FailBefore(Unavailable("scripted")))
        loop = asyncio.create_task(world.sweeper.run(60))
        for _ in range(200):
            await asyncio.sleep(0)
            world.clock.advance(1)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        assert telemetry.sweep_runs.labels("failed")._value.get() == failed + 1
        assert telemetry.sweep_runs.labels("ok")._value.get() >= ok + 1
