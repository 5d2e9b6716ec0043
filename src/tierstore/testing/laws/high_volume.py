"""The laws of `tierstore.backends.high_volume.contract`: what every high-volume backend does.

A backend's test module supplies how to open an instance and a back door to the raw store, so that a fault in reading
cannot hide one in writing. Time stands still unless a law moves it.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from tierstore.backends.high_volume.contract import (
    Content,
    FoundRow,
    Gone,
    HeadContent,
    HighVolumeBackend,
    Inline,
    InlineHead,
    Row,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import CorruptObject
from tierstore.limits import MIB
from tierstore.testing.clock import ManualClock
from tierstore.testing.hostile import HOSTILE_IDS
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.identity import IdentityLaws
from tierstore.types.ids import ObjectId, Scope, Version

SECOND = MICROS_PER_SECOND
RACERS = 32


def object_named(key: str, usecase: str = "photos") -> ObjectId:
    """The object that laws call ``key``."""
    return ObjectId(usecase, (Scope("org", "17"),), key)


IT, OTHER = object_named("it"), object_named("other")
INLINE = Inline(b"\x00metadata\xff", b"payload")
TOMBSTONE = Tombstone(b"metadata\x00", UUID(int=7))
TOMBSTONE_2 = Tombstone(b"other metadata", UUID(int=8))
GONE = Gone()
CONTENTS: Sequence[Content] = (INLINE, TOMBSTONE, GONE)
BEFORE, AFTER = b"v" * 16, b"w" * 16
"""Versions of rows that a law plants."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it is in the store. ``changed`` is when its version was written."""

    version: Version
    content: Content
    expires: UnixMicros | None = None
    changed: UnixMicros = 0


def as_row(raw: RawRow) -> Row:
    """What `read` says of the row."""
    return Row(raw.version, raw.content, raw.expires)


def as_head(raw: RawRow) -> RowHead:
    """What `head` and the listings say of the row."""
    content = raw.content
    shown: HeadContent = InlineHead(content.metadata) if isinstance(content, Inline) else content
    return RowHead(raw.version, shown, raw.expires)


class HighVolumeLaws(IdentityLaws):
    """What every high-volume backend does. ``clock`` is the one that its instances are opened with."""

    clock: ManualClock
    removes_inline: ClassVar[bool] = False
    """Whether the store removes expired inline rows by itself, so that `expired` lists tombstones only."""

    async def open_store(self) -> HighVolumeBackend:
        return await self.open()

    @abstractmethod
    async def open(self) -> HighVolumeBackend:
        """Open one more instance on the store of this test, with ``clock`` and identifiers of its own."""

    @abstractmethod
    async def stored(self, object_id: ObjectId) -> RawRow | None:
        """Back door: the row as it is in the store."""

    @abstractmethod
    async def plant(self, object_id: ObjectId, row: RawRow) -> None:
        """Back door: make ``row`` the object's row."""

    @abstractmethod
    async def damage(self, object_id: ObjectId, payload: bytes) -> None:
        """Back door: replace the payload of an inline row, and nothing else."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[HighVolumeBackend]:
        """One open backend."""
        store = await self.open()
        yield store
        await store.close()

    @pytest.fixture
    async def second(self, store: HighVolumeBackend) -> AsyncIterator[HighVolumeBackend]:
        """Another instance on the store of ``store``, as of another process."""
        second = await self.open()
        assert second is not store
        yield second
        await second.close()

    async def now_stored(self, object_id: ObjectId = IT) -> RawRow:
        """The row in the store, which must be there."""
        row = await self.stored(object_id)
        assert row is not None
        return row

    # read and head

    async def test_absent(self, store: HighVolumeBackend) -> None:
        """An id without a row reads as None, and so does its head."""
        await self.plant(OTHER, RawRow(BEFORE, INLINE))
        assert await store.read(IT) is None
        assert await store.head(IT) is None

    @pytest.mark.parametrize("content", CONTENTS)
    @pytest.mark.parametrize("expires", [None, 0, 1, 2**62])
    async def test_read_and_head_show_the_stored_row(
        self, store: HighVolumeBackend, content: Content, expires: UnixMicros | None
    ) -> None:
        """`read` gives the whole row and `head` all but the payload: gone and expired rows too."""
        raw = RawRow(BEFORE, content, expires)
        await self.plant(IT, raw)
        assert await store.read(IT) == as_row(raw)
        assert await store.head(IT) == as_head(raw)

    @pytest.mark.parametrize("payload", [b"", b"\x00", b"\x00" * 4096, bytes(range(256)) * 4096], ids=len)
    async def test_payloads(self, store: HighVolumeBackend, payload: bytes) -> None:
        """A payload comes back as it was, by either way of writing it: empty, NUL, 1 MiB."""
        assert len(payload) <= MIB
        await store.put_inline(IT, Inline(b"", payload), None)
        assert await store.compare_and_write(OTHER, None, Inline(b"", payload), None) is not None
        for object_id in (IT, OTHER):
            assert (await self.now_stored(object_id)).content == Inline(b"", payload)
            row = await store.read(object_id)
            assert row is not None
            assert row.content == Inline(b"", payload)

    @pytest.mark.parametrize("metadata", [b"", b"\x00", b"\xff\xfe", b"{}", b"m" * 16384], ids=lambda value: value[:4])
    async def test_metadata_is_opaque(self, store: HighVolumeBackend, metadata: bytes) -> None:
        """Any bytes are metadata, of inline rows and of tombstones."""
        await store.put_inline(IT, Inline(metadata, b"p"), None)
        assert await store.compare_and_write(OTHER, None, Tombstone(metadata, UUID(int=1)), None) is not None
        for object_id, shown in ((IT, InlineHead(metadata)), (OTHER, Tombstone(metadata, UUID(int=1)))):
            head = await store.head(object_id)
            assert head is not None
            assert head.content == shown

    @pytest.mark.parametrize("damaged", [b"Payload", b"", b"payloa", b"payload\x00"])
    async def test_damaged_payload(self, store: HighVolumeBackend, damaged: bytes) -> None:
        """A payload that does not match its checksum is `CorruptObject`, counted, every time; its head still works."""
        await store.put_inline(IT, INLINE, None)
        await store.put_inline(OTHER, INLINE, None)
        await self.damage(IT, damaged)
        counted = corrupt_reads()
        for _ in range(2):
            with pytest.raises(CorruptObject):
                await store.read(IT)
        assert corrupt_reads() == counted + 2
        head = await store.head(IT)
        assert head is not None
        assert head.content == InlineHead(INLINE.metadata)
        assert await store.read(OTHER) is not None

    async def test_damaged_object_can_be_replaced(self, store: HighVolumeBackend) -> None:
        """Writing over a damaged payload makes the object whole again."""
        await store.put_inline(IT, INLINE, None)
        await self.damage(IT, b"Payload")
        await store.put_inline(IT, INLINE, None)
        row = await store.read(IT)
        assert row is not None
        assert row.content == INLINE

    async def test_hostile_ids_are_apart(self, store: HighVolumeBackend) -> None:
        """Every valid id has a row of its own: none is folded, trimmed, normalised, cut or taken for a path."""
        contents = {id_: Inline(b"m", str(number).encode()) for number, id_ in enumerate(HOSTILE_IDS)}
        for batch in in_batches(list(contents.items())):
            await asyncio.gather(*(store.put_inline(object_id, content, None) for object_id, content in batch))
        for batch in in_batches(list(contents.items())):
            rows = await asyncio.gather(*(store.read(object_id) for object_id, _ in batch))
            assert [row and row.content for row in rows] == [content for _, content in batch]
        found = await scan_all(store, "")
        assert {row.object_id for row in found} == set(contents)
        assert len(found) == len(contents)

    # put_inline

    @pytest.mark.parametrize("expires", [None, 5 * SECOND])
    @pytest.mark.parametrize("before", [None, INLINE, GONE])
    async def test_put_inline_writes(
        self, store: HighVolumeBackend, before: Content | None, expires: UnixMicros | None
    ) -> None:
        """`put_inline` over nothing, inline or gone, expired or not, replaces all of the row, with a new version."""
        if before is not None:
            await self.plant(IT, RawRow(BEFORE, before, 3 * SECOND))
        content = Inline(b"new", b"newer")
        assert await store.put_inline(IT, content, expires) is None
        row = await self.now_stored()
        assert row == RawRow(row.version, content, expires, self.clock.now())
        assert row.version != BEFORE
        assert len(row.version) == 16

    @pytest.mark.parametrize("expires", [None, 1, 2**62])
    async def test_put_inline_meets_a_tombstone(self, store: HighVolumeBackend, expires: UnixMicros | None) -> None:
        """`put_inline` returns the tombstone that it meets, an expired one too, and writes nothing."""
        raw = RawRow(BEFORE, TOMBSTONE, expires)
        await self.plant(IT, raw)
        assert await store.put_inline(IT, INLINE, 5) == TombstoneRow(BEFORE, TOMBSTONE, expires)
        assert await self.stored(IT) == raw

    # delete_inline

    @pytest.mark.parametrize("expires", [None, 1, 2**62])
    async def test_delete_inline_leaves_gone(self, store: HighVolumeBackend, expires: UnixMicros | None) -> None:
        """`delete_inline` turns an inline row, an expired one too, into `Gone` without deadline, with a new version."""
        await self.plant(IT, RawRow(BEFORE, INLINE, expires))
        assert await store.delete_inline(IT) is None
        row = await self.now_stored()
        assert row == RawRow(row.version, GONE, None, self.clock.now())
        assert row.version != BEFORE

    async def test_delete_inline_of_nothing(self, store: HighVolumeBackend) -> None:
        """`delete_inline` of an absent row succeeds and leaves no row."""
        assert await store.delete_inline(IT) is None
        assert await self.stored(IT) is None

    async def test_delete_inline_of_gone(self, store: HighVolumeBackend) -> None:
        """`delete_inline` of a `Gone` row succeeds and leaves it as it is."""
        raw = RawRow(BEFORE, GONE)
        await self.plant(IT, raw)
        assert await store.delete_inline(IT) is None
        assert await self.stored(IT) == raw

    @pytest.mark.parametrize("expires", [None, 1, 2**62])
    async def test_delete_inline_meets_a_tombstone(self, store: HighVolumeBackend, expires: UnixMicros | None) -> None:
        """`delete_inline` returns the tombstone that it meets, an expired one too, and writes nothing."""
        raw = RawRow(BEFORE, TOMBSTONE, expires)
        await self.plant(IT, raw)
        assert await store.delete_inline(IT) == TombstoneRow(BEFORE, TOMBSTONE, expires)
        assert await self.stored(IT) == raw

    # compare_and_write

    @pytest.mark.parametrize("content", CONTENTS)
    @pytest.mark.parametrize("before", [None, *CONTENTS])
    async def test_compare_and_write_from_the_version(
        self, store: HighVolumeBackend, before: Content | None, content: Content
    ) -> None:
        """From the row's version, or from None where there is none, any content becomes any other, whole."""
        if before is not None:
            await self.plant(IT, RawRow(BEFORE, before, 3 * SECOND))
        version = await store.compare_and_write(IT, None if before is None else BEFORE, content, 5 * SECOND)
        assert version is not None
        assert version != BEFORE
        written = RawRow(version, content, 5 * SECOND, self.clock.now())
        assert await self.stored(IT) == written
        assert await store.read(IT) == as_row(written)
        assert await store.head(IT) == as_head(written)

    @pytest.mark.parametrize("content", CONTENTS)
    @pytest.mark.parametrize("before", [None, *CONTENTS])
    @pytest.mark.parametrize("expected", [None, AFTER, b""])
    async def test_compare_and_write_from_another_version(
        self, store: HighVolumeBackend, before: Content | None, content: Content, expected: Version | None
    ) -> None:
        """From any other version, or from None where there is a row, it returns None and writes nothing."""
        raw = None if before is None else RawRow(BEFORE, before, 3 * SECOND)
        if raw is not None:
            await self.plant(IT, raw)
        elif expected is None:
            expected = AFTER
        assert await store.compare_and_write(IT, expected, content, 5 * SECOND) is None
        assert await self.stored(IT) == raw

    @pytest.mark.parametrize("before", CONTENTS)
    @pytest.mark.parametrize("content", CONTENTS)
    @pytest.mark.parametrize("expires", [None, 0, 99, 100, 101])
    async def test_compare_and_write_if_expired_by(
        self, store: HighVolumeBackend, before: Content, content: Content, expires: UnixMicros | None
    ) -> None:
        """With ``if_expired_by``, only a row whose deadline is set and not later than that instant is written."""
        raw = RawRow(BEFORE, before, expires)
        await self.plant(IT, raw)
        assert await store.compare_and_write(IT, AFTER, content, None, if_expired_by=100) is None
        assert await self.stored(IT) == raw
        version = await store.compare_and_write(IT, BEFORE, content, None, if_expired_by=100)
        if expires is not None and expires <= 100:
            assert version is not None
            assert await self.stored(IT) == RawRow(version, content, None, self.clock.now())
        else:
            assert version is None
            assert await self.stored(IT) == raw

    async def test_compare_and_write_if_expired_by_of_nothing(self, store: HighVolumeBackend) -> None:
        """With ``if_expired_by``, no row is a conflict: it has no deadline."""
        assert await store.compare_and_write(IT, None, INLINE, None, if_expired_by=2**62) is None
        assert await self.stored(IT) is None

    @pytest.mark.parametrize("before", [None, *CONTENTS])
    @pytest.mark.parametrize("content", CONTENTS)
    async def test_compare_and_write_not_after(
        self, store: HighVolumeBackend, before: Content | None, content: Content
    ) -> None:
        """With ``not_after``, the instant itself is in time, and anything later writes nothing."""
        raw = None if before is None else RawRow(BEFORE, before, None)
        if raw is not None:
            await self.plant(IT, raw)
        expected = None if raw is None else BEFORE
        now = self.clock.now()
        assert await store.compare_and_write(IT, expected, content, None, not_after=now - 1) is None
        assert await self.stored(IT) == raw
        version = await store.compare_and_write(IT, expected, content, None, not_after=now)
        assert version is not None
        assert await self.stored(IT) == RawRow(version, content, None, now)

    async def test_compare_and_write_loses_against_extend(self, store: HighVolumeBackend) -> None:
        """Settling an expired object fails if its deadline was moved meanwhile, though the version is the same."""
        now = self.clock.now()
        await self.plant(IT, RawRow(BEFORE, TOMBSTONE, now + 1))
        assert await store.extend(IT, BEFORE, now + 9)
        assert await store.compare_and_write(IT, BEFORE, GONE, None, if_expired_by=now + 1) is None
        assert (await self.now_stored()).content == TOMBSTONE

    async def test_versions_never_repeat(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """Every write of content has a version that no row ever had, also after a delete and for equal content."""
        versions: list[Version] = []
        for instance in (store, second, store, second):
            assert await instance.put_inline(IT, INLINE, None) is None
            versions.append((await self.now_stored()).version)
            assert await instance.delete_inline(IT) is None
            versions.append((await self.now_stored()).version)
            version = await instance.compare_and_write(IT, versions[-1], INLINE, None)
            assert version is not None
            versions += (version, (await instance.fence(IT)).version)
        assert len(set(versions)) == len(versions)

    # point

    @pytest.mark.parametrize("before", [None, *CONTENTS])
    @pytest.mark.parametrize("between", [None, "put_inline", "delete_inline", "extend"])
    async def test_point_overwrites_what_is_inline(
        self, store: HighVolumeBackend, second: HighVolumeBackend, before: Content | None, between: str | None
    ) -> None:
        """`point` is not kept from its end by inline writes, deletes and extensions that come after its base."""
        soon = self.clock.now() + SECOND
        if before is not None:
            await self.plant(IT, RawRow(BEFORE, before, soon))
        base = await store.head(IT)
        match between:
            case "put_inline":
                await second.put_inline(IT, INLINE, None)
            case "delete_inline":
                await second.delete_inline(IT)
            case "extend" if base is not None:
                await second.extend(IT, base.version, soon + SECOND)
        made = before is None and between == "put_inline"
        meanwhile = await self.stored(IT)
        written = await store.point(IT, base, TOMBSTONE_2, 7 * SECOND, not_after=self.clock.now())
        assert written is not made, "a row that was made meanwhile is a conflict"
        if made:
            assert await self.stored(IT) == meanwhile
            return
        row = await self.now_stored()
        assert row == RawRow(row.version, TOMBSTONE_2, 7 * SECOND, self.clock.now())
        assert row.version != BEFORE
        assert await store.read(IT) == Row(row.version, TOMBSTONE_2, 7 * SECOND)

    @pytest.mark.parametrize("after", [INLINE, Gone()])
    async def test_point_loses_against_a_blob_that_came_and_went(
        self, store: HighVolumeBackend, second: HighVolumeBackend, after: Inline | Gone
    ) -> None:
        """A base of no blob is a conflict once there was one, though there is none now."""
        await store.put_inline(IT, INLINE, None)
        base = await store.head(IT)
        assert base is not None
        assert await second.point(IT, base, TOMBSTONE, None, not_after=self.clock.now())
        met = await second.delete_inline(IT)
        assert met is not None
        assert await second.compare_and_write(IT, met.version, after, None)
        assert not await store.point(IT, base, TOMBSTONE, None, not_after=self.clock.now())
        now = await store.head(IT)
        assert now is not None
        version = await second.compare_and_write(IT, now.version, TOMBSTONE_2, None)
        assert version is not None
        assert not await store.point(IT, now, TOMBSTONE, None, not_after=self.clock.now())

    @pytest.mark.parametrize("before", [None, *CONTENTS])
    async def test_point_loses_against_a_fence(
        self, store: HighVolumeBackend, second: HighVolumeBackend, before: Content | None
    ) -> None:
        """After a fence, `point` from before it writes nothing, whatever was written since; from after it, it does."""
        if before is not None:
            await self.plant(IT, RawRow(BEFORE, before, None))
        base = await store.head(IT)
        fenced = await second.fence(IT)
        for _ in range(2):
            raw = await self.stored(IT)
            assert not await store.point(IT, base, TOMBSTONE_2, None, not_after=self.clock.now())
            assert await self.stored(IT) == raw
            await second.put_inline(IT, INLINE, None)
        assert await store.point(IT, fenced, TOMBSTONE_2, None, not_after=self.clock.now())

    async def test_point_loses_against_another_blob(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """A row that points to another blob than the base did, or no longer to it, is a conflict."""
        await store.put_inline(IT, INLINE, None)
        inline = await store.head(IT)
        assert await second.point(IT, inline, TOMBSTONE, None, not_after=self.clock.now())
        pointing = await store.head(IT)
        assert pointing is not None
        assert not await store.point(IT, inline, TOMBSTONE_2, None, not_after=self.clock.now())
        assert await second.point(IT, pointing, TOMBSTONE_2, None, not_after=self.clock.now())
        assert not await store.point(IT, pointing, TOMBSTONE, None, not_after=self.clock.now())
        row = await store.head(IT)
        assert row is not None
        assert await second.compare_and_write(IT, row.version, GONE, None) is not None
        assert not await store.point(IT, row, TOMBSTONE, None, not_after=self.clock.now())
        assert await store.point(IT, await store.head(IT), TOMBSTONE, None, not_after=self.clock.now())

    @pytest.mark.parametrize("before", [None, *CONTENTS])
    async def test_point_not_after(self, store: HighVolumeBackend, before: Content | None) -> None:
        """The instant itself is in time, and anything later writes nothing."""
        if before is not None:
            await self.plant(IT, RawRow(BEFORE, before, None))
        raw = await self.stored(IT)
        base = await store.head(IT)
        now = self.clock.now()
        assert not await store.point(IT, base, TOMBSTONE_2, None, not_after=now - 1)
        assert await self.stored(IT) == raw
        assert await store.point(IT, base, TOMBSTONE_2, None, not_after=now)

    async def test_point_from_a_row_that_was_removed(self, store: HighVolumeBackend) -> None:
        """A base whose row has been removed physically, or removed and made anew, is a conflict."""
        await store.put_inline(IT, INLINE, None)
        base = await store.head(IT)
        await store.delete_inline(IT)
        assert await store.remove_markers(self.clock.now(), 9) == 1
        assert not await store.point(IT, base, TOMBSTONE, None, not_after=self.clock.now())
        assert await self.stored(IT) is None
        await store.put_inline(IT, INLINE, None)
        assert not await store.point(IT, base, TOMBSTONE, None, not_after=self.clock.now())

    async def test_one_of_many_points_from_nothing_wins(
        self, store: HighVolumeBackend, second: HighVolumeBackend
    ) -> None:
        """Of writers that found no row, exactly one makes it."""
        tombstones = [Tombstone(b"", UUID(int=number)) for number in range(32)]
        won = await asyncio.gather(
            *(
                (store, second)[number % 2].point(IT, None, each, None, not_after=self.clock.now())
                for number, each in enumerate(tombstones)
            )
        )
        assert sum(won) == 1
        assert (await self.now_stored()).content == tombstones[won.index(True)]

    async def test_a_version_from_before_a_point_is_dead(self, store: HighVolumeBackend) -> None:
        """`point` is a write of content: compare-and-writes and extensions from before it fail."""
        await store.put_inline(IT, INLINE, self.clock.now() + SECOND)
        base = await store.head(IT)
        assert base is not None
        assert await store.point(IT, base, TOMBSTONE, self.clock.now() + SECOND, not_after=self.clock.now())
        assert await store.compare_and_write(IT, base.version, INLINE, None) is None
        assert not await store.extend(IT, base.version, self.clock.now() + 2 * SECOND)

    # bring_inline

    @pytest.mark.parametrize("expires", [None, 5 * SECOND])
    async def test_bring_inline_keeps_all_but_the_place(
        self, store: HighVolumeBackend, expires: UnixMicros | None
    ) -> None:
        """Metadata and deadline are the tombstone's, also past it; the version is new, and so is the mark of a blob."""
        await self.plant(IT, RawRow(BEFORE, TOMBSTONE, expires))
        base = await store.head(IT)
        assert base is not None
        assert await store.bring_inline(IT, BEFORE, b"the payload", not_after=self.clock.now())
        raw = await self.now_stored()
        assert raw == RawRow(raw.version, Inline(TOMBSTONE.metadata, b"the payload"), expires, self.clock.now())
        assert raw.version != BEFORE
        assert await store.read(IT) == as_row(raw)
        assert not await store.point(IT, base, TOMBSTONE_2, None, not_after=self.clock.now())

    async def test_bring_inline_keeps_an_extension(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """A deadline that was moved after the row was read stays moved; extending the tombstone is too late then."""
        now = self.clock.now()
        await self.plant(IT, RawRow(BEFORE, TOMBSTONE, now + SECOND))
        assert await second.extend(IT, BEFORE, now + 5 * SECOND)
        assert await store.bring_inline(IT, BEFORE, b"x", not_after=now)
        assert (await self.now_stored()).expires == now + 5 * SECOND
        assert not await second.extend(IT, BEFORE, now + 9 * SECOND)

    async def test_bring_inline_wants_the_tombstone_that_was_seen(
        self, store: HighVolumeBackend, second: HighVolumeBackend
    ) -> None:
        """Another version, another kind of row, none, or too late: nothing is written."""
        now = self.clock.now()
        assert not await store.bring_inline(IT, BEFORE, b"x", not_after=now)
        assert await self.stored(IT) is None
        for content in (INLINE, GONE):
            it = object_named(type(content).__name__)
            await self.plant(it, RawRow(BEFORE, content, None))
            assert not await store.bring_inline(it, BEFORE, b"x", not_after=now)
            assert await self.stored(it) == RawRow(BEFORE, content, None)
        await self.plant(IT, RawRow(BEFORE, TOMBSTONE, None))
        assert not await store.bring_inline(IT, AFTER, b"x", not_after=now)
        assert not await store.bring_inline(IT, BEFORE, b"x", not_after=now - 1)
        assert await self.stored(IT) == RawRow(BEFORE, TOMBSTONE, None)
        await second.fence(IT)
        assert not await store.bring_inline(IT, BEFORE, b"x", not_after=now)

    async def test_bring_inline_races_writers(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """Of it and other writers from the same version one wins; a blind write meets the tombstone, or what came."""
        for number in range(RACERS):
            it = object_named(f"raced {number}")
            await self.plant(it, RawRow(BEFORE, TOMBSTONE, None))
            calls = [
                store.bring_inline(it, BEFORE, b"brought", not_after=self.clock.now()),
                second.compare_and_write(it, BEFORE, GONE, None),
                store.bring_inline(it, BEFORE, b"brought", not_after=self.clock.now()),
            ]
            results = await asyncio.gather(*(calls if number % 2 else calls[::-1]))
            assert sum(map(bool, results)) == 1
            brought = bool((results if number % 2 else results[::-1])[1]) is False
            raw = await self.stored(it)
            assert raw is not None
            assert raw.content == (Inline(TOMBSTONE.metadata, b"brought") if brought else GONE)

    # fence

    @pytest.mark.parametrize("content", CONTENTS)
    @pytest.mark.parametrize("expires", [None, 1, 3 * SECOND])
    async def test_fence_changes_the_version_only(
        self, store: HighVolumeBackend, content: Content, expires: UnixMicros | None
    ) -> None:
        """`fence` gives the row a new version, leaves content and deadline alone, and returns the row as it then is."""
        await self.plant(IT, RawRow(BEFORE, content, expires))
        row = await store.fence(IT)
        assert row.version != BEFORE
        assert row == await store.head(IT)
        fenced = await self.now_stored()
        assert fenced == RawRow(row.version, content, expires, self.clock.now())
        assert await store.read(IT) == Row(row.version, content, expires)

    async def test_fence_of_nothing_leaves_gone(self, store: HighVolumeBackend) -> None:
        """`fence` writes a `Gone` row where there is none."""
        row = await store.fence(IT)
        assert row == RowHead(row.version, GONE, None)
        assert await self.stored(IT) == RawRow(row.version, GONE, None, self.clock.now())

    @pytest.mark.parametrize("content", CONTENTS)
    async def test_fenced_operations_fail(self, store: HighVolumeBackend, content: Content) -> None:
        """After `fence`, whatever still has the older version fails: compare-and-write, extension."""
        deadline = self.clock.now() + SECOND
        await self.plant(IT, RawRow(BEFORE, content, deadline))
        row = await store.fence(IT)
        fenced = await self.stored(IT)
        assert await store.compare_and_write(IT, BEFORE, INLINE, None) is None
        assert await store.compare_and_write(IT, BEFORE, GONE, None, if_expired_by=deadline) is None
        assert not await store.extend(IT, BEFORE, deadline + SECOND)
        assert await self.stored(IT) == fenced
        assert await store.compare_and_write(IT, row.version, INLINE, None) is not None

    async def test_fenced_absence(self, store: HighVolumeBackend) -> None:
        """After `fence` of nothing, a compare-and-write that found nothing fails."""
        row = await store.fence(IT)
        assert await store.compare_and_write(IT, None, INLINE, None) is None
        assert await store.compare_and_write(IT, row.version, INLINE, None) is not None

    async def test_fences_and_writers_at_once(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """However fences and writers interleave, a writer that read before a fence loses, and fences never fail."""
        await store.put_inline(IT, INLINE, None)

        async def fence(instance: HighVolumeBackend) -> Version:
            return (await instance.fence(IT)).version

        async def write(instance: HighVolumeBackend) -> Version | None:
            row = await instance.head(IT)
            assert row is not None
            return await instance.compare_and_write(IT, row.version, GONE, None)

        instances = (store, second) * 8
        versions = await asyncio.gather(*(work(instance) for instance in instances for work in (fence, write)))
        given = [version for version in versions if version is not None]
        assert len(set(given)) == len(given)
        assert (await self.now_stored()).version in given

    # extend

    @pytest.mark.parametrize("content", CONTENTS[:2])
    async def test_extend_moves_the_deadline_only(self, store: HighVolumeBackend, content: Content) -> None:
        """`extend` moves the deadline, and leaves version and content alone; so the same version works again."""
        now = self.clock.now()
        await self.plant(IT, RawRow(BEFORE, content, now + 1, 5))
        assert await store.extend(IT, BEFORE, now + 2)
        assert await self.stored(IT) == RawRow(BEFORE, content, now + 2, 5)
        assert await store.extend(IT, BEFORE, now + 9)
        assert await store.read(IT) == Row(BEFORE, content, now + 9)

    @pytest.mark.parametrize("content", CONTENTS[:2])
    @pytest.mark.parametrize("left", [-SECOND, -1, 0, 1, SECOND])
    async def test_extend_never_revives(self, store: HighVolumeBackend, content: Content, left: int) -> None:
        """`extend` works up to the last microsecond before the deadline, and never from the deadline on."""
        now = self.clock.now()
        raw = RawRow(BEFORE, content, now + left)
        await self.plant(IT, raw)
        assert await store.extend(IT, BEFORE, now + 9 * SECOND) is (left > 0)
        assert await self.stored(IT) == (replace(raw, expires=now + 9 * SECOND) if left > 0 else raw)

    async def test_extend_reads_the_clock_when_it_runs(self, store: HighVolumeBackend) -> None:
        """A row expires by the clock's moving alone; one that no call has found expired is not, when it moves back."""
        deadline = self.clock.now() + SECOND
        for object_id in (IT, OTHER):
            await store.put_inline(object_id, INLINE, deadline)
        version, other = [(await self.now_stored(object_id)).version for object_id in (IT, OTHER)]
        assert await store.extend(IT, version, deadline + SECOND)
        assert await store.extend(OTHER, other, deadline + SECOND)
        self.clock.advance(2.0)
        assert not await store.extend(IT, version, deadline + 9 * SECOND)
        self.clock.set_now(deadline)
        assert await store.extend(OTHER, other, deadline + 9 * SECOND)

    @pytest.mark.parametrize("moved", [-9, -1, 0])
    async def test_extend_never_shortens(self, store: HighVolumeBackend, moved: int) -> None:
        """`extend` to the same or an earlier deadline changes nothing."""
        deadline = self.clock.now() + SECOND
        raw = RawRow(BEFORE, INLINE, deadline)
        await self.plant(IT, raw)
        assert not await store.extend(IT, BEFORE, deadline + moved)
        assert await self.stored(IT) == raw

    @pytest.mark.parametrize("content", CONTENTS)
    async def test_extend_needs_a_deadline(self, store: HighVolumeBackend, content: Content) -> None:
        """`extend` gives no deadline to a row that has none."""
        raw = RawRow(BEFORE, content, None)
        await self.plant(IT, raw)
        assert not await store.extend(IT, BEFORE, self.clock.now() + SECOND)
        assert await self.stored(IT) == raw

    async def test_extend_needs_the_version(self, store: HighVolumeBackend) -> None:
        """`extend` of another version, or of nothing, changes nothing."""
        now = self.clock.now()
        raw = RawRow(BEFORE, INLINE, now + 1)
        await self.plant(IT, raw)
        assert not await store.extend(IT, AFTER, now + 9)
        assert not await store.extend(OTHER, BEFORE, now + 9)
        assert await self.stored(IT) == raw
        assert await self.stored(OTHER) is None

    async def test_extensions_at_the_same_time(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """The latest deadline stands, whatever the order; each that moved nothing found one as late as its own."""
        now = self.clock.now()
        await self.plant(IT, RawRow(BEFORE, TOMBSTONE, now + 1))
        deadlines = [now + 2 + number for number in range(RACERS)]
        Random(5).shuffle(deadlines)
        moved = await asyncio.gather(
            *((store, second)[number % 2].extend(IT, BEFORE, deadline) for number, deadline in enumerate(deadlines))
        )
        assert await self.stored(IT) == RawRow(BEFORE, TOMBSTONE, max(deadlines))
        assert moved[deadlines.index(max(deadlines))]

    async def test_extend_and_settling_at_the_same_time(
        self, store: HighVolumeBackend, second: HighVolumeBackend
    ) -> None:
        """Of an extension and the settling of what has expired, exactly one happens, before the deadline and at it."""
        now = self.clock.now()
        for number in range(RACERS):
            it, left = object_named(f"{number}"), number % 2
            await self.plant(it, RawRow(BEFORE, TOMBSTONE, now + left))
            extended, settled = await asyncio.gather(
                store.extend(it, BEFORE, now + 9),
                second.compare_and_write(it, BEFORE, GONE, None, if_expired_by=now + left),
            )
            assert extended is (settled is None)
            assert (await self.now_stored(it)).content == (TOMBSTONE if extended else GONE)
            assert left or not extended

    # scan

    async def test_scan_is_in_the_order_of_bytes(self, store: HighVolumeBackend) -> None:
        """`scan` lists by the bytes of the storage path in UTF-8, whatever the size of a page."""
        ids = sorted(HOSTILE_IDS, key=lambda object_id: object_id.storage_path.encode())
        for number, object_id in enumerate(ids):
            await self.plant(object_id, RawRow(number.to_bytes(16), CONTENTS[number % 3], number or None))
        wanted = [
            FoundRow(object_id, as_head(RawRow(number.to_bytes(16), CONTENTS[number % 3], number or None)))
            for number, object_id in enumerate(ids)
        ]
        for limit in (1, 2, 7, len(ids) - 1, len(ids), len(ids) + 1):
            assert await scan_all(store, "", limit) == wanted

    async def test_scan_of_a_prefix(self, store: HighVolumeBackend) -> None:
        """`scan` lists what starts with the prefix, text by text, and nothing beside it."""
        for number, object_id in enumerate(HOSTILE_IDS):
            await self.plant(object_id, RawRow(number.to_bytes(16), GONE))
        base = "testing/org.1/objects/"
        prefixes = ("", "t", base, f"{base}a", f"{base}a/", f"{base}%", f"{base}\x00", f"{base}\uffff", f"{base}*")
        for prefix in (*prefixes, f"{base}\U0010ffff", f"{base}\x7f", f"{base}e", f"{base}\u00e9", "u" * 64, "absent"):
            paths = [row.object_id.storage_path for row in await scan_all(store, prefix, 10)]
            assert paths == in_order(id_.storage_path for id_ in HOSTILE_IDS if id_.storage_path.startswith(prefix))

    async def test_scan_after(self, store: HighVolumeBackend) -> None:
        """``after`` is left out itself, need not be there, and may lie before or behind all that has the prefix."""
        for key in ("b", "d", "f"):
            await self.plant(object_named(key), RawRow(key.encode() * 16, GONE))
        base = "photos/org.17/objects/"

        async def keys(prefix: str, after: str | None) -> str:
            return "".join(row.object_id.key for row in await store.scan(prefix, after, 9))

        expected = {None: "bdf", "": "bdf", "a": "bdf", f"{base}a": "bdf", f"{base}b": "df", f"{base}b\x00": "df"}
        for after, found in (expected | {f"{base}c": "df", f"{base}d": "f", f"{base}f": "", "q": ""}).items():
            assert await keys(base, after) == found
            assert await keys("", after) == found
        assert await keys(f"{base}d", None) == "d"
        assert await keys(f"{base}d", f"{base}b") == "d"
        assert await keys(f"{base}d", f"{base}d") == ""
        assert await keys(f"{base}d", f"{base}e") == ""

    async def test_scan_lists_what_stays_exactly_once(self, store: HighVolumeBackend) -> None:
        """A row that is there throughout a paged scan is listed exactly once, whatever comes, goes or changes."""
        for number in range(0, 40, 2):
            await store.put_inline(object_named(f"{number:02}"), INLINE, None)
        seen: list[str] = []
        after = None
        for page in range(40):
            found = await store.scan("photos/", after, 3)
            seen += (row.object_id.key for row in found)
            if len(found) < 3:
                break
            after = found[-1].object_id.storage_path
            await store.put_inline(object_named(f"{2 * page + 1:02}"), INLINE, None)
            await store.put_inline(object_named(f"{2 * page:02}"), INLINE, None)
            await store.delete_inline(object_named("38"))
        assert len(seen) == len(set(seen))
        assert {f"{number:02}" for number in range(0, 40, 2)} <= set(seen)

    # expired

    async def test_expired_is_earliest_first(self, store: HighVolumeBackend) -> None:
        """`expired` lists by deadline those at or before the instant, inline and tombstones, to its limit."""
        deadlines = [50, 10, 40, 20, 30, 100, 101, 60]
        for deadline in deadlines:
            content = (INLINE, TOMBSTONE)[deadline // 10 % 2]
            await self.plant(object_named(str(deadline)), RawRow(BEFORE, content, deadline))
        await self.plant(object_named("never"), RawRow(BEFORE, INLINE, None))
        await self.plant(object_named("gone"), RawRow(BEFORE, GONE, 5))
        due = sorted(deadline for deadline in deadlines if deadline <= 100)
        wanted = self.listed_as_expired(
            FoundRow(object_named(str(at)), as_head(RawRow(BEFORE, (INLINE, TOMBSTONE)[at // 10 % 2], at)))
            for at in due
        )
        for limit in (1, 3, len(due), len(due) + 1, 1000):
            assert await store.expired(100, limit) == wanted[:limit]
        assert await store.expired(9, 10) == []

    def listed_as_expired(self, found: Iterable[FoundRow]) -> list[FoundRow]:
        """Those of ``found`` that `expired` lists."""
        return [row for row in found if not (self.removes_inline and isinstance(row.row.content, InlineHead))]

    @pytest.mark.parametrize("content", [INLINE, TOMBSTONE])
    async def test_expired_follows_the_row(self, store: HighVolumeBackend, content: Content) -> None:
        """`expired` no longer lists a row that was extended, replaced or deleted; extended, it does so later."""
        now = self.clock.now()
        ids = [object_named(key) for key in "abcd"]
        versions = [await store.compare_and_write(object_id, None, content, now + SECOND) for object_id in ids]
        listed = self.listed_as_expired(
            [
                FoundRow(object_id, as_head(RawRow(version or b"", content, now + SECOND)))
                for object_id, version in zip(ids, versions, strict=True)
            ]
        )
        assert {row.object_id for row in await store.expired(now + SECOND, 10)} == {row.object_id for row in listed}
        assert await store.extend(ids[0], versions[0] or b"", now + 2 * SECOND)
        assert await store.compare_and_write(ids[1], versions[1], INLINE, None) is not None
        assert await store.compare_and_write(ids[2], versions[2], GONE, None) is not None
        assert list(await store.expired(now + SECOND, 10)) == listed[3:]
        later = await store.expired(now + 2 * SECOND, 10)
        assert [row.object_id for row in later] == [row.object_id for row in (listed[3:] + listed[:1])]

    # remove_markers

    async def test_remove_markers_by_instant(self, store: HighVolumeBackend) -> None:
        """`remove_markers` removes the `Gone` rows written at or before the instant, and no other."""
        for at in (10, 20, 30):
            self.clock.set_now(at)
            await store.put_inline(object_named(f"deleted {at}"), INLINE, None)
            await store.delete_inline(object_named(f"deleted {at}"))
            await store.fence(object_named(f"fenced {at}"))
            assert await store.compare_and_write(object_named(f"written {at}"), None, GONE, None) is not None
        assert await store.remove_markers(9, 100) == 0
        assert await store.remove_markers(20, 100) == 6
        left = [row.object_id.key for row in await scan_all(store, "")]
        assert left == ["deleted 30", "fenced 30", "written 30"]
        assert await store.remove_markers(20, 100) == 0

    async def test_remove_markers_to_its_limit(self, store: HighVolumeBackend) -> None:
        """`remove_markers` removes at most ``limit`` rows, and says how many."""
        for number in range(5):
            await self.plant(object_named(str(number)), RawRow(BEFORE, GONE, None, number))
        assert [await store.remove_markers(100, 2) for _ in range(4)] == [2, 2, 1, 0]
        assert await scan_all(store, "") == []

    @pytest.mark.parametrize("content", [INLINE, TOMBSTONE])
    async def test_remove_markers_never_touches_an_object(self, store: HighVolumeBackend, content: Content) -> None:
        """`remove_markers` leaves inline rows and tombstones, expired ones too, and a row that was gone once."""
        raw = RawRow(BEFORE, content, 1, 1)
        await self.plant(IT, raw)
        await self.plant(OTHER, RawRow(BEFORE, GONE, None, 1))
        version = await store.compare_and_write(OTHER, BEFORE, content, None)
        assert await store.remove_markers(2**62, 100) == 0
        assert await self.stored(IT) == raw
        assert (await self.now_stored(OTHER)).version == version

    async def test_a_removed_row_is_as_if_it_never_was(self, store: HighVolumeBackend) -> None:
        """After `remove_markers` the old versions are dead, and the id begins anew from None."""
        await store.put_inline(IT, INLINE, None)
        live = (await self.now_stored()).version
        await store.delete_inline(IT)
        gone = (await self.now_stored()).version
        assert await store.remove_markers(self.clock.now(), 1) == 1
        assert await store.read(IT) is None
        for version in (live, gone):
            assert await store.compare_and_write(IT, version, INLINE, None) is None
        content = Inline(b"", b"anew")
        assert await store.compare_and_write(IT, None, content, None) is not None
        assert (await self.now_stored()).content == content

    # races

    @pytest.mark.parametrize("instances", [1, 2])
    async def test_no_count_is_lost(self, store: HighVolumeBackend, second: HighVolumeBackend, instances: int) -> None:
        """32 writers count through compare-and-write, from one or two instances, and no count is lost."""
        versions: list[Version] = []

        async def count(instance: HighVolumeBackend) -> None:
            for _ in range(10_000):
                row = await instance.read(IT)
                counted = int(row.content.payload) if row is not None and isinstance(row.content, Inline) else 0
                content = Inline(b"", str(counted + 1).encode())
                version = await instance.compare_and_write(IT, row.version if row else None, content, None)
                if version is not None:
                    versions.append(version)
                    return

        await asyncio.gather(*(count((store, second)[number % instances]) for number in range(RACERS)))
        assert (await self.now_stored()).content == Inline(b"", str(RACERS).encode())
        assert len(set(versions)) == RACERS

    async def test_one_first_writer(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """Of many compare-and-writes from None at the same time, exactly one succeeds, and its content stands."""
        contents = [Inline(b"", str(number).encode()) for number in range(RACERS)]
        versions = await asyncio.gather(
            *((store, second)[at % 2].compare_and_write(IT, None, content, None) for at, content in enumerate(contents))
        )
        winners = [at for at, version in enumerate(versions) if version is not None]
        assert len(winners) == 1
        assert await store.read(IT) == Row(versions[winners[0]] or b"", contents[winners[0]], None)

    async def test_put_inline_against_compare_and_write(
        self, store: HighVolumeBackend, second: HighVolumeBackend
    ) -> None:
        """A tombstone is never overwritten by `put_inline`, and a compare-and-write never by a stale version."""
        for number in range(20):
            object_id = object_named(f"race {number}")
            await store.put_inline(object_id, INLINE, None)
            base = (await self.now_stored(object_id)).version
            tombstone = Tombstone(b"", UUID(int=number + 1))
            swapping = asyncio.ensure_future(store.compare_and_write(object_id, base, tombstone, None))
            putting = [
                instance.put_inline(object_id, Inline(b"", b"new"), None) for instance in (second, store, second)
            ]
            puts = await asyncio.gather(*putting)
            swap = await swapping
            row = await self.now_stored(object_id)
            if swap is None:  # a put came first, so the version was stale
                assert row.content == Inline(b"", b"new")
                assert puts == [None, None, None]
            else:  # the swap came first, so every put met the tombstone
                assert (row.version, row.content) == (swap, tombstone)
                assert puts == [TombstoneRow(swap, tombstone, None)] * 3

    async def test_readers_see_whole_rows(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """While a row is overwritten, every read and head is one of the rows that were written, never a mix."""
        writes = 40

        async def overwrite() -> None:
            for number in range(writes):
                mark = str(number).encode()
                await store.put_inline(IT, Inline(mark, mark * 3000), number)

        async def check() -> int:
            last = -1
            while last < writes - 1:
                row, head = await second.read(IT), await second.head(IT)
                if row is None or head is None:
                    continue
                assert isinstance(row.content, Inline)
                assert isinstance(head.content, InlineHead)
                number = int(row.content.metadata)
                assert row.content.payload == row.content.metadata * 3000
                assert row.expires == number
                assert int(head.content.metadata) == head.expires
                assert last <= number <= int(head.content.metadata)  # time goes forward
                last = int(head.content.metadata)
            return last

        _, *last_seen = await asyncio.gather(overwrite(), check(), check())
        assert last_seen == [writes - 1, writes - 1]

    async def test_cancelled_writes_are_whole_or_not_there(self, store: HighVolumeBackend) -> None:
        """A write whose caller is cancelled has happened, or not; the others that wait with it are not disturbed."""
        ids = [object_named(f"cancelled {number}") for number in range(RACERS)]
        tasks = [asyncio.ensure_future(store.put_inline(object_id, INLINE, None)) for object_id in ids]
        await self.clock.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [None] * (RACERS // 2)
        for object_id in ids[1::2]:
            assert (await self.now_stored(object_id)).content == INLINE
        for object_id in ids[::2]:
            row = await store.read(object_id)
            assert row is None or row.content == INLINE

    # instances

    async def test_other_instances_see_it_at_once(self, store: HighVolumeBackend, second: HighVolumeBackend) -> None:
        """What one instance wrote, the next call of another one starts from: no cache, no delay."""
        for number in range(10):
            content = Inline(b"", str(number).encode())
            await store.put_inline(IT, content, None)
            row = await second.read(IT)
            assert row is not None
            assert row.content == content
            version = await second.compare_and_write(IT, row.version, TOMBSTONE, None)
            assert version is not None
            assert await store.head(IT) == RowHead(version, TOMBSTONE, None)
            assert await store.compare_and_write(IT, version, GONE, None) is not None

    async def test_reopening_keeps_everything(self, store: HighVolumeBackend) -> None:
        """A store that was closed and opened again has the rows, versions and deadlines it had."""
        await store.put_inline(object_named("inline"), INLINE, 5)
        await store.compare_and_write(object_named("tombstone"), None, TOMBSTONE, None)
        await store.fence(object_named("gone"))
        await store.put_inline(object_named("removed"), INLINE, None)
        before = await scan_all(store, "")
        await store.close()
        again = await self.open()
        try:
            assert await scan_all(again, "") == before
            row = await again.read(object_named("inline"))
            assert row is not None
            assert row.content == INLINE
        finally:
            await again.close()

    async def test_close_finishes_what_was_accepted(self, store: HighVolumeBackend) -> None:
        """Writes that were under way when the backend was closed are stored, and their callers get answers."""
        ids = [object_named(f"late {number}") for number in range(RACERS)]
        tasks = [asyncio.ensure_future(store.put_inline(object_id, INLINE, None)) for object_id in ids]
        await self.clock.sleep(0)
        await store.close()
        assert await asyncio.gather(*tasks) == [None] * RACERS
        for object_id in ids:
            assert (await self.now_stored(object_id)).content == INLINE

    async def test_close_twice(self, store: HighVolumeBackend) -> None:
        """Closing again, or at the same time, is fine."""
        await store.put_inline(IT, INLINE, None)
        await asyncio.gather(store.close(), store.close())
        await store.close()
        assert (await self.now_stored()).content == INLINE

    async def test_check(self, store: HighVolumeBackend) -> None:
        """`check` of a store that answers returns, and writes nothing."""
        await store.check()
        assert await scan_all(store, "") == []

    # all together

    @pytest.mark.parametrize("seed", range(8))
    async def test_any_sequence_does_what_the_model_does(self, store: HighVolumeBackend, seed: int) -> None:
        """Any sequence of operations has the results and leaves the rows that the model has, but for versions."""
        random = Random(seed)
        model = MemoryHighVolume(MemoryRows(), clock=self.clock, ids=SeededIds(seed))
        versions = VersionPairs()
        for _ in range(150):
            operation = any_operation(random, versions, self.clock, self.listed_as_expired)
            versions.match(await operation(model, 0), await operation(store, 1))
            for object_id in MODEL_IDS:
                with suppress(CorruptObject):
                    versions.match(await model.read(object_id), await store.read(object_id))
                versions.match(await model.head(object_id), await store.head(object_id))
            versions.match(await model.scan("", None, 9), await store.scan("", None, 9))


MODEL_IDS = [object_named(key) for key in ("a", "a/b", "\x00")]
Operation = Callable[[HighVolumeBackend, int], Any]


class VersionPairs:
    """Which version of the model is which of the store: a one-to-one relation, or the test fails."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Version | None, Version | None]] = [(None, None), (BEFORE, BEFORE)]
        self._by_model: dict[Version, Version] = {}
        self._by_store: dict[Version, Version] = {}

    def match(self, of_model: Any, of_store: Any) -> None:
        """Fail unless the results are equal but for versions, and those correspond."""
        match of_model, of_store:
            case bytes(), bytes():
                assert self._by_model.setdefault(of_model, of_store) == of_store
                assert self._by_store.setdefault(of_store, of_model) == of_model
                if (of_model, of_store) not in self.pairs:
                    self.pairs.append((of_model, of_store))
            case (list() | tuple(), list() | tuple()):
                assert len(of_model) == len(of_store)
                for ours, theirs in zip(of_model, of_store, strict=True):
                    self.match(ours.row, theirs.row)
                    assert ours.object_id == theirs.object_id
            case (Row() | RowHead() | TombstoneRow(), _):
                assert of_store is not None
                self.match(of_model.version, of_store.version)
                assert replace(of_store, version=of_model.version) == of_model
            case _:
                assert of_model == of_store


def any_operation(
    random: Random, versions: VersionPairs, clock: ManualClock, listed: Callable[[Iterable[FoundRow]], list[FoundRow]]
) -> Operation:
    """One operation with drawn arguments, to be run on the model (0) and on the store (1)."""
    object_id = random.choice(MODEL_IDS)
    content = random.choice((Inline(b"m", random.randbytes(3)), Tombstone(b"t", UUID(int=random.randrange(9))), GONE))
    inline = Inline(random.randbytes(2), random.randbytes(5))
    expected = random.choice(versions.pairs[-6:])
    clock.set_now(clock.now() + random.choice((0, 0, 1, 5)))
    soon = clock.now() + random.randrange(-3, 12)
    expires = random.choice((None, soon))

    def live(which: int) -> Version:
        return expected[which] or BEFORE

    operations: Sequence[Operation] = (
        lambda store, _: store.put_inline(object_id, inline, expires),
        lambda store, _: store.delete_inline(object_id),
        lambda store, which: store.compare_and_write(object_id, expected[which], content, expires),
        lambda store, which: store.compare_and_write(object_id, expected[which], content, expires),
        lambda store, which: store.compare_and_write(object_id, expected[which], content, expires, if_expired_by=soon),
        lambda store, _: store.fence(object_id),
        lambda store, _: point_from_now(store, object_id, soon),
        lambda store, which: store.compare_and_write(object_id, expected[which], content, expires, not_after=soon),
        lambda store, which: store.extend(object_id, live(which), soon),
        lambda store, _: expired_in_order(store, soon, listed),
        lambda store, _: store.remove_markers(soon - 20, 100),
    )
    return random.choice(operations)


async def point_from_now(store: HighVolumeBackend, object_id: ObjectId, not_after: UnixMicros) -> bool:
    """`point` the row as it is now to a blob, with an inline write in between."""
    base = await store.head(object_id)
    await store.put_inline(object_id, INLINE, None)
    return await store.point(object_id, base, Tombstone(b"p", UUID(int=77)), None, not_after=not_after)


async def expired_in_order(
    store: HighVolumeBackend, by: UnixMicros, listed: Callable[[Iterable[FoundRow]], list[FoundRow]]
) -> list[FoundRow]:
    """All that is expired, by deadline and path: rows of one deadline come in any order; what is not ``listed``,
    not.
    """
    found = await store.expired(by, 100)
    if not isinstance(store, MemoryHighVolume):
        assert found == listed(found)
    found = listed(found)
    return sorted(found, key=lambda each: (each.row.expires, each.object_id.storage_path))


def corrupt_reads() -> float:
    """How many corrupt reads have been counted."""
    return REGISTRY.get_sample_value("tierstore_corrupt_reads_total", {"tier": "high_volume"}) or 0.0


def in_batches(items: Sequence[Any]) -> list[Sequence[Any]]:
    """The items, as many at a time as may wait for a store with `Limits.tiny`."""
    return [items[start : start + RACERS] for start in range(0, len(items), RACERS)]


def in_order(paths: Any) -> list[str]:
    """The paths in the byte order of UTF-8."""
    return sorted(paths, key=str.encode)


async def scan_all(store: HighVolumeBackend, prefix: str, limit: int = 100) -> list[FoundRow]:
    """Every row with the prefix, by pages of ``limit``."""
    found: list[FoundRow] = []
    page: Sequence[FoundRow] = ()
    for _ in range(10_000):
        page = await store.scan(prefix, found[-1].object_id.storage_path if found else None, limit)
        assert len(page) <= limit
        found += page
        if not page:
            break
    return found
