"""The high-volume backend on one table of Google Cloud Bigtable.

Guarantees what `tierstore.backends.high_volume.contract` says, for any number of processes. A row of the store is one
row of the table (`tierstore.backends.high_volume.bigtable_rows` says how it lies there), and each change of it is one
conditional mutation, or for `fence` one append, neither of which is ever sent twice. All predicates look at version and
deadline themselves, so it does not matter when Bigtable collects what has expired.

Round trips: `read`, `head`, `fence`, `compare_and_write` of what points to a blob, the write of a new key and `point`
without a deadline, one. `put_inline` over a row that is there, two: one predicate cannot tell a tombstone, another row
and none apart. `delete_inline` and `extend`, two: a look, and the change; an extension of an inline object sends its
payload again, for the time for which Bigtable keeps a cell is part of the cell. A tombstone with a deadline, two: its
index row comes first.

**Expiry.** Bigtable removes inline rows by itself, `KEPT_SECONDS` after their deadline or later, and gone rows likewise
after they were written; never a tombstone. So `expired` lists tombstones only, by an index (`bigtable_hints`), and
`remove_markers` is a slow walk through the table, a piece with each call: it removes the markers that it finds, mends
the index, and takes away what Bigtable has collected in part.

**Time.** Bigtable cannot compare with its own clock. ``not_after`` is looked at before the mutation is sent, and the
call's own time ends with it, at the earliest after `_LATE_SECONDS`: Bigtable does not begin what arrives later.
`extend` keeps a delayed extension from reviving a row by sealing: who finds the deadline passed writes it as one that
does not move.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog
from google.cloud.bigtable.data import DeleteAllFromRow, Mutation
from google.cloud.bigtable.data.row_filters import RowFilter

from tierstore.backends.high_volume.bigtable_hints import DeadlineHints, Looked
from tierstore.backends.high_volume.bigtable_rows import (
    HEADS,
    IS_INLINE,
    PAYLOAD,
    POINTS,
    POINTS_NOWHERE,
    ROW,
    THERE,
    NewRow,
    StoredHead,
    after_fence,
    can_move,
    damaged,
    expired_by,
    fence_values,
    has_deadline,
    has_fenced,
    has_remains,
    has_version,
    is_row,
    is_sealed,
    lacks_content,
    moved_deadline,
    payload_of,
    sealed_deadline,
    stored_head,
)
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
from tierstore.bigtable.connection import Family, Place, open_table
from tierstore.bigtable.identity import INDEX, keep_identity, kept_identity
from tierstore.bigtable.keys import FIRST_PATH_KEY, LAST_KEY, behind, first_key, group_of, row_key
from tierstore.bigtable.predicates import LATEST, all_of
from tierstore.bigtable.table import BigtableTable, Cells
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import CorruptObject, InvalidRequest, InvariantBroken, Unavailable
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.listing import readable
from tierstore.types.ids import AS_STORED, ObjectId, Version

log = structlog.get_logger(__name__)

KEPT_SECONDS = 48 * 3600.0
"""How long Bigtable keeps cells after their timestamps, at least: ``marker_retention`` (24 h), and as much again for
clocks that differ."""
_LATE_SECONDS = 1.0
"""How long a call may take whose ``not_after`` is just coming: what arrives within this time may still be applied."""


class BigtableHighVolume(HighVolumeBackend):
    """One high-volume store in a table of Bigtable. Built by `open`."""

    def __init__(self, table: BigtableTable, limits: Limits, clock: Clock, ids: IdSource) -> None:
        self._table = table
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._hints = DeadlineHints(table, clock, limits)
        self._walked = FIRST_PATH_KEY
        """Where the walk goes on."""

    @classmethod
    async def open(
        cls,
        *,
        project: str,
        instance: str,
        table: str,
        app_profile: str,
        timeout_seconds: float,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> "BigtableHighVolume":
        """Connect; make the table if it is missing, and check it and the application profile. Raises `StartupError`."""
        place = Place(project=project, instance=instance, table=table, app_profile=app_profile)
        families = (Family(ROW, KEPT_SECONDS), Family(PAYLOAD, KEPT_SECONDS), Family(INDEX))
        opened = await open_table(place, families, timeout_seconds=timeout_seconds, limits=limits)
        return cls(opened, limits, clock, ids)

    # Reading

    async def read(self, object_id: ObjectId) -> Row | None:
        cells = await self._table.read(_key(object_id), LATEST)
        stored = stored_head(cells)
        if cells is None or stored is None:
            return None
        head = stored.head
        if not isinstance(head.content, InlineHead):
            return Row(head.version, head.content, head.expires)
        return Row(head.version, self._whole(head, head.content, cells), head.expires)

    def _whole(self, head: RowHead, content: InlineHead, cells: Cells) -> Inline | Gone:
        """The inline content; what has been collected of a row that expired long ago is gone."""
        payload = payload_of(cells)
        if payload is not None:
            return Inline(content.metadata, payload)
        kept = round(KEPT_SECONDS * MICROS_PER_SECOND) // 2
        if head.expires is None or head.expires > self._clock.now() - kept:
            raise damaged()
        return Gone()

    async def head(self, object_id: ObjectId) -> RowHead | None:
        stored = await self._stored(_key(object_id))
        return None if stored is None else stored.head

    async def _stored(self, key: bytes) -> StoredHead | None:
        return stored_head(await self._table.read(key, HEADS))

    # Writing

    async def put_inline(self, object_id: ObjectId, content: Inline, expires: UnixMicros | None) -> TombstoneRow | None:
        key = _key(object_id)
        with self._table.accepted():
            for _ in range(self._limits.bigtable_attempts_max):
                row = self._new(object_id, content, expires)
                if not await self._table.check_and_mutate(key, THERE, not_held=row.whole()):
                    return None
                if await self._table.check_and_mutate(key, POINTS_NOWHERE, held=row.over_inline()):
                    return None
                cells = await self._table.read(key, HEADS)
                stored = stored_head(cells)
                if stored is not None and isinstance(stored.head.content, Tombstone):
                    return TombstoneRow(stored.head.version, stored.head.content, stored.deadline)
                if cells is not None and lacks_content(cells):
                    await self.fence(object_id)  # which gives it one, so that the predicates can tell what it is
        raise _changing()

    async def delete_inline(self, object_id: ObjectId) -> TombstoneRow | None:
        key = _key(object_id)
        with self._table.accepted():
            for _ in range(self._limits.bigtable_attempts_max):
                stored = await self._stored(key)
                if stored is None or isinstance(stored.head.content, Gone):
                    return None
                if isinstance(stored.head.content, Tombstone):
                    return TombstoneRow(stored.head.version, stored.head.content, stored.deadline)
                # All of the row is written anew if it is still the one that was seen, so that Bigtable collects all of
                # it; under other writes it is enough that it is gone.
                gone = self._new(object_id, Gone(), None, fenced=stored.head.fenced)
                if await self._table.check_and_mutate(key, _version(stored.head.version), held=gone.whole()):
                    return None
                if await self._table.check_and_mutate(key, IS_INLINE, held=gone.over_inline()):
                    return None
        raise _changing()

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
        if self._too_late(not_after) or (expected is None and if_expired_by is not None):
            return None
        key = _key(object_id)
        row = self._new(object_id, content, expires)
        with self._table.accepted():
            await self._announce(key, row)
            if expected is None:
                there = await self._in_time(not_after, key, THERE, not_held=row.whole())
                return row.version if there is False else None
            same = has_version(expected)
            if same is None:
                return None
            conditions = [same] if if_expired_by is None else [same, expired_by(if_expired_by)]
            if isinstance(content, Tombstone):
                tries: list[tuple[list[RowFilter], list[Mutation]]] = [(conditions, row.whole())]
            else:  # what replaces a tombstone is most often what this is called for
                tries = [
                    ([*conditions, POINTS], row.whole()),
                    ([*conditions, POINTS_NOWHERE], row.over_inline()),
                ]
            for wanted, mutations in tries:
                if await self._in_time(not_after, key, all_of(wanted), held=mutations):
                    return row.version
        return None

    async def point(
        self,
        object_id: ObjectId,
        base: RowHead | None,
        content: Tombstone,
        expires: UnixMicros | None,
        *,
        not_after: UnixMicros,
    ) -> bool:
        if self._too_late(not_after):
            return False
        key = _key(object_id)
        row = self._new(object_id, content, expires)
        with self._table.accepted():
            await self._announce(key, row)
            if base is None:
                return await self._in_time(not_after, key, THERE, not_held=row.whole()) is False
            # The mark of a row that has been collected in part may be gone: then the version has to be the same.
            unchanged = has_fenced(base.fenced) if base.fenced else has_version(base.version)
            if unchanged is None:
                return False
            written = await self._in_time(not_after, key, all_of([unchanged, THERE]), held=row.whole())
            if written is False and not base.fenced:
                await self.fence(object_id)  # so that the next attempt has a mark, and small writes do not starve it
            return bool(written)

    async def bring_inline(
        self, object_id: ObjectId, expected: Version, payload: bytes, *, not_after: UnixMicros
    ) -> bool:
        key = _key(object_id)
        same = has_version(expected)
        with self._table.accepted():
            for _ in range(self._limits.bigtable_attempts_max):
                cells = await self._table.read(key, HEADS)
                stored = stored_head(cells)
                if self._too_late(not_after) or same is None or cells is None or stored is None:
                    return False
                pointed = stored.head.content
                if stored.head.version != expected or not isinstance(pointed, Tombstone):
                    return False
                row = self._new(object_id, Inline(pointed.metadata, payload), stored.deadline)
                wanted = [same, POINTS] if stored.deadline is None else [same, POINTS, has_deadline(cells)]
                if await self._in_time(not_after, key, all_of(wanted), held=row.whole()):
                    return True
        raise _changing()

    async def fence(self, object_id: ObjectId) -> RowHead:
        path = object_id.storage_path.encode()
        key, version, now = row_key(path), self._ids.version(), self._clock.now()
        with self._table.accepted():
            cells = await self._table.append(key, fence_values(path, version, now))
            stored = stored_head(cells)
            if stored is None or stored.head.version != version:
                raise InvariantBroken("an append shows what it has appended")
            if has_remains(cells, stored):
                gone = NewRow(path, version, Gone(), None, now, version)
                await self._table.check_and_mutate(key, _version(version), held=gone.whole())
                return RowHead(version, Gone(), None, version)
            if left := after_fence(path, stored):
                # An extension leaves the version, and would be kept from then on for as long as this look says.
                same = [_version(version)] if stored.deadline is None else [_version(version), has_deadline(cells)]
                await self._table.check_and_mutate(key, all_of(same), held=left)
            return stored.head

    async def extend(self, object_id: ObjectId, version: Version, expires: UnixMicros) -> bool:
        key = _key(object_id)
        same = has_version(version)
        with self._table.accepted():
            for _ in range(self._limits.bigtable_attempts_max):
                cells = await self._table.read(key, LATEST)
                stored = stored_head(cells)
                if same is None or cells is None or stored is None or stored.deadline is None:
                    return False
                if stored.head.version != version or is_sealed(cells):
                    return False
                now = self._clock.now()
                if now < stored.deadline:
                    if stored.deadline >= expires:
                        return False
                    moved = self._moved(object_id, stored, cells, expires)
                    return await self._table.check_and_mutate(key, all_of([same, can_move(now, expires)]), held=moved)
                sealed = sealed_deadline(stored.head.content, stored.deadline, now)
                if await self._table.check_and_mutate(key, all_of([same, has_deadline(cells)]), held=sealed):
                    return False
        raise _changing()

    def _moved(self, object_id: ObjectId, stored: StoredHead, cells: Cells, expires: UnixMicros) -> list[Mutation]:
        """Mutations that move the deadline. Cells that Bigtable may collect are written anew, to be kept for longer."""
        head = stored.head
        if isinstance(head.content, Tombstone):
            return moved_deadline(expires)
        content = self._whole(head, head.content, cells) if isinstance(head.content, InlineHead) else head.content
        path = object_id.storage_path.encode()
        return NewRow(path, head.version, content, expires, stored.changed, head.fenced).whole()

    # Listing

    async def scan(self, prefix: str, after: str | None, limit: int) -> Sequence[FoundRow]:
        wanted, last_seen = prefix.encode(), None if after is None else after.encode()
        start = first_key(wanted)
        if last_seen is not None:
            start = max(start, first_key(last_seen))
        end = behind(first_key(wanted))
        found: list[tuple[bytes, FoundRow]] = []
        with self._table.accepted():
            group: bytes | None = None
            async for page in self._table.pages(max(start, FIRST_PATH_KEY), end, HEADS, self._page_rows(limit)):
                for key, cells in page:
                    if len(found) >= limit and (group is None or group_of(key) != group):
                        return _in_order(found, limit)
                    group = group_of(key)
                    if not is_row(cells):
                        continue
                    found += [
                        (path, row)
                        for path, row in readable([(key, cells)], _named, 1)
                        if path.startswith(wanted) and (last_seen is None or path > last_seen)
                    ]
                if len(found) > limit:
                    found = sorted(found, key=_by_path)[:limit]
        return _in_order(found, limit)

    def _page_rows(self, limit: int) -> int:
        return min(limit + 1, self._limits.bigtable_page_rows)

    async def expired(self, by: UnixMicros, limit: int) -> Sequence[FoundRow]:
        seen: dict[bytes, FoundRow] = {}

        async def wanted(keys: Sequence[bytes]) -> Mapping[bytes, Cells]:
            return await self._table.read_many(keys, HEADS)

        def look(key: bytes, cells: Cells) -> Looked | None:
            if not is_row(cells):
                return Looked(b"", points=False, expires=None)
            for _, row in readable([(key, cells)], _named, 1):
                seen[key] = row
                return Looked(row.row.version, isinstance(row.row.content, Tombstone), row.row.expires)
            return None

        with self._table.accepted():
            keys = await self._hints.due(by, limit, wanted, look)
        return [seen[key] for key in keys]

    async def remove_markers(self, before: UnixMicros, limit: int) -> int:
        removed = looked_at = 0
        start, wrapped = self._walked, False
        with self._table.accepted():
            while looked_at < self._limits.bigtable_walk_rows and removed < limit:
                rows = self._limits.bigtable_page_rows
                page = await self._table.page(self._walked, start if wrapped else LAST_KEY, HEADS, rows)
                for key, cells in page:
                    looked_at += 1
                    self._walked = key + b"\x00"
                    removed += await self._walk_over(key, cells, before)
                    if removed == limit:
                        return removed
                if len(page) < rows:
                    if wrapped:
                        break
                    self._walked, wrapped = FIRST_PATH_KEY, True
        return removed

    async def _walk_over(self, key: bytes, cells: Cells, before: UnixMicros) -> bool:
        """Do what the walk does to a row; return whether a marker was removed."""
        try:
            stored = stored_head(cells)
        except CorruptObject:
            log.error("a row of the high-volume store cannot be read", key=key)  # noqa: TRY400  # because that says it all
            return False
        if stored is None:
            await self._table.check_and_mutate(key, THERE, not_held=[DeleteAllFromRow()])
            return False
        head = stored.head
        if isinstance(head.content, Tombstone) and head.expires is not None:
            await self._hints.add(key, head.version, head.expires)
        if not isinstance(head.content, Gone) or stored.changed > before:
            return False
        return await self._table.check_and_mutate(key, _version(head.version), held=[DeleteAllFromRow()])

    # The store

    async def identity(self) -> UUID | None:
        return await kept_identity(self._table)

    async def adopt(self, identity: UUID) -> UUID:
        return await keep_identity(self._table, identity)

    async def check(self) -> None:
        await kept_identity(self._table)

    async def close(self) -> None:
        await self._table.close()

    # Helpers

    def _new(
        self, object_id: ObjectId, content: Content, expires: UnixMicros | None, *, fenced: Version | None = None
    ) -> NewRow:
        """A row with a new version; ``fenced`` is that version, unless it is given."""
        version = self._ids.version()
        path = object_id.storage_path.encode()
        return NewRow(path, version, content, expires, self._clock.now(), version if fenced is None else fenced)

    async def _announce(self, key: bytes, row: NewRow) -> None:
        """Make a tombstone with a deadline be found when it has expired."""
        if isinstance(row.content, Tombstone) and row.expires is not None:
            await self._hints.add(key, row.version, row.expires)

    def _too_late(self, not_after: UnixMicros | None) -> bool:
        return not_after is not None and self._clock.now() > not_after

    async def _in_time(
        self,
        not_after: UnixMicros | None,
        key: bytes,
        predicate: RowFilter,
        *,
        held: Sequence[Mutation] = (),
        not_held: Sequence[Mutation] = (),
    ) -> bool | None:
        """Mutate a row, in a call that ends with ``not_after``; None if it is too late, and then nothing was sent."""
        if not_after is None:
            return await self._table.check_and_mutate(key, predicate, held=held, not_held=not_held)
        if self._too_late(not_after):
            return None
        seconds = max(_LATE_SECONDS, (not_after - self._clock.now()) / MICROS_PER_SECOND)
        return await self._table.check_and_mutate(key, predicate, held=held, not_held=not_held, seconds_max=seconds)


def _key(object_id: ObjectId) -> bytes:
    return row_key(object_id.storage_path.encode())


def _version(version: Version) -> RowFilter:
    """The predicate of a version that was read, or drawn."""
    same = has_version(version)
    if same is None:
        raise InvariantBroken("a version has 16 bytes")
    return same


def _named(found: tuple[bytes, Cells]) -> tuple[bytes, FoundRow]:
    """A listed row by its path. Raises `CorruptObject` if it cannot be read."""
    key, cells = found
    stored = stored_head(cells)
    path = key if stored is None or stored.path is None else stored.path
    try:
        object_id = ObjectId.from_storage_path(path.decode(), AS_STORED)
    except (InvalidRequest, ValueError) as error:  # ValueError: no UTF-8
        raise CorruptObject(f"a row of the high-volume store cannot be read: its key is {key!r}") from error
    if stored is None:
        raise CorruptObject(f"there is no row, but what is left of one: its key is {key!r}")
    return path, FoundRow(object_id, stored.head)


def _by_path(found: tuple[bytes, FoundRow]) -> bytes:
    return found[0]


def _in_order(found: Sequence[tuple[bytes, FoundRow]], limit: int) -> list[FoundRow]:
    return [row for _, row in sorted(found, key=_by_path)[:limit]]


def _changing() -> Unavailable:
    return Unavailable("too many others change the object at the same time")
