"""The high-volume backend in memory, for tests only: the config cannot select it, and nothing of it is durable.

Guarantees everything else that `tierstore.backends.high_volume.contract` says, within one process. Each operation
yields to the event loop once and then happens at once, so that a simulated run interleaves at every operation.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import xxhash

from tierstore import telemetry
from tierstore.backends.high_volume.contract import (
    Content,
    FoundRow,
    Gone,
    HighVolumeBackend,
    Inline,
    InlineHead,
    Row,
    RowHead,
    Tombstone,
    TombstoneRow,
)
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import CorruptObject
from tierstore.idsource import IdSource
from tierstore.types.ids import ObjectId, Version


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it is kept."""

    version: Version
    content: Content
    expires: UnixMicros | None
    changed: UnixMicros
    """When the version was written."""
    checksum: bytes
    """XXH3-128 of an inline payload, empty for other contents."""
    fenced: Version = b""
    """As in `RowHead`."""


@dataclass(slots=True)
class MemoryRows:
    """What outlives a backend: the rows, by object id. Any number of backends may share it."""

    by_id: dict[ObjectId, StoredRow] = field(default_factory=dict)
    identity: UUID | None = None


class MemoryHighVolume(HighVolumeBackend):
    """A view of `MemoryRows`."""

    def __init__(self, rows: MemoryRows, *, clock: Clock, ids: IdSource) -> None:
        self._store_of_rows = rows
        self._rows = rows.by_id
        self._clock = clock
        self._ids = ids

    async def read(self, object_id: ObjectId) -> Row | None:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if stored is None:
            return None
        if _checksum(stored.content) != stored.checksum:
            telemetry.corrupt_reads.labels("high_volume").inc()
            raise CorruptObject(f"the payload of {object_id} does not match its checksum")
        return Row(stored.version, stored.content, stored.expires)

    async def head(self, object_id: ObjectId) -> RowHead | None:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        return None if stored is None else _row_head(stored)

    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if stored is not None and isinstance(stored.content, Tombstone):
            return TombstoneRow(stored.version, stored.content, stored.expires)
        self._store(object_id, content, expires)
        return None

    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if stored is None or isinstance(stored.content, Gone):
            return None
        if isinstance(stored.content, Tombstone):
            return TombstoneRow(stored.version, stored.content, stored.expires)
        self._store(object_id, Gone(), None)
        return None

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
        await self._clock.sleep(0)
        if not_after is not None and self._clock.now() > not_after:
            return None
        stored = self._rows.get(object_id)
        if (None if stored is None else stored.version) != expected:
            return None
        if if_expired_by is not None:
            deadline = None if stored is None else stored.expires
            if deadline is None or deadline > if_expired_by:
                return None
        return self._store(object_id, content, expires)

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if self._clock.now() > not_after or (stored is None) != (base is None):
            return False
        if stored is not None and base is not None and stored.fenced != base.fenced:
            return False
        self._store(object_id, content, expires)
        return True

    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if self._clock.now() > not_after or stored is None or stored.version != expected:
            return False
        if not isinstance(stored.content, Tombstone):
            return False
        self._store(object_id, Inline(stored.content.metadata, payload), stored.expires)
        return True

    async def fence(self, object_id: ObjectId) -> RowHead:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if stored is None:
            self._store(object_id, Gone(), None)
        else:
            version = self._ids.version()
            self._rows[object_id] = replace(stored, version=version, changed=self._clock.now(), fenced=version)
        return _row_head(self._rows[object_id])

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        await self._clock.sleep(0)
        stored = self._rows.get(object_id)
        if stored is None or stored.version != version or stored.expires is None:
            return False
        if not self._clock.now() < stored.expires < expires:
            return False
        self._rows[object_id] = replace(stored, expires=expires)
        return True

    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        await self._clock.sleep(0)
        by_path = {object_id.storage_path.encode(): object_id for object_id in self._rows}
        paths = sorted(path for path in by_path if path.startswith(prefix.encode()))
        start = 0 if after is None else bisect_right(paths, after.encode())
        return [self._found(by_path[path]) for path in paths[start : start + limit]]

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        await self._clock.sleep(0)
        due = [
            (stored.expires, object_id)
            for object_id, stored in self._rows.items()
            if stored.expires is not None and stored.expires <= by and not isinstance(stored.content, Gone)
        ]
        due.sort(key=lambda item: item[0])
        return [self._found(object_id) for _, object_id in due[:limit]]

    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        await self._clock.sleep(0)
        markers = sorted(
            (stored.changed, object_id.storage_path, object_id)
            for object_id, stored in self._rows.items()
            if isinstance(stored.content, Gone)
        )
        old = markers[: bisect_left(markers, (before + 1,))][:limit]
        for _, _, object_id in old:
            del self._rows[object_id]
        return len(old)

    async def identity(self) -> UUID | None:
        await self._clock.sleep(0)
        return self._store_of_rows.identity

    async def adopt(self, identity: UUID) -> UUID:
        await self._clock.sleep(0)
        self._store_of_rows.identity = self._store_of_rows.identity or identity
        return self._store_of_rows.identity

    async def check(self) -> None:
        await self._clock.sleep(0)

    async def close(self) -> None:
        await self._clock.sleep(0)

    def _store(self, object_id: ObjectId, content: Content, expires: UnixMicros | None) -> Version:
        version = self._ids.version()
        before = self._rows.get(object_id)
        points = isinstance(content, Tombstone) or (before is not None and isinstance(before.content, Tombstone))
        fenced = version if before is None or points else before.fenced
        self._rows[object_id] = StoredRow(version, content, expires, self._clock.now(), _checksum(content), fenced)
        return version

    def _found(self, object_id: ObjectId) -> FoundRow:
        return FoundRow(object_id, _row_head(self._rows[object_id]))


def _row_head(stored: StoredRow) -> RowHead:
    content = stored.content
    head = InlineHead(content.metadata) if isinstance(content, Inline) else content
    return RowHead(stored.version, head, stored.expires, stored.fenced)


def _checksum(content: Content) -> bytes:
    return xxhash.xxh3_128_digest(content.payload) if isinstance(content, Inline) else b""
