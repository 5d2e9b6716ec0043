"""The tables of a store in PostgreSQL: how they come to be, and whether the server keeps what it is given.

Guarantees: of any number of processes that start at once, one brings the tables to this release's form, in one
transaction, under an advisory lock (of the transaction, so that poolers do not lose it), and the others find it done. A
schema of a newer release is refused, and so is a server that would acknowledge what it can lose.

Every store has a line in the table ``stores``: its number of migrations, and its identity. A role that may not create
anything will do, once the tables are there.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, cast
from uuid import UUID

import asyncpg

from tierstore.clock import Clock
from tierstore.errors import StartupError
from tierstore.limits import Limits
from tierstore.postgresql.errors import DRIVER_ERRORS, startup_error
from tierstore.postgresql.pool import Connection, Pool, Server

_SERVER_VERSION_MIN: Final = 14
_SETTINGS: Final = """
    SELECT current_setting('server_version_num')::int / 10000, current_setting('fsync'),
        current_setting('synchronous_commit'), current_setting('default_transaction_isolation')
"""


@dataclass(frozen=True, slots=True)
class Tables:
    """What a store keeps in a schema. A migration that was released is not changed any more; new ones are added.

    In statements, ``{schema}`` stands for the schema's name. A former release may be running while one of them is
    made, so that each leaves what that needs.
    """

    store: str
    """The store's name in the table ``stores``."""
    migrations: tuple[str, ...]


class Namespace:
    """The schema of a store, once it was prepared; and the identity that the store keeps there."""

    def __init__(self, pool: Pool, schema: str, store: str) -> None:
        self._pool = pool
        self._store = store
        self._identity = statement(_IDENTITY, schema)
        self._adopt = statement(_ADOPT, schema)

    async def identity(self) -> UUID | None:
        """The identity, if there is one."""
        [(identity,)] = await self._pool.read(self._identity, self._store)
        return cast("UUID | None", identity)

    async def adopt(self, identity: UUID) -> UUID:
        """Keep ``identity`` unless there is one; return the one that is kept."""
        [(kept,)] = await self._pool.write(self._adopt, self._store, identity)
        return cast("UUID", kept)


async def prepared(pool: Pool, schema: str, tables: Tables, limits: Limits) -> Namespace:
    """Check the server, and make or migrate ``tables`` in ``schema``. Raises `StartupError`."""
    connection = await pool.take()
    try:
        await _check_server(connection, pool.place)
        found = await _version(connection, schema, tables.store)
        if found < len(tables.migrations):
            await _migrate(connection, pool.place, schema, tables, limits)
        elif found > len(tables.migrations):
            raise _newer(pool.place, schema)
    except DRIVER_ERRORS as error:
        raise startup_error(error, place=pool.place) from error
    finally:
        pool.give_back(connection)
    return Namespace(pool, schema, tables.store)


async def opened(
    server: Server, schema: str, tables: Tables, *, limits: Limits, clock: Clock
) -> tuple[Pool, Namespace]:
    """Connect, and do what `prepared` does. Raises `StartupError`."""
    pool = await Pool.open(server, limits=limits, clock=clock, name=tables.store)
    try:
        return pool, await prepared(pool, schema, tables, limits)
    except BaseException:
        await pool.close()
        raise


def quoted(name: str) -> str:
    """An identifier as it stands in statements (PostgreSQL manual, 4.1.1), whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def statement(text: str, schema: str, columns: str = "") -> str:
    """The statement with the schema's name in it, and the names of columns."""
    return text.replace("{schema}", quoted(schema)).replace("{columns}", columns)


async def _check_server(connection: Connection, place: str) -> None:
    """Refuse a server whose settings break what the statements rely on."""
    [(version, fsync, synchronous_commit, isolation)] = await connection.fetch(_SETTINGS)
    if version < _SERVER_VERSION_MIN:
        raise StartupError(f"PostgreSQL at {place} is too old: {_SERVER_VERSION_MIN} or newer is needed")
    if fsync != "on":
        raise StartupError(f"PostgreSQL at {place} has fsync = off, and would lose what it has acknowledged")
    if synchronous_commit == "off":
        raise StartupError(
            f"PostgreSQL at {place} has synchronous_commit = off for this user, and would lose what it has "
            "acknowledged: ALTER ROLE … SET synchronous_commit = on"
        )
    if isolation != "read committed":
        raise StartupError(
            f"PostgreSQL at {place} has default_transaction_isolation = {isolation} for this user, with which "
            "concurrent writes fail: ALTER ROLE … SET default_transaction_isolation = 'read committed'"
        )


async def _version(connection: Connection, schema: str, store: str) -> int:
    """How many migrations the store has had."""
    try:
        found = await connection.fetchval(
            statement("SELECT version FROM {schema}.stores WHERE store = $1", schema), store
        )
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return 0
    return cast("int", found or 0)


async def _migrate(connection: Connection, place: str, schema: str, tables: Tables, limits: Limits) -> None:
    patience = limits.postgres_migration_seconds_max
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{round(patience)}s'")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _lock_of(schema), timeout=patience)
        if await connection.fetchval("SELECT to_regnamespace($1)", quoted(schema)) is None:
            await connection.execute(statement("CREATE SCHEMA {schema}", schema))
        if await connection.fetchval("SELECT to_regclass($1)", f"{quoted(schema)}.stores") is None:
            await connection.execute(statement(_STORES, schema))
        found = await _version(connection, schema, tables.store)
        if found > len(tables.migrations):  # a newer release was first, while this one waited
            raise _newer(place, schema)
        for migration in tables.migrations[found:]:
            await connection.execute(statement(migration, schema), timeout=patience)
        await connection.execute(statement(_KEEP_VERSION, schema), tables.store, len(tables.migrations))


_STORES = """
    CREATE TABLE {schema}.stores (
        store text PRIMARY KEY,
        version integer NOT NULL,
        identity uuid
    )
"""
_KEEP_VERSION = """
    INSERT INTO {schema}.stores AS kept (store, version) VALUES ($1, $2)
    ON CONFLICT (store) DO UPDATE SET version = greatest(kept.version, excluded.version)
"""
_IDENTITY = "SELECT identity FROM {schema}.stores WHERE store = $1"
_ADOPT = "UPDATE {schema}.stores SET identity = coalesce(identity, $2) WHERE store = $1 RETURNING identity"


def _lock_of(schema: str) -> int:
    """The key of the advisory lock under which a schema is migrated."""
    return int.from_bytes(hashlib.sha256(f"tierstore {schema}".encode()).digest()[:8], signed=True)


def _newer(place: str, schema: str) -> StartupError:
    return StartupError(f"the schema {schema} of PostgreSQL at {place} is of a newer release of tierstore")
