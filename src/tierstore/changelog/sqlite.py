"""The change log in one SQLite file, for one machine: any number of processes may have it open.

Each method is one transaction of `tierstore.embedded.database`, durable when it returns; what is conditional is a
condition of the statement that writes, so that it holds whoever else writes. Deciding by state and epoch, never by the
clock, is the contract's; here, the clock only says when an entry was recorded, which the sweeper goes by when it
comes a second time.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast
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
from tierstore.embedded.database import Connection, Database, Schema
from tierstore.embedded.identity import MIGRATION as IDENTITY_MIGRATION
from tierstore.embedded.identity import keep_identity, kept_identity
from tierstore.errors import CorruptObject, GivenUp, InvalidRequest
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.listing import readable
from tierstore.types.ids import AS_STORED, Revision

_SCHEMA = Schema(
    application_id=0x7473_636C,  # "tscl"
    name="change_log",
    migrations=(
        """
        CREATE TABLE entries (
            revision   BLOB    NOT NULL,  -- storage path, UTF-8
            owner      BLOB    NOT NULL CHECK (length(owner) = 16),
            role       TEXT    NOT NULL CHECK (role IN ('new', 'old')),
            state      TEXT    NOT NULL CHECK (state IN ('open', 'condemned')),
            epoch      INTEGER NOT NULL,
            sweeps     INTEGER NOT NULL,
            recorded   INTEGER NOT NULL,  -- Unix microseconds
            not_before INTEGER NOT NULL,  -- Unix microseconds
            PRIMARY KEY (revision, owner)
        ) STRICT;  -- with a rowid, so that the indexes below hold that and not the storage path
        CREATE INDEX entries_by_owner ON entries (owner);
        CREATE INDEX entries_by_not_before ON entries (not_before);
        CREATE INDEX entries_by_recorded ON entries (recorded);
        """,
        IDENTITY_MIGRATION,
        """
        CREATE TABLE entries_with_uploads (
            revision   BLOB    NOT NULL,
            owner      BLOB    NOT NULL CHECK (length(owner) = 16),
            role       TEXT    NOT NULL CHECK (role IN ('new', 'old')),
            state      TEXT    NOT NULL CHECK (state IN ('open', 'condemned', 'done')),
            epoch      INTEGER NOT NULL,
            sweeps     INTEGER NOT NULL,
            recorded   INTEGER NOT NULL,
            not_before INTEGER NOT NULL,
            upload     BLOB,  -- of an upload's own entry only: what its object is to be; empty once it is done
            PRIMARY KEY (revision, owner)
        ) STRICT;
        INSERT INTO entries_with_uploads (revision, owner, role, state, epoch, sweeps, recorded, not_before)
            SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before FROM entries;
        DROP TABLE entries;
        ALTER TABLE entries_with_uploads RENAME TO entries;
        CREATE INDEX entries_by_owner ON entries (owner);
        CREATE INDEX entries_by_not_before ON entries (not_before);
        CREATE INDEX entries_by_recorded ON entries (recorded, revision, owner);
        CREATE INDEX entries_of_operations ON entries (upload, recorded) WHERE upload IS NULL;
        CREATE INDEX entries_of_uploads ON entries (state, recorded) WHERE upload IS NOT NULL;
        CREATE INDEX entries_of_uploads_not_done ON entries (recorded, revision, owner)
            WHERE upload IS NOT NULL AND state != 'done';
        """,
    ),
)

_RECORD = """
    INSERT INTO entries (revision, owner, role, state, epoch, sweeps, recorded, not_before)
    VALUES (:revision, :owner, :role, 'open', 0, 0, :recorded, :not_before)
    ON CONFLICT (revision, owner) DO UPDATE
    SET state = 'open', epoch = epoch + (:again OR state = 'condemned'), sweeps = 0, not_before = excluded.not_before
    WHERE role = excluded.role AND (role = 'old' OR state = 'open')
    RETURNING 1
"""
_KEEP_NEW = """
    UPDATE entries SET epoch = epoch + 1
    WHERE revision = ? AND owner = ? AND role = 'new' AND state = 'open'
    RETURNING 1
"""
_FORGET_OTHER_OLD = "DELETE FROM entries WHERE owner = ? AND role = 'old' AND revision IS NOT ?"
_ROLE = "SELECT role FROM entries WHERE revision = ? AND owner = ?"
_DEFER_ALL = "UPDATE entries SET not_before = ? WHERE owner = ?"
_FORGET = "DELETE FROM entries WHERE owner = ?"
_EXPEDITE = "UPDATE entries SET not_before = ? WHERE owner = ? AND state = 'open'"
_CONDEMN = """
    UPDATE entries SET state = 'condemned', epoch = epoch + 1, not_before = ?
    WHERE revision = ? AND owner = ? AND state = ? AND epoch = ? AND state != 'done'
    RETURNING revision, owner, role, state, epoch, sweeps, recorded, not_before, upload
"""
_RESUME_LATER = """
    UPDATE entries SET epoch = epoch + 1, sweeps = sweeps + 1, not_before = ?
    WHERE revision = ? AND owner = ? AND state = ? AND epoch = ? AND state = 'condemned'
    RETURNING 1
"""
_FORGET_SETTLED = """
    DELETE FROM entries
    WHERE revision = ? AND owner = ? AND state = ? AND epoch = ? AND state != 'open'
    RETURNING 1
"""
_DUE = """
    SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before, upload
    FROM entries WHERE not_before <= ? ORDER BY not_before
"""
_FIND = """
    SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before, upload
    FROM entries WHERE revision = ? ORDER BY owner
"""
_LIST = """
    SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before, upload
    FROM entries INDEXED BY entries_by_recorded
    WHERE (recorded, revision, owner) > (?, ?, ?) ORDER BY recorded, revision, owner
"""
_LIST_UPLOADS = """
    SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before, upload
    FROM entries INDEXED BY entries_of_uploads_not_done
    WHERE (recorded, revision, owner) > (?, ?, ?) AND upload IS NOT NULL AND state != 'done'
    ORDER BY recorded, revision, owner
"""
_BEGIN_UPLOAD = """
    INSERT INTO entries (revision, owner, role, state, epoch, sweeps, recorded, not_before, upload)
    VALUES (?, ?, 'new', 'open', 0, 0, ?, ?, ?)
    ON CONFLICT (revision, owner) DO NOTHING
"""
_ADVANCE = """
    UPDATE entries SET upload = ?, not_before = max(not_before, ?)
    WHERE revision = ? AND owner = ? AND upload = ? AND state = 'open'
    RETURNING 1
"""
_IS_OLD = "SELECT 1 FROM entries WHERE revision = ? AND role = 'old' LIMIT 1"
_OWN = "SELECT state, sweeps FROM entries WHERE revision = ? AND owner = ? AND upload IS NOT NULL"
_CLAIM = """
    UPDATE entries SET epoch = epoch + 1, not_before = max(not_before, ?)
    WHERE revision = ? AND owner = ? AND upload IS NOT NULL AND state = 'open'
    RETURNING revision, owner, role, state, epoch, sweeps, recorded, not_before, upload
"""
_MARK_DONE = """
    UPDATE entries SET state = 'done', epoch = epoch + 1, not_before = ?, upload = x''
    WHERE revision = ? AND owner = ? AND upload IS NOT NULL AND state != 'done'
"""
_BACKLOG = """
    SELECT (SELECT count(*) FROM entries WHERE upload IS NULL),
           (SELECT min(recorded) FROM entries WHERE upload IS NULL),
           (SELECT count(*) FROM entries WHERE upload IS NOT NULL AND state = 'condemned'),
           (SELECT count(*) FROM entries WHERE upload IS NOT NULL AND state = 'open'),
           (SELECT count(*) FROM entries WHERE upload IS NOT NULL AND state = 'done')
"""
_BEFORE_ALL = (-(1 << 63), b"", b"")


_Parameters = tuple[bytes | int | str | None, ...]
_Row = tuple[bytes, bytes, str, str, int, int, int, int, bytes | None]


class SqliteChangeLog(ChangeLog):
    """A change log in one SQLite file. Built by `open`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    async def open(cls, path: Path, *, limits: Limits, clock: Clock) -> "SqliteChangeLog":
        """Open the change log at ``path``; create it, or bring it to this release's schema, if need be.

        Raises `StartupError` when the file is not a change log, is a newer release's, or cannot be used.
        """
        return cls(await Database.open(path, _SCHEMA, limits=limits, clock=clock), clock)

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        invariant(new is not None or old is not None, "a record names a revision")
        invariant(new != old, "a revision is not new and old for one owner")
        recorded = self._clock.now()

        def work(connection: Connection) -> None:
            if new is not None:
                _record(connection, new, owner, Role.NEW, recorded, not_before)
            if old is not None:
                _record(connection, old, owner, Role.OLD, recorded, not_before)

        await self._database.write(work)

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        invariant(new is None or new != old, "a revision is not new and old for one owner")
        recorded = self._clock.now()

        def work(connection: Connection) -> bool:
            if new is not None and not _changed(connection, _KEEP_NEW, (_name(new), owner.bytes)):
                return False
            connection.execute(_FORGET_OTHER_OLD, (owner.bytes, None if old is None else _name(old)))
            if old is not None:
                _record(connection, old, owner, Role.OLD, recorded, not_before, again=True)
            connection.execute(_DEFER_ALL, (not_before, owner.bytes))
            return True

        return await self._database.write(work)

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        row = (_name(revision), revision.uuid.bytes, self._clock.now(), not_before, upload)

        def work(connection: Connection) -> None:
            connection.execute(_BEGIN_UPLOAD, row)

        await self._database.write(work)

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        def work(connection: Connection) -> bool:
            row = (upload, not_before, _name(revision), revision.uuid.bytes, expected)
            return _changed(connection, _ADVANCE, row)

        return await self._database.write(work)

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        invariant(revision != old, "a revision is not new and old for one owner")
        own = (_name(revision), revision.uuid.bytes)
        recorded = self._clock.now()

        def work(connection: Connection) -> Claim:
            if connection.execute(_IS_OLD, own[:1]).fetchall():
                return Committed()
            claimed = cast("list[_Row]", connection.execute(_CLAIM, (not_before, *own)).fetchall())
            if not claimed:
                return _refusal(connection, own)
            connection.execute(_FORGET_OTHER_OLD, (owner.bytes, None if old is None else _name(old)))
            if old is not None:
                _record(connection, old, owner, Role.OLD, recorded, not_before, again=True)
            return Claimed(_entry(claimed[0]))

        return await self._database.write(work)

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        def work(connection: Connection) -> None:
            connection.execute(_MARK_DONE, (not_before, _name(revision), revision.uuid.bytes))

        await self._database.write(work)

    async def forget(self, owner: UUID) -> None:
        def work(connection: Connection) -> None:
            connection.execute(_FORGET, (owner.bytes,))

        await self._database.write(work)

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        def work(connection: Connection) -> None:
            connection.execute(_EXPEDITE, (not_before, owner.bytes))

        await self._database.write(work)

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        def work(connection: Connection) -> _Row | None:
            rows = cast("list[_Row]", connection.execute(_CONDEMN, (lease_until, *_seen(entry))).fetchall())
            return rows[0] if rows else None

        row = await self._database.write(work)
        return None if row is None else _entry(row)

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        def work(connection: Connection) -> bool:
            return _changed(connection, _RESUME_LATER, (not_before, *_seen(entry)))

        return await self._database.write(work)

    async def forget_settled(self, entry: Entry) -> bool:
        def work(connection: Connection) -> bool:
            return _changed(connection, _FORGET_SETTLED, _seen(entry))

        return await self._database.write(work)

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        def work(connection: Connection) -> Sequence[Entry]:
            with closing(connection.cursor()) as cursor:
                return readable(cast("Iterable[_Row]", cursor.execute(_DUE, (now,))), _entry, limit)

        return await self._database.read(work)

    async def find(self, revision: Revision) -> Sequence[Entry]:
        def work(connection: Connection) -> list[_Row]:
            return cast("list[_Row]", connection.execute(_FIND, (_name(revision),)).fetchall())

        return [_entry(row) for row in await self._database.read(work)]

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        last = _BEFORE_ALL if after is None else (after.recorded, _name(after.revision), after.owner.bytes)
        statement = _LIST_UPLOADS if uploads else _LIST

        def work(connection: Connection) -> Sequence[Entry]:
            with closing(connection.cursor()) as cursor:
                return readable(cast("Iterable[_Row]", cursor.execute(statement, last)), _entry, limit)

        return await self._database.read(work)

    async def backlog(self) -> Backlog:
        def work(connection: Connection) -> tuple[int, int | None, int, int, int]:
            counted = connection.execute(_BACKLOG).fetchall()[0]
            return cast("tuple[int, int | None, int, int, int]", counted)

        entries, oldest, condemned, uploads, outcomes = await self._database.read(work)
        return Backlog(entries=entries + condemned, oldest=oldest, uploads=uploads, outcomes=outcomes)

    async def identity(self) -> UUID | None:
        return await kept_identity(self._database)

    async def adopt(self, identity: UUID) -> UUID:
        return await keep_identity(self._database, identity)

    async def check(self) -> None:
        def work(connection: Connection) -> None:
            connection.execute("SELECT revision FROM entries LIMIT 1").fetchall()

        await self._database.read(work)

    async def close(self) -> None:
        await self._database.close()


def _record(
    connection: Connection,
    revision: Revision,
    owner: UUID,
    role: Role,
    recorded: UnixMicros,
    not_before: UnixMicros,
    *,
    again: bool = False,
) -> None:
    """Open the entry, new or in its owner's hands again; ``again`` makes a change of hands of it in any case."""
    row = {
        "revision": _name(revision),
        "owner": owner.bytes,
        "role": role.value,
        "recorded": recorded,
        "not_before": not_before,
        "again": again,
    }
    if not connection.execute(_RECORD, row).fetchall():
        held = connection.execute(_ROLE, (_name(revision), owner.bytes)).fetchall()
        invariant(held == [(role.value,)], "a revision is not new and old for one owner")
        raise GivenUp("this write was settled as abandoned (it took long, or an operator asked)")


def _refusal(connection: Connection, own: tuple[bytes, bytes]) -> Claim:
    """Why an upload cannot be claimed, by its own entry."""
    held = cast("list[tuple[str, int]]", connection.execute(_OWN, own).fetchall())
    if not held:
        return Unknown()
    state, sweeps = held[0]
    return Committed() if state == State.DONE.value else Condemned(swept=sweeps > 0)


def _changed(connection: Connection, statement: str, parameters: _Parameters) -> bool:
    """Run a statement that returns a row if its condition held. Drained, so that it does not hold up the commit."""
    return bool(connection.execute(statement, parameters).fetchall())


def _name(revision: Revision) -> bytes:
    return revision.storage_path.encode()


def _seen(entry: Entry) -> tuple[bytes, bytes, str, int]:
    """What must still be so for a change that is conditional on ``entry``."""
    return _name(entry.revision), entry.owner.bytes, entry.state.value, entry.epoch


def _entry(row: _Row) -> Entry:
    name, owner, role, state, epoch, sweeps, recorded, not_before, upload = row
    try:
        revision = Revision.from_storage_path(name.decode(), AS_STORED)
    except (InvalidRequest, UnicodeDecodeError) as error:
        raise CorruptObject(f"an entry of the change log names no revision: {name!r}") from error
    return Entry(
        revision=revision,
        owner=UUID(bytes=owner),
        role=Role(role),
        state=State(state),
        epoch=epoch,
        sweeps=sweeps,
        recorded=recorded,
        not_before=not_before,
        upload=upload,
    )
