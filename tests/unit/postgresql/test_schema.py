"""How the tables come to be, and which servers, roles and schemas are refused."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.engines.postgres import GUARDED, Postgres
from tests.unit.postgresql.conftest import Opener, Raw
from tierstore.backends.high_volume import postgres as high_volume
from tierstore.backends.high_volume.postgres import PostgresHighVolume
from tierstore.changelog import postgres as change_log
from tierstore.changelog.postgres import PostgresChangeLog
from tierstore.clock import SystemClock
from tierstore.errors import StartupError
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.postgresql.schema import Tables, prepared, quoted, statement
from tierstore.testing.laws.high_volume import INLINE, object_named

ONE = Tables("planted", ("CREATE TABLE {schema}.things (number integer)",))
TWO = Tables("planted", (*ONE.migrations, "ALTER TABLE {schema}.things ADD COLUMN name text DEFAULT 'none'"))


@dataclass
class Role:
    """A user of the server, and where it connects."""

    name: str
    url: str


@pytest.fixture
async def role(postgres: Postgres, raw: Raw) -> AsyncIterator[Role]:
    """A user that may connect, and no more."""
    name = f"user_{postgres.new_schema()}"
    await raw.execute(f"CREATE ROLE {name} LOGIN")
    yield Role(name, postgres.url_for(user=name))
    await raw.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


async def opened(url: str, schema: str) -> PostgresHighVolume:
    """A high-volume store."""
    return await PostgresHighVolume.open(
        url, schema=schema, timeout_seconds=5.0, limits=Limits(), clock=SystemClock(), ids=SystemIds()
    )


async def opened_log(url: str, schema: str) -> PostgresChangeLog:
    """A change log."""
    return await PostgresChangeLog.open(url, schema=schema, timeout_seconds=5.0, limits=Limits(), clock=SystemClock())


async def refusal(url: str, schema: str) -> str:
    """What an operator is told who cannot open the store."""
    with pytest.raises(StartupError) as refused:
        await opened(url, schema)
    return str(refused.value)


# Migrations


@pytest.mark.parametrize("schema", ["plain", 'Quoted "name"', "with.dot", "ünïcode", "select"])
def test_a_schemas_name_is_quoted(schema: str) -> None:
    """Whatever it is, it stands in statements as one identifier."""
    assert quoted(schema) == f'"{schema.replace(chr(34), chr(34) * 2)}"'
    assert statement("SELECT {columns} FROM {schema}.t", schema, "a, b") == f"SELECT a, b FROM {quoted(schema)}.t"


@pytest.mark.parametrize("schema", ['Quoted "name"', "with.dot", "ünïcode", "select"])
async def test_a_schema_may_have_any_name(postgres: Postgres, raw: Raw, schema: str) -> None:
    """The tables are made in it, are found again, and nowhere else."""
    for _ in range(2):
        store, log = await opened(postgres.url, schema), await opened_log(postgres.url, schema)
        await store.put_inline(object_named("it"), INLINE, None)
        assert (await log.backlog()).entries == 0
        await store.close()
        await log.close()
    tables = await raw.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = $1", schema)
    assert {table["table_name"] for table in tables} == {"stores", "rows", "entries"}
    await raw.execute(f"DROP SCHEMA {quoted(schema)} CASCADE")


async def test_many_that_start_at_once_make_the_tables_once(postgres: Postgres) -> None:
    """Stores of both kinds, from any number of processes: all open, and share what one of them made."""
    schema = postgres.new_schema()
    both = [asyncio.gather(opened(postgres.url, schema), opened_log(postgres.url, schema)) for _ in range(6)]
    stores = [store for pair in await asyncio.gather(*both) for store in pair]
    for store in stores:
        await store.check()
        await store.close()


async def test_migrations_follow_each_other(postgres: Postgres, pool_of: Opener, raw: Raw) -> None:
    """A newer release adds what it needs to what is there, once; an older one refuses what it does not know."""
    pool, schema = await pool_of(2), postgres.new_schema()
    await prepared(pool, schema, ONE, Limits())
    await raw.execute(f"INSERT INTO {schema}.things VALUES (7)")
    for _ in range(2):
        await prepared(pool, schema, TWO, Limits())
        assert [tuple(row) for row in await raw.fetch(f"SELECT * FROM {schema}.things")] == [(7, "none")]
    with pytest.raises(StartupError, match="newer release"):
        await prepared(pool, schema, ONE, Limits())


async def test_a_migration_that_fails_leaves_nothing(postgres: Postgres, pool_of: Opener, raw: Raw) -> None:
    """Neither half of the tables, nor the lock: a later one starts from the beginning."""
    pool, schema = await pool_of(2), postgres.new_schema()
    broken = Tables("planted", (*ONE.migrations, "ALTER TABLE {schema}.absent ADD COLUMN name text"))
    with pytest.raises(StartupError, match="absent"):
        await prepared(pool, schema, broken, Limits())
    assert await raw.fetchval("SELECT to_regnamespace($1)", schema) is None
    await prepared(pool, schema, TWO, Limits())


async def test_waiting_for_anothers_migration_has_an_end(postgres: Postgres, pool_of: Opener, raw: Raw) -> None:
    """Who cannot have the lock in time says so."""
    pool, schema = await pool_of(), postgres.new_schema()
    limits = Limits(postgres_migration_seconds_max=1.0)
    async with raw.transaction():
        await raw.execute("SELECT pg_advisory_xact_lock($1)", _lock(schema))
        with pytest.raises(StartupError, match=r"migrating|in time"):
            await prepared(pool, schema, ONE, limits)
    await prepared(pool, schema, ONE, limits)


async def test_who_waits_for_a_newer_release_refuses_what_it_has_made(
    postgres: Postgres, pool_of: Opener, raw: Raw
) -> None:
    """Also if there was nothing when it looked first."""
    pool, schema = await pool_of(), postgres.new_schema()
    async with raw.transaction():
        await raw.execute("SELECT pg_advisory_xact_lock($1)", _lock(schema))
        older = asyncio.ensure_future(prepared(pool, schema, ONE, Limits()))
        await asyncio.sleep(0.1)
        await raw.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.stores (store text, version int)")
        await raw.execute(f"INSERT INTO {schema}.stores VALUES ('planted', 2)")
    with pytest.raises(StartupError, match="newer release"):
        await older


def _lock(schema: str) -> int:
    from tierstore.postgresql.schema import _lock_of  # noqa: PLC0415  # because it is nobody else's business

    return _lock_of(schema)


def test_released_migrations_have_not_changed() -> None:
    """What a release has made stays as it was: a change is a migration of its own, behind the others."""
    assert (len(high_volume.TABLES.migrations), len(change_log.TABLES.migrations)) == (1, 1)


# Roles and servers


async def test_a_role_that_may_create_nothing_uses_what_is_there(postgres: Postgres, raw: Raw, role: Role) -> None:
    """It is told what it lacks; with the tables made by another and the grants of the manual, it can do everything."""
    schema = postgres.new_schema()
    told = await refusal(role.url, schema)
    assert "permission denied" in told
    assert "grant" in told
    await (await opened(postgres.url, schema)).close()
    await (await opened_log(postgres.url, schema)).close()
    assert "permission denied" in await refusal(role.url, schema)
    with pytest.raises(StartupError, match="permission denied"):
        await opened_log(role.url, schema)
    await raw.execute(
        f"GRANT USAGE ON SCHEMA {schema} TO {role.name};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role.name}"
    )
    store, log = await opened(role.url, schema), await opened_log(role.url, schema)
    await store.put_inline(object_named("it"), INLINE, None)
    assert await store.delete_inline(object_named("it")) is None
    await store.adopt(SystemIds().uuid())
    assert await log.due(0, 1) == []
    await store.close()
    await log.close()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("synchronous_commit = off", "synchronous_commit = off for this user"),
        ("default_transaction_isolation = 'serializable'", "default_transaction_isolation = serializable"),
        ("default_transaction_isolation = 'repeatable read'", "default_transaction_isolation = repeatable read"),
        ("default_transaction_read_only = on", "name the primary"),
    ],
)
async def test_settings_that_break_what_is_promised(
    postgres: Postgres, raw: Raw, role: Role, setting: str, told: str
) -> None:
    """A user with such settings is refused, with what to do."""
    await raw.execute(f"ALTER ROLE {role.name} SET {setting}")
    assert told in await refusal(role.url, postgres.new_schema())


async def test_a_server_that_does_not_sync_is_refused() -> None:
    """With fsync = off nothing is durable."""
    with Postgres("fsync=off") as server:
        assert "fsync = off" in await refusal(server.url, "tierstore")


async def test_wrong_credentials_are_told(postgres: Postgres, raw: Raw) -> None:
    """A wrong password, an unknown user, an absent database, a server that is not there: a sentence for each."""
    await raw.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD 'right'")
    address = f"127.0.0.1:{postgres.port}"
    try:
        for url, told in (
            (f"postgresql://{GUARDED}:wrong@{address}/postgres", "check user and password"),
            (f"postgresql://{GUARDED}@{address}/postgres", "check user and password"),
            (f"postgresql://stranger@{address}/postgres", "check user and password"),
            (f"postgresql://postgres@{address}/absent", "create the database"),
            ("postgresql://postgres@127.0.0.1:1/postgres", "check that it runs"),
            (f"postgresql://postgres@{address}/postgres?sslmode=require", "check that it runs"),
            (f"postgresql://postgres@{address}/postgres?sslmode=nonsense", "cannot be had: `sslmode`"),
        ):
            text = await refusal(url, "tierstore")
            assert told in text, text
            assert "wrong" not in text
        await (await opened(f"postgresql://{GUARDED}:right@{address}/postgres", await _granted(raw, GUARDED))).close()
    finally:
        await raw.execute(f"DROP OWNED BY {GUARDED} CASCADE; DROP ROLE {GUARDED}")


async def _granted(raw: Raw, role: str) -> str:
    """A schema that the role owns."""
    schema = f"of_{role}"
    await raw.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
    return schema
