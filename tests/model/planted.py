"""Implementations that leave a step of the protocol out, or take a wrong one: what their calls would look like.

Each is made by a wrapper between an operation and its faults, so the trace has the calls of such an implementation over
stores that are sound. (`tierstore.testing.planted` has the opposite: stores that break the rules themselves.)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from uuid import UUID

from tierstore.backends.high_volume.contract import Content, Gone, HighVolumeBackend, RowHead, Tombstone
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.build import Stores
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Claim, Claimed, Entry
from tierstore.clock import UnixMicros
from tierstore.testing.faults import FaultScript, FaultyChangeLog, FaultyHighVolume, FaultyLongTerm
from tierstore.types.ids import ObjectId, Revision, Version
from tierstore.types.multipart import UploadId

Plant = Callable[[Stores], Stores]
"""Puts wrong stores into the place of right ones."""


class _HighVolume(FaultyHighVolume):
    def __init__(self, inner: HighVolumeBackend) -> None:
        super().__init__(inner, FaultScript())


class _LongTerm(FaultyLongTerm):
    def __init__(self, inner: LongTermBackend) -> None:
        super().__init__(inner, FaultScript())


class _Log(FaultyChangeLog):
    def __init__(self, inner: ChangeLog) -> None:
        super().__init__(inner, FaultScript())


class _FenceOnlyReads(_HighVolume):
    """[fence]."""

    async def fence(self, object_id: ObjectId) -> RowHead:
        return await self.head(object_id) or RowHead(b"", Gone(), None)


class _SwapsWhatIsThere(_HighVolume):
    """[version-cas]: a small write or a delete goes by the row as it is now, not by the one that it has read."""

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
        row = await self._inner.head(object_id)
        now = None if row is None else row.version
        return await super().compare_and_write(
            object_id, now, content, expires, if_expired_by=if_expired_by, not_after=not_after
        )


class _PointsWhatIsThere(_HighVolume):
    """[token], [pointer]: a large write goes by the row as it is now."""

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        now = await self._inner.head(object_id)
        return await super().point(object_id, now, content, expires, not_after=not_after)


class _WritesNoMarker(_HighVolume):
    """[gone-marker]: a delete empties the row instead."""

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
        version = await super().compare_and_write(
            object_id, expected, content, expires, if_expired_by=if_expired_by, not_after=not_after
        )
        if isinstance(content, Gone):
            await self.remove_markers(1 << 62, 1)
        return version


class _DoesNotAbort(_LongTerm):
    """[abort-first]."""

    async def abort(self, upload: UploadId | Revision) -> None:
        await self._inner.check()


class _DoesNotDelete(_LongTerm):
    """What has been replaced, or settled, stays."""

    async def delete(self, revision: Revision) -> None:
        await self._inner.check()


class _DoesNotMark(_Log):
    """[mark-done]."""

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        await self._inner.check()


class _RecordsNoOld(_Log):
    """[record-old], where a write or a delete begins."""

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        if new is not None:
            await super().record(owner, new=new, old=None, not_before=not_before)


class _ClaimsWithoutOld(_Log):
    """[record-old], where an attempt begins."""

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        return await super().claim(revision, owner, old=None, not_before=not_before)


class _RecordsOnce(_Log):
    """[record-old], [revalidate], after a lost race."""

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        await self._inner.check()
        return True


class _GoesOnThoughGivenUp(_Log):
    """[revalidate]: it asks, and does not listen."""

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        await super().record_again(owner, new=new, old=old, not_before=not_before)
        return True


class _AsksNoLog(_Log):
    """[old-check], [condemned-check]: an attempt claims by recording what is old, and by nothing else."""

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        claim = await super().claim(revision, owner, old=old, not_before=not_before)
        own = next((entry for entry in await self._inner.find(revision) if entry.owner_is_upload), None)
        return claim if own is None else Claimed(own)


class _ComesOnce(_Log):
    """The sweeper forgets at its first visit."""

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        return await self.forget_settled(entry)


def _high_volume(wrong: type[_HighVolume]) -> Plant:
    return lambda stores: replace(stores, high_volume=wrong(stores.high_volume))


def _long_term(wrong: type[_LongTerm]) -> Plant:
    return lambda stores: replace(stores, long_term=wrong(stores.long_term))


def _log(wrong: type[_Log]) -> Plant:
    return lambda stores: replace(stores, changelog=wrong(stores.changelog))


LEFT_OUT: Mapping[str, Plant] = {
    "fence": _high_volume(_FenceOnlyReads),
    "version-cas": _high_volume(_SwapsWhatIsThere),
    "token, pointer": _high_volume(_PointsWhatIsThere),
    "gone-marker": _high_volume(_WritesNoMarker),
    "abort-first": _long_term(_DoesNotAbort),
    "mark-done": _log(_DoesNotMark),
    "record-old by a write": _log(_RecordsNoOld),
    "record-old by an attempt": _log(_ClaimsWithoutOld),
    "record-old after a lost race": _log(_RecordsOnce),
    "revalidate": _log(_GoesOnThoughGivenUp),
    "old-check, condemned-check": _log(_AsksNoLog),
    "second visit": _log(_ComesOnce),
    "the delete of a blob": _long_term(_DoesNotDelete),
}
"""What is left out, and how."""
