"""The laws of resumable uploads: nothing that was acknowledged is lost, nothing is stored twice, one attempt wins."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.tiering.world import SMALL, BytesBody, World, object_id, open_world, payload_of
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.build import Stores, build_tiering
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import State
from tierstore.clock import UnixMicros
from tierstore.errors import (
    CorruptObject,
    EntityTooSmall,
    IncompleteBody,
    InvalidRequest,
    InvariantBroken,
    NoSuchUpload,
    NotOffered,
    ObjectTooLarge,
    OffsetMismatch,
    OutcomeUnknown,
    StorageFull,
    TierstoreError,
    Unavailable,
)
from tierstore.limits import Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import (
    ArriveLate,
    FailBefore,
    FaultyChangeLog,
    FaultyLongTerm,
    Interpose,
    LoseReply,
    Pause,
)
from tierstore.testing.ids import SeededIds
from tierstore.tiering.resumable import ResumableUploads
from tierstore.types.ids import Revision
from tierstore.types.metadata import Metadata, TimeToLive
from tierstore.types.multipart import PartsPage, UploadId
from tierstore.types.resumable import Completed, SessionId, Stored, decode_session
from tierstore.types.streams import Body, BodyUntilCut

LIMITS = replace(Limits.tiny(), parts_max=64)
"""Units of 16 bytes, and part numbers enough for 512 bytes in such units twice over."""
WHOLE = bytes(range(256)) * 2
COMPLETED = Completed()
RACED = replace(LIMITS, parts_max=1024)


def until_cut(payload: bytes, announced: int, chunk: int = 10) -> Body:
    """A body of ``announced`` bytes whose sender goes away after ``payload``."""
    body = BytesBody(payload, chunk=chunk, error=IncompleteBody("cut off"))
    body.size = announced
    return BodyUntilCut(body)


async def created(world: World, length: int = len(WHOLE), key: str = "k") -> SessionId:
    """A session of ``length`` bytes."""
    return await world.resumable.create(object_id(key), Metadata(), length)


async def send(world: World, session: SessionId, offset: int, stop: int = len(WHOLE)) -> Completed | Stored:
    """Append the bytes of `WHOLE` from ``offset`` to ``stop``."""
    return await world.resumable.append(session, offset, BytesBody(WHOLE[offset:stop]))


async def offset_of(world: World, session: SessionId) -> int:
    """What the session holds."""
    advance = await world.resumable.query(session)
    assert isinstance(advance, Stored)
    return advance.offset


async def settled(world: World, key: str = "k", content: bytes | None = WHOLE) -> None:
    """The object is ``content``, and nothing else is left when all is over."""
    await world.drain()
    assert await world.get(key) == content
    await world.sweep()
    assert await world.get(key) == content
    await world.check_settled()
    assert not world.failures


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world with `LIMITS`."""
    async with open_world(LIMITS) as world:
        yield world


@pytest.mark.parametrize("pieces", [[512], [1, 511], [256, 256], [16] * 32, [100, 200, 212], [15, 17, 480]])
async def test_pieces_of_any_size_make_the_object(world: World, pieces: list[int]) -> None:
    """Each answers the offset, the last one that the object is committed; it was absent until then."""
    session = await created(world)
    offset = 0
    for piece in pieces:
        assert await world.get("k") is None
        advance = await send(world, session, offset, offset + piece)
        offset += piece
        assert advance == (COMPLETED if offset == len(WHOLE) else Stored(offset))
    await settled(world)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 64, 65])
async def test_any_length(world: World, length: int) -> None:
    """An object of no bytes is committed by an append of none; and nothing before is taken for that."""
    session = await created(world, length)
    assert await offset_of(world, session) == 0
    assert await send(world, session, 0, length) == COMPLETED
    assert await world.resumable.query(session) == COMPLETED
    await settled(world, content=WHOLE[:length])


async def test_an_append_of_nothing_changes_nothing(world: World) -> None:
    """It answers the offset."""
    session = await created(world)
    assert await send(world, session, 0, 0) == Stored(0)
    await send(world, session, 0, 40)
    before = (await world.raw_changelog.find(session.upload.revision))[0]
    assert await send(world, session, 40, 40) == Stored(40)
    assert list(await world.raw_changelog.find(session.upload.revision)) == [before]


async def test_metadata_and_expiry_count_from_the_commit(world: World) -> None:
    """What was said at the beginning holds; creation and deadline count from the end."""
    wanted = Metadata(content_type="text/plain", expiration=TimeToLive(60), custom=(("a", "b"),))
    session = await world.resumable.create(object_id("k"), wanted, 100)
    world.clock.advance(59)
    assert await send(world, session, 0, 100) == COMPLETED
    found = await world.store.head(object_id("k"))
    assert found.info.metadata == wanted
    assert found.info.time_created == world.clock.now()
    world.clock.advance(59)
    assert await world.get("k") == WHOLE[:100]


@pytest.mark.parametrize("come", [0, 1, 9, 16, 17, 40, 511])
async def test_what_came_before_a_cut_is_kept(world: World, come: int) -> None:
    """To the byte, where the store takes parts of any size; the rest completes the object."""
    session = await created(world)
    assert await world.resumable.append(session, 0, until_cut(WHOLE[:come], len(WHOLE))) == Stored(come)
    assert await offset_of(world, session) == come
    assert await send(world, session, come) == COMPLETED
    await settled(world)


async def test_a_store_with_smallest_parts_keeps_whole_ones() -> None:
    """A cut costs the last unit; a piece below the granularity is refused, but for the last; no part is too small."""
    limits = replace(LIMITS, part_bytes_min=20)
    async with open_world(limits) as world:
        assert world.resumable.granularity(len(WHOLE)) == 20
        session = await created(world)
        with pytest.raises(EntityTooSmall):
            await send(world, session, 0, 19)
        assert await world.resumable.append(session, 0, until_cut(WHOLE[:50], len(WHOLE))) == Stored(40)
        assert await world.resumable.append(session, 40, until_cut(WHOLE[40:59], len(WHOLE) - 40)) == Stored(40)
        assert await send(world, session, 40, 60) == Stored(60)
        assert await send(world, session, 60, 99) == Stored(99)  # one of 39: 20 and 19 would not do
        assert await send(world, session, 99, 511) == Stored(511)
        parts = (await world.raw_long_term.list_parts(session.upload, 0, 100)).parts
        assert min(part.size for part in parts) >= 20
        assert await send(world, session, 511) == COMPLETED
        await settled(world)


async def test_another_offset_is_refused_with_the_true_one(world: World) -> None:
    """Below and above; nothing of the body is read, nothing is stored."""
    session = await created(world)
    await send(world, session, 0, 40)
    for wrong in (0, 39, 41, 500):
        body = BytesBody(WHOLE[wrong : wrong + 12])
        with pytest.raises(OffsetMismatch) as refused:
            await world.resumable.append(session, wrong, body)
        assert refused.value.offset == 40
        assert await anext(body) == WHOLE[wrong : wrong + 10]
    assert await offset_of(world, session) == 40


async def test_more_than_was_announced_is_refused(world: World) -> None:
    """Before anything is read."""
    session = await created(world, 100)
    for offset, stop in ((0, 101), (101, 101), (50, 200)):
        with pytest.raises(InvalidRequest):
            await send(world, session, offset, stop)
    assert await offset_of(world, session) == 0
    with pytest.raises(InvariantBroken):
        await world.resumable.append(session, 0, BytesBody(b"x", announced=False))


async def test_an_object_that_is_too_large_is_not_begun() -> None:
    """Beyond what an object may have, or beyond what the part numbers allow."""
    for limits in (LIMITS, replace(LIMITS, part_bytes_max=100, object_bytes_max=1 << 20)):
        async with open_world(limits) as small:
            with pytest.raises(ObjectTooLarge):
                await created(small, LIMITS.object_bytes_max + 1)
            assert not small.disk.uploads


@pytest.mark.parametrize("bounds", [{"parts_max": 1}, {"part_bytes_max": 15}, {"part_bytes_min": 16 * 1024 + 1}])
async def test_a_store_that_takes_no_units_offers_none(bounds: dict[str, int]) -> None:
    """Whatever the length: parts of one number, or of no size between the bounds."""
    async with open_world(replace(LIMITS, **bounds)) as world:
        for length in (0, 1, 512, LIMITS.object_bytes_max + 1):
            with pytest.raises(NotOffered):
                await created(world, length)
        assert not world.disk.uploads


@pytest.mark.parametrize("offset", [0, 400, 512])
async def test_a_repeated_last_piece_finds_the_upload_complete(world: World, offset: int) -> None:
    """However much of the end it repeats, right after, when the object was overwritten, and when it was swept."""
    session = await created(world)
    await send(world, session, 0)
    assert await send(world, session, offset) == COMPLETED
    await world.put("k", SMALL)
    await world.drain()
    assert await send(world, session, offset) == COMPLETED
    assert await world.resumable.query(session) == COMPLETED
    await settled(world, content=SMALL)


async def test_a_full_session_is_finished_by_whoever_asks(world: World) -> None:
    """A process that dies after the last byte, before the commit, leaves it to a query, or to the last piece again."""
    for number, again in enumerate((None, 0, 500, 512)):
        key = f"k{number}"
        session = await created(world, key=key)
        world.script.at("high_volume.point", FailBefore(Unavailable("away")))
        with pytest.raises(Unavailable):
            await send(world, session, 0)
        assert await world.get(key) is None
        with pytest.raises(OffsetMismatch) as refused:
            await send(world, session, 0, 100)
        assert refused.value.offset == 512
        advance = await (world.resumable.query(session) if again is None else send(world, session, again))
        assert advance == COMPLETED
        assert await world.get(key) == WHOLE
    await world.sweep()
    await world.check_settled()


CALLS = ["changelog.find", "changelog.advance", "long_term.upload_part", "long_term.list_parts", "changelog.claim"]
CALLS += ["long_term.complete", "long_term.head", "high_volume.point", "high_volume.head"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("nth", [0, 1, 2, 5])
@pytest.mark.parametrize("fault", [FailBefore, LoseReply, ArriveLate])
async def test_any_call_that_fails_loses_nothing(
    world: World, call: str, nth: int, fault: Callable[[BaseException], FailBefore | LoseReply | ArriveLate]
) -> None:
    """The client asks for the offset and goes on; at most a unit is sent again for a failure; the object is whole."""
    session = await created(world)
    world.script.at(call, *[None] * nth, fault(OutcomeUnknown("lost")))
    sent, offset, advance = 0, 0, None
    for _ in range(4):
        before = len(WHOLE) - offset
        try:
            sent += before
            advance = await send(world, session, offset)
            break
        except Unavailable:
            await world.script.arrive()
            asked = await world.resumable.query(session)
            if asked == COMPLETED:
                advance = asked
                break
            assert isinstance(asked, Stored)
            assert asked.offset >= offset
            offset = asked.offset
    assert advance == COMPLETED
    await world.script.arrive()
    await settled(world)


async def test_of_two_attempts_at_once_one_wins(world: World) -> None:
    """The one that counts first; the other is told the true offset, and nothing of it counts."""
    session = await created(world)
    pause = Pause()
    world.script.at("long_term.upload_part", pause)
    slow = asyncio.get_running_loop().create_task(send(world, session, 0))
    await pause.reached.wait()
    assert await send(world, session, 0, 30) == Stored(30)
    pause.release.set()
    with pytest.raises(OffsetMismatch) as refused:
        await slow
    assert refused.value.offset == 30
    assert await send(world, session, 30) == COMPLETED
    await settled(world)


async def test_an_attempt_that_only_took_a_number_does_not_stop_another(world: World) -> None:
    """What is stored counts, and not who came last."""
    session = await created(world)
    counting = Pause()
    world.script.at("changelog.advance", None, counting)
    first = asyncio.get_running_loop().create_task(send(world, session, 0))
    await counting.reached.wait()
    storing = Pause()
    world.script.at("long_term.upload_part", storing)
    second = asyncio.get_running_loop().create_task(send(world, session, 0))
    await storing.reached.wait()  # it has taken a number meanwhile
    counting.release.set()
    assert await first == COMPLETED
    storing.release.set()
    assert await second == COMPLETED  # its piece is the last one too
    await settled(world)


async def test_an_attempt_whose_part_counted_long_ago_does_not_go_on(world: World) -> None:
    """Its bytes belong behind that part, and others have been stored there before it has heard that it counts."""
    session = await created(world)
    looking = Pause()
    world.script.at("changelog.advance", None, LoseReply(OutcomeUnknown("lost")))
    world.script.at("changelog.find", None, looking)
    slow = asyncio.get_running_loop().create_task(send(world, session, 0))
    await looking.reached.wait()
    assert await send(world, session, 16, 40) == Stored(40)
    looking.release.set()
    with pytest.raises(OffsetMismatch) as refused:
        await slow
    assert refused.value.offset == 40
    assert await send(world, session, 40) == COMPLETED
    await settled(world)


async def test_a_full_session_without_bytes_counts_no_other_part(world: World) -> None:
    """Its offset is always the same: that another attempt was faster shows in the part that counts."""
    session = await created(world, 0)
    storing = Pause()
    world.script.at("long_term.upload_part", storing)
    slow = asyncio.get_running_loop().create_task(send(world, session, 0, 0))
    await storing.reached.wait()
    world.script.at("changelog.claim", FailBefore(Unavailable("away")))
    with pytest.raises(Unavailable):
        await send(world, session, 0, 0)
    [full] = await world.raw_changelog.find(session.upload.revision)
    world.script.at("changelog.claim", FailBefore(Unavailable("away")))
    storing.release.set()
    with pytest.raises(Unavailable):
        await slow
    assert list(await world.raw_changelog.find(session.upload.revision)) == [full]
    assert await world.resumable.query(session) == COMPLETED
    await settled(world, content=b"")


async def test_a_shorter_attempt_is_not_told_that_a_full_session_is_gone(world: World) -> None:
    """The long-term store takes no part of what it has assembled; but the session will be committed."""
    session = await created(world)
    storing = Pause()
    world.script.at("long_term.upload_part", storing)
    slow = asyncio.get_running_loop().create_task(send(world, session, 0, 100))
    await storing.reached.wait()
    world.script.at("high_volume.point", FailBefore(Unavailable("away")))
    with pytest.raises(Unavailable):
        await send(world, session, 0)
    storing.release.set()
    with pytest.raises(OffsetMismatch) as refused:
        await slow
    assert refused.value.offset == len(WHOLE)
    assert await world.resumable.query(session) == COMPLETED
    await settled(world)


async def test_a_session_without_numbers_is_ended_for_all(world: World) -> None:
    """Also for the attempt that has the last number: nobody is told that there is none, and then it is committed."""
    session = await created(world, 16)
    for _ in range(LIMITS.parts_max - 1):
        world.script.at("long_term.upload_part", FailBefore(StorageFull("full")))
        with pytest.raises(StorageFull):
            await send(world, session, 0, 16)
    storing = Pause()
    world.script.at("long_term.upload_part", storing)
    last = asyncio.get_running_loop().create_task(send(world, session, 0, 16))
    await storing.reached.wait()
    with pytest.raises(NoSuchUpload):
        await send(world, session, 0, 16)
    storing.release.set()
    with pytest.raises(NoSuchUpload):
        await last
    await settled(world, content=None)


@pytest.mark.parametrize("racers", [2, 5])
async def test_attempts_race_through_processes(racers: int) -> None:
    """Any number of attempts, each going on from the offset that it is told: the object is whole."""
    async with open_world(RACED) as world:
        assert await _race(world, racers, world.changelog)
        await settled(world)


async def test_a_log_that_does_not_compare_is_found_out() -> None:
    """Where `advance` swaps whatever is there, attempts at once make another object, or none."""
    async with open_world(RACED) as world:
        with pytest.raises((AssertionError, TierstoreError, TimeoutError)):
            await _race(world, 5, _SwapsWhatIsThere(world.raw_changelog, world.script))
        assert await world.get("k") != WHOLE


class _SwapsWhatIsThere(FaultyChangeLog):
    """A planted bug."""

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        [held] = await self._inner.find(revision)
        return await self._inner.advance(revision, held.upload or b"", upload, not_before)


async def _race(world: World, racers: int, changelog: ChangeLog) -> int:
    """Let as many processes send one session, all at once; return how often one was told that others were faster."""
    refusals = 0

    async def upload(process: ResumableUploads, session: SessionId, chunk: int) -> None:
        nonlocal refusals
        offset = 0
        for _ in range(100):
            try:
                await process.append(session, offset, BytesBody(WHOLE[offset:], chunk=chunk))
                return
            except OffsetMismatch as error:
                refusals += 1
                offset = error.offset
            except Unavailable:
                await asyncio.sleep(0)
        raise AssertionError("it never ends")

    session = await created(world)
    stores = Stores(world.high_volume, world.long_term, changelog)
    processes = [_another_process(world, stores, number) for number in range(racers)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(upload(process, session, 3 + number) for number, process in enumerate(processes)))
    return refusals


def _another_process(world: World, stores: Stores, number: int) -> ResumableUploads:
    ids = SeededIds(100 + number)
    tiering = build_tiering(stores, limits=world.limits, clock=world.clock, ids=ids, cleanup=world.cleanup)
    return tiering.resumable


async def test_what_a_dead_process_still_writes_changes_nothing(world: World) -> None:
    """Its part arrives after others have gone on, with other bytes even: it has a number that nobody names."""
    session = await created(world)
    world.script.at("long_term.upload_part", ArriveLate(Unavailable("lost")))
    with pytest.raises(Unavailable):
        await world.resumable.append(session, 0, BytesBody(b"x" * 512))
    assert await send(world, session, 0, 100) == Stored(100)
    assert await world.script.arrive() == 1
    assert await send(world, session, 100) == COMPLETED
    await settled(world)


async def test_an_advance_that_arrives_late_counts_or_does_nothing(world: World) -> None:
    """It moved the offset: whoever goes on from before is told so. Others went on: it does nothing."""
    for number, others in enumerate((False, True)):
        key = f"k{number}"
        session = await created(world, key=key)
        world.script.at("changelog.advance", None, ArriveLate(OutcomeUnknown("lost")))
        world.script.at("changelog.find", None, FailBefore(Unavailable("away")))
        with pytest.raises(Unavailable):
            await send(world, session, 0, 16)
        if others:
            await send(world, session, 0, 40)
        assert await world.script.arrive() == 1
        assert await offset_of(world, session) == (40 if others else 16)
        assert await send(world, session, 40 if others else 16) == COMPLETED
        assert await world.get(key) == WHOLE


async def _abort(world: World, session: SessionId) -> None:
    await world.in_passing_time(world.resumable.cancel(session))


async def _sweep(world: World, _: SessionId) -> None:
    world.clock.advance(world.limits.upload_retention_seconds + 1)
    await world.sweeper.run_once()


@pytest.mark.parametrize("end", [_abort, _sweep])
@pytest.mark.parametrize("sent", [0, 40])
async def test_an_ended_session_is_unknown(
    world: World, end: Callable[[World, SessionId], Awaitable[None]], sent: int
) -> None:
    """Cancelled, or abandoned: append and query say so, its bytes are gone, cancelling again is fine."""
    await world.put("k", SMALL)
    session = await created(world)
    await send(world, session, 0, sent)
    await end(world, session)
    for attempt in (send(world, session, sent), world.resumable.query(session)):
        with pytest.raises(NoSuchUpload):
            await attempt
    assert not world.disk.uploads
    await _abort(world, session)
    await settled(world, content=SMALL)
    with pytest.raises(NoSuchUpload):
        await world.resumable.query(session)


async def test_a_complete_session_cannot_be_cancelled(world: World) -> None:
    """Its object stays."""
    session = await created(world)
    await send(world, session, 0)
    await world.drain()
    with pytest.raises(NoSuchUpload):
        await _abort(world, session)
    await settled(world)


@pytest.mark.parametrize("call", ["long_term.upload_part", "changelog.advance", "long_term.complete"])
async def test_cancelled_during_an_append(world: World, call: str) -> None:
    """One of them wins, and says so; nothing is left."""
    await world.put("k", SMALL)
    session = await created(world)
    world.script.at(
        call, *[None] * (2 if call != "long_term.complete" else 0), Interpose(lambda: _abort(world, session))
    )
    try:
        advance: object = await send(world, session, 0)
    except (NoSuchUpload, Unavailable):
        advance = None
    await settled(world, content=WHOLE if advance == COMPLETED else SMALL)


async def test_retention_counts_from_the_last_bytes(world: World) -> None:
    """A session that is used now and then lives on, and one that is not is aborted."""
    session = await created(world)
    for offset in range(0, 480, 40):
        world.clock.advance(world.limits.upload_retention_seconds - 1)
        await world.sweeper.run_once()
        assert await send(world, session, offset, offset + 40) == Stored(offset + 40)
    world.clock.advance(world.limits.upload_retention_seconds + 1)
    await world.sweeper.run_once()
    with pytest.raises(NoSuchUpload):
        await send(world, session, 480)


async def test_numbers_run_short_and_out(world: World) -> None:
    """Short pieces are refused, and cut off bytes not kept, when there is one number left for each unit, and a few."""
    session = await created(world)
    offset = 0
    while offset < len(WHOLE) and await _is_taken(send(world, session, offset, offset + 1), EntityTooSmall):
        offset += 1
    assert 20 < offset < 32
    assert await world.resumable.append(session, offset, until_cut(WHOLE[offset:][:20], 100)) == Stored(offset + 16)
    assert await send(world, session, offset + 16) == COMPLETED
    await settled(world)
    worn = await created(world, key="worn")
    for _ in range(LIMITS.parts_max):
        world.script.at("long_term.upload_part", FailBefore(StorageFull("full")))
        with pytest.raises(StorageFull):
            await send(world, worn, 0)
    with pytest.raises(NoSuchUpload):
        await send(world, worn, 0)


async def _is_taken(attempt: Awaitable[object], refusal: type[TierstoreError]) -> bool:
    try:
        await attempt
    except refusal:
        return False
    return True


async def test_an_upload_is_no_session_nor_the_other_way_round(world: World) -> None:
    """A token made of an upload's id names no session; and the two kinds of text are told apart."""
    upload = await world.begin_upload("k", WHOLE)
    forged = SessionId(upload)
    for attempt in (send(world, forged, 0), world.resumable.query(forged)):
        with pytest.raises(NoSuchUpload):
            await attempt
    await world.complete()
    await settled(world)


async def test_a_damaged_entry_or_part_is_a_fault_of_ours(world: World) -> None:
    """What cannot be read is never guessed; a part that counts and is lost does not make a shorter object."""
    session = await created(world)
    await send(world, session, 0, 500)
    world.disk.uploads[session.upload.revision].parts.pop(3)
    with pytest.raises(CorruptObject):
        await send(world, session, 500)
    [entry] = await world.raw_changelog.find(session.upload.revision)
    held = entry.upload or b""
    assert decode_session(held)[0].full
    assert await world.raw_changelog.advance(entry.revision, held, held[:-1] + b"?", 0)
    for attempt in (send(world, session, 0, 10), world.resumable.query(session)):
        with pytest.raises(CorruptObject):
            await attempt


async def test_a_store_that_shows_no_upload_and_no_blob_yet(world: World) -> None:
    """A session that nobody has ended is not said to be gone while the store assembles it for another attempt."""
    session = await created(world)
    world.script.at("long_term.complete", FailBefore(Unavailable("away")))
    with pytest.raises(Unavailable):
        await send(world, session, 0)
    world.script.at("long_term.list_parts", FailBefore(NoSuchUpload("being completed")))
    with pytest.raises(Unavailable):
        await world.resumable.query(session)
    assert await world.resumable.query(session) == COMPLETED
    await settled(world)


class _TakesPartsAway(FaultyLongTerm):
    """A store that still lists an upload which it has assembled, and no parts of it any more."""

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        try:
            return await super().list_parts(upload, after, limit)
        except NoSuchUpload:
            return PartsPage([], False)


async def test_a_store_that_takes_the_parts_away_one_by_one(world: World) -> None:
    """Parts that have gone because the store has made a blob of them are not taken for lost."""
    world.long_term = _TakesPartsAway(world.raw_long_term, world.script)
    stores = Stores(world.high_volume, world.long_term, world.changelog)
    resumable = build_tiering(stores, limits=LIMITS, clock=world.clock, ids=world.ids, cleanup=world.cleanup).resumable
    session = await created(world)
    world.script.at("long_term.complete", LoseReply(Unavailable("lost")))
    world.script.at("long_term.head", FailBefore(Unavailable("away")))
    with pytest.raises(Unavailable):
        await resumable.append(session, 0, BytesBody(WHOLE))
    assert await resumable.query(session) == COMPLETED
    await settled(world)


async def test_the_outcome_is_kept_for_a_while_only(world: World) -> None:
    """Then the row tells, for as long as it points to what the upload made."""
    session = await created(world)
    await send(world, session, 0)
    await world.drain()
    [entry] = await world.raw_changelog.find(session.upload.revision)
    assert entry.state is State.DONE
    world.clock.advance(LIMITS.outcome_retention_seconds + 1)
    await world.sweeper.run_once()
    assert not await world.raw_changelog.find(session.upload.revision)
    assert await world.resumable.query(session) == COMPLETED
    await world.delete("k")
    with pytest.raises(NoSuchUpload):
        await world.resumable.query(session)


@asynccontextmanager
async def on_files(path: Path) -> AsyncIterator[World]:
    """A world whose long-term store is on files."""
    async with open_world(LIMITS) as world:
        files = await FilesystemLongTerm.open(path, limits=LIMITS, clock=ManualClock(), ids=SeededIds(3), threads=2)
        world.long_term = FaultyLongTerm(files, world.script)
        stores = Stores(world.high_volume, world.long_term, world.changelog)
        tiering = build_tiering(stores, limits=LIMITS, clock=world.clock, ids=world.ids, cleanup=world.cleanup)
        world.store, world.resumable = tiering.store, tiering.resumable
        try:
            yield world
        finally:
            await world.drain()
            await files.close()


async def test_on_files(tmp_path: Path) -> None:
    """Cuts, races and a fault, on the store that is used: what came is kept, and the object is whole."""
    async with on_files(tmp_path / "blobs") as world:
        session = await created(world)
        assert await world.resumable.append(session, 0, until_cut(WHOLE[:37], 512)) == Stored(37)
        world.script.at("long_term.upload_part", None, FailBefore(Unavailable("away")))
        with pytest.raises(Unavailable):
            await send(world, session, 37)
        assert await offset_of(world, session) == 53
        outcomes = await asyncio.gather(
            *(_outcome(send(world, session, 53, stop)) for stop in (60, 100, 512)), return_exceptions=True
        )
        assert any(isinstance(outcome, Completed | Stored) for outcome in outcomes)
        advance = await world.resumable.query(session)
        if isinstance(advance, Stored):
            assert await send(world, session, advance.offset) == COMPLETED
        assert await payload_of(await world.store.get(object_id("k"), None)) == WHOLE


async def _outcome(attempt: Awaitable[Completed | Stored]) -> object:
    try:
        return await attempt
    except TierstoreError as error:
        return error
