"""The change log on one table of Google Cloud Bigtable.

Guarantees what `tierstore.changelog.contract` says, for any number of processes. All that an operation records is in
one row, that of its object (`tierstore.changelog.bigtable_entries` says how), and each step is one conditional mutation
of it, which is never sent twice. Round trips: `find` one; `record` and `begin_upload` two, the index rows first; the
others two, to read and to change, and one or two more when others change the same object at the same time, or when
index rows come and go. Changes of one object by one process take turns, so that many at once do not cost the square
of their number.

`due` reads the hints in the order of time, and of the rows just the entries of the owners that they name, for a row may
have very many. A hint may be stale, and then the row says so. It is removed when the write
that it was for is over for certain: when an entry with its time has been seen, or when it is older than any operation
may live. A hint that is missing all the same (a restored table; a process that stood still for hours in the midst of a
write) leaves its entry to `list`, which like `backlog` reads the whole log: they are for operators.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from google.cloud.bigtable.data import DeleteAllFromRow, DeleteRangeFromColumn, Mutation
from google.cloud.bigtable.data.row_filters import RowFilter

from tierstore.bigtable.connection import Family, Place, open_table
from tierstore.bigtable.identity import INDEX, keep_identity, kept_identity
from tierstore.bigtable.keys import (
    FIRST_PATH_KEY,
    INSTANT_BYTES,
    LAST_KEY,
    group_of,
    instant_bytes,
    instant_of,
    row_key,
)
from tierstore.bigtable.predicates import family
from tierstore.bigtable.table import BigtableTable, Cells
from tierstore.bigtable.turns import Turns
from tierstore.changelog.bigtable_entries import (
    ALL,
    ENTRY,
    FIRST_ENTRIES,
    FIRST_HINT,
    HAS_ANY_MARK,
    HAS_ENTRIES,
    MARK,
    OWNERS_MAX,
    PATHS,
    WRITTEN,
    Changes,
    Entries,
    Hint,
    Key,
    RawEntry,
    cell,
    changes_of,
    end_of_hints,
    entries_of,
    has_mark,
    hints_of,
    key_of,
    named,
    of_owners,
    owner_key,
    path_of,
    raw_entries,
    with_first_entries,
)
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
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import GivenUp, Unavailable
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.listing import readable
from tierstore.types.ids import Revision

T = TypeVar("T")

Decision = Callable[[Entries], tuple[T, Changes]]
"""What an operation returns, and changes, by the entries that are there. Changes nothing by itself, and may be asked
again."""


class BigtableChangeLog(ChangeLog):
    """A change log in a table of Bigtable. Built by `open`."""

    def __init__(self, table: BigtableTable, limits: Limits, clock: Clock, ids: IdSource) -> None:
        self._table = table
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._turns = Turns(limits.bigtable_turn_seconds_max)
        self._over: dict[bytes, None] = {}
        """Names of hints whose writes have been seen done."""

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
    ) -> "BigtableChangeLog":
        """Connect; make the table if it is missing, and check it and the application profile. Raises `StartupError`."""
        place = Place(project=project, instance=instance, table=table, app_profile=app_profile)
        opened = await open_table(place, (Family(ENTRY), Family(INDEX)), timeout_seconds=timeout_seconds, limits=limits)
        return cls(opened, limits, clock, ids)

    # Operations

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        invariant(new is not None or old is not None, "a record names a revision")
        invariant(new != old, "a revision is not new and old for one owner")
        recorded = self._clock.now()
        wanted = [(each, role) for each, role in ((new, Role.NEW), (old, Role.OLD)) if each is not None]
        path = _path(*(revision for revision, _ in wanted))
        fresh = [_opened(None, each, owner, role, recorded, not_before) for each, role in wanted]

        def decide(entries: Entries) -> tuple[None, Changes]:
            changes = []
            for entry in fresh:
                held = _held(entries, entry.revision, owner, entry.role)
                if held is not None and held.state is not State.OPEN:
                    if entry.role is Role.NEW:
                        raise GivenUp("this write was settled as abandoned (it took long, or an operator asked)")
                    held = replace(held, epoch=held.epoch + 1)
                changes.append(_opened(held, entry.revision, owner, entry.role, recorded, not_before))
            return None, _by_key(changes)

        with self._table.accepted():
            if not await self._record_first(path, fresh):
                await self._change(path, entries_of(exactly=map(key_of, fresh)), decide)

    async def _record_first(self, path: bytes, entries: Sequence[Entry]) -> bool:
        """Record entries of which none is there, in one step; return whether that was so."""
        key = row_key(path)
        await self._add_hints(Hint(entry.not_before, entry.owner, key) for entry in entries)
        mutations = changes_of(path, _by_key(entries), self._ids.version())
        async with self._turns.at(key):
            return not await self._table.check_and_mutate(key, named(map(key_of, entries)), not_held=mutations)

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        invariant(new is None or new != old, "a revision is not new and old for one owner")
        recorded = self._clock.now()

        def decide(entries: Entries) -> tuple[bool, Changes]:
            changes: dict[Key, Entry | None] = {}
            if new is not None:
                held = entries.get((new.uuid, owner))
                if held is None or (held.role, held.state) != (Role.NEW, State.OPEN):
                    return False, {}
                changes[key_of(held)] = replace(held, epoch=held.epoch + 1)
            changes |= _replaced_old(entries, owner, old, recorded, not_before)
            kept = {**entries, **changes}
            return True, {key: entry and replace(entry, not_before=not_before) for key, entry in kept.items()}

        with self._table.accepted():
            if new is not None or old is not None:
                return await self._change(_path(new, old), entries_of(owner=owner), decide)
            for path in await self._paths_of(owner):
                await self._change(path, entries_of(owner=owner), decide)
            return True

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        fresh = _opened(None, revision, revision.uuid, Role.NEW, self._clock.now(), not_before)
        with self._table.accepted():
            await self._record_first(_path(revision), [replace(fresh, upload=upload)])

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        def decide(entries: Entries) -> tuple[bool, Changes]:
            own = _own(entries, revision)
            if own is None or own.state is not State.OPEN or own.upload != expected:
                return False, {}
            return True, _by_key([replace(own, upload=upload, not_before=max(own.not_before, not_before))])

        return await self._change_own(revision, decide)

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        invariant(revision != old, "a revision is not new and old for one owner")
        recorded = self._clock.now()

        def decide(entries: Entries) -> tuple[Claim, Changes]:
            if any(entry.revision == revision and entry.role is Role.OLD for entry in entries.values()):
                return Committed(), {}
            own = _own(entries, revision)
            if own is None:
                return Unknown(), {}
            if own.state is State.DONE:
                return Committed(), {}
            if own.state is State.CONDEMNED:
                return Condemned(swept=own.sweeps > 0), {}
            claimed = replace(own, epoch=own.epoch + 1, not_before=max(own.not_before, not_before))
            return Claimed(claimed), _by_key([claimed]) | _replaced_old(entries, owner, old, recorded, not_before)

        with self._table.accepted():
            return await self._change(_path(revision, old), entries_of(revision=revision.uuid, owner=owner), decide)

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        def decide(entries: Entries) -> tuple[None, Changes]:
            own = _own(entries, revision)
            if own is None or own.state is State.DONE:
                return None, {}
            done = replace(own, state=State.DONE, epoch=own.epoch + 1, not_before=not_before, upload=b"")
            return None, _by_key([done])

        await self._change_own(revision, decide)

    async def _change_own(self, revision: Revision, decide: Decision[T]) -> T:
        """Change an upload's own entry."""
        with self._table.accepted():
            return await self._change(_path(revision), entries_of(exactly=[(revision.uuid, revision.uuid)]), decide)

    async def forget(self, owner: UUID) -> None:
        def decide(entries: Entries) -> tuple[None, Changes]:
            return None, dict.fromkeys(key for key, entry in entries.items() if entry.owner == owner)

        with self._table.accepted():
            name = owner_key(owner)
            hints = hints_of(await self._table.read(name, family(INDEX)))
            for path in await self._paths_of_hints(hints):
                await self._change(path, entries_of(owner=owner), decide, removes=True)
            if hints:
                await self._table.write_rows({row: [DeleteAllFromRow()] for row in (*(h.name for h in hints), name)})

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        def decide(entries: Entries) -> tuple[None, Changes]:
            opened = [entry for entry in entries.values() if entry.state is State.OPEN]
            return None, _by_key(replace(entry, not_before=not_before) for entry in opened)

        with self._table.accepted():
            for path in await self._paths_of(owner):
                await self._change(path, entries_of(owner=owner), decide)

    # The sweeper's

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        def decide(held: Entry) -> tuple[Entry | None, Entry | None]:
            if held.state is State.DONE:
                return None, held
            taken = replace(held, state=State.CONDEMNED, epoch=held.epoch + 1, not_before=lease_until)
            return taken, taken

        return await self._change_seen(entry, None, decide)

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        def decide(held: Entry) -> tuple[bool, Entry | None]:
            if held.state is not State.CONDEMNED:
                return False, held
            return True, replace(held, epoch=held.epoch + 1, sweeps=held.sweeps + 1, not_before=not_before)

        return await self._change_seen(entry, False, decide)

    async def forget_settled(self, entry: Entry) -> bool:
        def decide(held: Entry) -> tuple[bool, Entry | None]:
            return (False, held) if held.state is State.OPEN else (True, None)

        return await self._change_seen(entry, False, decide, removes=True)

    async def _change_seen(
        self, seen: Entry, otherwise: T, decide: Callable[[Entry], tuple[T, Entry | None]], *, removes: bool = False
    ) -> T:
        """Change an entry that still has the state and the epoch that were seen, or return ``otherwise``."""
        key = key_of(seen)

        def decide_row(entries: Entries) -> tuple[T, Changes]:
            held = entries.get(key)
            if held is None or (held.state, held.epoch) != (seen.state, seen.epoch):
                return otherwise, {}
            result, changed = decide(held)
            return result, {} if changed == held else {key: changed}

        with self._table.accepted():
            return await self._change(_path(seen.revision), entries_of(exactly=[key]), decide_row, removes=removes)

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        found: dict[tuple[bytes, bytes], Entry] = {}
        with self._table.accepted():
            async for page in self._table.pages(
                FIRST_HINT, end_of_hints(now), family(INDEX), self._limits.bigtable_page_rows
            ):
                hints = {Hint.from_name(name): cells for name, cells in page}
                entries = await self._hinted(list(hints))
                for (key, _), of_owner in entries.items():
                    found |= {(key, _name(each)): each for each in of_owner if each.not_before <= now}
                await self._tidy(hints, entries)
                seen_to = Hint.from_name(page[-1][0]).instant
                if sum(entry.not_before <= seen_to for entry in found.values()) >= limit:
                    break
        return sorted(found.values(), key=lambda entry: (entry.not_before, *_listed_at(entry)))[:limit]

    async def _hinted(self, hints: Sequence[Hint]) -> Mapping[tuple[bytes, UUID], Sequence[Entry]]:
        """The entries that hints name, by row and owner. Of an object with very many entries no others are read."""
        entries: dict[tuple[bytes, UUID], Sequence[Entry]] = {}
        for start in range(0, len(hints), OWNERS_MAX):
            few = hints[start : start + OWNERS_MAX]
            keys = list({hint.key: None for hint in few})
            rows = await self._table.read_many(keys, of_owners({hint.owner: None for hint in few}))
            for key, cells in rows.items():
                of_owner: dict[UUID, list[Entry]] = defaultdict(list)
                for entry in _parsed(raw_entries(key, cells)):
                    of_owner[entry.owner].append(entry)
                entries |= {(key, owner): each for owner, each in of_owner.items()}
        return entries

    async def _tidy(self, hints: Mapping[Hint, Cells], entries: Mapping[tuple[bytes, UUID], Sequence[Entry]]) -> None:
        """Move hints whose entries are due later, and remove those that are for nothing any more."""
        later: list[Hint] = []
        over: list[Hint] = []
        for hint, cells in hints.items():
            times = [entry.not_before for entry in entries.get((hint.key, hint.owner), ())]
            if hint.instant in times:
                self._remember(hint.name)
            elif self._is_over(hint, cells) and (not times or min(times) > hint.instant):
                over.append(hint)
                later += [Hint(min(times), hint.owner, hint.key)] if times else []
        await self._add_hints(later, moved=True)  # first the new ones
        await self._remove_hints(over)

    def _is_over(self, hint: Hint, cells: Cells) -> bool:
        """Whether the write that the hint is for has happened, or never will."""
        if hint.name in self._over:
            return True
        written = cells.get((INDEX, WRITTEN), b"")
        before = self._clock.now() - round(self._limits.new_entry_kept_seconds_min * MICROS_PER_SECOND)
        return len(written) != INSTANT_BYTES or instant_of(written) <= before

    def _remember(self, name: bytes) -> None:
        self._over[name] = None
        while len(self._over) > self._limits.bigtable_hints_known_max:
            del self._over[next(iter(self._over))]

    # Looking

    async def find(self, revision: Revision) -> Sequence[Entry]:
        path = _path(revision)
        cells = await self._table.read(row_key(path), entries_of(revision=revision.uuid))
        found = [] if cells is None else [raw.parsed() for raw in raw_entries(path, cells)]
        return sorted(found, key=lambda entry: entry.owner)

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        last = None if after is None else _listed_at(after)
        found: list[Entry] = []
        with self._table.accepted():
            async for page in self._all():
                found += [
                    entry
                    for entry in _parsed(page)
                    if (last is None or _listed_at(entry) > last)
                    and not (uploads and (entry.upload is None or entry.state is State.DONE))
                ]
                found = sorted(found, key=_listed_at)[:limit]
        return found

    async def backlog(self) -> Backlog:
        entries = uploads = outcomes = 0
        oldest: UnixMicros | None = None
        with self._table.accepted():
            async for page in self._all():
                for entry in _parsed(page):
                    if entry.upload is None:
                        oldest = entry.recorded if oldest is None else min(oldest, entry.recorded)
                    uploads += entry.upload is not None and entry.state is State.OPEN
                    outcomes += entry.upload is not None and entry.state is State.DONE
                    entries += entry.upload is None or entry.state is State.CONDEMNED
        return Backlog(entries=entries, oldest=oldest, uploads=uploads, outcomes=outcomes)

    async def _all(self) -> AsyncIterator[Sequence[RawEntry]]:
        async for page in self._table.pages(FIRST_PATH_KEY, LAST_KEY, ALL, self._limits.bigtable_page_rows):
            yield [raw for key, cells in page for raw in raw_entries(key, cells)]

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

    async def _change(self, path: bytes, wanted: RowFilter, decide: Decision[T], *, removes: bool = False) -> T:
        """Change entries of an object's row by what they are, in one atomic step.

        With ``removes`` it looks at the row's first entries too, so that it can remove the row with its last one.
        """
        key = row_key(path)
        hinted: set[Hint] = set()
        async with self._turns.at(key):
            for _ in range(self._limits.bigtable_attempts_max):
                cells = await self._table.read(key, with_first_entries(wanted) if removes else wanted) or {}
                raw = list(raw_entries(path, cells))
                read = _parsed(raw) if removes else [each.parsed() for each in raw]
                entries = {key_of(entry): entry for entry in read}
                result, changes = decide(entries)
                if not changes:
                    return result
                missing = {hint for hint in _hints_for(key, entries, changes) if hint not in hinted}
                await self._add_hints(missing)
                hinted |= missing
                left = len(raw) - sum(change is None for change in changes.values())
                empties = removes and not left and len(raw) < FIRST_ENTRIES  # then these are all that there are
                mutations: list[Mutation] = (
                    [DeleteAllFromRow()] if empties else changes_of(path, changes, self._ids.version())
                )
                if await self._apply(key, cells.get((INDEX, MARK)), mutations):
                    if not left and not empties:
                        await self._table.check_and_mutate(key, HAS_ENTRIES, not_held=[DeleteAllFromRow()])
                    return result
        raise Unavailable("too many others change entries of the object at the same time")

    async def _apply(self, key: bytes, mark: bytes | None, mutations: Sequence[Mutation]) -> bool:
        """Change a row if it still has the mark, or none if it had none."""
        if mark is None:
            return not await self._table.check_and_mutate(key, HAS_ANY_MARK, not_held=mutations)
        return await self._table.check_and_mutate(key, has_mark(mark), held=mutations)

    async def _add_hints(self, hints: Iterable[Hint], *, moved: bool = False) -> None:
        """Write index rows. Those that were ``moved`` are for no write that is still to come."""
        written = b"" if moved else instant_bytes(self._clock.now())
        rows: dict[bytes, list[Mutation]] = defaultdict(list)
        for hint in dict.fromkeys(hints):
            rows[hint.name].append(cell(INDEX, WRITTEN, written))
            rows[owner_key(hint.owner)].append(cell(INDEX, hint.name, b""))
        await self._table.write_rows(rows)

    async def _remove_hints(self, hints: Iterable[Hint]) -> None:
        rows: dict[bytes, list[Mutation]] = defaultdict(list)
        for hint in hints:
            self._over.pop(hint.name, None)
            rows[hint.name].append(DeleteAllFromRow())
            rows[owner_key(hint.owner)].append(DeleteRangeFromColumn(INDEX, hint.name))
        await self._table.write_rows(rows)

    async def _paths_of(self, owner: UUID) -> Sequence[bytes]:
        """The paths of the objects of which ``owner`` may have entries."""
        return await self._paths_of_hints(hints_of(await self._table.read(owner_key(owner), family(INDEX))))

    async def _paths_of_hints(self, hints: Iterable[Hint]) -> Sequence[bytes]:
        keys = list({hint.key: None for hint in hints})
        long = await self._table.read_many([key for key in keys if group_of(key) is not None], PATHS)
        return [path_of(key, long.get(key, {})) for key in keys if group_of(key) is None or key in long]


def _path(*revisions: Revision | None) -> bytes:
    """The storage path of the one object whose these revisions are."""
    paths = {revision.object_id.storage_path for revision in revisions if revision is not None}
    invariant(len(paths) == 1, "what one owner records is of one object")
    return paths.pop().encode()


def _by_key(entries: Iterable[Entry]) -> dict[Key, Entry | None]:
    return {key_of(entry): entry for entry in entries}


def _parsed(raw: Iterable[RawEntry]) -> Sequence[Entry]:
    """Those that can be read; the others are logged."""
    entries = list(raw)
    return readable(entries, RawEntry.parsed, len(entries) + 1)


def _name(entry: Entry) -> bytes:
    return entry.revision.uuid.bytes + entry.owner.bytes


def _listed_at(entry: Entry) -> tuple[UnixMicros, bytes, bytes]:
    """The place of an entry in listings."""
    return entry.recorded, entry.revision.storage_path.encode(), entry.owner.bytes


def _own(entries: Entries, revision: Revision) -> Entry | None:
    """The upload's own entry."""
    own = entries.get((revision.uuid, revision.uuid))
    return own if own is not None and own.upload is not None else None


def _held(entries: Entries, revision: Revision, owner: UUID, role: Role) -> Entry | None:
    held = entries.get((revision.uuid, owner))
    invariant(held is None or held.role is role, "a revision is not new and old for one owner")
    return held


def _opened(
    held: Entry | None, revision: Revision, owner: UUID, role: Role, recorded: UnixMicros, not_before: UnixMicros
) -> Entry:
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
        recorded=recorded,
        not_before=not_before,
    )


def _replaced_old(
    entries: Entries, owner: UUID, old: Revision | None, recorded: UnixMicros, not_before: UnixMicros
) -> dict[Key, Entry | None]:
    """Changes that leave ``old`` alone of all that ``owner`` has recorded as old."""
    changes: dict[Key, Entry | None] = {
        key: None for key, entry in entries.items() if entry.owner == owner and entry.role is Role.OLD
    }
    if old is not None:
        held = _held(entries, old, owner, Role.OLD)
        if held is not None:
            held = replace(held, epoch=held.epoch + 1)
        changes |= _by_key([_opened(held, old, owner, Role.OLD, recorded, not_before)])
    return changes


def _hints_for(key: bytes, entries: Entries, changes: Changes) -> list[Hint]:
    """The hints without which changed entries would be found too late."""
    return [
        Hint(entry.not_before, entry.owner, key)
        for name, entry in changes.items()
        if entry is not None and (name not in entries or entry.not_before < entries[name].not_before)
    ]
