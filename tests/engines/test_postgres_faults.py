"""What the stores on PostgreSQL do when the server, or the way to it, fails: the right error, and then they go on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from tests.engines.engine import HOST
from tests.engines.postgres import GUARDED, Postgres
from tierstore.backends.high_volume.contract import Inline, Row
from tierstore.backends.high_volume.postgres import PostgresHighVolume
from tierstore.changelog.postgres import PostgresChangeLog
from tierstore.clock import SystemClock
from tierstore.errors import CorruptObject, OutcomeUnknown, StartupError, StorageFull, TierstoreError, Unavailable
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.laws.changelog import owner, revision
from tierstore.testing.laws.high_volume import object_named
from tierstore.testing.mounts import SmallDisk, small_disk
from tierstore.testing.tcp_proxy import TcpProxy

Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
TIMEOUT_SECONDS = 0.5
IT = object_named("it")
INLINE = Inline(b"metadata", b"payload")
OTHER = Inline(b"metadata", b"other")


@pytest.fixture(autouse=True)
def _serves_afterwards(postgres: Postgres) -> Iterator[None]:
    """The server is there for the next test, whatever became of this one."""
    yield
    if not postgres.runs:
        postgres.start()


@pytest.fixture
async def proxy(postgres: Postgres) -> AsyncIterator[TcpProxy]:
    """The way to the server."""
    async with TcpProxy(HOST, postgres.port) as proxy:
        yield proxy


@pytest.fixture
def schema(postgres: Postgres) -> str:
    """Where this test's tables are."""
    return postgres.new_schema()


async def opened(
    url: str, schema: str, *, connections: int = 4, timeout: float = TIMEOUT_SECONDS
) -> PostgresHighVolume:
    """One more high-volume store."""
    return await PostgresHighVolume.open(
        url,
        schema=schema,
        connections_max=connections,
        timeout_seconds=timeout,
        limits=replace(Limits(), postgres_connection_wait_seconds_max=2 * timeout),
        clock=SystemClock(),
        ids=SystemIds(),
    )


@pytest.fixture
async def store(postgres: Postgres, proxy: TcpProxy, schema: str) -> AsyncIterator[PostgresHighVolume]:
    """A high-volume store through the proxy."""
    store = await opened(postgres.url_for(port=proxy.port), schema)
    yield store
    proxy.resume()
    await store.close()


@pytest.fixture
async def log(postgres: Postgres, proxy: TcpProxy, schema: str) -> AsyncIterator[PostgresChangeLog]:
    """A change log through the proxy."""
    log = await PostgresChangeLog.open(
        postgres.url_for(port=proxy.port),
        schema=schema,
        connections_max=4,
        timeout_seconds=TIMEOUT_SECONDS,
        limits=Limits(),
        clock=SystemClock(),
    )
    yield log
    proxy.resume()
    await log.close()


@pytest.fixture
async def raw(postgres: Postgres) -> AsyncIterator[Raw]:
    """A connection to the server beside the stores."""
    raw = await asyncpg.connect(postgres.url)
    yield raw
    await raw.close()


async def content_of(store: PostgresHighVolume) -> Inline | None:
    """What the object is."""
    row = await store.read(IT)
    return row.content if isinstance(row, Row) and isinstance(row.content, Inline) else None


# The way to the server


async def test_connections_that_were_cut_are_replaced(store: PostgresHighVolume, proxy: TcpProxy) -> None:
    """Connections that break while nobody uses them are noticed by no caller."""
    for number in range(5):
        content = Inline(b"", b"%d" % number)
        await asyncio.gather(*(store.put_inline(IT, content, None) for _ in range(4)))
        proxy.cut()
        while proxy.connections:
            await asyncio.sleep(0.005)
        assert await content_of(store) == content


async def test_a_write_whose_answer_is_lost_may_have_happened(store: PostgresHighVolume, proxy: TcpProxy) -> None:
    """It is `OutcomeUnknown`, for it has; it is not repeated; and the store goes on by itself."""
    await store.put_inline(IT, OTHER, None)
    before = await store.head(IT)
    assert before is not None
    version = await store.compare_and_write(IT, before.version, INLINE, None)
    proxy.lose_answers()
    with pytest.raises(OutcomeUnknown):
        await store.compare_and_write(IT, version, OTHER, None)
    proxy.resume()
    assert await content_of(store) == OTHER


async def test_records_whose_answer_is_lost_may_be_repeated(log: PostgresChangeLog, proxy: TcpProxy) -> None:
    """`record` is `OutcomeUnknown`, has happened as a whole, and repeating it leaves the same entries."""
    new, old = revision("new"), revision("old")
    await log.record(owner(2), new=new, old=None, not_before=9)
    proxy.lose_answers()
    with pytest.raises(OutcomeUnknown):
        await log.record(owner(1), new=new, old=old, not_before=5)
    proxy.resume()
    first = await log.due(5, 10)
    await log.record(owner(1), new=new, old=old, not_before=5)
    assert sorted(entry.revision.storage_path for entry in first) == [new.storage_path, old.storage_path]
    assert await log.due(5, 10) == first


async def test_a_read_is_repeated_on_another_connection(store: PostgresHighVolume, proxy: TcpProxy) -> None:
    """A read whose connection breaks before the answer is asked again, and its caller does not notice."""
    await store.put_inline(IT, INLINE, None)
    proxy.hold_answers()
    reading = asyncio.ensure_future(content_of(store))
    await asyncio.sleep(0.05)
    proxy.resume()
    proxy.cut()
    assert await reading == INLINE


async def test_a_read_without_any_answer_is_unavailable(store: PostgresHighVolume, proxy: TcpProxy) -> None:
    """It is repeated a few times at most."""
    proxy.lose_answers()
    with pytest.raises(Unavailable) as refused:
        await store.read(IT)
    assert not isinstance(refused.value, OutcomeUnknown)
    proxy.resume()
    assert await store.read(IT) is None


async def test_a_server_that_cannot_be_reached_has_done_nothing(store: PostgresHighVolume, proxy: TcpProxy) -> None:
    """Writes and reads are `Unavailable` while no connection can be made; afterwards all is as it was."""
    await store.put_inline(IT, INLINE, None)
    proxy.refuse()
    while proxy.connections:
        await asyncio.sleep(0.005)
    for call in (store.put_inline(IT, OTHER, None), store.read(IT), store.check()):
        with pytest.raises(Unavailable) as refused:
            await call
        assert not isinstance(refused.value, OutcomeUnknown)
    proxy.resume()
    assert await content_of(store) == INLINE


async def test_a_server_that_answers_nothing_is_given_up_in_time(store: PostgresHighVolume, proxy: TcpProxy) -> None:
    """With connections half-open every call ends within its time, however many there are, and the store recovers."""
    await store.put_inline(IT, INLINE, None)
    proxy.hold()
    began = time.monotonic()
    outcomes = await asyncio.gather(
        *(work for _ in range(8) for work in (store.read(IT), store.put_inline(IT, OTHER, None))),
        return_exceptions=True,
    )
    took = time.monotonic() - began
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
    assert took < 10 * TIMEOUT_SECONDS
    assert not any(isinstance(outcome, OutcomeUnknown) for outcome in outcomes[::2]), "a read has no outcome"
    proxy.resume()
    await store.put_inline(IT, OTHER, None)
    assert await content_of(store) == OTHER


async def test_what_a_network_held_back_does_not_undo_what_was_acknowledged_since(
    postgres: Postgres, proxy: TcpProxy, schema: str
) -> None:
    """A small write or a delete whose outcome was unknown does nothing when it comes long after: by then its client has
    tried again, by another way, and relies on the answer.
    """
    limits = Limits(postgres_lateness_seconds_max=0.5)
    held = await PostgresHighVolume.open(
        postgres.url_for(port=proxy.port),
        schema=schema,
        timeout_seconds=0.3,
        limits=limits,
        clock=SystemClock(),
        ids=SystemIds(),
    )
    other = await opened(postgres.url, schema)
    one, new = object_named("one"), object_named("new")
    try:
        for _ in range(2):  # so that each connection knows both statements
            await asyncio.gather(*(held.put_inline(object_named(name), OTHER, None) for name in "abc"))
            await asyncio.gather(*(held.delete_inline(object_named(name)) for name in "abc"))
        for each in (IT, one):
            await held.put_inline(each, OTHER, None)
        proxy.hold()
        calls = held.delete_inline(IT), held.put_inline(one, OTHER, None), held.put_inline(new, OTHER, None)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 3
        for each in (IT, one):
            await other.put_inline(each, INLINE, None)
        await asyncio.sleep(2.5)  # by then the pool does not try to cancel them any more
        proxy.resume()
        await asyncio.sleep(0.5)
        for each in (IT, one):
            row = await other.read(each)
            assert row is not None
            assert row.content == INLINE
        assert await other.read(new) is None
    finally:
        await held.close()
        await other.close()


async def test_a_delete_that_comes_late_is_not_taken_for_done(postgres: Postgres, raw: Raw, schema: str) -> None:
    """It is tried once more, and if that is late, too, its caller is told; the object is as it was."""
    store, hurried = [
        await PostgresHighVolume.open(
            postgres.url,
            schema=schema,
            limits=Limits(postgres_lateness_seconds_max=seconds),
            clock=SystemClock(),
            ids=SystemIds(),
        )
        for seconds in (0.2, -1.0)
    ]
    try:
        await store.put_inline(IT, INLINE, None)
        for call in (hurried.delete_inline(IT), hurried.put_inline(IT, OTHER, None)):
            with pytest.raises(Unavailable, match="too long"):
                await call
        assert await content_of(store) == INLINE
        async with raw.transaction():
            await raw.execute(f"SELECT 1 FROM {schema}.rows FOR UPDATE")
            waiting = asyncio.ensure_future(store.delete_inline(IT))
            await asyncio.sleep(0.4)
        assert await waiting is None
        assert await content_of(store) is None
        await store.delete_inline(IT)
    finally:
        await store.close()
        await hurried.close()


async def connections_of(raw: Raw) -> int:
    """Connections of the stores, as the server sees them."""
    await raw.execute("SELECT pg_stat_clear_snapshot()")
    counted = await raw.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tierstore'")
    return int(counted)


async def test_connections_do_not_pile_up(postgres: Postgres, raw: Raw, schema: str) -> None:
    """However many callers are cancelled in the middle, there are no more than the bound, and the store goes on."""
    store = await opened(postgres.url, schema)
    try:
        await store.put_inline(IT, INLINE, None)
        async with raw.transaction():
            await raw.execute(f"SELECT 1 FROM {schema}.rows FOR UPDATE")
            for _ in range(10):
                writes = [asyncio.ensure_future(store.put_inline(IT, OTHER, None)) for _ in range(8)]
                await asyncio.sleep(0.02)
                for write in writes:
                    write.cancel()
                ends = await asyncio.gather(*writes, return_exceptions=True)
                assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            deadline = time.monotonic() + 30
            while await connections_of(raw) > 4:  # those that were given up are on their way out
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        await asyncio.gather(*(store.put_inline(IT, INLINE, None) for _ in range(8)))
        assert await content_of(store) == INLINE
    finally:
        await store.close()


# The server


async def under_load(store: PostgresHighVolume, work: Callable[[], Awaitable[None]]) -> dict[str, list[TierstoreError]]:
    """Write to a key of each lane, one number after the other, during ``work``, and until each has done so again after.

    Everything that was acknowledged must be there at the end; returned are the errors of reads and of writes.
    """
    errors: dict[str, list[TierstoreError]] = {"read": [], "write": []}
    over = asyncio.Event()

    async def lane(number: int) -> None:
        it = object_named(f"lane {number}")
        tried = acknowledged = 0
        after_the_end = 0
        while after_the_end < 3:
            tried += 1
            try:
                await store.put_inline(it, Inline(b"", b"%d" % tried), None)
                acknowledged = tried
                after_the_end += over.is_set()
            except TierstoreError as error:
                errors["write"].append(error)
                await asyncio.sleep(0.01)
            try:
                row = await store.read(it)
            except TierstoreError as error:
                errors["read"].append(error)
                continue
            assert row is not None or acknowledged == 0
            if row is not None:
                assert isinstance(row.content, Inline)
                assert acknowledged <= int(row.content.payload) <= tried

    async def meanwhile() -> None:
        await asyncio.sleep(0.2)
        await work()
        over.set()

    await asyncio.gather(meanwhile(), *(lane(number) for number in range(6)))
    return errors


@pytest.mark.parametrize("end", ["restart", "kill"])
async def test_a_restart_of_the_server_loses_nothing(postgres: Postgres, schema: str, end: str) -> None:
    """Restarted or killed under load: what was acknowledged is there, and the store goes on by itself.

    A write that was under way may have happened; no read is told that.
    """
    store = await opened(postgres.url, schema, timeout=2.0)

    async def work() -> None:
        if end == "kill":
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.start)
        else:
            await asyncio.to_thread(postgres.restart)

    try:
        errors = await under_load(store, work)
    finally:
        await store.close()
    assert all(isinstance(error, Unavailable) for kind in errors.values() for error in kind), errors
    assert not any(isinstance(error, OutcomeUnknown) for error in errors["read"])
    assert errors["write"], "nobody noticed: the test shows nothing"


async def test_a_server_that_stands_still_is_waited_for(postgres: Postgres, schema: str) -> None:
    """While it stands still calls end in time; afterwards it goes on, with all that it had acknowledged."""
    store = await opened(postgres.url, schema)

    async def work() -> None:
        with postgres.paused():
            await asyncio.sleep(2 * TIMEOUT_SECONDS)

    try:
        errors = await under_load(store, work)
    finally:
        await store.close()
    assert all(isinstance(error, Unavailable) for kind in errors.values() for error in kind), errors


async def test_connections_that_the_server_ends(store: PostgresHighVolume, raw: Raw) -> None:
    """An operator who ends all connections, again and again, costs no more than what was under way."""

    async def work() -> None:
        for _ in range(5):
            await raw.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'tierstore' AND pid != pg_backend_pid()"
            )
            await asyncio.sleep(0.05)

    errors = await under_load(store, work)
    assert all(isinstance(error, Unavailable) for kind in errors.values() for error in kind), errors
    assert not any(isinstance(error, OutcomeUnknown) for error in errors["read"])


async def test_a_password_that_was_changed(postgres: Postgres, raw: Raw, schema: str) -> None:
    """New connections are refused: `Unavailable`, without the password; it is over when that is right again."""
    await raw.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD 'the first one'")
    await raw.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {GUARDED}")
    store = await opened(f"postgresql://{GUARDED}:the first one@{postgres.address}/postgres", schema)
    try:
        await store.put_inline(IT, INLINE, None)
        await raw.execute(f"ALTER ROLE {GUARDED} PASSWORD 'another one'")
        await raw.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", GUARDED)
        while await connections_of(raw) or not all(connection.is_closed() for connection, _ in store._pool._idle):
            await asyncio.sleep(0.01)
        for call in (store.put_inline(IT, OTHER, None), store.read(IT), store.check()):
            with pytest.raises(Unavailable, match="password authentication failed") as refused:
                await call
            assert not isinstance(refused.value, OutcomeUnknown)
            assert "first one" not in str(refused.value)
        await raw.execute(f"ALTER ROLE {GUARDED} PASSWORD 'the first one'")
        assert await content_of(store) == INLINE
    finally:
        await store.close()
        await raw.execute(f"DROP OWNED BY {GUARDED} CASCADE; DROP ROLE {GUARDED}")


async def test_tables_that_are_gone(store: PostgresHighVolume, raw: Raw, schema: str) -> None:
    """It is `Unavailable`, says what is missing, and is over when the tables are back."""
    await store.put_inline(IT, INLINE, None)
    await raw.execute(f"ALTER SCHEMA {schema} RENAME TO {schema}_away")
    for call in (store.put_inline(IT, OTHER, None), store.read(IT), store.check()):
        with pytest.raises(Unavailable, match="does not exist"):
            await call
    await raw.execute(f"ALTER SCHEMA {schema}_away RENAME TO {schema}")
    assert await content_of(store) == INLINE


async def test_a_server_that_becomes_read_only(
    postgres: Postgres, store: PostgresHighVolume, raw: Raw, schema: str
) -> None:
    """Writes are `Unavailable`, as after a failover; its connections are replaced, and writes work when it is over."""
    await store.put_inline(IT, INLINE, None)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tierstore'"
    await raw.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        await raw.execute("SELECT pg_reload_conf()")
        while await raw.fetchval("SHOW default_transaction_read_only") == "off":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # every other connection hears of it as well, when it is next used
        with pytest.raises(Unavailable, match="read-only transaction") as refused:
            await store.put_inline(IT, OTHER, None)
        assert not isinstance(refused.value, OutcomeUnknown)
        with pytest.raises(Unavailable, match="nothing can be written there"):
            await store.put_inline(IT, INLINE, None)
        with pytest.raises(StartupError, match="name the primary"):
            await opened(postgres.url, schema)
    finally:
        await raw.execute("SET default_transaction_read_only = off")
        await raw.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await raw.execute("SELECT pg_reload_conf()")
        await raw.execute(ended)
    for _ in range(100):
        with contextlib.suppress(Unavailable):
            await store.put_inline(IT, INLINE, None)
            break
        await asyncio.sleep(0.02)
    assert await content_of(store) == INLINE


async def test_a_payload_that_has_rotted(postgres: Postgres, schema: str) -> None:
    """Whether the server's checksums notice it or ours, it is `CorruptObject`, and the rest of the row is there."""
    store = await opened(postgres.url, schema)
    await store.put_inline(IT, Inline(b"metadata", b"rotting" * 10_000), None)
    await store.close()
    raw: Raw = await asyncpg.connect(postgres.url)
    table = await raw.fetchval(f"SELECT reltoastrelid FROM pg_class WHERE oid = '{schema}.rows'::regclass")
    file = postgres.directory / await raw.fetchval("SELECT pg_relation_filepath($1::oid::regclass)", table)
    await raw.close()
    postgres.stop()
    rotten = file.read_bytes()
    file.write_bytes(rotten.replace(b"rotting", b"rottinG", 1))
    assert file.read_bytes() != rotten
    postgres.start()
    store = await opened(postgres.url, schema)
    try:
        with pytest.raises(CorruptObject):
            await store.read(IT)
        assert await store.head(IT) is not None
    finally:
        await store.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk for a tablespace, too small for much."""
    with small_disk(tmp_path / "disk", "6m") as disk:
        yield disk


async def test_a_full_disk(
    postgres: Postgres, store: PostgresHighVolume, raw: Raw, schema: str, disk: SmallDisk, tmp_path: Path
) -> None:
    """What has no room is `StorageFull`, and nothing of it is there; deletes and reads work; room is used again."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path(folder.root):
            folder.chmod(folder.stat().st_mode | 0o011)
    place = disk.path / "tablespace"
    place.mkdir()
    postgres.give(place)
    space = f"small_{schema}"
    await raw.execute(f"CREATE TABLESPACE {space} LOCATION '{place}'")
    try:
        await raw.execute(f"ALTER TABLE {schema}.rows SET TABLESPACE {space}")
        await store.put_inline(IT, INLINE, None)
        large = Inline(b"", bytes(1 << 20))
        stored = 0
        for stored in range(20):
            try:
                await store.put_inline(object_named(f"{stored}"), large, None)
            except StorageFull:
                break
        assert 2 <= stored < 19
        assert await store.read(object_named(f"{stored}")) is None
        assert await content_of(store) == INLINE
        for number in range(stored):
            assert await store.delete_inline(object_named(f"{number}")) is None
        disk.remount("size=12m")
        await store.put_inline(IT, large, None)
        assert await content_of(store) == large
    finally:
        await raw.execute(f"DROP TABLE {schema}.rows")
        await raw.execute(f"DROP TABLESPACE {space}")
