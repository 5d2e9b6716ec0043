"""The laws of a long-term store: every sentence of `tierstore.backends.long_term.contract`, and its races.

A backend's test class derives from `LongTermLaws` and supplies a factory and a back door. What a law says of writing
it checks through the back door, and what it says of reading it has put there through the back door, so that a fault in
one cannot hide a fault in the other.
"""

import asyncio
import hashlib
import random
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from itertools import accumulate, combinations, pairwise
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tierstore import telemetry
from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.errors import (
    ChecksumMismatch,
    CorruptObject,
    EntityTooSmall,
    GivenUp,
    InvalidPart,
    InvalidPartOrder,
    InvariantBroken,
    NoSuchUpload,
    ObjectTooLarge,
    TierstoreError,
)
from tierstore.limits import MIB, Limits
from tierstore.testing.clock import ManualClock
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.identity import IdentityLaws
from tierstore.testing.laws.suite import LawSuite
from tierstore.types.ids import ObjectId, Revision, Scope
from tierstore.types.multipart import Part, PartName, UploadId
from tierstore.types.ranges import Span

CHUNK = 16
"""Bytes of a chunk, for instances opened with `LIMITS`."""
LIMITS = replace(Limits.tiny(), stream_chunk_bytes=CHUNK)
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5 * CHUNK + 3)
RACERS = 32
RACES = 24
_LEAD_TURNS_MAX = 5_000
_LOOK_SECONDS = 0.005
_LEFTOVER_LOOKS_MAX = 1_000

# One store serves all examples of a property, as it serves all requests of its life; laws that are inherited by
# several backends' classes are run by objects of several classes.
property_settings = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)


def object_id(key: str = "k") -> ObjectId:
    """The object that laws call ``key``."""
    return ObjectId("photos", (Scope("org", "17"),), key)


def payload(size: int) -> bytes:
    """``size`` bytes that repeat nowhere, so that no chunk can stand for another."""
    return random.Random(size).randbytes(size)


def cut(whole: bytes, size: int) -> list[bytes]:
    """``whole`` in parts of ``size`` bytes; the last one may be shorter."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def pieces(part: bytes) -> list[bytes]:
    """A part in chunks that are short, and not too many."""
    return cut(part, max(7, len(part) // 50))


@cache
def _filler(size: int) -> bytes:
    return payload(size)


class Boom(Exception):
    """What a source raises."""


class Source:
    """A source of chunks that can wait, or fail, before the part with a number (or before its end).

    ``taken`` counts the parts that were asked for.
    """

    def __init__(
        self, parts: Sequence[bytes], *, pause_at: int | None = None, fail_at: int | None = None,
        error: BaseException | None = None,
    ) -> None:  # fmt: skip
        self._parts = parts
        self._pause_at = pause_at
        self._fail_at = fail_at
        self._error = error or Boom()
        self.taken = 0
        self.reached = asyncio.Event()
        self.release = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        number = self.taken
        if number == self._pause_at:
            self.reached.set()
            await self.release.wait()
        if number == self._fail_at:
            raise self._error
        if number >= len(self._parts):
            raise StopAsyncIteration
        self.taken += 1
        return self._parts[number]


class Endless:
    """A source that never ends."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        return b"x"


class Lead:
    """How many turns of the loop one of two racers is ahead; below zero, how many the other one is.

    Adapted after every race, so that however fast a store is, the races become close and either racer wins some.
    """

    turns = 0

    def adapt(self, *, won: bool) -> None:
        """Be less ahead after a race that the racer with the lead has won, and further after one that it has lost."""
        step = max(1, abs(self.turns) // 4) if won else max(1, abs(self.turns))
        self.turns = max(-_LEAD_TURNS_MAX, min(_LEAD_TURNS_MAX, self.turns + (-step if won else step)))


async def opened(store: LongTermBackend, revision: Revision, span: Span | None = None) -> BlobStream:
    """The stream of a blob that exists."""
    stream = await store.get(revision, span)
    assert stream is not None
    return stream


async def read(store: LongTermBackend, revision: Revision, span: Span | None = None) -> bytes:
    """All bytes of a blob that exists, or those of a span."""
    stream = await opened(store, revision, span)
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


async def read_damaged(store: LongTermBackend, revision: Revision, span: Span | None = None) -> int:
    """How many bytes of a damaged blob are delivered before the read fails, as it must, with `CorruptObject`."""
    delivered: list[bytes] = []
    before = corrupt_reads()
    with pytest.raises(CorruptObject):
        await _read_into(delivered, store, revision, span)
    assert corrupt_reads() > before, "a failed read is counted"
    return sum(map(len, delivered))


async def _read_into(delivered: list[bytes], store: LongTermBackend, revision: Revision, span: Span | None) -> None:
    stream = await opened(store, revision, span)
    try:
        async for chunk in stream:
            delivered.append(chunk)  # noqa: PERF401  # because what was delivered before a failure must be kept
    finally:
        await stream.aclose()


def corrupt_reads() -> float:
    """What the counter of corrupt reads says."""
    return sum(
        sample.value
        for metric in telemetry.corrupt_reads.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["tier"] == "long_term"
    )


async def listed(store: LongTermBackend, prefix: str = "", page: int = 1000) -> list[Revision]:
    """The revisions of all pages of a listing."""
    found: list[Revision] = []
    while blobs := await store.list(prefix, found[-1] if found else None, page):
        assert len(blobs) <= page
        found += [blob.revision for blob in blobs]
    return found


class LongTermSuite(LawSuite):
    """What the laws of every long-term store need. ``clock`` is the one that its instances are opened with."""

    clock: ManualClock
    limits: ClassVar[Limits] = LIMITS
    """What instances are opened with. Uploads of stores that take no small parts need others than `LIMITS`."""
    races: ClassVar[int] = RACES
    """How often a race is run: fewer where a store is slow."""
    moments: ClassVar[int] = 40
    """At how many moments something is cancelled; likewise."""
    tells_parts: ClassVar[bool]
    """Whether the store can tell of which parts a completed upload's blob was made."""
    forgets_replaced_parts: ClassVar[bool] = True
    """Whether a part that is replaced while its upload is being completed can be in the blob only if its replacement
    is refused. A store that keeps both may make the blob of the named one, and have taken the other."""
    heads_look_at_payloads: ClassVar[bool] = True
    """Whether `head` sees what has become of a payload's length: not where the service answers it out of its own
    record, which it keeps apart from the payload, with a checksum of it."""
    stored_seconds_apart: ClassVar[float] = 0.0
    """How far apart what is said at different times of when something was stored may be: a store that counts seconds
    says it of its answer, and then of what it has stored."""

    @abstractmethod
    async def open(self, limits: Limits) -> LongTermBackend:
        """Open one more instance on the store of this test, as another process would."""

    @abstractmethod
    async def stored(self) -> Mapping[UUID, bytes]:
        """Back door: the payload of every blob as it is in the store, by its revision's UUID."""

    @abstractmethod
    async def plant(self, revision: Revision, content: bytes) -> None:
        """Back door: put a whole and valid blob into the store."""

    @abstractmethod
    async def replace_payload(self, revision: Revision, content: bytes) -> None:
        """Back door: change the payload of a blob, and leave alone what the store knows of it."""

    @abstractmethod
    async def damage_header(self, revision: Revision) -> None:
        """Back door: damage what the store knows of a blob, and leave its payload alone."""

    @abstractmethod
    async def damage_upload(self, upload: UploadId) -> bool:
        """Back door: damage what the store keeps of an upload in progress itself, and leave its parts alone.

        False if the store keeps nothing of its own that could be damaged.
        """

    @abstractmethod
    def watched(self, revision: Revision) -> AbstractContextManager[Callable[[], bool]]:
        """Back door: watch what instances that are opened within make durable.

        What it gives tells whether one of them has made the blob of ``revision`` durable, so far.
        """

    @abstractmethod
    async def leftovers(self) -> int:
        """Back door: how many things in the store belong to a write or an upload that has not become a blob."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[LongTermBackend]:
        """One open instance."""
        store = await self.open(self.limits)
        yield store
        await store.close()

    @pytest.fixture
    async def second(self, store: LongTermBackend) -> AsyncIterator[LongTermBackend]:
        """Another instance on the store of ``store``, as of another process."""
        second = await self.open(self.limits)
        assert second is not store
        yield second
        await second.close()

    @pytest.fixture
    def ids(self) -> SeededIds:
        """Where the laws' revisions come from."""
        return SeededIds(7)

    @pytest.fixture
    def revision(self, ids: SeededIds) -> Revision:
        """The revision that most laws write or read."""
        return Revision(object_id(), ids.uuid())

    async def expect_absent(self, revision: Revision, *stores: LongTermBackend) -> None:
        """No instance sees the blob, by any method, and the raw store does not have it."""
        for store in stores:
            assert await store.head(revision) is None
            assert await store.get(revision) is None
            assert revision not in await listed(store)
        assert revision.uuid not in await self.stored()

    async def expect_leftovers(self, count: int) -> None:
        """The store gets down to ``count`` leftovers; it may remove some after it has answered."""
        for _ in range(_LEFTOVER_LOOKS_MAX):
            if await self.leftovers() == count:
                return
            await asyncio.sleep(_LOOK_SECONDS)
        assert await self.leftovers() == count

    async def race(
        self, one: Coroutine[Any, Any, object], other: Coroutine[Any, Any, object], lead: "Lead"
    ) -> tuple[BaseException | None, BaseException | None]:
        """Run both at the same time, ``one`` as far ahead as ``lead`` says; what each of them raised.

        The clock goes on meanwhile, and never faster than time does, so that who waits for another one gets its turn
        and nobody gives up early.
        """
        calls = (one, other) if lead.turns >= 0 else (other, one)
        first = asyncio.create_task(calls[0])
        for _ in range(abs(lead.turns)):
            await asyncio.sleep(0)
        tasks = (first, asyncio.create_task(calls[1]))
        while (await asyncio.wait(tasks, timeout=_LOOK_SECONDS))[1]:
            self.clock.advance(_LOOK_SECONDS)
        answers = tasks if lead.turns >= 0 else tasks[::-1]
        lead.adapt(won=answers[0].exception() is None)
        return answers[0].exception(), answers[1].exception()

    def same(self, one: BlobInfo | Part | None, other: BlobInfo | Part | None) -> bool:
        """Whether both say the same of something that is stored."""
        if one is None or other is None:
            return one is other
        apart = abs(one.stored - other.stored)
        return replace(one, stored=0) == replace(other, stored=0) and apart <= self.stored_seconds_apart * 1_000_000

    async def expect_blob(self, revision: Revision, content: bytes, *stores: LongTermBackend) -> None:
        """Every instance sees the blob, whole, and so does the back door."""
        for store in stores:
            known = await store.head(revision)
            assert known is not None
            assert (known.revision, known.size) == (revision, len(content))
            assert await read(store, revision) == content
            assert revision in await listed(store)
        assert (await self.stored())[revision.uuid] == content


class BlobLaws(LongTermSuite, IdentityLaws):
    """What every long-term store does with blobs."""

    async def open_store(self) -> LongTermBackend:
        return await self.open(LIMITS)

    # put

    @pytest.mark.parametrize("known_size", [True, False])
    @pytest.mark.parametrize("size", SIZES)
    async def test_put_stores_every_byte(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, size: int, known_size: bool
    ) -> None:
        """A put blob of any size is whole, for every process, and in the store itself."""
        content = payload(size)
        known = await store.put(revision, Source(cut(content, 7)), size if known_size else None)
        assert self.same(known, await second.head(revision))
        assert (known.revision, known.size) == (revision, size)
        await self.expect_blob(revision, content, store, second)
        assert await self.leftovers() == 0

    async def test_five_mebibytes(self, revision: Revision) -> None:
        """A blob of many chunks of the size that production uses comes back as it was."""
        content = payload(5 * MIB)
        store = await self.open(Limits())
        try:
            await store.put(revision, Source(cut(content, 100_000)), len(content))
            await self.expect_blob(revision, content, store)
        finally:
            await store.close()

    @property_settings
    @given(parts=st.lists(st.binary(min_size=1, max_size=3 * CHUNK), max_size=12), seed=st.integers(0, 2**64))
    async def test_any_chunks(self, store: LongTermBackend, parts: list[bytes], seed: int) -> None:
        """However a payload is cut into chunks, it is the same payload."""
        revision = Revision(object_id(), SeededIds(seed).uuid())
        content = b"".join(parts)
        await store.put(revision, Source(parts), None)
        assert await read(store, revision) == content
        assert (await self.stored())[revision.uuid] == content
        await store.delete(revision)

    async def test_many_short_chunks(self, store: LongTermBackend, revision: Revision) -> None:
        """A source of thousands of single bytes is stored in order."""
        content = payload(5_000)
        big = await self.open(Limits())
        try:
            await big.put(revision, Source(cut(content, 1)), len(content))
        finally:
            await big.close()
        await self.expect_blob(revision, content, store)

    @pytest.mark.parametrize("pause_at", [0, 1, 3, 6])
    async def test_invisible_until_whole(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, pause_at: int
    ) -> None:
        """While a source has not ended, no process sees anything of the blob; then all see all of it."""
        content = payload(6 * CHUNK)
        source = Source(cut(content, CHUNK), pause_at=pause_at)
        put = asyncio.create_task(store.put(revision, source, len(content)))
        await source.reached.wait()
        await self.expect_absent(revision, store, second)
        source.release.set()
        await put
        await self.expect_blob(revision, content, store, second)
        assert await self.leftovers() == 0

    @pytest.mark.parametrize("error", [Boom(), ConnectionResetError(), OSError(28, "of the source"), TimeoutError()])
    @pytest.mark.parametrize("fail_at", [0, 1, 3, 6])
    async def test_source_fails(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, fail_at: int, error: Exception
    ) -> None:
        """An exception out of the source comes out of put as it is, whatever it is, and there is no blob."""
        source = Source(cut(payload(6 * CHUNK), CHUNK), fail_at=fail_at, error=error)
        with pytest.raises(type(error)) as raised:
            await store.put(revision, source, None)
        assert raised.value is error
        await self.expect_absent(revision, store, second)
        assert await self.leftovers() == 0

    @pytest.mark.parametrize("announced", [0, CHUNK, 3 * CHUNK - 1, 3 * CHUNK + 1, 100 * CHUNK])
    async def test_size_differs(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, announced: int
    ) -> None:
        """A source that yields another number of bytes than was announced is a broken invariant, and no blob."""
        with pytest.raises(InvariantBroken):
            await store.put(revision, Source(cut(payload(3 * CHUNK), CHUNK)), announced)
        await self.expect_absent(revision, store, second)
        assert await self.leftovers() == 0

    async def test_endless_source(self, store: LongTermBackend, revision: Revision) -> None:
        """A source that goes on beyond the announced size is not read to its end."""
        with pytest.raises(InvariantBroken):
            await store.put(revision, Endless(), 3 * CHUNK)
        await self.expect_absent(revision, store)
        assert await self.leftovers() == 0

    @pytest.mark.parametrize("pause_at", [0, 1, 3, 6])
    async def test_cancelled_while_the_source_waits(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, pause_at: int
    ) -> None:
        """A put cancelled while its source waits leaves nothing, in no process, then or later."""
        source = Source(cut(payload(6 * CHUNK), CHUNK), pause_at=pause_at)
        put = asyncio.create_task(store.put(revision, source, 6 * CHUNK))
        await source.reached.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        await self.expect_absent(revision, store, second)
        assert await self.leftovers() == 0

    @pytest.mark.parametrize("cancellations", [1, 3])
    async def test_cancelled_at_any_moment(
        self, store: LongTermBackend, second: LongTermBackend, ids: SeededIds, cancellations: int
    ) -> None:
        """A put cancelled at any moment, once or again and again, has ended whole or has left nothing."""
        content = payload(6 * CHUNK)
        whole = []
        for moment in range(0, 40, 40 // self.moments):
            revision = Revision(object_id(), ids.uuid())
            put = asyncio.create_task(store.put(revision, Source(cut(content, CHUNK)), None))
            await asyncio.sleep(moment / 5_000)
            for _ in range(cancellations):
                put.cancel()
                await asyncio.sleep(0)
            try:
                await put
            except asyncio.CancelledError:
                await self.expect_absent(revision, store, second)
            else:
                whole.append(revision)
            assert await self.leftovers() == 0
        assert set(await listed(second)) == set(whole)
        for revision in whole:
            await self.expect_blob(revision, content, second)

    async def test_put_again_replaces_atomically(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision
    ) -> None:
        """A repeated put of a revision shows what was there until it is whole, and then all of the new one."""
        old, new = payload(3 * CHUNK + 1), payload(5 * CHUNK + 2)
        await store.put(revision, Source([old]), len(old))
        source = Source(cut(new, CHUNK), pause_at=4)
        put = asyncio.create_task(second.put(revision, source, len(new)))
        await source.reached.wait()
        await self.expect_blob(revision, old, store, second)
        before = await opened(store, revision)
        source.release.set()
        await put
        await self.expect_blob(revision, new, store, second)
        with suppress(TierstoreError):
            assert b"".join([chunk async for chunk in before]) == old
        await before.aclose()
        assert await self.leftovers() == 0

    @pytest.mark.parametrize("way", ["fail", "cancel"])
    async def test_failed_repetition_leaves_the_blob(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, way: str
    ) -> None:
        """A repeated put that fails or is cancelled leaves the blob of the first one as it is."""
        content = payload(3 * CHUNK)
        await store.put(revision, Source([content]), None)
        source = Source(cut(content, CHUNK), pause_at=2, fail_at=2)
        put = asyncio.create_task(store.put(revision, source, None))
        await source.reached.wait()
        if way == "cancel":
            put.cancel()
        source.release.set()
        with pytest.raises((Boom, asyncio.CancelledError)):
            await put
        await self.expect_blob(revision, content, store, second)
        assert await self.leftovers() == 0

    @pytest.mark.parametrize("late", [False, True])
    async def test_no_blob_appears_when_its_time_is_over(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, late: bool
    ) -> None:
        """Up to the instant it does; after it, however early the put began, nothing does, then or later."""
        content = payload(3 * CHUNK)
        not_after = self.clock.now() + 1_000_000
        source = Source(cut(content, CHUNK), pause_at=2)
        put = asyncio.create_task(store.put(revision, source, len(content), not_after=not_after))
        await source.reached.wait()
        self.clock.set_now(not_after + late)
        source.release.set()
        if not late:
            await put
            await self.expect_blob(revision, content, store, second)
            return
        with pytest.raises(GivenUp):
            await put
        assert await second.head(revision) is None
        assert await self.stored() == {}
        assert await self.leftovers() == 0

    async def test_no_upload_begins_when_its_time_is_over(self, store: LongTermBackend, ids: SeededIds) -> None:
        """Nor is anything left of it; up to the instant it begins."""
        now = self.clock.now()
        in_time, late = (Revision(object_id(), ids.upload_uuid()) for _ in range(2))
        await store.initiate(in_time, not_after=now)
        assert await self.leftovers() == 1
        with pytest.raises(GivenUp):
            await store.initiate(late, not_after=now - 1)
        assert await self.leftovers() == 1

    async def test_concurrent_puts(self, store: LongTermBackend, second: LongTermBackend, ids: SeededIds) -> None:
        """Puts of different revisions at the same time, from two processes, are all whole."""
        contents = {Revision(object_id(f"k{n}"), ids.uuid()): payload(n * 5) for n in range(RACERS)}
        await asyncio.gather(
            *(
                (store, second)[number % 2].put(revision, Source(cut(content, 9)), None)
                for number, (revision, content) in enumerate(contents.items())
            )
        )
        assert await self.stored() == {revision.uuid: content for revision, content in contents.items()}
        assert {revision: await read(second, revision) for revision in contents} == contents
        assert set(await listed(second)) == set(contents)

    async def test_concurrent_puts_of_one_revision(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision
    ) -> None:
        """Several attempts at the same write, at the same time, end in one whole blob."""
        content = payload(4 * CHUNK)
        await asyncio.gather(
            *((store, second)[number % 2].put(revision, Source(cut(content, 9)), None) for number in range(8))
        )
        await self.expect_blob(revision, content, store, second)
        assert list(await self.stored()) == [revision.uuid]
        assert await self.leftovers() == 0

    # get

    async def test_absent(self, store: LongTermBackend, revision: Revision, ids: SeededIds) -> None:
        """A blob that never was is absent to get and head, also beside others of its object."""
        await self.plant(Revision(revision.object_id, ids.uuid()), b"another revision")
        await self.expect_absent(revision, store)

    @pytest.mark.parametrize("size", SIZES)
    async def test_get_reads_what_is_stored(self, store: LongTermBackend, revision: Revision, size: int) -> None:
        """A stream yields the bytes that are in the store, in chunks that are neither empty nor too long."""
        content = payload(size)
        await self.plant(revision, content)
        stream = await opened(store, revision)
        chunks = [chunk async for chunk in stream]
        assert stream.size == size
        assert b"".join(chunks) == content
        assert all(0 < len(chunk) <= CHUNK for chunk in chunks)
        await stream.aclose()

    async def test_every_span(self, store: LongTermBackend, revision: Revision) -> None:
        """Every span of a blob yields exactly its bytes, and the stream knows the whole blob's size."""
        content = payload(2 * CHUNK + 5)
        await self.plant(revision, content)
        for start in range(len(content)):
            for stop in range(start + 1, len(content) + 1):
                stream = await opened(store, revision, Span(start, stop))
                chunks = [chunk async for chunk in stream]
                assert stream.size == len(content)
                assert b"".join(chunks) == content[start:stop]
                assert all(0 < len(chunk) <= CHUNK for chunk in chunks)
                await stream.aclose()

    @property_settings
    @given(size=st.integers(1, 40 * CHUNK), data=st.data(), seed=st.integers(0, 2**64))
    async def test_any_span(self, store: LongTermBackend, size: int, data: st.DataObject, seed: int) -> None:
        """A span of a put blob yields its bytes, wherever it begins and ends."""
        revision = Revision(object_id(), SeededIds(seed).uuid())
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        await store.put(revision, Source([payload(size)]), size)
        assert await read(store, revision, Span(start, stop)) == payload(size)[start:stop]
        await store.delete(revision)

    @pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK])
    async def test_span_outside(self, store: LongTermBackend, revision: Revision, size: int) -> None:
        """A span that does not lie within the blob, or is empty, is a broken invariant."""
        await self.plant(revision, payload(size))
        for start, stop in [
            (0, size + 1),
            (size, size + 1),
            (0, 0),
            (size, size),
            (-1, size),
            (9 * size, 9 * size + 1),
        ]:
            with pytest.raises(InvariantBroken):
                await store.get(revision, Span(start, stop))

    async def test_concurrent_reads(self, store: LongTermBackend, second: LongTermBackend, revision: Revision) -> None:
        """Many readers of one blob do not disturb each other."""
        content = payload(7 * CHUNK + 1)
        await self.plant(revision, content)
        reads = [read((store, second)[n % 2], revision, Span(n, len(content)) if n else None) for n in range(RACERS)]
        assert await asyncio.gather(*reads) == [content[n:] for n in range(RACERS)]

    @pytest.mark.parametrize("chunks_read", [0, 1, 2])
    async def test_close_early(self, store: LongTermBackend, revision: Revision, chunks_read: int) -> None:
        """A stream may be closed at any point, and twice; going on after it is an error, and not an end."""
        await self.plant(revision, payload(4 * CHUNK))
        stream = await opened(store, revision)
        chunks = aiter(stream)
        for _ in range(chunks_read):
            await anext(chunks)
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(TierstoreError):
            await anext(chunks)
        assert await read(store, revision) == payload(4 * CHUNK)

    @pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 1])
    async def test_exhausted_stays_exhausted(self, store: LongTermBackend, revision: Revision, size: int) -> None:
        """A stream that was read to its end has ended for good, before and after it is closed."""
        await self.plant(revision, payload(size))
        stream = await opened(store, revision)
        assert len(b"".join([chunk async for chunk in stream])) == size
        assert [chunk async for chunk in stream] == []
        await stream.aclose()
        assert [chunk async for chunk in stream] == []
        await stream.aclose()

    async def test_reader_is_cancelled(self, store: LongTermBackend, revision: Revision) -> None:
        """A reader cancelled at any moment can close its stream, and the blob stays as it is."""
        content = payload(50 * CHUNK)
        await self.plant(revision, content)
        for moment in range(10):
            reading = asyncio.create_task(read(store, revision))
            await asyncio.sleep(moment / 2_000)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        await self.expect_blob(revision, content, store)

    # delete

    async def test_delete(self, store: LongTermBackend, second: LongTermBackend, ids: SeededIds) -> None:
        """A deleted blob is gone for every process; its neighbours stay; deleting what is absent is fine."""
        gone, kept = (Revision(object_id(), ids.uuid()) for _ in range(2))
        for revision in (gone, kept):
            await self.plant(revision, payload(40))
        await store.delete(gone)
        await self.expect_absent(gone, store, second)
        await second.delete(gone)
        await store.delete(Revision(object_id(), ids.uuid()))
        await self.expect_absent(gone, store, second)
        await self.expect_blob(kept, payload(40), store, second)

    @pytest.mark.parametrize("chunks_read", [0, 1, 3])
    async def test_delete_during_a_read(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision, chunks_read: int
    ) -> None:
        """A stream opened before a delete goes on to the end or fails: never other bytes, never a short end."""
        content = payload(8 * CHUNK)
        await self.plant(revision, content)
        stream = await opened(store, revision)
        chunks = aiter(stream)
        delivered = [await anext(chunks) for _ in range(chunks_read)]
        await second.delete(revision)
        await second.put(revision, Source([payload(9 * CHUNK)]), None)
        await second.delete(revision)
        try:
            delivered += [chunk async for chunk in chunks]
        except TierstoreError:
            assert content.startswith(b"".join(delivered))
        else:
            assert b"".join(delivered) == content
        finally:
            await stream.aclose()
        await self.expect_absent(revision, store, second)

    async def test_deletes_race_reads_and_puts(
        self, store: LongTermBackend, second: LongTermBackend, ids: SeededIds
    ) -> None:
        """Whoever reads a blob while it is put and deleted sees all of it or nothing."""
        content = payload(3 * CHUNK)

        async def look(revision: Revision) -> None:
            for _ in range(10):
                if await second.get(revision) is not None:
                    stream = await second.get(revision)
                    if stream is None:
                        continue
                    try:
                        assert b"".join([chunk async for chunk in stream]) == content
                    finally:
                        await stream.aclose()

        async def live(revision: Revision) -> None:
            await store.put(revision, Source(cut(content, CHUNK)), None)
            await store.delete(revision)

        revisions = [Revision(object_id(), ids.uuid()) for _ in range(8)]
        await asyncio.gather(*map(live, revisions), *map(look, revisions))
        assert await self.stored() == {}

    # damage

    async def test_damaged_payload(self, store: LongTermBackend, revision: Revision) -> None:
        """A flipped bit anywhere in a blob fails a full read before its last chunk, and the failure is counted."""
        content = payload(2 * CHUNK + 5)
        await self.plant(revision, content)
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            await self.replace_payload(revision, bytes(damaged))
            assert await read_damaged(store, revision) <= 2 * CHUNK
        await self.replace_payload(revision, content)
        await self.expect_blob(revision, content, store)

    @pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    async def test_last_chunk_is_held_back(self, store: LongTermBackend, revision: Revision, size: int) -> None:
        """Of a damaged blob, everything but the last chunk may be delivered, and never the last chunk."""
        content = payload(size)
        await self.plant(revision, content)
        await self.replace_payload(revision, bytes([content[0] ^ 128]) + content[1:])
        assert await read_damaged(store, revision) <= (size - 1) // CHUNK * CHUNK

    async def test_span_of_all_bytes_is_a_full_read(self, store: LongTermBackend, revision: Revision) -> None:
        """A span that covers the whole blob is verified like the whole blob; a smaller one cannot be."""
        content = payload(3 * CHUNK)
        await self.plant(revision, content)
        await self.replace_payload(revision, content[:-1] + bytes([content[-1] ^ 1]))
        assert await read_damaged(store, revision, Span(0, 3 * CHUNK)) <= 2 * CHUNK
        assert await read(store, revision, Span(0, 3 * CHUNK - 1)) == content[:-1]

    @pytest.mark.parametrize("left", [0, 1, CHUNK, 3 * CHUNK - 1, 3 * CHUNK + 1])
    async def test_wrong_length(self, store: LongTermBackend, revision: Revision, left: int) -> None:
        """A blob that has become shorter or longer is corrupt, to reads and to head, and can be deleted.

        Where a store keeps its own record of the length, apart from the payload, head says what that says.
        """
        content = payload(3 * CHUNK)
        await self.plant(revision, content)
        await self.replace_payload(revision, (content + b"more")[:left])
        assert await read_damaged(store, revision) < 3 * CHUNK
        if self.heads_look_at_payloads:
            with pytest.raises(CorruptObject):
                await store.head(revision)
        else:
            assert (known := await store.head(revision)) is not None
            assert known.size == 3 * CHUNK
        await store.delete(revision)
        await self.expect_absent(revision, store)

    async def test_damaged_header(self, store: LongTermBackend, ids: SeededIds) -> None:
        """A blob whose header is damaged is corrupt, not absent; listings go on without it; it can be deleted."""
        revisions = [Revision(object_id(f"k{n}"), ids.uuid()) for n in range(5)]
        for revision in revisions:
            await self.plant(revision, payload(CHUNK + 1))
        damaged = revisions[2]
        await self.damage_header(damaged)
        assert await read_damaged(store, damaged) <= CHUNK
        with pytest.raises(CorruptObject):
            await store.head(damaged)
        assert set(await listed(store)) == {*revisions} - {damaged}
        await store.delete(damaged)
        await self.expect_absent(damaged, store)

    # head and list

    async def test_head_agrees_with_put_and_list(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision
    ) -> None:
        """What put returned is what head and list say, in every process, for as long as the blob lives."""
        known = await store.put(revision, Source([b"content"]), None)
        assert known.stored > 0
        self.clock.advance(3_600)
        for instance in (store, second):
            assert self.same(await instance.head(revision), known)
            (found,) = await instance.list("", None, 10)
            assert self.same(found, known)

    @pytest.mark.parametrize("page", [1, 2, 3, 7, 24, 25])
    async def test_list_pages(self, store: LongTermBackend, ids: SeededIds, page: int) -> None:
        """Pages of any length list every blob exactly once, in one order, also when their UUIDs begin or end alike."""
        uuids = [ids.uuid() for _ in range(8)]
        uuids += [UUID(int=(uuid.int >> 64 << 64) | 1) for uuid in uuids]
        uuids += [UUID(int=(uuids[0].int >> 64 << 64) | ids.uuid().int >> 64) for _ in range(8)]
        revisions = [Revision(object_id(f"k{n % 6}"), uuid) for n, uuid in enumerate(uuids)]
        for revision in revisions:
            await self.plant(revision, b"x" * len(revision.object_id.key))
        found = await listed(store, page=page)
        assert sorted(found, key=str) == sorted(revisions, key=str)
        assert found == await listed(store)

    async def test_list_prefix(self, store: LongTermBackend, ids: SeededIds) -> None:
        """A prefix selects by the storage path, wherever it is cut."""
        usecases = ("photos", "photos2", "other")
        keys = ("a", "a/b", "ab", "b", "é", "%")
        revisions = [
            Revision(ObjectId(usecase, (Scope("org", scope),), key), ids.uuid())
            for usecase in usecases
            for scope in ("1", "17")
            for key in keys
        ]
        for revision in revisions:
            await self.plant(revision, b"")
        prefixes = ("", "p", "photos", "photos/", "photos/org.1", "photos/org.1/", "photos/org.17/objects/a", "x", "é")
        for prefix in (*prefixes, revisions[3].storage_path, revisions[3].storage_path + "x"):
            expected = {revision for revision in revisions if revision.storage_path.startswith(prefix)}
            for page in (2, 100):
                found = await listed(store, prefix, page)
                assert len(found) == len(set(found))
                assert set(found) == expected

    async def test_list_while_blobs_come_and_go(
        self, store: LongTermBackend, second: LongTermBackend, ids: SeededIds
    ) -> None:
        """A blob that is there throughout a paged listing is listed exactly once, even if the last of a page goes."""
        there = [Revision(object_id(f"there{n}"), ids.uuid()) for n in range(12)]
        going = [Revision(object_id(f"going{n}"), ids.uuid()) for n in range(12)]
        for revision in (*there, *going):
            await self.plant(revision, b"")
        found: list[Revision] = []
        while page := await store.list("", found[-1] if found else None, 3):
            found += [blob.revision for blob in page]
            for blob in page:
                if blob.revision in going:
                    await second.delete(blob.revision)
            await second.put(Revision(object_id("coming"), ids.uuid()), Source([b"x"]), 1)
            assert len(found) < 60, "a listing ends"
        assert len(found) == len(set(found))
        assert set(there) <= set(found)

    async def test_order_of_listing_is_that_of_after(self, store: LongTermBackend, ids: SeededIds) -> None:
        """Every listed blob continues the listing where it stood, also for another prefix."""
        for n in range(10):
            await self.plant(Revision(object_id(f"{n % 2}/{n}"), ids.uuid()), b"")
        found = await listed(store)
        for here, following in pairwise(found):
            assert [blob.revision for blob in await store.list("", here, 1)] == [following]
        ones = [revision for revision in found if revision.object_id.key.startswith("1/")]
        for revision in found:
            expected = [one for one in ones if found.index(one) > found.index(revision)]
            prefix = object_id("1/").storage_path
            assert [blob.revision for blob in await store.list(prefix, revision, 100)] == expected

    # names

    async def test_hostile_names(self, store: LongTermBackend, second: LongTermBackend, ids: SeededIds) -> None:
        """Whatever an object is called, its blob is stored, found, listed under that name and removed."""
        contents = {Revision(named, ids.uuid()): str(number).encode() for number, named in enumerate(HOSTILE_IDS)}
        batches = [list(contents)[start : start + 64] for start in range(0, len(contents), 64)]
        for batch in batches:
            await asyncio.gather(*(store.put(revision, Source([contents[revision]]), None) for revision in batch))
        assert await self.stored() == {revision.uuid: content for revision, content in contents.items()}
        assert {revision: await read(second, revision) for revision in contents} == contents
        assert set(await listed(second, page=100)) == set(contents)
        for batch in batches:
            await asyncio.gather(*map(store.delete, batch))
        assert await self.stored() == {}

    # life

    async def test_reopened(self, revision: Revision, ids: SeededIds) -> None:
        """What was put is there after the store was closed and opened again, and so are its deletes."""
        gone = Revision(object_id("gone"), ids.uuid())
        store = await self.open(LIMITS)
        await store.put(revision, Source([payload(50)]), 50)
        await store.put(gone, Source([payload(51)]), 51)
        await store.delete(gone)
        await store.close()
        again = await self.open(LIMITS)
        await self.expect_blob(revision, payload(50), again)
        await self.expect_absent(gone, again)
        await again.close()

    async def test_close_twice(self, second: LongTermBackend, revision: Revision) -> None:
        """Closing is safe to repeat, also at the same time, and does not touch another instance."""
        store = await self.open(LIMITS)
        await store.put(revision, Source([b"content"]), None)
        await asyncio.gather(store.close(), store.close())
        await store.close()
        await self.expect_blob(revision, b"content", second)

    async def test_close_finishes_what_was_accepted(self, second: LongTermBackend, revision: Revision) -> None:
        """A put that was under way when the store is closed ends as if it were not."""
        store = await self.open(LIMITS)
        content = payload(5 * CHUNK)
        source = Source(cut(content, CHUNK), pause_at=3)
        put = asyncio.create_task(store.put(revision, source, None))
        await source.reached.wait()
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.01)
        source.release.set()
        known = await put
        await closing
        assert known.size == len(content)
        await self.expect_blob(revision, content, second)
        assert await self.leftovers() == 0

    async def test_check(self, store: LongTermBackend) -> None:
        """A store that works says so, and is left as it was."""
        await store.check()
        assert await self.stored() == {}
        assert await self.leftovers() == 0

    async def test_debris_of_the_living(
        self, store: LongTermBackend, second: LongTermBackend, revision: Revision
    ) -> None:
        """Removing debris takes nothing from a writer that lives, of this process or another."""
        content = payload(5 * CHUNK)
        source = Source(cut(content, CHUNK), pause_at=3)
        put = asyncio.create_task(store.put(revision, source, None))
        await source.reached.wait()
        for instance in (store, second):
            assert await instance.remove_debris() == 0
        source.release.set()
        await put
        assert await store.remove_debris() == 0
        await self.expect_blob(revision, content, store, second)

    async def test_streams_are_independent(self, store: LongTermBackend, revision: Revision) -> None:
        """Closing one stream of a blob leaves the others."""
        await self.plant(revision, payload(6 * CHUNK))
        first, other = await opened(store, revision), await opened(store, revision)
        await anext(aiter(first))
        await first.aclose()
        assert b"".join([chunk async for chunk in other]) == payload(6 * CHUNK)
        await other.aclose()


class UploadLaws(LongTermSuite):
    """What every long-term store does with uploads."""

    def full(self, content: bytes) -> bytes:
        """A part that others may follow: ``content``, with as much behind it as the store wants of one."""
        return content + _filler(self.limits.part_bytes_min)[len(content) :]

    async def begun(self, store: LongTermBackend, key: str = "k") -> UploadId:
        """A new upload."""
        revision = Revision(object_id(key), SeededIds(len(key)).upload_uuid())
        return UploadId(revision, await store.initiate(revision))

    async def sent(self, store: LongTermBackend, upload: UploadId, parts: Mapping[int, bytes]) -> list[PartName]:
        """Send ``parts``, the last ones first; return their names in order."""
        names = []
        for number, part in sorted(parts.items(), reverse=True):
            stored = await store.upload_part(upload, number, Source(pieces(part)), len(part), None)
            assert (stored.number, stored.size) == (number, len(part))
            names.append(PartName(number, stored.etag))
        return names[::-1]

    async def test_an_upload_is_invisible_until_it_is_complete(self, store: LongTermBackend) -> None:
        """Then it is one blob, of the parts in the order of their numbers, as any other is."""
        upload = await self.begun(store)
        parts = {1: self.full(payload(20)), 3: self.full(payload(1)), 7: payload(5 * CHUNK + 3)}
        whole = b"".join(parts.values())
        names = await self.sent(store, upload, parts)
        assert await store.head(upload.revision) is None
        assert await store.get(upload.revision) is None
        assert await store.list("", None, 10) == []
        await store.complete(upload, names)
        info = await store.head(upload.revision)
        assert info is not None
        assert info.size == len(whole)
        (found,) = await store.list("", None, 10)
        assert self.same(found, info)
        assert await read(store, upload.revision) == whole
        ends = [0, *accumulate(map(len, parts.values()))]
        near = sorted({place + step for place in ends for step in (-1, 0, 1) if 0 <= place + step <= len(whole)})
        for start, stop in combinations(near if self.limits.part_bytes_min else range(0, len(whole) + 1, 3), 2):
            assert await read(store, upload.revision, Span(start, stop)) == whole[start:stop]
        await store.delete(upload.revision)
        assert await store.head(upload.revision) is None
        with suppress(NoSuchUpload):
            await store.complete(upload, names)
        assert await store.head(upload.revision) is None

    @pytest.mark.parametrize("sizes", [[0], [0, 0], [0, 5, 0], [5, 0], [CHUNK, CHUNK]])
    async def test_parts_may_be_empty(self, store: LongTermBackend, sizes: Sequence[int]) -> None:
        """An empty part adds nothing."""
        upload = await self.begun(store)
        parts = {number: self.full(payload(size)) for number, size in enumerate(sizes, start=1)}
        parts[len(sizes)] = payload(sizes[-1])
        await store.complete(upload, await self.sent(store, upload, parts))
        assert await read(store, upload.revision) == b"".join(parts.values())

    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK])
    async def test_a_part_may_be_as_long_as_its_source(self, store: LongTermBackend, size: int) -> None:
        """A part whose size is not known beforehand is what its source yields; with an announced one beside it."""
        upload = await self.begun(store)
        part = self.full(payload(size))
        stored = await store.upload_part(upload, 1, Source(pieces(part)), None, None)
        assert (stored.number, stored.size) == (1, len(part))
        (listed_part,) = (await store.list_parts(upload, 0, 3)).parts
        assert self.same(listed_part, stored)
        (after,) = await self.sent(store, upload, {2: b"after"})
        await store.complete(upload, [PartName(1, stored.etag), after])
        assert await read(store, upload.revision) == part + b"after"

    async def test_a_source_of_unknown_length_that_fails_stores_no_part(self, store: LongTermBackend) -> None:
        """As one of known length."""
        upload = await self.begun(store)
        with pytest.raises(Boom):
            await store.upload_part(upload, 1, Source([b"abc", b"def"], fail_at=1), None, None)
        assert list((await store.list_parts(upload, 0, 3)).parts) == []

    async def test_a_part_is_replaced_by_the_next_with_its_number(self, store: LongTermBackend) -> None:
        """Only the new ETag names it; a wrong one, or an absent part, leaves the upload as it was."""
        upload = await self.begun(store)
        (before,) = await self.sent(store, upload, {1: b"before"})
        (after,) = await self.sent(store, upload, {1: b"after!"})
        assert before.etag != after.etag
        for wrong in ([before], [after, PartName(2, after.etag)]):
            with pytest.raises(InvalidPart):
                await store.complete(upload, wrong)
        await store.complete(upload, [after])
        assert await read(store, upload.revision) == b"after!"

    async def test_what_is_not_named_is_left_out(self, store: LongTermBackend) -> None:
        """A blob is exactly the parts that were named."""
        upload = await self.begun(store)
        one = self.full(b"one")
        names = await self.sent(store, upload, {1: one, 2: b"two", 3: b"three"})
        await store.complete(upload, [names[0], names[2]])
        assert await read(store, upload.revision) == one + b"three"

    async def test_parts_are_named_in_order(self, store: LongTermBackend) -> None:
        """Descending or repeated numbers are refused, and the upload is as it was."""
        upload = await self.begun(store)
        first = self.full(b"one")
        one, two = await self.sent(store, upload, {1: first, 2: b"two"})
        for wrong in ([two, one], [one, one]):
            with pytest.raises(InvalidPartOrder):
                await store.complete(upload, wrong)
        await store.complete(upload, [one, two])
        assert await read(store, upload.revision) == first + b"two"

    async def test_a_part_before_others_has_a_smallest_size(self) -> None:
        """One below it is refused when it is named before another one, and the upload is as it was."""
        limits = replace(self.limits, part_bytes_min=max(self.limits.part_bytes_min, 20))
        store = await self.open(limits)
        try:
            upload = await self.begun(store)
            full = self.full(payload(20))
            names = await self.sent(store, upload, {1: b"short", 2: full, 3: b"end"})
            with pytest.raises(EntityTooSmall):
                await store.complete(upload, names)
            assert await store.head(upload.revision) is None
            await store.complete(upload, names[1:])
            assert await read(store, upload.revision) == full + b"end"
        finally:
            await store.close()

    async def test_a_blob_of_parts_is_not_larger_than_an_object(self, store: LongTermBackend) -> None:
        """All parts together are refused, fewer are not."""
        upload = await self.begun(store)
        half = payload(self.limits.object_bytes_max // 2)
        names = await self.sent(store, upload, {1: half, 2: half, 3: b"x"})
        with pytest.raises(ObjectTooLarge):
            await store.complete(upload, names)
        await store.complete(upload, names[:2])
        assert await read(store, upload.revision) == half + half

    async def test_parts_are_listed_in_pages(self, store: LongTermBackend) -> None:
        """Ascending, after a number, with whether there are more."""
        upload = await self.begun(store)
        names = await self.sent(store, upload, {number: payload(number) for number in (1, 2, 4, 5)})
        page = await store.list_parts(upload, 0, 3)
        assert ([part.number for part in page.parts], page.truncated) == ([1, 2, 4], True)
        assert [(part.etag, part.size) for part in page.parts] == [
            (name.etag, name.number) for name in names if name.number < 5
        ]
        page = await store.list_parts(upload, 4, 3)
        assert ([part.number for part in page.parts], page.truncated) == ([5], False)
        page = await store.list_parts(upload, 1, 3)
        assert ([part.number for part in page.parts], page.truncated) == ([2, 4, 5], False)
        page = await store.list_parts(upload, 5, 3)
        assert (list(page.parts), page.truncated) == ([], False)

    async def test_parts_are_listed_for_who_does_not_know_the_upload(
        self, store: LongTermBackend, second: LongTermBackend
    ) -> None:
        """Who knows the revision alone gets the same parts, page by page, and the id; until the upload is over."""
        upload = await self.begun(store)
        unnamed = replace(upload, store_id="")
        await self.sent(store, upload, {1: self.full(payload(3)), 2: payload(4)})
        for after, limit in ((0, 10), (0, 1), (1, 1), (2, 1)):
            page = await second.list_parts(unnamed, after, limit)
            assert page == await second.list_parts(upload, after, limit)
            assert page.store_id == upload.store_id
        await store.abort(upload)
        with pytest.raises(NoSuchUpload):
            await second.list_parts(unnamed, 0, 10)

    async def test_a_part_has_the_digest_that_was_announced(self, store: LongTermBackend) -> None:
        """Another one is refused, and the part before stays."""
        upload = await self.begun(store)
        digest = hashlib.md5(b"before", usedforsecurity=False).digest()
        before = await store.upload_part(upload, 1, Source([b"before"]), 6, digest)
        with pytest.raises(ChecksumMismatch):
            await store.upload_part(upload, 1, Source([b"other!"]), 6, digest)
        (after,) = (await store.list_parts(upload, 0, 3)).parts
        assert self.same(after, before)

    @pytest.mark.parametrize(
        ("parts", "size", "fail_at", "error"),
        [([b"abc"], 6, None, InvariantBroken), ([b"abc", b"defg"], 6, None, InvariantBroken), ([b"abc"], 6, 1, Boom)],
    )
    async def test_a_source_that_fails_stores_no_part(
        self,
        store: LongTermBackend,
        parts: Sequence[bytes],
        size: int,
        fail_at: int | None,
        error: type[Exception],
    ) -> None:
        """The part before stays."""
        upload = await self.begun(store)
        before = await store.upload_part(upload, 1, Source([b"before"]), 6, None)
        with pytest.raises(error):
            await store.upload_part(upload, 1, Source(parts, fail_at=fail_at), size, None)
        (after,) = (await store.list_parts(upload, 0, 3)).parts
        assert self.same(after, before)

    async def test_an_aborted_upload_is_gone(self, store: LongTermBackend, second: LongTermBackend) -> None:
        """For every process; no blob appears afterwards, and aborting a revision may be repeated."""
        for number, by in enumerate(("upload", "revision")):
            upload = await self.begun(store, "k" * (number + 1))
            names = await self.sent(store, upload, {1: b"one"})
            await second.abort(upload if by == "upload" else upload.revision)
            with pytest.raises(NoSuchUpload):
                await store.upload_part(upload, 2, Source([b"two"]), 3, None)
            with pytest.raises(NoSuchUpload):
                await store.list_parts(upload, 0, 3)
            with suppress(NoSuchUpload):
                await store.complete(upload, names)
            assert await store.head(upload.revision) is None
            await store.abort(upload.revision)

    async def test_a_completed_upload_is_not_aborted(self, store: LongTermBackend) -> None:
        """Whatever the store answers, the blob stays; nor does it take parts."""
        upload = await self.begun(store)
        names = await self.sent(store, upload, {1: b"one"})
        await store.complete(upload, names)
        with suppress(NoSuchUpload):
            await store.abort(upload)
        await store.abort(upload.revision)
        with pytest.raises(NoSuchUpload):
            await store.upload_part(upload, 1, Source([b"two"]), 3, None)
        with pytest.raises(NoSuchUpload):
            await store.list_parts(upload, 0, 3)
        with suppress(NoSuchUpload):
            await store.complete(upload, names)
        assert await read(store, upload.revision) == b"one"

    async def test_an_upload_that_never_was_is_unknown(self, store: LongTermBackend) -> None:
        """Also one of the same UUID that belongs to another object."""
        upload = await self.begun(store)
        other = UploadId(Revision(object_id("other"), upload.revision.uuid), upload.store_id)
        for unknown in (other, UploadId(Revision(object_id(), SeededIds(99).upload_uuid()), upload.store_id)):
            with pytest.raises(NoSuchUpload):
                await store.upload_part(unknown, 1, Source([b"one"]), 3, None)
            with pytest.raises(NoSuchUpload):
                await store.list_parts(unknown, 0, 3)
            with suppress(NoSuchUpload):
                await store.complete(unknown, [PartName(1, "etag")])
            assert await store.head(unknown.revision) is None
        await store.complete(upload, await self.sent(store, upload, {1: b"one"}))
        assert await read(store, upload.revision) == b"one"

    async def test_an_upload_outlives_the_process_that_began_it(self, store: LongTermBackend) -> None:
        """Another instance goes on with it after the first has closed."""
        upload = await self.begun(store)
        first = self.full(b"one")
        (one,) = await self.sent(store, upload, {1: first})
        await store.close()
        later = await self.open(self.limits)
        try:
            (two,) = await self.sent(later, upload, {2: b"two"})
            await later.complete(upload, [one, two])
            assert await read(later, upload.revision) == first + b"two"
        finally:
            await later.close()

    async def test_parts_are_sent_at_the_same_time(self, store: LongTermBackend) -> None:
        """In any number up to the most, by one instance."""
        upload = await self.begun(store)
        count = 3 if self.limits.part_bytes_min else self.limits.parts_max
        parts = {number: self.full(payload(100 + number)) for number in range(1, count + 1)}
        stored = await asyncio.gather(
            *[
                store.upload_part(upload, number, Source(pieces(part)), len(part), None)
                for number, part in parts.items()
            ]
        )
        await store.complete(upload, [PartName(part.number, part.etag) for part in stored])
        assert await read(store, upload.revision) == b"".join(parts.values())

    async def test_completes_at_the_same_time_make_one_blob(self, store: LongTermBackend) -> None:
        """Whatever each of them is answered."""
        upload = await self.begun(store)
        one = self.full(b"one")
        names = await self.sent(store, upload, {1: one, 2: b"two"})
        answers = await asyncio.gather(*[store.complete(upload, names) for _ in range(8)], return_exceptions=True)
        assert {type(answer) for answer in answers} <= {type(None), NoSuchUpload}
        assert None in answers
        assert await read(store, upload.revision) == one + b"two"

    async def test_of_complete_and_abort_one_takes_effect(self, store: LongTermBackend) -> None:
        """Either there is the whole blob, or the upload is gone."""
        for turn in range(1, 17):
            upload = await self.begun(store, "k" * turn)
            names = await self.sent(store, upload, {1: b"one"})
            calls = [store.complete(upload, names), store.abort(upload)]
            await asyncio.gather(*(calls if turn % 2 else calls[::-1]), return_exceptions=True)
            if await store.head(upload.revision) is not None:
                assert await read(store, upload.revision) == b"one"
            with pytest.raises(NoSuchUpload):
                await store.list_parts(upload, 0, 3)

    async def test_completing_again_with_other_parts_changes_nothing(
        self, store: LongTermBackend, second: LongTermBackend
    ) -> None:
        """The blob stays what it is, and a store that can tell says that it is not what was asked for."""
        upload = await self.begun(store)
        first = self.full(b"one")
        one, two, three = await self.sent(store, upload, {1: first, 2: b"two", 3: b"three"})
        await store.complete(upload, [one, two])
        others = ([one, two, three], [one], [two], [one, PartName(2, three.etag)], [PartName(1, "none"), two])
        for names in (*others, [two, one], [PartName(77, one.etag)]):
            refused = pytest.raises((InvalidPart, InvalidPartOrder)) if self.tells_parts else suppress(NoSuchUpload)
            with refused:
                await second.complete(upload, names)
        with nullcontext() if self.tells_parts else suppress(NoSuchUpload):
            await second.complete(upload, [one, two])
        await self.expect_blob(upload.revision, first + b"two", store, second)
        await self.expect_leftovers(0)

    async def test_what_head_shows_of_an_upload_is_durable(self, store: LongTermBackend) -> None:
        """Whoever has made the blob may have died, or have failed, before it was durable."""
        upload = await self.begun(store)
        await store.complete(upload, await self.sent(store, upload, {1: b"one"}))
        with self.watched(upload.revision) as is_durable:
            later = await self.open(self.limits)
            try:
                assert await later.head(upload.revision) is not None
                assert is_durable()
            finally:
                await later.close()

    # Races of uploads between instances, and their damage

    async def unchanged(self, store: LongTermBackend, upload: UploadId, names: Sequence[PartName]) -> None:
        """Check that the upload is in progress and has exactly the parts of ``names``."""
        page = await store.list_parts(upload, 0, self.limits.parts_max)
        assert [PartName(part.number, part.etag) for part in page.parts] == list(names)

    async def stays_completed(self, upload: UploadId, content: bytes, *stores: LongTermBackend) -> None:
        """Check that there is the whole blob, that nobody can abort it, and that nothing else is left."""
        for store in stores:
            with suppress(NoSuchUpload):
                await store.abort(upload)
            await store.abort(upload.revision)
            with pytest.raises(NoSuchUpload):
                await store.list_parts(upload, 0, 3)
        await self.expect_blob(upload.revision, content, *stores)
        await self.expect_leftovers(0)

    async def stays_ended(self, upload: UploadId, names: Sequence[PartName], *stores: LongTermBackend) -> None:
        """Check that there is neither an upload nor a blob, that there can come none, and that nothing is left."""
        for store in stores:
            with pytest.raises(NoSuchUpload):
                await store.list_parts(upload, 0, 3)
            with pytest.raises(NoSuchUpload):
                await store.upload_part(upload, 2, Source([b"late"]), 4, None)
            with suppress(NoSuchUpload):
                await store.complete(upload, names)
        await self.expect_absent(upload.revision, *stores)
        await self.expect_leftovers(0)

    async def test_of_a_part_and_a_complete_without_it_one_takes_effect(
        self, store: LongTermBackend, second: LongTermBackend
    ) -> None:
        """A part that replaces a named one is in the upload, which goes on; or it is refused, and not in the blob."""
        lead = Lead()
        old, new, rest = self.full(payload(3 * CHUNK)), self.full(payload(4 * CHUNK)), payload(2 * CHUNK + 1)
        new += b"!"
        for number in range(1, self.races + 1):
            upload = await self.begun(store, "k" * number)
            before = await self.sent(store, upload, {1: old, 2: rest})
            part = second.upload_part(upload, 1, Source(pieces(new)), len(new), None)
            refused, failed = await self.race(part, store.complete(upload, before), lead)
            if failed is None:
                assert isinstance(refused, NoSuchUpload) or not (refused or self.forgets_replaced_parts), (
                    "not in the blob"
                )
            else:
                assert isinstance(failed, InvalidPart)
                assert refused is None, "the part took the place of the named one"
                assert await store.head(upload.revision) is None
                (after,) = (await store.list_parts(upload, 0, 1)).parts
                assert (after.size, after.etag == before[0].etag) == (len(new), False)
                await store.complete(upload, [PartName(1, after.etag), before[1]])
            with pytest.raises(NoSuchUpload):
                await second.upload_part(upload, 1, Source([b"late"]), 4, None)
            await self.expect_leftovers(0)
            await self.expect_blob(upload.revision, (old if failed is None else new) + rest, store, second)

    async def test_a_part_that_nobody_names_races_complete(
        self, store: LongTermBackend, second: LongTermBackend
    ) -> None:
        """It is stored or refused; the blob is the named parts, and nothing else is left."""
        lead = Lead()
        for number in range(1, self.races + 1):
            upload = await self.begun(store, "k" * number)
            one = self.full(b"one")
            names = await self.sent(store, upload, {1: one, 3: b"three"})
            part = second.upload_part(upload, 2, Source([b"two"]), 3, None)
            refused, failed = await self.race(part, store.complete(upload, names), lead)
            assert failed is None
            assert refused is None or isinstance(refused, NoSuchUpload)
            await self.expect_blob(upload.revision, one + b"three", store, second)
            await self.expect_leftovers(0)

    @pytest.mark.parametrize("abort_by", ["upload", "revision"])
    async def test_of_complete_and_abort_of_two_instances_one_takes_effect(
        self, store: LongTermBackend, second: LongTermBackend, abort_by: str
    ) -> None:
        """Exactly one: the whole blob for good, or nothing for good; who is told no was too late."""
        lead = Lead()
        for number in range(1, self.races + 1):
            upload = await self.begun(store, "k" * number)
            one = self.full(b"one")
            names = await self.sent(store, upload, {1: one, 2: b"two"})
            abort = second.abort(upload if abort_by == "upload" else upload.revision)
            failed, refused = await self.race(store.complete(upload, names), abort, lead)
            assert {type(failed), type(refused)} <= {type(None), NoSuchUpload}
            completed = await store.head(upload.revision) is not None
            assert not (completed and failed)
            assert completed or not refused
            if completed:
                await self.stays_completed(upload, one + b"two", store, second)
            else:
                await self.stays_ended(upload, names, store, second)

    @pytest.mark.parametrize("abort_by", ["upload", "revision"])
    async def test_a_part_races_abort(self, store: LongTermBackend, second: LongTermBackend, abort_by: str) -> None:
        """It is stored and goes with the upload, or it is refused: nothing of it is left."""
        lead = Lead()
        for number in range(1, self.races + 1):
            upload = await self.begun(store, "k" * number)
            names = await self.sent(store, upload, {1: b"one"})
            part = second.upload_part(upload, 2, Source(cut(payload(3 * CHUNK), CHUNK)), 3 * CHUNK, None)
            abort = store.abort(upload if abort_by == "upload" else upload.revision)
            refused, failed = await self.race(part, abort, lead)
            assert failed is None
            assert refused is None or isinstance(refused, NoSuchUpload)
            await self.stays_ended(upload, names, store, second)

    @pytest.mark.parametrize("cancellations", [1, 3])
    @pytest.mark.parametrize("replaces", [True, False])
    async def test_a_cancelled_part_leaves_the_one_before(
        self, store: LongTermBackend, second: LongTermBackend, replaces: bool, cancellations: int
    ) -> None:
        """Cancelled at any moment, once or again and again, a part is stored whole or not at all."""
        upload = await self.begun(store)
        names = await self.sent(store, upload, {1: b"before"}) if replaces else []
        kept = await self.leftovers()
        whole: list[bytes] = []
        lead = Lead()
        for number in range(2 * self.races):
            content = payload(5 * CHUNK + number)
            part = asyncio.create_task(store.upload_part(upload, 1, Source(cut(content, CHUNK)), len(content), None))
            for _ in range(max(lead.turns, number % 8)):
                await asyncio.sleep(0)
            for _ in range(cancellations):
                part.cancel()
                await asyncio.sleep(0)
            (ended,) = await asyncio.gather(part, return_exceptions=True)
            lead.adapt(won=not isinstance(ended, BaseException))
            if isinstance(ended, asyncio.CancelledError):
                await self.unchanged(second, upload, names)
            else:
                assert not isinstance(ended, BaseException)
                names = [PartName(1, ended.etag)]
                await self.unchanged(second, upload, names)
                kept = kept if replaces or whole else kept + 1
                whole.append(content)
            await self.expect_leftovers(kept)
        if names:
            await second.complete(upload, names)
            await self.expect_blob(upload.revision, whole[-1] if whole else b"before", store, second)

    async def test_a_part_cancelled_while_its_source_waits(
        self, store: LongTermBackend, second: LongTermBackend
    ) -> None:
        """The part before stays, in every process, then and later, and nothing is left."""
        upload = await self.begun(store)
        names = await self.sent(store, upload, {1: b"before"})
        kept = await self.leftovers()
        for pause_at in (0, 1, 3, 6):
            source = Source(cut(payload(6 * CHUNK), CHUNK), pause_at=pause_at)
            part = asyncio.create_task(store.upload_part(upload, 1, source, 6 * CHUNK, None))
            await source.reached.wait()
            part.cancel()
            with pytest.raises(asyncio.CancelledError):
                await part
            await self.unchanged(second, upload, names)
            await self.expect_leftovers(kept)
        await second.complete(upload, names)
        await self.expect_blob(upload.revision, b"before", store, second)

    async def test_aborting_a_revision_ends_its_own_uploads_only(self, store: LongTermBackend) -> None:
        """Not that of another object, not even one of the same UUID."""
        upload = await self.begun(store)
        names = await self.sent(store, upload, {1: b"one"})
        await store.abort(Revision(object_id("other"), upload.revision.uuid))
        await store.abort(Revision(object_id(), SeededIds(99).upload_uuid()))
        await self.unchanged(store, upload, names)
        await store.complete(upload, names)
        await store.abort(Revision(object_id("other"), upload.revision.uuid))
        await self.expect_blob(upload.revision, b"one", store)

    @pytest.mark.parametrize("abort_by", ["upload", "revision"])
    async def test_a_damaged_upload_can_only_be_aborted(
        self, store: LongTermBackend, second: LongTermBackend, abort_by: str
    ) -> None:
        """It is corrupt, and not absent: it takes no part, has no listing and makes no blob, until it is aborted."""
        upload = await self.begun(store)
        names = await self.sent(store, upload, {1: b"one"})
        kept = await self.leftovers()
        if not await self.damage_upload(upload):
            await self.unchanged(second, upload, names)
            return
        for instance in (store, second):
            source = Source([b"two"])
            with pytest.raises(CorruptObject):
                await instance.upload_part(upload, 2, source, 3, None)
            assert source.taken == 0
            with pytest.raises(CorruptObject):
                await instance.list_parts(upload, 0, 3)
            with pytest.raises(CorruptObject):
                await instance.complete(upload, names)
            await self.expect_absent(upload.revision, instance)
        await self.expect_leftovers(kept)
        await second.abort(upload if abort_by == "upload" else upload.revision)
        await self.stays_ended(upload, names, store, second)


class LongTermLaws(BlobLaws, UploadLaws):
    """What every long-term store does. One that takes no small parts is under both of these with limits of its own."""
