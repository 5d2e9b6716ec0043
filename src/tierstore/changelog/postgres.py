"""The change log in a PostgreSQL database, for any number of servers.

Guarantees what `tierstore.changelog.contract` says. Each method is one statement, which is a transaction of its own and
one round trip (see `tierstore.postgresql.pool`), and is durable when it returns. What changes one entry, or all of one
owner, is a plain statement, whose conditions PostgreSQL looks at again when it had to wait for an entry. What has
several steps is a function in the database, because data-modifying subqueries of one statement do not see each other's
changes: it takes the locks first and looks then, with a new snapshot for each step.

`claim` must not miss that its revision is recorded as old at the same moment, by an entry that is not there to be
locked. So both take an advisory lock on the revision, until they are committed.

An entry is found by the SHA-256 of its revision's storage path, which may be longer than an index can take.
"""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.entries import Backlog, Claim, Claimed, Committed, Condemned, Entry, Role, State, Unknown
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import CorruptObject, GivenUp, InvalidRequest
from tierstore.invariants import invariant
from tierstore.limits import Limits
from tierstore.postgresql.listing import listed
from tierstore.postgresql.names import digest_of
from tierstore.postgresql.pool import Pool, Record, Server
from tierstore.postgresql.schema import Namespace, Tables, opened, statement
from tierstore.types.ids import AS_STORED, Revision

TABLES = Tables(
    "change_log",
    (
        """
        CREATE TABLE {schema}.entries (
            recorded bigint NOT NULL,    -- microseconds since the Unix epoch
            not_before bigint NOT NULL,  -- likewise
            epoch integer NOT NULL,
            sweeps integer NOT NULL,
            owner uuid NOT NULL,
            role text NOT NULL CHECK (role IN ('new', 'old')),
            state text NOT NULL CHECK (state IN ('open', 'condemned', 'done')),
            digest bytea NOT NULL,       -- SHA-256 of the storage path
            revision bytea NOT NULL,     -- storage path, UTF-8
            upload bytea,                -- of an upload's own entry: what its object is to be; empty once it is done
            PRIMARY KEY (digest, owner)
        ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
        CREATE INDEX entries_by_owner ON {schema}.entries (owner);
        CREATE INDEX entries_by_not_before ON {schema}.entries (not_before);
        CREATE INDEX entries_of_operations ON {schema}.entries (recorded) WHERE upload IS NULL;
        CREATE INDEX entries_of_uploads ON {schema}.entries (state, recorded) WHERE upload IS NOT NULL;

        -- The functions' names end in a number: one that has to change gets a new name, for the former release.

        CREATE FUNCTION {schema}.lock_of_1(digest bytea) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT AS $body$
            SELECT ('x' || encode(substring(digest FOR 8), 'hex'))::bit(64)::bigint
        $body$;

        -- Opens ``owner``'s entry of role old, new or in its hands again; ``again`` makes a change of hands of it.
        CREATE FUNCTION {schema}.record_old_1(
            owner_ uuid, digest_ bytea, revision_ bytea, recorded_ bigint, not_before_ bigint, again boolean
        ) RETURNS void LANGUAGE plpgsql AS $body$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared({schema}.lock_of_1(digest_));
            INSERT INTO {schema}.entries AS held
                (recorded, not_before, epoch, sweeps, owner, role, state, digest, revision)
            VALUES (recorded_, not_before_, 0, 0, owner_, 'old', 'open', digest_, revision_)
            ON CONFLICT (digest, owner) DO UPDATE SET state = 'open', sweeps = 0, not_before = excluded.not_before,
                epoch = held.epoch + (again OR held.state = 'condemned')::int
            WHERE held.role = 'old';
            IF NOT FOUND THEN
                RAISE 'a revision is not new and old for one owner' USING ERRCODE = 'TS001';
            END IF;
        END
        $body$;

        -- Returns false, and has changed nothing, if the entry of role new was taken over by a sweeper.
        CREATE FUNCTION {schema}.record_1(
            owner_ uuid, new_digest bytea, new_revision bytea, old_digest bytea, old_revision bytea, recorded_ bigint,
            not_before_ bigint
        ) RETURNS boolean LANGUAGE plpgsql AS $body$
        BEGIN
            IF new_digest IS NOT NULL THEN
                INSERT INTO {schema}.entries AS held
                    (recorded, not_before, epoch, sweeps, owner, role, state, digest, revision)
                VALUES (recorded_, not_before_, 0, 0, owner_, 'new', 'open', new_digest, new_revision)
                ON CONFLICT (digest, owner) DO UPDATE SET sweeps = 0, not_before = excluded.not_before
                WHERE held.role = 'new' AND held.state = 'open';
                IF NOT FOUND THEN  -- and it is locked, so that it is still what it was
                    PERFORM FROM {schema}.entries WHERE digest = new_digest AND owner = owner_ AND role = 'new';
                    IF FOUND THEN
                        RETURN false;
                    END IF;
                    RAISE 'a revision is not new and old for one owner' USING ERRCODE = 'TS001';
                END IF;
            END IF;
            IF old_digest IS NOT NULL THEN
                PERFORM {schema}.record_old_1(owner_, old_digest, old_revision, recorded_, not_before_, false);
            END IF;
            RETURN true;
        END
        $body$;

        CREATE FUNCTION {schema}.replace_old_1(
            owner_ uuid, old_digest bytea, old_revision bytea, recorded_ bigint, not_before_ bigint
        ) RETURNS void LANGUAGE plpgsql AS $body$
        BEGIN
            DELETE FROM {schema}.entries
            WHERE owner = owner_ AND role = 'old' AND digest IS DISTINCT FROM old_digest;
            IF old_digest IS NOT NULL THEN
                PERFORM {schema}.record_old_1(owner_, old_digest, old_revision, recorded_, not_before_, true);
            END IF;
        END
        $body$;

        -- Returns false, and has changed nothing, if the entry of role new is not there and open.
        CREATE FUNCTION {schema}.record_again_1(
            owner_ uuid, new_digest bytea, old_digest bytea, old_revision bytea, recorded_ bigint, not_before_ bigint
        ) RETURNS boolean LANGUAGE plpgsql AS $body$
        BEGIN
            IF new_digest IS NOT NULL THEN
                UPDATE {schema}.entries SET epoch = epoch + 1
                WHERE digest = new_digest AND owner = owner_ AND role = 'new' AND state = 'open';
                IF NOT FOUND THEN
                    RETURN false;
                END IF;
            END IF;
            PERFORM {schema}.replace_old_1(owner_, old_digest, old_revision, recorded_, not_before_);
            UPDATE {schema}.entries SET not_before = not_before_ WHERE owner = owner_;
            RETURN true;
        END
        $body$;

        CREATE FUNCTION {schema}.claim_1(
            digest_ bytea, upload_owner uuid, owner_ uuid, old_digest bytea, old_revision bytea, recorded_ bigint,
            not_before_ bigint
        ) RETURNS TABLE (
            claim text, epoch integer, sweeps integer, recorded bigint, not_before bigint, upload bytea
        ) LANGUAGE plpgsql AS $body$
        #variable_conflict use_column
        DECLARE
            held {schema}.entries;
        BEGIN
            PERFORM pg_advisory_xact_lock({schema}.lock_of_1(digest_));
            SELECT * INTO held FROM {schema}.entries
            WHERE digest = digest_ AND owner = upload_owner AND upload IS NOT NULL FOR UPDATE;
            IF EXISTS (SELECT FROM {schema}.entries WHERE digest = digest_ AND role = 'old') THEN
                claim := 'committed';
            ELSIF held.state IS NULL THEN
                claim := 'unknown';
            ELSIF held.state = 'done' THEN
                claim := 'committed';
            ELSIF held.state = 'condemned' THEN
                claim := CASE WHEN held.sweeps > 0 THEN 'swept' ELSE 'condemned' END;
            ELSE
                PERFORM {schema}.replace_old_1(owner_, old_digest, old_revision, recorded_, not_before_);
                RETURN QUERY UPDATE {schema}.entries
                    SET epoch = epoch + 1, not_before = greatest(not_before, not_before_)
                    WHERE digest = digest_ AND owner = upload_owner
                    RETURNING 'claimed', epoch, sweeps, recorded, not_before, upload;
                RETURN;
            END IF;
            RETURN NEXT;
        END
        $body$;
        """,
    ),
)

_RECORD = "SELECT {schema}.record_1($1, $2, $3, $4, $5, $6, $7)"
_RECORD_AGAIN = "SELECT {schema}.record_again_1($1, $2, $3, $4, $5, $6)"
_CLAIM = "SELECT * FROM {schema}.claim_1($1, $2, $3, $4, $5, $6, $7)"
_BEGIN_UPLOAD = """
    INSERT INTO {schema}.entries
        (digest, owner, revision, role, state, epoch, sweeps, recorded, not_before, upload)
    VALUES ($1, $2, $3, 'new', 'open', 0, 0, $4, $5, $6)
    ON CONFLICT (digest, owner) DO NOTHING
"""
_ADVANCE = """
    UPDATE {schema}.entries SET upload = $4, not_before = greatest(not_before, $5)
    WHERE digest = $1 AND owner = $2 AND upload = $3 AND state = 'open'
    RETURNING 1
"""
_MARK_DONE = """
    UPDATE {schema}.entries SET state = 'done', epoch = epoch + 1, not_before = $3, upload = ''
    WHERE digest = $1 AND owner = $2 AND upload IS NOT NULL AND state != 'done'
"""
_FORGET = "DELETE FROM {schema}.entries WHERE owner = $1"
_EXPEDITE = "UPDATE {schema}.entries SET not_before = $2 WHERE owner = $1 AND state = 'open'"
_CONDEMN = """
    UPDATE {schema}.entries SET state = 'condemned', epoch = epoch + 1, not_before = $5
    WHERE digest = $1 AND owner = $2 AND state = $3 AND epoch = $4 AND state != 'done'
    RETURNING {columns}
"""
_RESUME_LATER = """
    UPDATE {schema}.entries SET epoch = epoch + 1, sweeps = sweeps + 1, not_before = $5
    WHERE digest = $1 AND owner = $2 AND state = $3 AND epoch = $4 AND state = 'condemned'
    RETURNING 1
"""
_FORGET_SETTLED = """
    DELETE FROM {schema}.entries
    WHERE digest = $1 AND owner = $2 AND state = $3 AND epoch = $4 AND state != 'open'
    RETURNING 1
"""
_DUE = "SELECT {columns} FROM {schema}.entries WHERE not_before <= $1 ORDER BY not_before LIMIT $2 OFFSET $3"
_FIND = "SELECT {columns} FROM {schema}.entries WHERE digest = $1 ORDER BY owner"
# Of parts that an index has in the order of recording.
_LIST = """
    SELECT * FROM (
        SELECT {columns} FROM {schema}.entries
        WHERE upload IS NULL AND NOT $4::boolean AND (recorded, revision, owner) > ($1, $2, $3)
        UNION ALL SELECT {columns} FROM {schema}.entries
        WHERE upload IS NOT NULL AND state = 'open' AND (recorded, revision, owner) > ($1, $2, $3)
        UNION ALL SELECT {columns} FROM {schema}.entries
        WHERE upload IS NOT NULL AND state = 'condemned' AND (recorded, revision, owner) > ($1, $2, $3)
        UNION ALL SELECT {columns} FROM {schema}.entries
        WHERE upload IS NOT NULL AND state = 'done' AND NOT $4 AND (recorded, revision, owner) > ($1, $2, $3)
    ) AS entries ORDER BY recorded, revision, owner LIMIT $5 OFFSET $6
"""
_BACKLOG = """
    SELECT (SELECT count(*) FROM {schema}.entries WHERE upload IS NULL),
        (SELECT min(recorded) FROM {schema}.entries WHERE upload IS NULL),
        (SELECT count(*) FROM {schema}.entries WHERE upload IS NOT NULL AND state = 'condemned'),
        (SELECT count(*) FROM {schema}.entries WHERE upload IS NOT NULL AND state = 'open'),
        (SELECT count(*) FROM {schema}.entries WHERE upload IS NOT NULL AND state = 'done')
"""
_CHECK = "SELECT 1 FROM {schema}.entries LIMIT 1"
_COLUMNS = "revision, owner, role, state, epoch, sweeps, recorded, not_before, upload"
_BEFORE_ALL = (-(1 << 63), b"", UUID(int=0))


class PostgresChangeLog(ChangeLog):
    """A change log in a schema of a PostgreSQL database. Built by `open`."""

    def __init__(self, pool: Pool, namespace: Namespace, schema: str, clock: Clock) -> None:
        self._pool = pool
        self._namespace = namespace
        self._clock = clock
        self._record = statement(_RECORD, schema)
        self._record_again = statement(_RECORD_AGAIN, schema)
        self._claim = statement(_CLAIM, schema)
        self._begin_upload = statement(_BEGIN_UPLOAD, schema)
        self._advance = statement(_ADVANCE, schema)
        self._mark_done = statement(_MARK_DONE, schema)
        self._forget = statement(_FORGET, schema)
        self._expedite = statement(_EXPEDITE, schema)
        self._condemn = statement(_CONDEMN, schema, _COLUMNS)
        self._resume_later = statement(_RESUME_LATER, schema)
        self._forget_settled = statement(_FORGET_SETTLED, schema)
        self._due = statement(_DUE, schema, _COLUMNS)
        self._find = statement(_FIND, schema, _COLUMNS)
        self._list = statement(_LIST, schema, _COLUMNS)
        self._backlog = statement(_BACKLOG, schema)
        self._check = statement(_CHECK, schema)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        schema: str = "tierstore",
        connections_max: int = 8,
        timeout_seconds: float = 10.0,
        prepared_statements: bool = True,
        limits: Limits,
        clock: Clock,
    ) -> "PostgresChangeLog":
        """Connect, and make or migrate the tables in ``schema`` as needed. Raises `StartupError`.

        ``prepared_statements`` is to be false behind a transaction pooler that does not keep them; every call has two
        round trips then.
        """
        server = Server(
            url=url,
            connections_max=connections_max,
            timeout_seconds=timeout_seconds,
            prepared_statements=prepared_statements,
        )
        pool, namespace = await opened(server, schema, TABLES, limits=limits, clock=clock)
        return cls(pool, namespace, schema, clock)

    async def record(self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros) -> None:
        invariant(new is not None or old is not None, "a record names a revision")
        invariant(new != old, "a revision is not new and old for one owner")
        times = self._clock.now(), not_before
        [(recorded,)] = await self._pool.write(self._record, owner, *_names(new), *_names(old), *times)
        if not recorded:
            raise GivenUp("this write was settled as abandoned (it took long, or an operator asked)")

    async def record_again(
        self, owner: UUID, *, new: Revision | None, old: Revision | None, not_before: UnixMicros
    ) -> bool:
        invariant(new is None or new != old, "a revision is not new and old for one owner")
        digest, _ = _names(new)
        times = self._clock.now(), not_before
        [(recorded,)] = await self._pool.write(self._record_again, owner, digest, *_names(old), *times)
        return cast("bool", recorded)

    async def begin_upload(self, revision: Revision, upload: bytes, not_before: UnixMicros) -> None:
        digest, path = _names(revision)
        times = self._clock.now(), not_before
        await self._pool.write(self._begin_upload, digest, revision.uuid, path, *times, upload)

    async def advance(self, revision: Revision, expected: bytes, upload: bytes, not_before: UnixMicros) -> bool:
        digest, _ = _names(revision)
        return bool(await self._pool.write(self._advance, digest, revision.uuid, expected, upload, not_before))

    async def claim(self, revision: Revision, owner: UUID, *, old: Revision | None, not_before: UnixMicros) -> Claim:
        invariant(revision != old, "a revision is not new and old for one owner")
        digest, _ = _names(revision)
        times = self._clock.now(), not_before
        [(claim, epoch, sweeps, recorded, claimed_not_before, upload)] = await self._pool.write(
            self._claim, digest, revision.uuid, owner, *_names(old), *times
        )
        if claim == "committed":
            return Committed()
        if claim == "unknown":
            return Unknown()
        if claim in {"condemned", "swept"}:
            return Condemned(swept=claim == "swept")
        return Claimed(
            Entry(
                revision=revision,
                owner=revision.uuid,
                role=Role.NEW,
                state=State.OPEN,
                epoch=epoch,
                sweeps=sweeps,
                recorded=recorded,
                not_before=claimed_not_before,
                upload=upload,
            )
        )

    async def mark_done(self, revision: Revision, not_before: UnixMicros) -> None:
        digest, _ = _names(revision)
        await self._pool.write(self._mark_done, digest, revision.uuid, not_before)

    async def forget(self, owner: UUID) -> None:
        await self._pool.write(self._forget, owner)

    async def expedite(self, owner: UUID, not_before: UnixMicros) -> None:
        await self._pool.write(self._expedite, owner, not_before)

    async def condemn(self, entry: Entry, lease_until: UnixMicros) -> Entry | None:
        records = await self._pool.write(self._condemn, *_seen(entry), lease_until)
        return _entry(records[0]) if records else None

    async def resume_later(self, entry: Entry, not_before: UnixMicros) -> bool:
        return bool(await self._pool.write(self._resume_later, *_seen(entry), not_before))

    async def forget_settled(self, entry: Entry) -> bool:
        return bool(await self._pool.write(self._forget_settled, *_seen(entry)))

    async def due(self, now: UnixMicros, limit: int) -> Sequence[Entry]:
        return await listed(self._pool, self._due, (now,), _entry, limit)

    async def find(self, revision: Revision) -> Sequence[Entry]:
        digest, _ = _names(revision)
        return [_entry(record) for record in await self._pool.read(self._find, digest)]

    async def list(self, after: Entry | None, limit: int, *, uploads: bool = False) -> Sequence[Entry]:
        last = _BEFORE_ALL if after is None else (after.recorded, after.revision.storage_path.encode(), after.owner)
        return await listed(self._pool, self._list, (*last, uploads), _entry, limit)

    async def backlog(self) -> Backlog:
        [(entries, oldest, condemned, uploads, outcomes)] = await self._pool.read(self._backlog)
        return Backlog(entries=entries + condemned, oldest=oldest, uploads=uploads, outcomes=outcomes)

    async def identity(self) -> UUID | None:
        return await self._namespace.identity()

    async def adopt(self, identity: UUID) -> UUID:
        return await self._namespace.adopt(identity)

    async def check(self) -> None:
        await self._pool.read(self._check)

    async def close(self) -> None:
        await self._pool.close()


def _names(revision: Revision | None) -> tuple[bytes, bytes] | tuple[None, None]:
    """What an entry of the revision is found by, and the name that it keeps."""
    if revision is None:
        return None, None
    path = revision.storage_path.encode()
    return digest_of(path), path


def _seen(entry: Entry) -> tuple[bytes | None, UUID, str, int]:
    """What must still be so for a change that is conditional on ``entry``."""
    return _names(entry.revision)[0], entry.owner, entry.state.value, entry.epoch


def _entry(record: Record) -> Entry:
    path, owner, role, state, epoch, sweeps, recorded, not_before, upload = record
    try:
        revision = Revision.from_storage_path(path.decode(), AS_STORED)
    except (InvalidRequest, UnicodeDecodeError) as error:
        raise CorruptObject(f"an entry of the change log names no revision: {path!r}") from error
    return Entry(
        revision=revision,
        owner=owner,
        role=Role(role),
        state=State(state),
        epoch=epoch,
        sweeps=sweeps,
        recorded=recorded,
        not_before=not_before,
        upload=upload,
    )
