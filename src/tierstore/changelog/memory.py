"""A change log in a dict, for tests and the simulator.

Keeps every law of the contract but durability: what it holds lives as long as its `MemoryEntries`, which several
instances may share as several processes share a file, and which outlives them. No deployment can be configured to use
it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import (
    Backlog,
    Claim,
    Claimed,
    Committed,
    Condemned,
    Entry,
    Role,
    State,
    Unknown,
)
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import GivenUp
from tierstore.invariants import invariant
from tierstore.types.ids import Revision


@dataclass(slots=True)
class MemoryEntries:
    """What stands for the disk: the entries by their key, in the order in which they were first recorded."""

    by_key: dict[tuple[Revision, UUID], Entry] = field(default_factory=dict)
    identity: UUID | None = None


class MemoryChangeLog(ChangeLog):
    """One instance on ``entries``. No method suspends, so each is atomic on its event loop."""

    def __init__(self, entries: MemoryEntries, *, clock: Clock) -> None:
        self._store = entries
        self._entries = entries.by_key
        self._clock = clock
        self._closed = False

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        self._check_open()
        invariant(new is not None or old is not None, "a record names a revision")
        invariant(new != old, "a revision is not new and old for one owner")
        recorded = []
        if new is not None:
            held = self._held(new, owner, Role.NEW)
            if held is not None and held.state is not State.OPEN:
                raise GivenUp("this write was settled as abandoned (it took long, or an operator asked)")
            recorded.append(self._opened(held, new, owner, Role.NEW, not_before))
        if old is not None:
            held = self._held(old, owner, Role.OLD)
            if held is not None and held.state is not State.OPEN:
                held = replace(held, epoch=held.epoch + 1)
            recorded.append(self._opened(held, old, owner, Role.OLD, not_before))
        self._put(recorded)

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        self._check_open()
        invariant(new is None or new != old, "a revision is not new and old for one owner")
        recorded = []
        if new is not None:
            held = self._entries.get((new, owner))
            if held is None or (held.role, held.state) != (Role.NEW, State.OPEN):
                return False
            recorded.append(replace(held, epoch=held.epoch + 1))
        recorded += self._replace_old(owner, old, not_before)
        self._put(recorded)
        self._put([replace(entry, not_before=not_before) for entry in self._owned(owner)])
        return True

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        self._check_open()
        if (revision, revision.uuid) not in self._entries:
            entry = self._opened(None, revision, revision.uuid, Role.NEW, not_before)
            self._put([replace(entry, upload=upload)])

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        self._check_open()
        own = self._own(revision)
        if own is None or own.state is not State.OPEN or own.upload != expected:
            return False
        self._put([replace(own, upload=upload, not_before=max(own.not_before, not_before))])
        return True

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        self._check_open()
        invariant(revision != old, "a revision is not new and old for one owner")
        if any(entry.revision == revision and entry.role is Role.OLD for entry in self._entries.values()):
            return Committed()
        own = self._own(revision)
        if own is None:
            return Unknown()
        if own.state is State.DONE:
            return Committed()
        if own.state is State.CONDEMNED:
            return Condemned(swept=own.sweeps > 0)
        claimed = replace(own, epoch=own.epoch + 1, not_before=max(own.not_before, not_before))
        recorded = [claimed, *self._replace_old(owner, old, not_before)]
        self._put(recorded)
        return Claimed(claimed)

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        self._check_open()
        own = self._own(revision)
        if own is not None and own.state is not State.DONE:
            self._put([replace(own, state=State.DONE, epoch=own.epoch + 1, not_before=not_before, upload=b"")])

    async def forget(self, owner: UUID) -> None:
        self._check_open()
        for entry in self._owned(owner):
            del self._entries[entry.revision, owner]

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        self._check_open()
        self._put([replace(entry, not_before=not_before) for entry in self._owned(owner) if entry.state is State.OPEN])

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        self._check_open()
        held = self._unchanged(entry)
        if held is None or held.state is State.DONE:
            return None
        condemned = replace(held, state=State.CONDEMNED, epoch=held.epoch + 1, not_before=lease_until)
        self._put([condemned])
        return condemned

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        self._check_open()
        held = self._unchanged(entry)
        if held is None or held.state is not State.CONDEMNED:
            return False
        self._put([replace(held, epoch=held.epoch + 1, sweeps=held.sweeps + 1, not_before=not_before)])
        return True

    async def forget_settled(self, entry: Entry) -> bool:
        self._check_open()
        held = self._unchanged(entry)
        if held is None or held.state is State.OPEN:
            return False
        del self._entries[entry.revision, entry.owner]
        return True

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        self._check_open()
        late = [entry for entry in self._entries.values() if entry.not_before <= now]
        return sorted(late, key=lambda entry: entry.not_before)[:limit]

    async def find(self, revision: Revision) -> Sequence[Entry]:
        self._check_open()
        found = [entry for entry in self._entries.values() if entry.revision == revision]
        return sorted(found, key=lambda entry: entry.owner)

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        self._check_open()
        last = None if after is None else _listed_at(after)
        found = [
            entry
            for entry in self._entries.values()
            if (last is None or _listed_at(entry) > last)
            and not (uploads and (entry.upload is None or entry.state is State.DONE))
        ]
        return sorted(found, key=_listed_at)[:limit]

    async def backlog(self) -> Backlog:
        self._check_open()
        own = [entry for entry in self._entries.values() if entry.upload is not None]
        uploads = sum(entry.state is State.OPEN for entry in own)
        outcomes = sum(entry.state is State.DONE for entry in own)
        condemned = len(own) - uploads - outcomes
        times = [entry.recorded for entry in self._entries.values() if entry.upload is None]
        return Backlog(
            entries=len(times) + condemned, oldest=min(times, default=None), uploads=uploads, outcomes=outcomes
        )

    async def identity(self) -> UUID | None:
        self._check_open()
        return self._store.identity

    async def adopt(self, identity: UUID) -> UUID:
        self._check_open()
        self._store.identity = self._store.identity or identity
        return self._store.identity

    async def check(self) -> None:
        self._check_open()

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        invariant(not self._closed, "a closed change log is not used")

    def _owned(self, owner: UUID) -> Sequence[Entry]:
        return [entry for entry in self._entries.values() if entry.owner == owner]

    def _own(self, revision: Revision) -> Entry | None:
        """The upload's own entry."""
        own = self._entries.get((revision, revision.uuid))
        return own if own is not None and own.upload is not None else None

    def _replace_old(self, owner: UUID, old: Revision | None, not_before: UnixMicros) -> Iterable[Entry]:
        """Remove what ``owner`` has recorded as old, but ``old``; return the entry that ``old`` is to have."""
        held = None if old is None else self._held(old, owner, Role.OLD)
        for entry in self._owned(owner):
            if entry.role is Role.OLD and entry.revision != old:
                del self._entries[entry.revision, owner]
        if old is None:
            return []
        if held is not None:
            held = replace(held, epoch=held.epoch + 1)
        return [self._opened(held, old, owner, Role.OLD, not_before)]

    def _held(self, revision: Revision, owner: UUID, role: Role) -> Entry | None:
        held = self._entries.get((revision, owner))
        invariant(held is None or held.role is role, "a revision is not new and old for one owner")
        return held

    def _opened(self, held: Entry | None, revision: Revision, owner: UUID, role: Role, not_before: UnixMicros) -> Entry:
        """A new entry, or the ``held`` one in its owner's hands again."""
        if held is not None:
            return replace(held, state=State.OPEN, sweeps=0, not_before=not_before)
        return Entry(
            revision=revision,
            owner=owner,
            role=role,
            state=State.OPEN,
            epoch=0,
            sweeps=0,
            recorded=self._clock.now(),
            not_before=not_before,
        )

    def _put(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries[entry.revision, entry.owner] = entry

    def _unchanged(self, seen: Entry) -> Entry | None:
        """The entry as it is, if it still has the state and epoch that the caller saw."""
        held = self._entries.get((seen.revision, seen.owner))
        return held if held is not None and (held.state, held.epoch) == (seen.state, seen.epoch) else None


def _listed_at(entry: Entry) -> tuple[UnixMicros, bytes, bytes]:
    """The place of an entry in listings."""
    return entry.recorded, entry.revision.storage_path.encode(), entry.owner.bytes
