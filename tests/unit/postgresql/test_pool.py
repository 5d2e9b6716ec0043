"""The pool of connections to PostgreSQL, on a real server: its bounds, its waits, and what becomes of connections."""

import asyncio
import time

import asyncpg
import asyncpg.connection
import pytest
from prometheus_client import REGISTRY

from tests.engines.postgres import Postgres
from tests.unit.postgresql.conftest import Opener
from tierstore.clock import MICROS_PER_SECOND
from tierstore.errors import Broken, Busy, OutcomeUnknown, StartupError, Unavailable
from tierstore.limits import Limits
from tierstore.postgresql.pool import Pool, Server
from tierstore.testing.clock import ManualClock

SLEEP = "SELECT pg_sleep($1)"
PID = "SELECT pg_backend_pid()"


async def pid_of(pool: Pool) -> int:
    """The server's process behind the connection that is used next."""
    [(pid,)] = await pool.read(PID)
    return int(pid)


def open_connections() -> float:
    """What the metric says."""
    return REGISTRY.get_sample_value("tierstore_engine_connections", {"store": "high_volume"}) or 0.0


async def test_statements_share_a_bounded_number_of_connections(pool_of: Opener) -> None:
    """However many statements there are at once, no more connections are made than are allowed, and all get a turn."""
    before = open_connections()
    pool = await pool_of(3)
    pids = await asyncio.gather(*(pid_of(pool) for _ in range(40)))
    assert len(set(pids)) == 3
    assert open_connections() - before == 3
    await pool.close()
    assert open_connections() == before


async def test_the_connection_that_was_used_last_is_used_first(pool_of: Opener) -> None:
    """So that those which are not needed stay idle, and can be ended."""
    pool = await pool_of(3)
    await asyncio.gather(*(pool.read(SLEEP, 0.01) for _ in range(3)))
    assert len({await pid_of(pool) for _ in range(10)}) == 1


async def test_waiting_for_a_connection_has_an_end(pool_of: Opener) -> None:
    """A statement that gets no connection in time is refused as busy, and those that come later get one."""
    pool = await pool_of(postgres_connection_wait_seconds_max=0.05)
    working = asyncio.ensure_future(pool.read(SLEEP, 0.3))
    await asyncio.sleep(0.01)
    with pytest.raises(Busy, match="in time"):
        await pool.read(PID)
    await working
    assert await pid_of(pool)


async def test_not_many_wait_for_a_connection(pool_of: Opener) -> None:
    """Beyond the bound a statement is refused at once; the others are served in their order."""
    pool = await pool_of(postgres_waiting_max=2)
    working = asyncio.ensure_future(pool.read(SLEEP, 0.1))
    await asyncio.sleep(0.01)
    order: list[int] = []

    async def wait(number: int) -> None:
        await pool.read(PID)
        order.append(number)

    waiting = [asyncio.ensure_future(wait(number)) for number in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="too many"):
        await pool.read(PID)
    await asyncio.gather(working, *waiting)
    assert order == [0, 1]


async def test_who_is_cancelled_while_waiting_takes_nothing(pool_of: Opener) -> None:
    """Neither a connection nor a place is lost by callers that give up, at any moment of their waiting."""
    pool = await pool_of(2)
    for turn in range(20):
        calls = [asyncio.ensure_future(pool.read(SLEEP, 0.002)) for _ in range(8)]
        for _ in range(turn):
            await asyncio.sleep(0)
        for call in calls[turn % 2 :: 2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert len(set(await asyncio.gather(*(pid_of(pool) for _ in range(20))))) <= 2
    assert pool._taken == 0
    assert len(pool._idle) <= 2


async def test_a_statement_has_an_end(pool_of: Opener) -> None:
    """One without an answer in time is given up: a read is unavailable, a write may happen; its connection is ended."""
    pool = await pool_of()
    pid = await pid_of(pool)
    for call, kind in ((pool.read, Unavailable), (pool.write, OutcomeUnknown)):
        began = time.monotonic()
        with pytest.raises(kind, match="no answer in time") as refused:
            await call(SLEEP, 30)
        assert isinstance(refused.value, OutcomeUnknown) == (kind is OutcomeUnknown)
        assert time.monotonic() - began < 5
    assert await pid_of(pool) != pid


async def test_an_idle_connection_is_not_trusted_for_ever(pool_of: Opener) -> None:
    """After a while without use a connection is replaced; in use it is kept."""
    clock = ManualClock()
    pool = await pool_of(clock=clock, postgres_idle_seconds_max=60.0)
    first = await pid_of(pool)
    for _ in range(3):
        clock.advance(50)
        assert await pid_of(pool) == first
    clock.advance(61)
    assert await pid_of(pool) != first


async def test_connections_that_nobody_needs_are_ended(pool_of: Opener) -> None:
    """While one is in use, the others that are idle for too long go."""
    clock = ManualClock()
    before = open_connections()
    pool = await pool_of(3, clock=clock, postgres_idle_seconds_max=60.0)
    await asyncio.gather(*(pool.read(SLEEP, 0.01) for _ in range(3)))
    for _ in range(4):
        clock.advance(40)
        await pid_of(pool)
    await asyncio.sleep(0.05)
    assert open_connections() - before == 1


async def test_a_closed_pool_refuses(pool_of: Opener) -> None:
    """What was accepted ends first; what comes later is unavailable; closing again, or at once, is fine."""
    pool = await pool_of(2)
    working = [asyncio.ensure_future(pool.read(SLEEP, 0.05)) for _ in range(6)]
    await asyncio.sleep(0)
    await asyncio.gather(pool.close(), pool.close())
    assert all(call.done() for call in working)
    await asyncio.gather(*working)
    with pytest.raises(Unavailable, match="closed"):
        await pool.read(PID)
    await pool.close()


async def test_a_refused_statement_costs_no_connection(pool_of: Opener) -> None:
    """The server's refusal of one statement is no reason to end the connection; nonsense is a fault of ours."""
    pool = await pool_of()
    pid = await pid_of(pool)
    with pytest.raises(Unavailable, match="does not exist"):
        await pool.write("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(Broken, match="invalid input syntax"):
        await pool.write("SELECT ('x' || $1::text)::int", "secret")
    assert await pool.write("SELECT 1 / $1::int", 0) == ()
    assert await pid_of(pool) == pid


async def test_a_new_connection_looks_at_the_servers_clock(pool_of: Opener) -> None:
    """However far our clock is from the server's, what is sent now is in time there, and what is late is not."""
    clock = ManualClock()
    pool = await pool_of(clock=clock, postgres_lateness_seconds_max=5.0)
    late = "SELECT extract(epoch FROM clock_timestamp())::float8 - $1::float8"
    [(seconds,)] = await pool.read(late, pool.latest(clock.now()))
    assert -5.1 < seconds < -3.0
    clock.advance(100)
    [(seconds,)] = await pool.read(late, pool.latest(clock.now()))
    assert -105.1 < seconds < -103.0


@pytest.mark.parametrize("jump_seconds", [-3600.0, 3600.0])
async def test_a_clock_that_jumps_is_compared_again(pool_of: Opener, jump_seconds: float) -> None:
    """Ours was set right: one statement may be refused by it, none is believed for longer, the next ones are as ever.

    Without it a connection that is always in use would refuse everything that depends on the time, for ever.
    """
    clock = ManualClock()
    pool = await pool_of(clock=clock, postgres_lateness_seconds_max=5.0)
    late = "SELECT extract(epoch FROM clock_timestamp())::float8 - $1::float8"
    await pid_of(pool)
    clock.set_now(clock.now() + round(jump_seconds * MICROS_PER_SECOND))
    [(seconds,)] = await pool.read(late, pool.latest(clock.now()))
    assert seconds > -5.1
    for _ in range(2):
        [(seconds,)] = await pool.read(late, pool.latest(clock.now()))
        assert -5.1 < seconds < -3.0
    pid = await pid_of(pool)
    assert await pid_of(pool) == pid


@pytest.mark.parametrize("callers", [1, 6])
async def test_a_connection_in_use_is_replaced_in_time(pool_of: Opener, callers: int) -> None:
    """However many want it: so the server's clock is looked at again, though no connection fails or is idle."""
    clock = ManualClock()
    pool = await pool_of(clock=clock, postgres_connection_seconds_max=300.0)
    before, pids = open_connections(), set[int]()

    async def call() -> None:
        for _ in range(20):
            pids.add(await pid_of(pool))
            clock.advance(40 / callers)

    await asyncio.gather(*(call() for _ in range(callers)))
    assert 2 <= len(pids) <= 4
    assert open_connections() == before


async def test_statements_of_different_processes_have_different_names(
    pool_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler that does not keep them, a name then leads to the statement or to none: never to another store's,
    by which a row would be acknowledged that is in the other one's table.
    """
    named = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%name FROM%'"
    names = set[str]()
    for _ in range(2):
        monkeypatch.setattr(asyncpg.connection, "_uid", 0)  # the driver counts anew in each process
        pool = await pool_of()
        [(name,)] = await pool.read(named)
        names.add(name)
        assert len(name) < 64  # what the server looks at
    assert len(names) == 2


class StandstillClock(ManualClock):
    """The clock of a process that stands still for an hour before each look."""

    def now(self) -> int:
        self.advance(3600)
        return super().now()


async def test_a_clock_that_was_not_looked_at_in_time_is_not_believed(pool_of: Opener) -> None:
    """If we stood still while the server looked at its clock, we cannot tell how far ours is from it."""
    with pytest.raises(StartupError, match="no answer in time"):
        await pool_of(clock=StandstillClock())


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://me:secret@db.example:5433/objects?password=secret", "db.example:5433/objects"),
        ("postgresql://me:secret@db.example/objects", "db.example/objects"),
        ("postgresql:///objects?host=/run&password=secret", "the local socket/objects"),
        ("postgresql://me:secret@one:1,two:2/objects?target_session_attrs=read-write", "one:1,two:2/objects"),
        ("postgresql://me:secret/secret@db/objects", "an unreadable address"),
        ("postgresql://me:secret?secret@db/objects", "an unreadable address"),
        ("postgresql://me:secret@[db/y", "an unreadable address"),
    ],
)
def test_a_server_is_named_without_its_secrets(url: str, place: str) -> None:
    """Neither the text for messages nor the representation shows the password."""
    server = Server(url=url, connections_max=1, timeout_seconds=1.0, prepared_statements=True)
    assert server.place == place
    assert "secret" not in repr(server)


async def test_every_text_is_without_secrets(postgres: Postgres) -> None:
    """Nor does what an operator is told, whatever is wrong with the address."""
    for url in (
        f"postgresql://nobody:secret@127.0.0.1:{postgres.port}/postgres",
        f"postgresql://postgres:secret@127.0.0.1:{postgres.port}/absent",
        "postgresql://me:secret@127.0.0.1:1/postgres",
        "postgresql://me:secret@[broken/postgres",
        "secret",
        "http://me:secret@127.0.0.1/x",
    ):
        server = Server(url=url, connections_max=1, timeout_seconds=1.0, prepared_statements=True)
        with pytest.raises(StartupError, match="PostgreSQL") as refused:
            await Pool.open(server, limits=Limits(), clock=ManualClock(), name="high_volume")
        assert "secret" not in str(refused.value)
