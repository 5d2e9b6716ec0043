"""A watcher at the raw stores: what must be true in every state is checked after every effect, whoever had it.

It stands below every fault and every process, in the containers that the stores in memory keep their rows and blobs in,
so that no state between two effects escapes it. It raises nothing, since what it raised would go through the code
under test: it notes what is wrong.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import UUID

from tierstore.backends.high_volume.contract import Gone, Inline, Tombstone
from tierstore.backends.high_volume.memory import MemoryRows, StoredRow
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryUpload, StoredBlob
from tierstore.changelog.entries import Entry, State
from tierstore.changelog.memory import MemoryEntries
from tierstore.clock import Clock, UnixMicros
from tierstore.types.ids import ObjectId, Revision
from tierstore.types.metadata_storage import decode_metadata

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Saved:
    """The stores as they were at some moment."""

    rows: dict[ObjectId, StoredRow]
    blobs: dict[Revision, StoredBlob]
    uploads: dict[Revision, MemoryUpload]
    entries: dict[tuple[Revision, UUID], Entry]
    changes: int
    commits: Counter[UUID]


@dataclass
class Watch:
    """What is in the stores, what has become of the one object in them, and what should not have happened."""

    clock: Clock
    rows: MemoryRows = field(init=False)
    blobs: MemoryBlobs = field(init=False)
    entries: MemoryEntries = field(default_factory=MemoryEntries)
    changes: list[bytes | None] = field(default_factory=list)
    """What readers could see, one after the other; None is an absence. Expiry is no change: it has no effect."""
    commits: Counter[UUID] = field(default_factory=Counter)
    """How often a row was pointed to each revision."""
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = MemoryRows(_Rows(self._row_changed))
        self.blobs = MemoryBlobs(_Blobs(self.look))

    def look(self, after: str) -> None:
        """Check the state that the stores are in now."""
        pointed = {row.content.revision for row in self.rows.by_id.values() if isinstance(row.content, Tombstone)}
        blobs = {revision.uuid for revision in self.blobs.by_revision}
        if not pointed <= blobs:
            self.violations.append(f"after {after}: a tombstone dangles")
        held = {entry.revision.uuid for entry in self.entries.by_key.values() if entry.state is not State.DONE}
        if not blobs <= pointed | held:
            self.violations.append(f"after {after}: a blob is neither referenced nor in the log")
        if not held.issuperset(revision.uuid for revision in self.blobs.uploads):
            self.violations.append(f"after {after}: an upload is in progress that is not in the log")

    def visible(self) -> bytes | None:
        """What a reader must see now: the payload of the one object, or None."""
        for row in self.rows.by_id.values():
            return self._visible(row)
        return None

    def deadline(self) -> UnixMicros | None:
        """The deadline of the one object, if it has one."""
        for row in self.rows.by_id.values():
            return row.expires
        return None

    def created(self) -> UnixMicros:
        """When the one object was created; the epoch if there is none."""
        for row in self.rows.by_id.values():
            if not isinstance(row.content, Gone):
                return decode_metadata(row.content.metadata, None).time_created
        return 0

    def _visible(self, row: StoredRow) -> bytes | None:
        if row.expires is not None and row.expires <= self.clock.now():
            return None
        return self._payload(row)

    def _payload(self, row: StoredRow) -> bytes | None:
        match row.content:
            case Inline(_, payload):
                return payload
            case Tombstone(_, uuid):
                return next(
                    (blob.payload for revision, blob in self.blobs.by_revision.items() if revision.uuid == uuid), None
                )
            case Gone():
                return None

    def _row_changed(self, old: StoredRow | None, new: StoredRow | None) -> None:
        if new is None:
            if old is not None and not isinstance(old.content, Gone):
                self.violations.append("a row that is no marker was removed")
            return
        if old is not None and old.content is new.content:
            self._check_deadline(old, new)
            return
        if old is not None and self._was_brought_inline(old, new):
            self._check_deadline(old, new)
            self.look("a write of the row")
            return
        if isinstance(new.content, Tombstone):
            self.commits[new.content.revision] += 1
            if self.commits[new.content.revision] > 1:
                self.violations.append("a revision was committed twice")
        value = self._payload(new)
        if value is not None or (old is not None and self._visible(old) is not None):
            self.changes.append(value)
        self.look("a write of the row")

    def _was_brought_inline(self, old: StoredRow, new: StoredRow) -> bool:
        """Whether the same object, by its metadata, which have its time, and its bytes, is in the row now."""
        return (
            isinstance(old.content, Tombstone)
            and isinstance(new.content, Inline)
            and old.content.metadata == new.content.metadata
            and self._payload(old) == new.content.payload
        )

    def _check_deadline(self, old: StoredRow, new: StoredRow) -> None:
        """The same content: fenced, or its deadline has moved, which it does only ahead and only in time."""
        if old.expires == new.expires:
            return
        if old.expires is None or new.expires is None or not self.clock.now() < old.expires < new.expires:
            self.violations.append("a deadline moved back, or a row was revived")

    def unsettled(self) -> list[Entry]:
        """The entries that somebody has to do something about."""
        return [entry for entry in self.entries.by_key.values() if entry.state is not State.DONE]

    def own_entry(self, revision: Revision) -> Entry | None:
        """An upload's own entry."""
        return self.entries.by_key.get((revision, revision.uuid))

    def pointed(self) -> set[Revision]:
        """What rows point to."""
        return {
            Revision(object_id, row.content.revision)
            for object_id, row in self.rows.by_id.items()
            if isinstance(row.content, Tombstone)
        }

    def orphans(self) -> set[Revision]:
        """The blobs that no row points to."""
        return set(self.blobs.by_revision) - self.pointed()

    def check_settled(self) -> None:
        """After the sweeps: nothing is left in the stores that is not referenced, and nobody has anything to do."""
        if self.orphans():
            self.violations.append("after the sweeps: an orphan")
        if self.blobs.uploads:
            self.violations.append("after the sweeps: an upload is in progress")
        if self.unsettled():
            self.violations.append("after the sweeps: something is in the log")

    def save(self) -> Saved:
        """What the stores hold now."""
        return Saved(
            rows=dict(self.rows.by_id),
            blobs=dict(self.blobs.by_revision),
            uploads=_copied(self.blobs.uploads),
            entries=dict(self.entries.by_key),
            changes=len(self.changes),
            commits=self.commits.copy(),
        )

    def restore(self, saved: Saved) -> None:
        """Make the stores hold what they held, and forget what has happened since."""
        _refill(self.rows.by_id, saved.rows)
        _refill(self.blobs.by_revision, saved.blobs)
        _refill(self.blobs.uploads, _copied(saved.uploads))
        _refill(self.entries.by_key, saved.entries)
        del self.changes[saved.changes :]
        self.commits = saved.commits.copy()
        self.violations.clear()


def _copied(uploads: Mapping[Revision, MemoryUpload]) -> dict[Revision, MemoryUpload]:
    return {revision: replace(upload, parts=dict(upload.parts)) for revision, upload in uploads.items()}


def _refill(kept: dict[K, V], saved: Mapping[K, V]) -> None:
    kept.clear()
    kept.update(saved)  # which no watching container takes for an effect


class _Rows(dict[ObjectId, StoredRow]):
    """Rows that tell when one of them changes."""

    def __init__(self, changed: Callable[[StoredRow | None, StoredRow | None], None]) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, object_id: ObjectId, row: StoredRow) -> None:
        old = self.get(object_id)
        super().__setitem__(object_id, row)
        self._changed(old, row)

    def __delitem__(self, object_id: ObjectId) -> None:
        old = self[object_id]
        super().__delitem__(object_id)
        self._changed(old, None)


class _Blobs(dict[Revision, StoredBlob]):
    """Blobs that tell when one of them comes or goes."""

    def __init__(self, look: Callable[[str], None]) -> None:
        super().__init__()
        self._look = look

    def __setitem__(self, revision: Revision, blob: StoredBlob) -> None:
        super().__setitem__(revision, blob)
        self._look("a blob came")

    def pop(self, revision: Revision, default: StoredBlob | None = None) -> StoredBlob | None:  # type: ignore[override]  # because the store only ever calls it so
        found = super().pop(revision, default)
        self._look("a blob went")
        return found
