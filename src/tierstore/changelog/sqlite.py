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
from tierstore.changelog.entries import Backlog, Entry, Role, State
from tierstore.clock import Clock, UnixMicros
from tierstore.embedded.database import Connection, Database, Schema
from tierstore.embedded.identity import MIGRATION as IDENTITY_MIGRATION
from tierstore.embedded.identity import keep_identity, kept_identity
from tierstore.embedded.listing import readable
from tierstore.errors import CorruptObject, GivenUp, InvalidRequest
from tierstore.invariants import invariant
from tierstore.limits import Limits
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
    WHERE revision = ? AND owner = ? AND state = ? AND epoch = ?
    RETURNING revision, owner, role, state, epoch, sweeps, recorded, not_before
"""
_RESUME_LATER = """
    UPDATE entries SET epoch = epoch + 1, sweeps = sweeps + 1, not_before = ?
    WHERE revision = ? AND owner = ? AND state = ? AND epoch = ? AND state = 'condemned'
    RETURNING 1
"""
_FORGET_CONDEMNED = """
    DELETE FROM entries
    WHERE revision = ? AND owner = ? AND state = ? AND epoch = ? AND state = 'condemned'
    RETURNING 1
"""
_DUE = """
    SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before
    FROM entries WHERE not_before <= ? ORDER BY not_before
"""
_FIND = """
    SELECT revision, owner, role, state, epoch, sweeps, recorded, not_before
    FROM entries WHERE revision = ? ORDER BY owner
"""
_BACKLOG = "SELECT (SELECT count(*) FROM entries), (SELECT min(recorded) FROM entries)"


_Parameters = tuple[bytes | int | str | None, ...]
_Row = tuple[bytes, bytes, str, str, int, int, int, int]


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

    async def forget_condemned(self, entry: Entry) -> bool:
        def work(connection: Connection) -> bool:
            return _changed(connection, _FORGET_CONDEMNED, _seen(entry))

        return await self._database.write(work)

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        def work(connection: Connection) -> list[Entry]:
            with closing(connection.cursor()) as cursor:
                return readable(cast("Iterable[_Row]", cursor.execute(_DUE, (now,))), _entry, limit)

        return await self._database.read(work)

    async def find(self, revision: Revision) -> Sequence[Entry]:
        def work(connection: Connection) -> list[_Row]:
            return cast("list[_Row]", connection.execute(_FIND, (_name(revision),)).fetchall())

        return [_entry(row) for row in await self._database.read(work)]

    async def backlog(self) -> Backlog:
        def work(connection: Connection) -> tuple[int, int | None]:
            return cast("tuple[int, int | None]", connection.execute(_BACKLOG).fetchall()[0])

        entries, oldest = await self._database.read(work)
        return Backlog(entries=entries, oldest=oldest)

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
        raise GivenUp("this write took so long that it was settled as abandoned")


def _changed(connection: Connection, statement: str, parameters: _Parameters) -> bool:
    """Run a statement that returns a row if its condition held. Drained, so that it does not hold up the commit."""
    return bool(connection.execute(statement, parameters).fetchall())


def _name(revision: Revision) -> bytes:
    return revision.storage_path.encode()


def _seen(entry: Entry) -> tuple[bytes, bytes, str, int]:
    """What must still be so for a change that is conditional on ``entry``."""
    return _name(entry.revision), entry.owner.bytes, entry.state.value, entry.epoch


def _entry(row: _Row) -> Entry:
    name, owner, role, state, epoch, sweeps, recorded, not_before = row
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
    )
