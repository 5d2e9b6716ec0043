"""What must be true of the stores in every state, and of every answer; looked at after each effect on a store.

The numbers are those of ``docs/protocol.md``, "What is always true".
"""

from collections import Counter
from collections.abc import Iterable
from uuid import UUID

from tierstore.backends.high_volume.contract import Tombstone
from tierstore.backends.high_volume.memory import MemoryRows
from tierstore.backends.long_term.memory import MemoryBlobs
from tierstore.changelog.entries import Entry, State
from tierstore.changelog.memory import MemoryEntries
from tierstore.types.ids import Revision


class Violation(Exception):
    """Something that is always true was not."""


class Judge:
    """Watches one set of stores."""

    def __init__(self, rows: MemoryRows, blobs: MemoryBlobs, entries: MemoryEntries) -> None:
        self._rows = rows.by_id
        self._blobs = blobs.by_revision
        self._uploads = blobs.uploads
        self._entries = entries.by_key
        self._pointed: dict[str, UUID | None] = {}
        """By key."""
        self.commits: Counter[UUID] = Counter()
        """How often a row was pointed to each revision."""
        self.ended: set[UUID] = set()
        """Uploads of which a client was told that they were not and will not be committed."""

    def look(self) -> None:
        """Raise `Violation` unless the stores are in a state that may be. Called after each effect."""
        live = set()  # by number: hashing a whole revision takes longer than all the rest
        blobs = {revision.uuid.int for revision in self._blobs}
        for object_id, row in self._rows.items():
            points = row.content.revision if isinstance(row.content, Tombstone) else None
            if points is not None:
                live.add(points.int)
                if points.int not in blobs:
                    raise Violation(f"(1) a tombstone of {object_id.key!r} points to {points}, which does not exist")
            if points is not self._pointed.get(object_id.key):
                self._pointed[object_id.key] = points
                if points is not None:
                    self._committed(points)
        if unreferenced := blobs - live:
            unreferenced -= {revision.uuid.int for revision, _ in self._entries}
            if unreferenced:
                names = ", ".join(str(UUID(int=number)) for number in sorted(unreferenced))
                raise Violation(f"(5) no row points to these blobs, and no entry lists them: {names}")

    def _committed(self, revision: UUID) -> None:
        self.commits[revision] += 1
        if self.commits[revision] > 1:
            raise Violation(f"(2) revision {revision} was committed twice")
        if revision in self.ended:
            raise Violation(f"(4) upload {revision} was committed after a client was told that it never will be")

    def succeeded(self, revision: UUID) -> None:
        """A client is told that its upload is complete."""
        if not self.commits[revision]:
            raise Violation(f"(3) a client was told that upload {revision} is complete, and it was never committed")

    def failed(self, revision: UUID) -> None:
        """A client is told that its upload does not exist, or that it has been aborted."""
        if self.commits[revision]:
            raise Violation(f"(4) a client was told that upload {revision} failed, and it has been committed")
        self.ended.add(revision)

    def settled(self) -> None:
        """Raise `Violation` unless everything that was left has been cleaned up."""
        self.look()
        referenced = {
            Revision(object_id, row.content.revision)
            for object_id, row in self._rows.items()
            if isinstance(row.content, Tombstone)
        }
        if orphans := self._blobs.keys() - referenced:
            raise Violation(f"(5) after sweeps, no row points to these blobs: {_names(orphans)}")
        if self._uploads:
            raise Violation(f"(5) after sweeps, these uploads are in progress: {_names(self._uploads)}")
        if left := [entry for entry in self._entries.values() if entry.state is not State.DONE]:
            raise Violation(f"(5) after sweeps, these entries are left: {[_described(entry) for entry in left]}")

    def forgotten(self) -> None:
        """Raise `Violation` unless the change log is empty, as it must be when outcomes have been kept long enough."""
        if self._entries:
            raise Violation(f"outcomes are kept for ever: {len(self._entries)} of them")


def _names(revisions: Iterable[Revision]) -> str:
    return ", ".join(sorted(str(revision.uuid) for revision in revisions))


def _described(entry: Entry) -> str:
    return f"{entry.role.value} {entry.revision.uuid} of {entry.owner}, {entry.state.value}, due {entry.not_before}"
