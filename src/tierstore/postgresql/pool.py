"""A bounded pool of connections to one PostgreSQL database, for statements that are each a transaction of their own.

Guarantees:

- One round trip for each statement, once a connection has prepared it, and no session state but that: it works through
  a transaction pooler that keeps prepared statements (PgBouncer from 1.21 with ``max_prepared_statements``), and with
  ``prepared_statements=False`` through any, for one more round trip.
- Every wait is bounded by `Limits`: for a connection (`Busy` then, as when too many wait), to connect, for an answer.
- A statement that only reads is repeated once when its connection fails. One that writes is repeated only if the server
  has rolled it back because of others at the same time; if its outcome was lost it is `OutcomeUnknown`.
- A connection that failed, or whose caller was cancelled or lost its patience, is not used again; it counts until the
  server has been told. Connections are made when they are needed, so the pool recovers by itself.
- Every connection compares our clock with the server's when it is made. None is used for longer than
  ``postgres_connection_seconds_max``, nor after our clock was seen to jump, so the comparison does not stay wrong.
- `close` waits for what was accepted.

The driver's own pool is not used: it starts a task for every release, which is half of what a read costs (see
``docs/decisions/0022-postgresql.md``).
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import structlog

from tierstore import telemetry
from tierstore.clock import MICROS_PER_SECOND, Clock, UnixMicros
from tierstore.errors import Busy, Unavailable
from tierstore.limits import Limits
from tierstore.postgresql.errors import (
    DRIVER_ERRORS,
    is_lost_connection,
    may_be_repeated,
    spoils_connection,
    startup_error,
    translated,
    unreachable,
)
from tierstore.tasks import TaskOwner, for_each

log = structlog.get_logger(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Record = asyncpg.Record

_STATEMENTS_MAX: Final = 100
"""Statements that a connection keeps prepared: more than there are."""
_ATTEMPTS_MAX: Final = 4
_JUMP_MICROS_MIN: Final = MICROS_PER_SECOND
"""How far our wall clock may get from the monotonic one before it is taken to have jumped."""
_CLOSE_SECONDS_MAX: Final = 2.0
"""How long a connection may take to end in good order, before it is cut."""
_LOOK: Final = """
    SELECT current_setting('transaction_read_only'), extract(epoch FROM clock_timestamp())::float8,
        encode(substring(uuid_send(gen_random_uuid()) FOR 8), 'hex')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Which database, and how it is reached."""

    url: str = field(repr=False)
    """``postgresql://user:password@host:port/database?sslmode=verify-full``, with the parameters of libpq. Without a
    password the driver looks into ``PGPASSWORD`` and ``.pgpass``."""
    connections_max: int
    timeout_seconds: float
    """How long a connection may take to be made, and a statement to be answered."""
    prepared_statements: bool

    @property
    def place(self) -> str:
        """The server for messages: host, port and database, and nothing that is secret."""
        try:
            parts = urlsplit(self.url)
        except ValueError:
            return "an unreadable address"
        if "@" in parts.path + parts.query + parts.fragment:  # what is before it belongs to a password
            return "an unreadable address"
        return f"{parts.netloc.rpartition('@')[2] or 'the local socket'}{parts.path}"


class _Named(asyncpg.Connection):
    """A connection whose prepared statements nobody else's have the names of.

    The driver counts them, in each process from 1. A pooler that does not keep them hands one client's statements to
    another: with equal names that is another statement, in another schema perhaps, and a write is acknowledged there.
    """

    own = "new"
    """What nobody else's names have; from the server's randomness, when it has been asked."""
    _named = 0

    def _get_unique_id(self, prefix: str) -> str:
        self._named += 1
        return f"tierstore_{prefix}_{self._named}_{self.own}"


_Waiter = asyncio.Future["Connection | None"]
"""Is given a connection, or None for the right to make one."""


class Pool:
    """Connections to one database. Used from the event loop that opened it."""

    def __init__(self, server: Server, *, limits: Limits, clock: Clock, name: str) -> None:
        self.place = server.place
        self._server = server
        self._limits = limits
        self._clock = clock
        self._name = name
        self._idle: deque[tuple[Connection, float]] = deque()
        """Connections that nobody uses, and since when; the last one was used last, and is used first."""
        self._taken = 0
        """Connections that are being made, used or ended; with the idle ones, at most ``connections_max``."""
        self._waiters: deque[_Waiter] = deque()
        self._calls = 0
        self._closed = False
        self._finished = asyncio.Event()
        self._ended = asyncio.Event()
        self._births: dict[Connection, float] = {}
        """When each connection was made; before all time, if our clock has jumped since."""
        self._offset: UnixMicros = 0
        """How far our clock is ahead of the server's, or a round trip more."""
        self._ahead: UnixMicros = 0
        """How far our wall clock was ahead of our monotonic one then."""
        self._tasks = TaskOwner(server.connections_max, self._report)
        self._open_connections = telemetry.engine_connections.labels(name)

    @classmethod
    async def open(cls, server: Server, *, limits: Limits, clock: Clock, name: str) -> "Pool":
        """Connect once. Raises `StartupError`."""
        pool = cls(server, limits=limits, clock=clock, name=name)
        pool._taken += 1
        try:
            pool._give(await pool._connect())
        except (*DRIVER_ERRORS, ValueError) as error:
            raise startup_error(error, place=pool.place) from error
        return pool

    async def read(self, statement: str, *arguments: object) -> Sequence[Record]:
        """The rows of a statement that changes nothing."""
        return await self._run(statement, arguments, writes=False)

    async def write(self, statement: str, *arguments: object) -> Sequence[Record]:
        """The rows that a statement returns, when it has been committed.

        None (an empty tuple) if it has divided by zero, by which a statement can take back what it did.
        """
        return await self._run(statement, arguments, writes=True)

    async def write_soon(self, statement: str, *arguments: object) -> Sequence[Record]:
        """As `write`, of a statement that may be repeated, and that takes back what it did only if it is late.

        Its last parameter is until when that is not so, as `latest` gives it. Tried twice, because it is our clock that
        may have jumped. Raises `Unavailable` if it was late again.
        """
        for _ in range(2):
            records = await self._run(statement, (*arguments, self.latest(self._clock.now())), writes=True)
            if not isinstance(records, tuple):
                return records
        raise Unavailable("a write took too long on its way to the database, and was undone")

    def latest(self, looked: UnixMicros) -> float:
        """Until when, by the server's clock, a statement may believe the instant ``looked`` that we had from our clock.

        In seconds since the epoch. One that is on its way for longer than ``postgres_lateness_seconds_max`` is to do
        nothing: by then somebody may have relied on its not coming any more. It begins with that look, and not with
        another one after it: in between the process may have stood still.
        """
        ahead = looked - self._monotonic_micros()
        if abs(ahead - self._ahead) > _JUMP_MICROS_MIN:
            self._births = dict.fromkeys(self._births, -math.inf)  # the next statement connects, and compares again
        believed = looked - max(0, ahead - self._ahead) - self._offset
        return believed / MICROS_PER_SECOND + self._limits.postgres_lateness_seconds_max

    def _monotonic_micros(self) -> UnixMicros:
        return round(self._clock.monotonic() * MICROS_PER_SECOND)

    async def take(self) -> Connection:
        """A connection for more than one statement, at the start; to be given back by `give_back`."""
        return self._unused() or await self._take()

    def give_back(self, connection: Connection) -> None:
        """Let others have it; not in a transaction."""
        self._give(connection)

    async def close(self) -> None:
        """Refuse new calls, wait for those under way, end the connections. Safe to repeat, also at the same time."""
        if self._closed:
            await self._ended.wait()
            return
        self._closed = True
        try:
            if self._calls:
                await self._finished.wait()
            idle = [connection for connection, _ in self._idle]
            self._idle.clear()
            await for_each(idle, self._end, at_once=len(idle) or 1)
            await self._tasks.drain(2 * _CLOSE_SECONDS_MAX)
        finally:
            for connection, _ in self._idle:  # if nobody waited for the end
                connection.terminate()
            self._ended.set()

    async def _run(self, statement: str, arguments: Sequence[object], *, writes: bool) -> Sequence[Record]:
        if self._closed:
            raise Unavailable("the connections to the database are closed")
        self._calls += 1
        try:
            for _ in range(_ATTEMPTS_MAX - 1):
                try:
                    return await self._fetch(statement, arguments)
                except DRIVER_ERRORS as error:
                    if may_be_repeated(error):
                        continue
                    if writes or not is_lost_connection(error):
                        raise
            return await self._fetch(statement, arguments)
        except asyncpg.DivisionByZeroError:
            return ()
        except DRIVER_ERRORS as error:
            raise translated(error, writes=writes, place=self.place) from error
        finally:
            self._end_call()

    def _end_call(self) -> None:
        self._calls -= 1
        if self._closed and not self._calls:
            self._finished.set()

    async def _fetch(self, statement: str, arguments: Sequence[object]) -> Sequence[Record]:
        connection = self._unused() or await self._take()
        try:
            records: Sequence[Record] = await connection.fetch(statement, *arguments)
        except BaseException as error:
            if spoils_connection(error):
                self._retire(connection)
            else:
                self._give(connection)
            raise
        self._give(connection)
        return records

    # Connections

    def _unused(self) -> "Connection | None":
        """The idle connection that was used last, if there is one."""
        oldest = self._clock.monotonic() - self._limits.postgres_idle_seconds_max
        while self._idle:
            connection, since = self._idle.pop()
            self._taken += 1
            if since >= oldest and not self._is_spent(connection):
                return connection
            self._retire(connection)
        return None

    async def _take(self) -> Connection:
        """A new connection, or one that somebody gives back in time."""
        if self._taken < self._server.connections_max:
            self._taken += 1
            return await self._made()
        return await self._wait() or await self._made()

    async def _wait(self) -> "Connection | None":
        """Wait for what somebody leaves: a connection, or the right to make one."""
        if len(self._waiters) >= self._limits.postgres_waiting_max:
            raise Busy("too many statements wait for a connection to the database")
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._limits.postgres_connection_wait_seconds_max):
                return await waiter
        except BaseException as error:
            with suppress(ValueError):
                self._waiters.remove(waiter)
            if waiter.done() and not waiter.cancelled():  # given, and too late
                self._pass_on(waiter.result())
            if isinstance(error, TimeoutError):
                raise Busy("no connection to the database came free in time") from None
            raise
        finally:
            telemetry.engine_connection_wait_seconds.labels(self._name).observe(self._clock.monotonic() - began)

    async def _made(self) -> Connection:
        """A new connection, in a place that is taken for it."""
        try:
            return await self._connect()
        except DRIVER_ERRORS as error:
            raise unreachable(error, place=self.place) from error

    async def _connect(self) -> Connection:
        """Connect, and look at the server's clock. Frees its place if it fails."""
        connection = None
        try:
            async with asyncio.timeout(self._server.timeout_seconds):
                connection = await asyncpg.connect(
                    self._server.url,
                    timeout=self._server.timeout_seconds,
                    command_timeout=self._server.timeout_seconds,
                    statement_cache_size=_STATEMENTS_MAX if self._server.prepared_statements else 0,
                    max_cached_statement_lifetime=0,  # as long as the connection
                    server_settings={"application_name": "tierstore"},
                    connection_class=_Named,
                )
                began = self._clock.now()
                [(read_only, seconds, connection.own)] = await connection.fetch(_LOOK)
                looked = self._clock.now()
                if looked - began > self._server.timeout_seconds * MICROS_PER_SECOND:
                    raise TimeoutError  # we stood still, and do not know when the server has looked
                if read_only == "on":
                    raise asyncpg.ReadOnlySQLTransactionError("nothing can be written there")
        except BaseException:
            if connection is not None:
                connection.terminate()
            self._pass_on(None)
            raise
        self._offset = looked - round(seconds * MICROS_PER_SECOND)
        self._ahead = looked - self._monotonic_micros()
        self._births[connection] = self._clock.monotonic()
        self._open_connections.inc()
        return connection

    def _give(self, connection: Connection) -> None:
        """Let the next one have it who waits, or keep it."""
        if self._is_spent(connection):
            self._retire(connection)
        elif self._waiters:
            self._pass_on(connection)
        else:
            self._taken -= 1
            self._idle.append((connection, self._clock.monotonic()))
            self._end_oldest()

    def _is_spent(self, connection: Connection) -> bool:
        """Whether it is closed, or so old that it is replaced."""
        oldest = self._clock.monotonic() - self._limits.postgres_connection_seconds_max
        return connection.is_closed() or self._births[connection] < oldest

    def _pass_on(self, given: "Connection | None") -> None:
        """Give a connection, or the right to make one, to who has waited longest, or to nobody."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(given)
                return
        if given is not None:
            self._give(given)
        else:
            self._taken -= 1

    def _end_oldest(self) -> None:
        """End the connection that nobody has needed for longest, if that is too long."""
        connection, since = self._idle[0]
        if since < self._clock.monotonic() - self._limits.postgres_idle_seconds_max:
            self._idle.popleft()
            self._taken += 1
            self._retire(connection)

    def _retire(self, connection: Connection) -> None:
        """End a connection off the caller's path; its place is free when that is done."""
        if connection.is_closed():
            connection.terminate()  # lets go of what it holds here
            self._ended_one(connection)
            self._pass_on(None)
        else:
            self._tasks.spawn("end connection", self._end_taken(connection))

    async def _end_taken(self, connection: Connection) -> None:
        try:
            await self._end(connection)
        finally:
            self._pass_on(None)

    async def _end(self, connection: Connection) -> None:
        """Tell the server, which also stops what the connection is still busy with, if it can be told in time."""
        try:
            await connection.close(timeout=_CLOSE_SECONDS_MAX)
        except DRIVER_ERRORS:
            connection.terminate()
        finally:
            self._ended_one(connection)

    def _ended_one(self, connection: Connection) -> None:
        del self._births[connection]
        self._open_connections.dec()

    def _report(self, task: str, error: BaseException) -> None:
        log.error("background task failed", task=task, exc_info=error)
