"""Planted bugs: each takes one rule of the protocol away, below the production code, as a store that does not keep it.

For showing that a harness finds what it is for. They stand on the stores in memory, and no deployment can have them.
The names are those of the rules in ``docs/protocol.md``; "second visit" is a habit of the sweeper's.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from uuid import UUID

from tierstore.backends.high_volume.contract import Content, Gone, RowHead, Tombstone
from tierstore.backends.high_volume.memory import MemoryHighVolume
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.build import Stores
from tierstore.changelog.entries import Claim, Entry, Role, State
from tierstore.changelog.memory import MemoryChangeLog
from tierstore.clock import UnixMicros
from tierstore.testing.faults import FaultScript, FaultyLongTerm
from tierstore.types.ids import ObjectId, Revision, Version
from tierstore.types.multipart import UploadId

Plant = Callable[[Stores], Stores]
"""Puts wrong stores into the place of right ones."""


_NEVER: UnixMicros = 1 << 62
"""An instant that does not come."""


class _NoFence(MemoryHighVolume):
    """[fence]: a fence changes nothing."""

    async def fence(self, object_id: ObjectId) -> RowHead:
        row = await self.head(object_id)
        return RowHead(b"", Gone(), None) if row is None else row


class _FenceWithoutToken(MemoryHighVolume):
    """[token]: a large write's commit does not notice a fence."""

    async def fence(self, object_id: ObjectId) -> RowHead:
        before = self._rows.get(object_id)
        await super().fence(object_id)
        if before is not None:
            dict.__setitem__(self._rows, object_id, replace(self._rows[object_id], fenced=before.fenced))
        row = await self.head(object_id)
        return RowHead(b"", Gone(), None) if row is None else row


class _TokenWithoutPointer(MemoryHighVolume):
    """[pointer]: a large write's commit does not notice that a blob has come or gone."""

    def _store(self, object_id: ObjectId, content: Content, expires: UnixMicros | None) -> Version:
        before = self._rows.get(object_id)
        version = super()._store(object_id, content, expires)
        if before is not None:
            dict.__setitem__(self._rows, object_id, replace(self._rows[object_id], fenced=before.fenced))
        return version


class _NoVersions(MemoryHighVolume):
    """[version-cas]: a compare-and-write does not compare."""

    async def compare_and_write(
        self,
        object_id: ObjectId,
        expected: Version | None,
        content: Content,
        expires: UnixMicros | None,
        *,
        if_expired_by: UnixMicros | None = None,
        not_after: UnixMicros | None = None,
    ) -> Version | None:
        row = self._rows.get(object_id)
        return await super().compare_and_write(
            object_id,
            None if row is None else row.version,
            content,
            expires,
            if_expired_by=if_expired_by,
            not_after=not_after,
        )


class _NoMarker(MemoryHighVolume):
    """[gone-marker]: a delete removes the row."""

    def _store(self, object_id: ObjectId, content: Content, expires: UnixMicros | None) -> Version:
        version = super()._store(object_id, content, expires)
        if isinstance(content, Gone):
            self._rows.pop(object_id)
        return version

    async def fence(self, object_id: ObjectId) -> RowHead:
        try:
            return await super().fence(object_id)
        except KeyError:  # the marker that it has just written
            return RowHead(b"", Gone(), None)


class _NoTime(MemoryHighVolume):
    """[time]: a store does not look at the clock when it writes."""

    async def compare_and_write(
        self,
        object_id: ObjectId,
        expected: Version | None,
        content: Content,
        expires: UnixMicros | None,
        *,
        if_expired_by: UnixMicros | None = None,
        not_after: UnixMicros | None = None,
    ) -> Version | None:
        return await super().compare_and_write(object_id, expected, content, expires, if_expired_by=if_expired_by)

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        return await super().point(object_id, base, content, expires, not_after=_NEVER)


class _NoOld(MemoryChangeLog):
    """[record-old]: what is about to be replaced is not recorded."""

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        if new is not None:
            await super().record(owner, new=new, old=None, not_before=not_before)

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        return await super().record_again(owner, new=new, old=None, not_before=not_before)

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        return await super().claim(revision, owner, old=None, not_before=not_before)


class _NoRevalidation(MemoryChangeLog):
    """[revalidate]: a write goes on although it was given up."""

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        await super().record_again(owner, new=new, old=old, not_before=not_before)
        return True


class _NoOldCheck(MemoryChangeLog):
    """[old-check]: an attempt does not ask whether its revision is just being swapped out."""

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        hidden = {
            key: entry for key, entry in self._entries.items() if entry.revision == revision and entry.role is Role.OLD
        }
        for key in hidden:
            del self._entries[key]
        claim = await super().claim(revision, owner, old=old, not_before=not_before)
        self._entries.update(hidden)
        return claim


class _NoCondemnedCheck(MemoryChangeLog):
    """[condemned-check]: an attempt claims what a sweeper is settling."""

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        own = self._own(revision)
        if own is not None and own.state is State.CONDEMNED:
            self._put([replace(own, state=State.OPEN, sweeps=0)])
        return await super().claim(revision, owner, old=old, not_before=not_before)


class _NoMark(MemoryChangeLog):
    """[mark-done]: that an upload was completed is not remembered."""

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        await self.check()


class _NoProgressCompared(MemoryChangeLog):
    """[progress-cas]: an attempt at a resumable upload counts its part whatever others have counted meanwhile."""

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        own = self._own(revision)
        there = expected if own is None or own.upload is None else own.upload
        return await super().advance(revision, there, upload, not_before)


class _OneVisit(MemoryChangeLog):
    """A sweeper does not come a second time."""

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        return await self.forget_settled(entry)


class _NoAbort(FaultyLongTerm):
    """[abort-first]: an upload is not aborted before its blob is deleted."""

    async def abort(self, upload: UploadId | Revision) -> None:
        await self.check()


def _high_volume(bug: type[MemoryHighVolume]) -> Plant:
    def plant(stores: Stores) -> Stores:
        sound = stores.high_volume
        assert isinstance(sound, MemoryHighVolume)
        return replace(stores, high_volume=bug(sound._store_of_rows, clock=sound._clock, ids=sound._ids))

    return plant


def _changelog(bug: type[MemoryChangeLog]) -> Plant:
    def plant(stores: Stores) -> Stores:
        sound = stores.changelog
        assert isinstance(sound, MemoryChangeLog)
        return replace(stores, changelog=bug(sound._store, clock=sound._clock))

    return plant


def _long_term(bug: Callable[[LongTermBackend, FaultScript], LongTermBackend]) -> Plant:
    return lambda stores: replace(stores, long_term=bug(stores.long_term, FaultScript()))


PLANTED: Mapping[str, Plant] = {
    "version-cas": _high_volume(_NoVersions),
    "gone-marker": _high_volume(_NoMarker),
    "token": _high_volume(_FenceWithoutToken),
    "pointer": _high_volume(_TokenWithoutPointer),
    "record-old": _changelog(_NoOld),
    "revalidate": _changelog(_NoRevalidation),
    "old-check": _changelog(_NoOldCheck),
    "mark-done": _changelog(_NoMark),
    "condemned-check": _changelog(_NoCondemnedCheck),
    "abort-first": _long_term(_NoAbort),
    "fence": _high_volume(_NoFence),
    "time": _high_volume(_NoTime),
    "progress-cas": _changelog(_NoProgressCompared),
    "second visit": _changelog(_OneVisit),
}
