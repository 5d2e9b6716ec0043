"""Extending an expiry: every answer, in both tiers, against overwrites, deletes, fences, sweeps and lost replies."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.unit.tiering.world import LARGE, SMALL, World, object_id, open_world
from tierstore.clock import MICROS_PER_SECOND as SECOND
from tierstore.clock import UnixMicros
from tierstore.errors import Conflict, InvalidRequest, ObjectNotFound, OutcomeUnknown, Unavailable
from tierstore.limits import Limits
from tierstore.testing.faults import Answer, ArriveLate, Crash, Effect, FailBefore, Interpose, LoseReply, Pause
from tierstore.types.expiry import AfterCreation, AfterNow, AtInstant, ExpiryTarget
from tierstore.types.metadata import Expiration, ObjectInfo, TimeToIdle, TimeToLive
from tierstore.types.metadata_headers import headers_from_info
from tierstore.types.objects import Tier

EXTEND, HEAD = "high_volume.extend", "high_volume.head"
BOTH_TIERS = pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
BOTH_KINDS = pytest.mark.parametrize("expiration", [TimeToLive(100), TimeToIdle(100)], ids=["ttl", "tti"])


def _any(_: Expiration) -> None:
    """No policy."""


async def _extend(world: World, target: ExpiryTarget, permit: Callable[[Expiration], None] = _any) -> Tier:
    return await world.store.extend_expiry(object_id("k"), target, permit)


async def _info(world: World) -> ObjectInfo:
    """What is known of the object, without being an access."""
    row = await world.raw_high_volume.head(object_id("k"))
    assert row is not None
    info = (await world.store.head(object_id("k"))).info
    await world.drain()
    assert info.time_expires == row.expires
    return info


async def _deadline(world: World) -> UnixMicros | None:
    row = await world.raw_high_volume.head(object_id("k"))
    assert row is not None
    return row.expires


def _shown(info: ObjectInfo) -> str:
    return dict(headers_from_info(info))[b"x-sn-expiration"].decode()


@BOTH_TIERS
@BOTH_KINDS
async def test_every_target_moves_the_deadline(payload: bytes, expiration: TimeToLive | TimeToIdle) -> None:
    """An instant, a lifetime and a time from now; the ttl shows the lifetime, the tti stays, all else does too."""
    async with open_world() as world:
        tier = await world.put("k", payload, expiration)
        await world.drain()
        before = await world.raw_high_volume.read(object_id("k"))
        created = world.clock.now()
        world.clock.advance(10)
        targets: list[tuple[ExpiryTarget, int]] = [
            (AtInstant(created + 150 * SECOND), 150),
            (AfterCreation(200), 200),
            (AfterNow(300), 310),
        ]
        for target, seconds in targets:
            assert await _extend(world, target) is tier
            assert await _deadline(world) == created + seconds * SECOND
            info = await _info(world)
            assert info.time_created == created
            lifetime = {150: "ttl:2m 30s", 200: "ttl:3m 20s", 310: "ttl:5m 10s"}[seconds]
            assert _shown(info) == (lifetime if isinstance(expiration, TimeToLive) else "tti:1m 40s")
        after = await world.raw_high_volume.read(object_id("k"))
        assert before is not None
        assert after == replace(before, expires=created + 310 * SECOND), "version and content stay"
        world.clock.advance(299)
        assert await world.get("k") == payload
        world.clock.advance(2)
        if isinstance(expiration, TimeToLive):
            assert await world.get("k") is None


@BOTH_TIERS
@BOTH_KINDS
async def test_it_never_shortens(payload: bytes, expiration: TimeToLive | TimeToIdle) -> None:
    """A target at or before the deadline, also one in the past, is reached already: no change, no policy is asked."""

    def refuse(_: Expiration) -> None:
        raise InvalidRequest("scripted")

    async with open_world() as world:
        tier = await world.put("k", payload, expiration)
        deadline = await _deadline(world)
        assert deadline is not None
        for target in (AtInstant(deadline), AtInstant(deadline - 1), AtInstant(0), AfterNow(0), AfterCreation(100)):
            assert await _extend(world, target, refuse) is tier
            assert await _deadline(world) == deadline
        assert EXTEND not in world.script.trace
        with pytest.raises(InvalidRequest):
            await _extend(world, AtInstant(deadline + 1), refuse)
        assert await _deadline(world) == deadline


async def test_what_is_not_there_is_not_found() -> None:
    """Never stored, deleted, or expired to the microsecond."""
    async with open_world() as world:
        with pytest.raises(ObjectNotFound):
            await _extend(world, AfterNow(9))
        await world.put("k", SMALL, TimeToLive(100))
        await world.delete("k")
        with pytest.raises(ObjectNotFound):
            await _extend(world, AfterNow(9))
        for payload in (SMALL, LARGE):
            await world.put("k", payload, TimeToLive(100))
            world.clock.advance(100 - 1 / SECOND)
            await _extend(world, AfterNow(100))
            world.clock.advance(100)
            for target in (AfterNow(100), AfterNow(0), AtInstant(0)):
                with pytest.raises(ObjectNotFound):
                    await _extend(world, target)


@BOTH_TIERS
async def test_an_object_that_does_not_expire_has_nothing_to_extend(payload: bytes) -> None:
    """A conflict, whatever the target."""
    async with open_world() as world:
        await world.put("k", payload)
        for target in (AfterNow(9), AtInstant(0)):
            with pytest.raises(Conflict, match="does not expire"):
                await _extend(world, target)
        assert await _deadline(world) is None


async def test_no_lifetime_beyond_what_an_insert_may_ask_for() -> None:
    """The bound is that of durations: on a ttl's whole lifetime since its creation, on a tti's time from now."""
    limits = replace(Limits.tiny(), duration_seconds_max=1_000)
    for expiration, from_creation, from_now in ((TimeToLive(100), 1_000, 990), (TimeToIdle(100), 1_010, 1_000)):
        async with open_world(limits) as world:
            await world.put("k", SMALL, expiration)
            created = world.clock.now()
            world.clock.advance(10)
            for target in (
                AfterCreation(from_creation + 1),
                AfterNow(from_now + 1),
                AtInstant(created + from_creation * SECOND + 1),
            ):
                with pytest.raises(InvalidRequest, match="at most 16m 40s"):
                    await _extend(world, target)
            assert await _deadline(world) == created + 100 * SECOND
            await _extend(world, AfterNow(from_now))
            assert await _deadline(world) == created + from_creation * SECOND


@BOTH_KINDS
async def test_the_policy_is_asked_for_what_it_leads_to(expiration: TimeToLive | TimeToIdle) -> None:
    """Of a ttl the whole lifetime, of a tti the time from now, both rounded up to whole seconds."""
    asked: list[Expiration] = []
    async with open_world() as world:
        await world.put("k", SMALL, expiration)
        world.clock.advance(10.5)
        await _extend(world, AfterNow(200), asked.append)
        assert asked == [TimeToLive(211) if isinstance(expiration, TimeToLive) else TimeToIdle(200)]


async def _overwrite(world: World) -> None:
    await world.put("k", SMALL[:-1] + b"!", TimeToLive(100))


async def _overwrite_by_large(world: World) -> None:
    await world.put("k", LARGE + b"!", TimeToLive(100))


async def _upload(world: World) -> None:
    await world.begin_upload("k", LARGE + b"!")
    await world.complete()


@BOTH_TIERS
@pytest.mark.parametrize("change", [_overwrite, _overwrite_by_large, _upload])
async def test_an_overwrite_meanwhile_is_a_conflict(payload: bytes, change: Callable[[World], Awaitable[None]]) -> None:
    """What was asked for meant another object: the new one is left as it was written."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()
        world.clock.advance(1)
        world.script.at(EXTEND, Interpose(lambda: change(world)))
        with pytest.raises(Conflict, match="was replaced"):
            await _extend(world, AfterNow(1_000))
        created = world.clock.now()
        assert await _deadline(world) == (None if change is _upload else created + 100 * SECOND)
        await world.drain()
        await world.check_settled()


@BOTH_TIERS
async def test_a_delete_meanwhile_is_not_found(payload: bytes) -> None:
    """Nor is it revived."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()
        world.script.at(EXTEND, Interpose(lambda: world.delete("k")))
        with pytest.raises(ObjectNotFound):
            await _extend(world, AfterNow(1_000))
        assert await world.get("k") is None
        await world.drain()
        await world.check_settled()


@BOTH_TIERS
async def test_expiry_meanwhile_is_not_found(payload: bytes) -> None:
    """At the deadline, by the store's look at the clock, it is too late, though it was not when the row was read."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()
        world.clock.advance(100 - 1 / SECOND)

        async def tick() -> None:
            world.clock.advance(1 / SECOND)

        world.script.at(EXTEND, Interpose(tick))
        with pytest.raises(ObjectNotFound):
            await _extend(world, AfterNow(1_000))
        assert await world.get("k") is None


@BOTH_TIERS
async def test_a_fence_meanwhile_is_passed_over(payload: bytes) -> None:
    """A sweeper's fence changes the version, and not the object, however often."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()

        async def fence() -> None:
            await world.raw_high_volume.fence(object_id("k"))

        world.script.at(EXTEND, Interpose(fence), Interpose(fence), Interpose(fence))
        await _extend(world, AfterNow(1_000))
        assert await _deadline(world) == world.clock.now() + 1_000 * SECOND


async def test_a_blob_that_is_brought_inline_meanwhile_is_passed_over() -> None:
    """It is the same object in another place, and keeps what it was given before and after."""
    async with open_world() as world:
        await world.put("k", LARGE, TimeToLive(100))
        await world.drain()

        async def bring_inline() -> None:
            row = await world.raw_high_volume.head(object_id("k"))
            assert row is not None
            assert await world.raw_high_volume.bring_inline(
                object_id("k"), row.version, LARGE, not_after=world.clock.now()
            )

        await _extend(world, AfterNow(500))
        world.script.at(EXTEND, Interpose(bring_inline))
        assert await _extend(world, AfterNow(1_000)) is Tier.HIGH_VOLUME
        assert await _deadline(world) == world.clock.now() + 1_000 * SECOND
        assert await world.get("k") == LARGE


async def test_one_that_is_always_overtaken_gives_up() -> None:
    """Tries are bounded; a retry is safe."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))

        async def fence() -> None:
            await world.raw_high_volume.fence(object_id("k"))

        world.script.at(EXTEND, *[Interpose(fence)] * world.limits.read_attempts_max)
        with pytest.raises(Unavailable):
            await _extend(world, AfterNow(1_000))
        assert not world.script.unused
        await _extend(world, AfterNow(1_000))


async def test_what_has_expired_by_the_clock_of_the_store_alone_is_not_found() -> None:
    """A store whose clock is ahead has the last word, and nobody tries again and again."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        world.script.at(EXTEND, Answer(value=False), Answer(value=False))
        with pytest.raises(ObjectNotFound):
            await _extend(world, AfterNow(1_000))
        assert world.script.trace.count(EXTEND) == 1


@pytest.mark.parametrize(("other", "mine"), [(500, 1_000), (1_000, 1_000), (2_000, 1_000)])
async def test_extensions_at_the_same_time_leave_the_latest_deadline(other: int, mine: int) -> None:
    """Whatever their order, each succeeds, and none takes back what another has given."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        world.script.at(EXTEND, Interpose(lambda: _extend(world, AfterNow(other))))
        await _extend(world, AfterNow(mine))
        assert await _deadline(world) == world.clock.now() + max(other, mine) * SECOND


async def test_an_access_never_shortens_what_was_extended() -> None:
    """A tti's deadline beyond its idle time stays until an access would lead further; also a bump that comes late."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToIdle(100))
        world.clock.advance(90)
        pause = Pause()
        world.script.at(EXTEND, pause)
        await world.get("k")  # its bump is under way
        await pause.reached.wait()
        await _extend(world, AfterNow(1_000))
        extended = world.clock.now() + 1_000 * SECOND
        pause.release.set()
        await world.drain()
        assert await _deadline(world) == extended
        for _ in range(3):
            world.clock.advance(300)
            assert await world.get("k") == SMALL
            await world.drain()
            assert await _deadline(world) == extended
        world.clock.advance(99)
        assert await world.get("k") == SMALL
        await world.drain()
        assert await _deadline(world) == world.clock.now() + 100 * SECOND


@BOTH_TIERS
async def test_a_lost_reply_is_looked_up(payload: bytes) -> None:
    """If it has happened, it is acknowledged; also if a sweeper's fence has come since."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()
        world.script.at(EXTEND, LoseReply(OutcomeUnknown("scripted")), LoseReply(OutcomeUnknown("scripted")))
        await _extend(world, AfterNow(1_000))

        async def fence() -> None:
            await world.raw_high_volume.fence(object_id("k"))

        world.script.at(HEAD, None, Interpose(fence))
        await _extend(world, AfterNow(2_000))
        assert await _deadline(world) == world.clock.now() + 2_000 * SECOND
        assert not world.script.unused


async def test_what_nobody_can_tell_is_to_be_tried_again() -> None:
    """Not there, or nobody can look: unknown; the retry succeeds, and what arrives late then changes nothing."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        world.script.at(EXTEND, ArriveLate(OutcomeUnknown("scripted")))
        with pytest.raises(OutcomeUnknown):
            await _extend(world, AfterNow(500))
        world.script.at(EXTEND, LoseReply(OutcomeUnknown("scripted")))
        world.script.at(HEAD, None, FailBefore(Unavailable("scripted")))
        with pytest.raises(OutcomeUnknown):
            await _extend(world, AfterNow(1_000))
        await _extend(world, AfterNow(1_000))
        await world.script.arrive()
        assert await _deadline(world) == world.clock.now() + 1_000 * SECOND
        assert not world.script.unused


async def test_one_that_arrives_late_never_revives_nor_reaches_another_object() -> None:
    """After the deadline, after an overwrite, after a delete: it finds its version, or its time, gone."""
    for after in (_overwrite, _overwrite_by_large, lambda world: world.delete("k"), None):
        async with open_world() as world:
            await world.put("k", SMALL, TimeToLive(100))
            world.script.at(EXTEND, ArriveLate(OutcomeUnknown("scripted")))
            with pytest.raises(OutcomeUnknown):
                await _extend(world, AfterNow(1_000))
            if after is None:
                world.clock.advance(100)
            else:
                await after(world)
            before = await world.raw_high_volume.read(object_id("k"))
            await world.script.arrive()
            assert await world.raw_high_volume.read(object_id("k")) == before
            await world.drain()
            await world.check_settled()


@BOTH_TIERS
@pytest.mark.parametrize("effect", list(Effect))
async def test_a_process_that_dies_leaves_nothing_behind(payload: bytes, effect: Effect) -> None:
    """The extension has happened or not, and there is nothing to clean up."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()
        world.script.at(EXTEND, Crash(effect))
        with pytest.raises(asyncio.CancelledError):
            await _extend(world, AfterNow(1_000))
        world.script.restart()
        await world.check_settled()
        seconds = 1_000 if effect is Effect.DONE else 100
        assert await _deadline(world) == world.clock.now() + seconds * SECOND
        assert await world.get("k") == payload


@BOTH_TIERS
@BOTH_KINDS
async def test_it_disturbs_no_write_that_is_under_way(payload: bytes, expiration: Expiration) -> None:
    """A large write that has read its base goes on; and so does an upload."""
    async with open_world() as world:
        await world.put("k", payload, expiration)
        await world.drain()
        world.script.at("high_volume.point", Interpose(lambda: _extend(world, AfterNow(1_000))))
        await world.put("k", LARGE + b"!")
        assert world.script.trace.count("high_volume.point") == (1 if payload is SMALL else 2), "no conflict"
        assert await world.get("k") == LARGE + b"!"
        assert await _deadline(world) is None
        await world.drain()
        await world.check_settled()


@BOTH_TIERS
async def test_settling_what_has_expired_loses_against_it(payload: bytes) -> None:
    """A sweeper that has found the object expired lets go of it when the extension came first; and takes it later."""
    async with open_world() as world:
        await world.put("k", payload, TimeToLive(100))
        await world.drain()
        deadline = await _deadline(world)
        assert deadline is not None
        found = await world.raw_high_volume.expired(deadline, 9)
        await _extend(world, AfterNow(200))
        world.clock.advance(101)
        assert not await world.committer.settle_expired(found[0], world.clock.now())
        assert await world.get("k") == payload
        world.clock.advance(100)
        await world.sweep()
        assert await world.get("k") is None
        await world.check_settled()
        assert await world.blobs() == []


async def test_a_read_says_that_it_has_expired_only_once_that_is_certain() -> None:
    """Whoever finds a deadline passed by a moment lets what is under way on the row end, and looks again."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        row = await world.raw_high_volume.head(object_id("k"))
        assert row is not None
        world.clock.advance(100 - 1 / SECOND)

        async def extend_in_time() -> None:
            """As a store does it whose commit takes longer than the time that is left."""
            deadline = await _deadline(world)
            assert deadline is not None
            now = world.clock.now()
            world.clock.set_now(deadline - 1)
            assert await world.raw_high_volume.extend(object_id("k"), row.version, deadline + SECOND)
            world.clock.set_now(now)

        world.clock.advance(1 / SECOND)
        world.script.at(EXTEND, Interpose(extend_in_time))
        assert await world.get("k") == SMALL
        world.clock.advance(1)
        world.script.at(EXTEND, Interpose(extend_in_time))
        assert (await world.store.head(object_id("k"))).info.size == len(SMALL)
        world.clock.advance(1)
        world.script.at(EXTEND, Interpose(extend_in_time))
        await _extend(world, AfterNow(10))
        world.clock.advance(10)
        world.script.trace.clear()
        assert await world.get("k") is None
        assert world.script.trace == ["high_volume.read", EXTEND, "high_volume.read"]


async def test_when_a_deadline_has_long_passed_one_look_is_enough() -> None:
    """Reads of what has expired cost no write's turn for longer than a commit may take."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        world.clock.advance(100 + world.limits.extension_settled_seconds - 1 / SECOND)
        assert await world.get("k") is None
        assert world.script.trace.count(EXTEND) == 1
        world.clock.advance(1 / SECOND)
        assert await world.get("k") is None
        assert world.script.trace.count(EXTEND) == 1


async def test_a_read_that_cannot_make_sure_says_so() -> None:
    """No answer of the store is no absence."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        world.clock.advance(100)
        world.script.at(EXTEND, FailBefore(Unavailable("scripted")))
        with pytest.raises(Unavailable):
            await world.get("k")
        assert await world.get("k") is None


async def test_a_read_of_what_is_fenced_all_the_time_gives_up() -> None:
    """Looks are bounded."""
    async with open_world() as world:
        await world.put("k", SMALL, TimeToLive(100))
        world.clock.advance(100)

        async def fence() -> None:
            await world.raw_high_volume.fence(object_id("k"))

        world.script.at(EXTEND, *[Interpose(fence)] * world.limits.read_attempts_max)
        with pytest.raises(Unavailable):
            await world.get("k")
        assert not world.script.unused
