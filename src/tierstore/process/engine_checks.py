"""Whether the configured stores keep what the service builds on: each promise is tried on them, for real.

For operators, before a server is started on new engines, and when one is suspected. Each check works on an object of
its own, under the usecase `CHECK_USECASE`, from two connections as of two servers, and takes away what it has made; of
the rows, markers of deletes are left, which the sweeper removes a day later. Servers may run meanwhile.

Guarantees: a check says in words what is wrong and, where that is known, what to do about it. Does not: prove that a
store is right; the law suites in `tierstore.testing.laws` try far more than can be tried on a store in use.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

from tierstore.backends.high_volume.contract import Gone, Inline, InlineHead, Tombstone
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.build import Stores, open_stores
from tierstore.changelog.entries import Claimed, Committed, Entry
from tierstore.clock import MICROS_PER_SECOND, Clock, SystemClock, UnixMicros
from tierstore.config import Config, limits_from
from tierstore.errors import EntityTooSmall, GivenUp, TierstoreError
from tierstore.idsource import IdSource, SystemIds
from tierstore.limits import MIB, Limits
from tierstore.logs import configure_logs
from tierstore.tasks import for_each
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.multipart import PartName, UploadId
from tierstore.types.ranges import Span

CHECK_USECASE = "tierstore-check"
"""The usecase of what checks put into the stores."""

_RACERS = 16
_COMPLETES = 4
_SKEW_SECONDS = 5
"""How far the clock of a store may differ from this machine's before it is worth a word."""
_HOUR = 3600 * MICROS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one check."""

    store: str
    promise: str
    problem: str | None
    """What is wrong; None if the promise was kept."""
    seconds: float

    def fields(self) -> dict[str, object]:
        """For programs."""
        return {
            "store": self.store,
            "promise": self.promise,
            "kept": self.problem is None,
            "problem": self.problem,
            "milliseconds": round(self.seconds * 1000),
        }

    def text(self) -> str:
        """For people."""
        verdict = "ok  " if self.problem is None else "FAIL"
        line = f"{verdict}  {self.store}: {self.promise} ({self.seconds * 1000:.0f} ms)"
        return line if self.problem is None else f"{line}\n      {self.problem}"


def check_engines(config: Config, show: Callable[[Finding], None]) -> int:
    """Try every promise on the stores of ``config``, and ``show`` what came out, one by one; return how many failed.

    Stores that no server has begun yet are made, as by a first start. Raises `StartupError` if they cannot be opened.
    """
    configure_logs(config.log)
    return asyncio.run(_check(config, show))


async def _check(config: Config, show: Callable[[Finding], None]) -> int:
    limits, clock, ids = limits_from(config), SystemClock(), SystemIds()
    async with open_stores(config, limits, clock, ids) as one, open_stores(config, limits, clock, ids) as other:
        return await try_promises((one, other), limits, clock, ids, show)


async def try_promises(
    stores: tuple[Stores, Stores], limits: Limits, clock: Clock, ids: IdSource, show: Callable[[Finding], None]
) -> int:
    """As `check_engines`, on stores that are open, each twice."""
    failed = 0
    for store, promise, check in _CHECKS:
        attempt = Attempt(*stores, limits, clock, ids)
        began = clock.monotonic()
        problem: str | None = None
        try:
            await check(attempt)
        except _Broken as broken:
            problem = str(broken)
        except TierstoreError as error:
            problem = f"{type(error).__name__}: {error}"
        failed += problem is not None
        show(Finding(store, promise, problem, clock.monotonic() - began))
    return failed


class _Broken(Exception):
    """A promise was not kept; the text says which, for people."""


def _want(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Broken(otherwise)


async def _all_at_once(work: Callable[[int], Awaitable[None]], count: int) -> None:
    """Await ``work`` of each number below ``count`` at the same time. Raises the first of what they raise."""
    try:
        await for_each(range(count), work, at_once=count)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


class Attempt:
    """One attempt at a promise: the stores as two servers have them, and an object that nobody else knows."""

    def __init__(self, one: Stores, other: Stores, limits: Limits, clock: Clock, ids: IdSource) -> None:
        self.one, self.other = one, other
        self.limits, self.clock, self.ids = limits, clock, ids
        self.object_id = ObjectId(CHECK_USECASE, (), str(ids.uuid()))
        self.revision = Revision(self.object_id, ids.uuid())
        self.upload_revision = Revision(self.object_id, ids.upload_uuid())

    def both(self, number: int) -> Stores:
        """One server or the other, in turns."""
        return (self.one, self.other)[number % 2]

    def seconds_from_now(self, seconds: int) -> UnixMicros:
        """An instant."""
        return self.clock.now() + seconds * MICROS_PER_SECOND


# High-volume store


@asynccontextmanager
async def _row(attempt: Attempt) -> AsyncIterator[ObjectId]:
    """The object's row, which is a marker of a delete in the end."""
    store, object_id = attempt.one.high_volume, attempt.object_id
    try:
        yield object_id
    finally:
        with suppress(TierstoreError):
            if await store.delete_inline(object_id) is not None and (row := await store.head(object_id)) is not None:
                await store.compare_and_write(object_id, row.version, Gone(), None)


async def _rows_are_kept(attempt: Attempt) -> None:
    one, other = attempt.one.high_volume, attempt.other.high_volume
    payload = bytes(range(256)) * 16
    async with _row(attempt) as object_id:
        _want(await one.read(object_id) is None, "an object that nobody has written is there")
        await one.put_inline(object_id, Inline(b"metadata", payload), None)
        row = await other.read(object_id)
        _want(row is not None, "what one server has written, another does not see")
        _want(row is not None and row.content == Inline(b"metadata", payload), "what is read is not what was written")
        head = await other.head(object_id)
        _want(head is not None and head.content == InlineHead(b"metadata"), "the head of a row is not that of the row")
        found = await other.scan(object_id.storage_path, None, 10)
        _want([each.object_id for each in found] == [object_id], "a listing does not show the row")
        await other.delete_inline(object_id)
        head = await one.head(object_id)
        _want(head is not None and head.content == Gone(), "a delete leaves no marker")


async def _writers_are_told_apart(attempt: Attempt) -> None:
    async with _row(attempt) as object_id:
        await _race(attempt, object_id, None)
        row = await attempt.one.high_volume.head(object_id)
        _want(row is not None, "the row that was written is not there")
        if row is not None:
            await _race(attempt, object_id, row.version)


async def _race(attempt: Attempt, object_id: ObjectId, expected: bytes | None) -> None:
    winners: list[Inline] = []

    async def write(number: int) -> None:
        content = Inline(b"", f"racer {number}".encode())
        if await attempt.both(number).high_volume.compare_and_write(object_id, expected, content, None) is not None:
            winners.append(content)

    await _all_at_once(write, _RACERS)
    _want(
        len(winners) == 1,
        f"of {_RACERS} writers at once that compare, {len(winners)} have won: objects would be lost. Is the store one "
        "that does not compare and write in one step, or routed to several clusters?",
    )
    row = await attempt.other.high_volume.read(object_id)
    _want(row is not None and row.content == winners[0], "the row is not that of the writer who was told that it won")
    late = await attempt.other.high_volume.compare_and_write(object_id, expected, Inline(b"", b"late"), None)
    _want(late is None, "a writer that compares with what was there before gets through: objects would be lost")


async def _tombstones_stand(attempt: Attempt) -> None:
    store, tombstone = attempt.one.high_volume, Tombstone(b"metadata", attempt.revision.uuid)
    async with _row(attempt) as object_id:
        written = await store.point(object_id, None, tombstone, None, not_after=attempt.seconds_from_now(3600))
        _want(written, "a row cannot be made to point to a blob")
        for met in (
            await attempt.other.high_volume.put_inline(object_id, Inline(b"", b""), None),
            await attempt.other.high_volume.delete_inline(object_id),
        ):
            _want(met is not None and met.content == tombstone, "a small write does not notice what a row points to")
        before = await store.head(object_id)
        await attempt.other.high_volume.fence(object_id)
        late = await store.point(object_id, before, tombstone, None, not_after=attempt.seconds_from_now(3600))
        _want(not late, "a write that was fenced off gets through: the sweeper would lose objects")


async def _rows_expire(attempt: Attempt) -> None:
    one, other = attempt.one.high_volume, attempt.other.high_volume
    tombstone, soon = Tombstone(b"", attempt.revision.uuid), attempt.seconds_from_now(3600)
    async with _row(attempt) as object_id:
        version = await one.compare_and_write(object_id, None, tombstone, soon)
        _want(version is not None, "a row cannot be written")
        if version is None:
            return
        _want(await other.extend(object_id, version, soon + _HOUR), "a deadline cannot be moved")
        head = await one.head(object_id)
        _want(head is not None and head.expires == soon + _HOUR, "a deadline that was moved has not moved")
        expired = await one.compare_and_write(object_id, version, tombstone, 1)
        _want(expired is not None, "moving a deadline has changed the version of the row")
        if expired is None:
            return
        _want(not await other.extend(object_id, expired, soon), "an object that has expired can be brought back")
        found = any(each.object_id == object_id for each in await other.expired(1, 1000))
        head = await one.head(object_id)
        swept = head is not None and head.version != expired  # by a server that runs
        _want(found or swept, "an object that has expired is not found: it would never be cleaned up")


async def _rows_look_at_the_clock(attempt: Attempt) -> None:
    store = attempt.one.high_volume
    async with _row(attempt) as object_id:
        await store.put_inline(object_id, Inline(b"", b""), None)
        row = await store.head(object_id)
        _want(row is not None, "the row that was written is not there")
        if row is None:
            return
        late = await store.compare_and_write(
            object_id, row.version, Inline(b"", b"late"), None, not_after=attempt.seconds_from_now(-_SKEW_SECONDS)
        )
        _want(late is None, _late(f"{_SKEW_SECONDS} seconds ago"))
        timely = await store.compare_and_write(
            object_id, row.version, Inline(b"", b"timely"), None, not_after=attempt.seconds_from_now(_SKEW_SECONDS)
        )
        _want(timely is not None, _early("a write"))


def _late(when: str) -> str:
    return (
        f"a write whose time was over {when} is accepted: the store's clock is slow, or it does not look at one; "
        "keep all clocks with NTP"
    )


def _early(what: str) -> str:
    return (
        f"{what} that has {_SKEW_SECONDS} seconds left is refused as late: the store's clock is fast, or it took as "
        "long; keep all clocks with NTP"
    )


# Long-term store


@asynccontextmanager
async def _blob(attempt: Attempt, revision: Revision) -> AsyncIterator[Revision]:
    """A revision whose blob and uploads are taken away in the end."""
    try:
        yield revision
    finally:
        with suppress(TierstoreError):
            await attempt.one.long_term.abort(revision)
        with suppress(TierstoreError):  # whatever became of that: no sweeper knows of the blob
            await attempt.one.long_term.delete(revision)


async def _source(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _payload(store: LongTermBackend, revision: Revision, span: Span | None = None) -> bytes | None:
    stream = await store.get(revision, span)
    if stream is None:
        return None
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


async def _blobs_are_kept(attempt: Attempt) -> None:
    one, other = attempt.one.long_term, attempt.other.long_term
    content = bytes(range(256)) * 8
    async with _blob(attempt, attempt.revision) as revision:
        _want(await one.head(revision) is None, "a blob that nobody has written is there")
        await one.put(revision, _source(content), len(content))
        head = await other.head(revision)
        _want(head is not None, "what one server has written, another does not see")
        _want(head is not None and head.size == len(content), "the store does not know how long a blob is")
        _want(await _payload(other, revision) == content, "what is read is not what was written")
        part = await _payload(other, revision, Span(100, 300))
        _want(part == content[100:300], "a part of a blob is not that part")
        listed = await other.list(revision.object_id.storage_path, None, 10)
        _want([each.revision for each in listed] == [revision], "a listing does not show the blob")
        await other.delete(revision)
        await other.delete(revision)
        _want(await one.head(revision) is None, "a blob that was deleted is still there")
        _want(await _payload(one, revision) is None, "a blob that was deleted can still be read")


async def _blobs_look_at_the_clock(attempt: Attempt) -> None:
    store = attempt.one.long_term
    async with _blob(attempt, attempt.revision) as revision:
        try:
            await store.put(revision, _source(b"late"), 4, not_after=attempt.seconds_from_now(-_SKEW_SECONDS))
        except GivenUp:
            _want(await store.head(revision) is None, "a write that was given up has left a blob")
        else:
            raise _Broken(_late(f"{_SKEW_SECONDS} seconds ago"))
        try:
            stored = await store.put(revision, _source(b"timely"), 6, not_after=attempt.seconds_from_now(60))
        except GivenUp:
            raise _Broken("a write that has a minute left is refused as late: the store's clock is fast") from None
        off = (stored.stored - attempt.clock.now()) / MICROS_PER_SECOND
        _want(
            abs(off) <= _SKEW_SECONDS,
            f"the store's clock differs from this machine's by {off:+.0f} seconds; keep all clocks with NTP",
        )


async def _uploads_are_assembled(attempt: Attempt) -> None:
    one, other = attempt.one.long_term, attempt.other.long_term
    first = b"a" * max(attempt.limits.part_bytes_min, 1)
    async with _blob(attempt, attempt.upload_revision) as revision:
        upload = UploadId(revision, await one.initiate(revision))
        last = await other.upload_part(upload, 2, _source(b"end"), 3, None)
        begin = await one.upload_part(upload, 1, _source(first), len(first), None)
        _want(await one.head(revision) is None, "an upload is there before it is completed")
        listed = await other.list_parts(upload, 0, 10)
        _want([part.number for part in listed.parts] == [1, 2], "the store does not list the parts of an upload")
        await _completed(attempt, upload, [PartName(1, begin.etag), PartName(2, last.etag)])
        head = await other.head(revision)
        _want(head is not None, "an upload that was completed is not there")
        _want(await _payload(other, revision) == first + b"end", "an upload is not made of its parts")
        with suppress(TierstoreError):
            await one.abort(upload)
        _want(await other.head(revision) is not None, "aborting an upload that was completed takes its blob away")


async def _completed(attempt: Attempt, upload: UploadId, parts: Sequence[PartName]) -> None:
    """Complete from both servers at once; what each is told does not matter, but for what an operator can mend."""
    errors: list[TierstoreError] = []

    async def complete(number: int) -> None:
        try:
            await attempt.both(number).long_term.complete(upload, parts)
        except EntityTooSmall:
            raise _Broken(
                f"the store wants larger parts than uploads.part_min, {attempt.limits.part_bytes_min} bytes: set it to "
                f"what the store's documentation says, such as {5 * MIB} for S3"
            ) from None
        except TierstoreError as error:
            errors.append(error)

    await _all_at_once(complete, _COMPLETES)
    if len(errors) == _COMPLETES:
        raise _Broken(f"an upload cannot be completed: {errors[0]}")


async def _uploads_are_aborted(attempt: Attempt) -> None:
    one, other = attempt.one.long_term, attempt.other.long_term
    async with _blob(attempt, attempt.upload_revision) as revision:
        upload = UploadId(revision, await one.initiate(revision))
        part = await one.upload_part(upload, 1, _source(b"part"), 4, None)
        await other.abort(revision)
        with suppress(TierstoreError):
            await one.complete(upload, [PartName(1, part.etag)])
        _want(await other.head(revision) is None, "an upload that was aborted can still be completed")


# Change log


@asynccontextmanager
async def _owner(attempt: Attempt, owner: UUID) -> AsyncIterator[UUID]:
    """Who records, and whose entries are forgotten in the end."""
    try:
        yield owner
    finally:
        with suppress(TierstoreError):
            await attempt.one.changelog.forget(owner)


async def _entries_are_kept(attempt: Attempt) -> None:
    one, other = attempt.one.changelog, attempt.other.changelog
    later = attempt.seconds_from_now(86_400)
    async with _owner(attempt, attempt.ids.uuid()) as owner:
        await one.record(owner, new=attempt.revision, old=attempt.upload_revision, not_before=later)
        for revision in (attempt.revision, attempt.upload_revision):
            found = await other.find(revision)
            _want([entry.owner for entry in found] == [owner], "what one server has recorded, another does not find")
        due = await other.due(attempt.clock.now(), 1000)
        _want(all(entry.owner != owner for entry in due), "an entry is due before its time")
        await other.forget(owner)
        _want(not await one.find(attempt.revision), "an entry that was forgotten is still there")


async def _entries_change_hands_once(attempt: Attempt) -> None:
    one, other = attempt.one.changelog, attempt.other.changelog
    later = attempt.seconds_from_now(86_400)
    async with _owner(attempt, attempt.ids.uuid()) as owner:
        await one.record(owner, new=attempt.revision, old=None, not_before=later)
        found = await other.find(attempt.revision)
        _want(len(found) == 1, "what one server has recorded, another does not find")
        winners: list[Entry] = []

        async def condemn(number: int) -> None:
            if (condemned := await attempt.both(number).changelog.condemn(found[0], later + _HOUR)) is not None:
                winners.append(condemned)

        await _all_at_once(condemn, _RACERS)
        _want(
            len(winners) == 1,
            f"of {_RACERS} sweepers at once, {len(winners)} have taken the same entry: blobs would be lost",
        )
        again = await one.record_again(owner, new=attempt.revision, old=None, not_before=later)
        _want(not again, "a write that was given up can go on")
        _want(await one.forget_settled(winners[0]), "an entry that was settled cannot be forgotten")


async def _outcomes_are_remembered(attempt: Attempt) -> None:
    one, other = attempt.one.changelog, attempt.other.changelog
    revision, later = attempt.upload_revision, attempt.seconds_from_now(86_400)
    async with _owner(attempt, revision.uuid), _owner(attempt, attempt.ids.uuid()) as owner:
        await one.begin_upload(revision, b"wanted", later)
        claim = await other.claim(revision, owner, old=attempt.revision, not_before=later)
        _want(isinstance(claim, Claimed), "an upload that was begun cannot be claimed")
        await one.mark_done(revision, later)
        told = await other.claim(revision, owner, old=None, not_before=later)
        _want(isinstance(told, Committed), "that an upload was completed is not remembered")


_CHECKS: Sequence[tuple[str, str, Callable[[Attempt], Awaitable[None]]]] = (
    ("high-volume store", "rows are written, read by another server, listed and deleted", _rows_are_kept),
    ("high-volume store", "of writers at once, one wins", _writers_are_told_apart),
    ("high-volume store", "rows that point to blobs are not overwritten, and fences hold", _tombstones_stand),
    ("high-volume store", "deadlines move, and what has expired is found", _rows_expire),
    ("high-volume store", "its clock agrees, and late writes are refused", _rows_look_at_the_clock),
    ("long-term store", "blobs are written, read by another server, listed and deleted", _blobs_are_kept),
    ("long-term store", "its clock agrees, and late blobs are refused", _blobs_look_at_the_clock),
    ("long-term store", "parts are assembled, once, however often that is asked for", _uploads_are_assembled),
    ("long-term store", "uploads that were aborted stay so", _uploads_are_aborted),
    ("change log", "entries are recorded, found by another server, and forgotten", _entries_are_kept),
    ("change log", "of sweepers at once, one takes an entry", _entries_change_hands_once),
    ("change log", "outcomes of uploads are remembered", _outcomes_are_remembered),
)
