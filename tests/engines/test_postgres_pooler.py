"""The stores on PostgreSQL behind PgBouncer in transaction mode, where each statement may have another connection."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.engines.engine import serving
from tests.engines.pgbouncer import PgBouncer
from tests.engines.postgres import Postgres
from tierstore.backends.high_volume.contract import Gone, Inline
from tierstore.backends.high_volume.postgres import PostgresHighVolume
from tierstore.changelog.entries import Claimed, Condemned
from tierstore.changelog.postgres import PostgresChangeLog
from tierstore.clock import SystemClock
from tierstore.errors import StartupError, Unavailable
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.testing.laws.changelog import owner, revision
from tierstore.testing.laws.high_volume import object_named, scan_all

CLIENTS = 12
SERVERS = 3
ROUNDS = 8


@pytest.fixture(scope="module")
def pooler(postgres: Postgres) -> Iterator[PgBouncer]:
    """A pooler with fewer connections than the stores make to it."""
    yield from serving(lambda: PgBouncer(postgres, connections=SERVERS))


@pytest.fixture(params=[False, True], ids=["unprepared", "prepared"])
def prepared(request: pytest.FixtureRequest, pooler: PgBouncer) -> bool:
    """Whether statements are prepared; only if the pooler keeps them."""
    if request.param and not pooler.keeps_statements:
        pytest.skip("this PgBouncer does not keep prepared statements: 1.21 or newer does")
    return bool(request.param)


@pytest.fixture
async def store(postgres: Postgres, pooler: PgBouncer, *, prepared: bool) -> AsyncIterator[PostgresHighVolume]:
    """A high-volume store through the pooler."""
    store = await PostgresHighVolume.open(
        pooler.url,
        schema=postgres.new_schema(),
        connections_max=CLIENTS,
        prepared_statements=prepared,
        limits=Limits(),
        clock=SystemClock(),
        ids=SystemIds(),
    )
    yield store
    await store.close()


@pytest.fixture
async def log(postgres: Postgres, pooler: PgBouncer, *, prepared: bool) -> AsyncIterator[PostgresChangeLog]:
    """A change log through the pooler."""
    log = await PostgresChangeLog.open(
        pooler.url,
        schema=postgres.new_schema(),
        connections_max=CLIENTS,
        prepared_statements=prepared,
        limits=Limits(),
        clock=SystemClock(),
    )
    yield log
    await log.close()


async def test_no_count_is_lost_behind_a_pooler(store: PostgresHighVolume) -> None:
    """Writers that count through compare-and-write, and every other kind of statement between them, mix up nothing."""
    it = object_named("counted")
    now = SystemClock().now()

    async def count() -> None:
        while True:
            row = await store.read(it)
            counted = int(row.content.payload) if row is not None and isinstance(row.content, Inline) else 0
            content = Inline(b"", str(counted + 1).encode())
            if await store.compare_and_write(it, row.version if row else None, content, None):
                return

    async def change(number: int) -> None:
        for _ in range(ROUNDS):
            mine = object_named(f"changed {number}")
            await store.put_inline(mine, Inline(b"m", b"%d" % number), now + 60_000_000)
            head = await store.head(mine)
            assert head is not None
            assert await store.extend(mine, head.version, now + 90_000_000)
            assert (await store.fence(mine)).expires == now + 90_000_000
            assert await store.delete_inline(mine) is None
            assert await store.remove_markers(0, 5) == 0
            assert await store.expired(now, 5) == []

    await asyncio.gather(*(work for number in range(CLIENTS) for work in (count(), change(number))))
    row = await store.read(it)
    assert row is not None
    assert row.content == Inline(b"", str(CLIENTS).encode())
    left = [found for found in await scan_all(store, "") if found.object_id != it]
    assert [found.row.content for found in left] == [Gone()] * CLIENTS


async def test_a_change_log_works_behind_a_pooler(log: PostgresChangeLog) -> None:
    """Its functions and locks live no longer than their statement: owners and sweepers work at once."""

    async def upload(number: int) -> None:
        for turn in range(ROUNDS):
            begun, old, mine = revision("begun", 1_000 * number + turn), revision("old", number), owner(number)
            await log.record(mine, new=revision("new", number), old=old, not_before=0)
            assert await log.record_again(mine, new=revision("new", number), old=None, not_before=0)
            await log.begin_upload(begun, b"wanted", 0)
            assert isinstance(await log.claim(begun, mine, old=old, not_before=0), Claimed)
            [held] = await log.find(begun)
            assert await log.condemn(held, 0) is not None
            assert await log.claim(begun, mine, old=old, not_before=0) == Condemned(swept=False)
            await log.mark_done(begun, 0)
            await log.forget(mine)

    await asyncio.gather(*map(upload, range(CLIENTS)))
    backlog = await log.backlog()
    assert (backlog.entries, backlog.outcomes) == (0, CLIENTS * ROUNDS)


async def test_a_pooler_that_keeps_no_statements_is_told_of(postgres: Postgres, pooler: PgBouncer) -> None:
    """With prepared statements, the error of a pooler that does not keep them says which setting helps."""
    if pooler.keeps_statements:
        pytest.skip("this PgBouncer keeps prepared statements")

    async def work() -> None:
        store = await PostgresHighVolume.open(
            pooler.url,
            schema=postgres.new_schema(),
            connections_max=CLIENTS,
            limits=Limits(),
            clock=SystemClock(),
            ids=SystemIds(),
        )
        try:
            reads = (store.read(object_named(f"{number}")) for number in range(100))
            for failed in await asyncio.gather(*reads, return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed
        finally:
            await store.close()

    with pytest.raises((StartupError, Unavailable), match="prepared_statements = false"):
        await work()
