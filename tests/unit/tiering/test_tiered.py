"""The tiered store without faults: where objects go, what readers see, when objects expire."""

import asyncio
import itertools
import tracemalloc
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, SMALL, BytesBody, World, commit_point, object_id, open_world, payload_of
from tierstore import telemetry
from tierstore.backends.high_volume.contract import Gone, Inline, Tombstone
from tierstore.errors import (
    ClientDisconnected,
    CorruptObject,
    IncompleteBody,
    ObjectNotFound,
    RangeNotSatisfiable,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.testing.faults import Answer, FailBefore, Interpose
from tierstore.types.ids import Revision
from tierstore.types.metadata import Metadata, TimeToIdle, TimeToLive
from tierstore.types.metadata_storage import encode_metadata
from tierstore.types.objects import Tier
from tierstore.types.ranges import FromStart, Suffix

SECOND = 1_000_000


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("size", "tier"),
    [
        (0, Tier.HIGH_VOLUME),
        (1, Tier.HIGH_VOLUME),
        (64, Tier.HIGH_VOLUME),
        (65, Tier.LONG_TERM),
        (1000, Tier.LONG_TERM),
    ],
)
async def test_the_size_alone_chooses_the_tier(size: int, tier: Tier, announced: bool) -> None:
    """Up to ``inline_bytes_max`` an object is inline, beyond it is a blob, whether or not its length was announced."""
    payload = bytes(range(256)) * 4
    async with open_world() as world:
        body = BytesBody(payload[:size], announced=announced)
        assert await world.store.put(object_id("k"), Metadata(), body) is tier
        found = await world.store.get(object_id("k"), None)
        assert (found.tier, found.info.size, await payload_of(found)) == (tier, size, payload[:size])
        head = await world.store.head(object_id("k"))
        assert (head.tier, head.info) == (tier, found.info)
        assert len(await world.blobs()) == (tier is Tier.LONG_TERM)


async def test_a_body_of_unknown_length_is_buffered_up_to_the_bound_only() -> None:
    """When a body turns out to be large, what was read of it and the rest go to the blob, in order."""
    payload = b"".join(b"%06d" % number for number in range(500))
    async with open_world() as world:
        await world.store.put(object_id("k"), Metadata(), BytesBody(payload, announced=False, chunk=7))
        assert await world.get("k") == payload


async def test_head_reads_the_high_volume_store_once_in_both_tiers() -> None:
    """HEAD costs one high-volume read, for large objects too: their metadata is in the tombstone."""
    async with open_world() as world:
        await world.put("small", SMALL)
        await world.put("large", LARGE)
        await world.drain()
        for key in ("small", "large"):
            world.script.trace.clear()
            await world.store.head(object_id(key))
            assert world.script.trace == ["high_volume.head"]


async def test_small_writes_and_deletes_take_one_round_trip() -> None:
    """The hot path of small objects is one call to one store."""
    async with open_world() as world:
        for act in (world.put("k", SMALL), world.put("k", SMALL), world.get("k"), world.delete("k")):
            world.script.trace.clear()
            await act
            await world.drain()
            assert len(world.script.trace) == 1


@pytest.mark.parametrize("order", list(itertools.permutations([b"a", b"B" * 70, b"c" * 64, b"D" * 500, None])))
async def test_overwrites_and_deletes_in_every_order(order: tuple[bytes | None, ...]) -> None:
    """The last write is what is read, and after the cleanup no blob is left that is not pointed to."""
    async with open_world() as world:
        for payload in order:
            await (world.delete("k") if payload is None else world.put("k", payload))
            assert await world.get("k") == payload
        await world.drain()
        await world.check_settled()
        assert world.failures == []


@pytest.mark.parametrize("payload", [SMALL, LARGE])
async def test_ranges_select_bytes_in_both_tiers(payload: bytes) -> None:
    """A range gives exactly its bytes; one past the end is refused with the size."""
    async with open_world() as world:
        content = bytes(range(len(payload)))
        await world.put("k", content)
        assert await world.get("k", FromStart(1, 9)) == content[1:10]
        assert await world.get("k", FromStart(50, None)) == content[50:]
        assert await world.get("k", Suffix(3)) == content[-3:]
        with pytest.raises(RangeNotSatisfiable) as refused:
            await world.get("k", FromStart(len(content), None))
        assert refused.value.size == len(content)


@pytest.mark.parametrize("error", [IncompleteBody("cut off"), ClientDisconnected("gone")])
@pytest.mark.parametrize("size", [10, 1000])
async def test_a_body_that_ends_early_stores_nothing(size: int, error: Exception) -> None:
    """The error of the body reaches the caller, the object keeps what it had, nothing is left behind."""
    async with open_world() as world:
        await world.put("k", b"before")
        with pytest.raises(type(error)):
            await world.store.put(object_id("k"), Metadata(), BytesBody(b"x" * size, error=error))
        await world.drain()
        assert await world.get("k") == b"before"
        await world.check_settled()


async def test_a_read_follows_an_overwrite_that_takes_its_blob_away() -> None:
    """An overwrite between the row and the blob never looks like an absence: the new object is read."""
    async with open_world() as world:

        async def overwrite(payload: bytes) -> None:
            await world.put("k", payload)
            await world.drain()

        await world.put("k", LARGE)
        await world.drain()
        world.script.at(
            "long_term.get", Interpose(lambda: overwrite(b"2" * 90)), Interpose(lambda: overwrite(b"3" * 95))
        )
        assert await world.get("k") == b"3" * 95
        world.script.at("long_term.get", Interpose(lambda: overwrite(b"small")))
        assert await world.get("k") == b"small"


async def test_a_read_that_meets_a_delete_finds_nothing() -> None:
    """A delete between the row and the blob is an absence, and no lost blob."""
    async with open_world() as world:

        async def delete() -> None:
            await world.delete("k")
            await world.drain()

        lost = telemetry.dangling_tombstones._value.get()
        await world.put("k", LARGE)
        await world.drain()
        world.script.at("long_term.get", Interpose(delete))
        assert await world.get("k") is None
        assert telemetry.dangling_tombstones._value.get() == lost


async def test_a_read_that_is_always_overtaken_asks_the_caller_to_try_again() -> None:
    """Following is bounded: an answer is never invented, the caller is told to try again."""
    async with open_world() as world:

        async def overwrite() -> None:
            await world.put("k", LARGE)
            await world.drain()

        await overwrite()
        world.script.at("long_term.get", *[Interpose(overwrite) for _ in range(world.limits.read_attempts_max)])
        with pytest.raises(Unavailable):
            await world.get("k")


@pytest.mark.parametrize("fenced", [False, True])
async def test_a_lost_blob_is_counted_and_not_found(fenced: bool) -> None:
    """A tombstone whose blob is missing is counted, also when a sweeper's fence changes the version meanwhile."""
    async with open_world() as world:
        await world.put("k", LARGE)
        (revision,) = await world.blobs()
        await world.raw_long_term.delete(revision)

        async def fence() -> None:
            await world.raw_high_volume.fence(object_id("k"))

        if fenced:
            world.script.at("long_term.get", Interpose(fence))
        lost = telemetry.dangling_tombstones._value.get()
        assert await world.get("k") is None
        assert telemetry.dangling_tombstones._value.get() == lost + 1


async def test_sizes_that_disagree_are_corruption() -> None:
    """A blob or payload of another size than the metadata says is never served, and its stream is closed."""
    async with open_world() as world:
        claims = encode_metadata(Metadata(), size=99, time_created=world.clock.now())
        await world.raw_high_volume.put_inline(object_id("small"), Inline(claims, b"x"), None)
        revision = Revision(object_id("large"), world.ids.uuid())
        await world.raw_long_term.put(revision, BytesBody(b"y" * 98), None)
        await world.raw_high_volume.compare_and_write(object_id("large"), None, Tombstone(claims, revision.uuid), None)
        closed: list[str] = []
        world.script.at("long_term.aclose", Interpose(lambda: _note(closed)))
        for key in ("small", "large"):
            with pytest.raises(CorruptObject):
                await world.get(key)
        assert closed == ["closed"]


async def _note(closed: list[str]) -> None:
    closed.append("closed")


@pytest.mark.parametrize("payload", [SMALL, LARGE])
async def test_ttl_ends_at_its_instant(payload: bytes) -> None:
    """A ttl object is there until the last microsecond before its deadline and seen by nobody from then on."""
    async with open_world() as world:
        created = world.clock.now()
        await world.put("k", payload, TimeToLive(60))
        assert (await world.store.head(object_id("k"))).info.time_expires == created + 60 * SECOND
        world.clock.advance((60 * SECOND - 1) / SECOND)
        assert await world.get("k") == payload
        world.clock.advance((1) / SECOND)
        assert await world.get("k") is None
        with pytest.raises(ObjectNotFound):
            await world.store.head(object_id("k"))
        await world.delete("k")
        await world.put("k", b"new")
        assert await world.get("k") == b"new"
        await world.drain()
        await world.check_settled()


@pytest.mark.parametrize("payload", [SMALL, LARGE])
@pytest.mark.parametrize("access", ["get", "head"])
async def test_tti_moves_with_accesses_but_not_with_each(payload: bytes, access: str) -> None:
    """An access moves a tti deadline once it is stale by more than a quarter; it shows the one from before."""
    async with open_world() as world:
        created = world.clock.now()
        await world.put("k", payload, TimeToIdle(100))

        async def touch() -> int | None:
            if access == "head":
                shown = (await world.store.head(object_id("k"))).info.time_expires
            else:
                found = await world.store.get(object_id("k"), None)
                await payload_of(found)
                shown = found.info.time_expires
            await world.drain()
            return shown

        world.clock.advance((25 * SECOND) / SECOND)
        assert await touch() == created + 100 * SECOND
        assert await touch() == created + 100 * SECOND, "a deadline stale by a quarter is left alone"
        world.clock.advance((1) / SECOND)
        assert await touch() == created + 100 * SECOND, "the header shows the deadline from before the bump"
        assert await touch() == created + 125 * SECOND + 1
        world.clock.advance((100 * SECOND - 1) / SECOND)
        assert await touch() == created + 125 * SECOND + 1
        world.clock.advance((100 * SECOND) / SECOND)
        with pytest.raises(ObjectNotFound):
            await touch()


async def test_tti_debounce_is_at_most_a_day() -> None:
    """A long tti is moved when its deadline is stale by more than 24 h, not by a quarter of its duration."""
    day = 86_400 * SECOND
    async with open_world() as world:
        created = world.clock.now()
        await world.put("k", SMALL, TimeToIdle(400 * 86_400))
        world.clock.advance((day) / SECOND)
        await world.get("k")
        await world.drain()
        assert (await world.store.head(object_id("k"))).info.time_expires == created + 400 * day
        world.clock.advance((1) / SECOND)
        await world.get("k")
        await world.drain()
        assert (await world.store.head(object_id("k"))).info.time_expires == created + 401 * day + 1


async def test_a_bump_never_revives_or_touches_another_content() -> None:
    """A bump that arrives after the deadline, or after an overwrite, changes nothing."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToIdle(100))
        world.clock.advance(99)

        async def expire() -> None:
            world.clock.advance(1)

        world.script.at("high_volume.extend", Interpose(expire))
        assert await world.get("k") == SMALL
        await world.drain()
        assert await world.get("k") is None

        await world.put("k", SMALL, TimeToIdle(100))
        world.clock.advance(99)

        async def overwrite() -> None:
            await world.put("k", b"new", TimeToLive(7))

        world.script.at("high_volume.extend", Interpose(overwrite))
        await world.get("k")
        await world.drain()
        world.clock.advance(8)
        assert await world.get("k") is None


@pytest.mark.parametrize("payload", [SMALL, LARGE])
async def test_a_bump_is_repeated_after_a_fence(payload: bytes) -> None:
    """A sweeper's fence changes the version and not the object: the access still counts."""
    async with open_world() as world:
        await world.put("k", payload, TimeToIdle(100))
        await world.drain()
        world.clock.advance(90)
        world.script.at("high_volume.extend", Interpose(lambda: world.raw_high_volume.fence(object_id("k"))))
        await world.get("k")
        await world.drain()
        world.clock.advance(20)
        assert await world.get("k") == payload


async def test_accesses_at_the_same_time_move_the_deadline_once() -> None:
    """Many readers of one object at once cost one write."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToIdle(100))
        world.clock.advance(90)
        await asyncio.gather(*[world.get("k") for _ in range(50)])
        await world.drain()
        assert world.script.trace.count("high_volume.extend") == 1
        world.clock.advance(90)
        assert await world.get("k") == SMALL, "and the next access counts again"
        await world.drain()
        assert world.script.trace.count("high_volume.extend") == 2


async def test_tiny_chunks_do_not_multiply_memory() -> None:
    """What a body of unknown length is buffered in is about as large as what was received."""
    size = 500_000

    class Drip(BytesBody):
        async def __anext__(self) -> bytes:
            return bytes(bytearray(await super().__anext__()))  # an object of its own for each chunk

    async with open_world(replace(Limits.tiny(), inline_bytes_max=size, object_bytes_max=size)) as world:
        tracemalloc.start()
        try:
            body = Drip(b"x" * size, announced=False, chunk=2)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            await world.store.put(object_id("k"), Metadata(), body)
            grown = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert grown < 8 * size


async def test_a_bump_that_fails_does_not_fail_the_read() -> None:
    """Accesses succeed whatever becomes of their bump; a failed one is reported by the cleanup's owner."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToIdle(100))
        world.clock.advance(99)
        world.script.at("high_volume.extend", FailBefore(Unavailable("scripted")))
        assert await world.get("k") == SMALL
        await world.drain()
        assert [name for name, _ in world.failures] == ["extend"]


async def test_bumps_are_skipped_when_the_cleanup_has_too_much_to_do() -> None:
    """The bound on background work holds for bumps too; reading goes on."""
    limits = Limits.tiny()
    async with open_world(limits) as world:
        await world.put("k", SMALL, TimeToIdle(100))
        world.clock.advance(99)
        skipped = telemetry.deadline_bumps.labels("skipped")._value.get()
        for _ in range(limits.background_tasks_max + 3):
            assert await _payload_without_pause(world) == SMALL
        assert telemetry.deadline_bumps.labels("skipped")._value.get() > skipped


async def _payload_without_pause(world: World) -> bytes | None:
    while not world.cleanup.full:
        world.cleanup.spawn("busy", world.clock.sleep(3600))
    return await world.get("k")


async def test_cleanup_beyond_the_bound_is_done_by_the_writer() -> None:
    """When the background is full, the writer deletes what it replaced itself, and nothing is left over."""
    async with open_world() as world:
        await world.put("k", LARGE)
        await world.drain()
        while not world.cleanup.full:
            world.cleanup.spawn("busy", world.clock.sleep(3600))
        await world.put("k", b"small")
        assert await world.blobs() == []
        world.script.at("long_term.delete", FailBefore(Unavailable("scripted")), FailBefore(RuntimeError("a bug")))
        await world.put("k", LARGE)
        await world.put("k", b"small")
        await world.put("k", LARGE)
        await world.put("k", b"small")
        assert await world.get("k") == b"small", "a cleanup that fails does not fail the write"
        await world.cleanup.drain(0)
        await world.sweep()
        await world.check_settled()


async def test_writers_that_always_lose_are_told_to_try_again() -> None:
    """Compare-and-writes are bounded; a writer that gives up leaves nothing behind."""
    for payload in (LARGE, SMALL):
        async with open_world() as world:
            await world.put("k", b"o" * 99)
            await world.drain()
            world.script.at(commit_point(payload), *[Answer(value=None)] * world.limits.commit_attempts_max)
            with pytest.raises(Unavailable):
                await world.put("k", payload)
            assert await world.get("k") == b"o" * 99
            await world.drain()
            assert len(await world.blobs()) == 1, "its own blob goes at once"
            assert len(await world.raw_changelog.due(world.clock.now(), 9)) == await world.logged()
            await world.sweep()
            await world.check_settled()


async def test_a_delete_leaves_a_marker_that_keeps_the_version_sequence() -> None:
    """After a delete the row is `Gone` with a new version; deleting what is not there writes nothing."""
    async with open_world() as world:
        await world.delete("never")
        assert await world.raw_high_volume.head(object_id("never")) is None
        for payload in (SMALL, LARGE):
            await world.put("k", payload)
            before = await world.raw_high_volume.head(object_id("k"))
            await world.delete("k")
            row = await world.raw_high_volume.head(object_id("k"))
            assert row is not None
            assert before is not None
            assert isinstance(row.content, Gone)
            assert row.version != before.version
