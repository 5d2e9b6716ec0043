"""A real server on a loopback port over in-memory stores, and a small client that sends exactly what it is told."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import orjson
import uvicorn

from tierstore.admission.authentication import Access
from tierstore.admission.buckets import BucketTable
from tierstore.admission.controls import Controls
from tierstore.admission.gate import Gate
from tierstore.admission.keys import KeyDirectory
from tierstore.admission.rate_limits import RateLimiter
from tierstore.admission.rules import Rules
from tierstore.backends.high_volume.memory import MemoryHighVolume, MemoryRows
from tierstore.backends.long_term.contract import BlobStream
from tierstore.backends.long_term.memory import MemoryBlobs, MemoryLongTerm
from tierstore.build import Stores, build_service, build_tiering
from tierstore.changelog.memory import MemoryChangeLog, MemoryEntries
from tierstore.clock import Clock, SystemClock
from tierstore.http.app import HttpSettings, Served, create_app
from tierstore.http.connection import bounded
from tierstore.http.crowd import Crowd
from tierstore.idsource import SystemIds
from tierstore.limits import KIB, MIB, Limits
from tierstore.process.tls import ServerTls
from tierstore.process.worker import DrainingServer
from tierstore.tasks import TaskOwner
from tierstore.testing.faults import FaultScript, FaultyChangeLog, FaultyHighVolume, FaultyLongTerm
from tierstore.types.ids import Revision
from tierstore.types.ranges import Span

LIMITS = replace(
    Limits(),
    inline_bytes_max=KIB,
    stream_chunk_bytes=64 * KIB,
    object_bytes_max=8 * MIB,
    linger_seconds_max=0.1,
    parts_max=16,
    part_bytes_max=4 * MIB,
    parts_listed_max=5,
    complete_body_bytes_max=16 * KIB,
    complete_keep_alive_seconds=0.05,
    complete_wait_seconds_max=0.2,
)
"""What begins to be large is small, so that both tiers are met with little; streams still have real chunks."""

ROOT = "/v1/objects/testing/org=1"
CLIENT_SECONDS_MAX = 20.0
"""A client in a test waits this long for what must come; only a failing test does."""


class _WatchedStream(BlobStream):
    """A stream whose closing is noticed."""

    def __init__(self, inner: BlobStream, closed: Callable[[], None]) -> None:
        self.size = inner.size
        self._inner = inner
        self._closed: Callable[[], None] | None = closed

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._inner)

    async def aclose(self) -> None:
        await self._inner.aclose()
        if self._closed is not None:
            self._closed()
            self._closed = None


class WatchedLongTerm(FaultyLongTerm):
    """A long-term backend with the script's faults that knows how many of its streams are open."""

    open_streams = 0

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        stream = await super().get(revision, span)
        if stream is None:
            return None
        self.open_streams += 1
        return _WatchedStream(stream, self._count_closed)

    def _count_closed(self) -> None:
        self.open_streams -= 1


@dataclass
class Running:
    """A server that runs, and what a test may look at or break."""

    port: int
    limits: Limits
    script: FaultScript
    failures: list[str]
    mutations: TaskOwner
    long_term: WatchedLongTerm
    connections: set[object]
    """Those that the server holds."""
    stop: Callable[[], None]
    """Tell it to stop."""
    controls: Controls
    crowd: Crowd
    draining: bool = False
    gate: Gate = field(init=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["Connection"]:
        """A connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = Connection(reader, writer)
        try:
            yield connection
        finally:
            await connection.close()

    async def request(
        self, method: str, target: str | bytes, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> "Response":
        """One request on a connection of its own."""
        async with self.connect() as connection:
            return await connection.request(method, target, headers, body)


@asynccontextmanager
async def running(
    limits: Limits = LIMITS,
    *,
    enforce: bool = False,
    max_requests: int = 64,
    clock: Clock | None = None,
    grace_seconds: int = 2,
    keep_alive_seconds: int = 5,
    rules: Rules | None = None,
    access: Access | None = None,
    audit: bool = True,
    tls: ServerTls | None = None,
) -> AsyncIterator[Running]:
    """Serve on a free port until the end of the block, from the running event loop."""
    script, failures = FaultScript(), list[str]()
    clock, ids = clock or SystemClock(), SystemIds()

    def report(name: str, error: BaseException) -> None:
        failures.append(f"{name}: {error!r}")

    mutations, cleanup = TaskOwner(64, report), TaskOwner(64, report)
    controls = Controls(rules or Rules(), RateLimiter(BucketTable.private(), clock))
    long_term = WatchedLongTerm(MemoryLongTerm(MemoryBlobs(), clock=clock, limits=limits), script)

    @asynccontextmanager
    async def open_served() -> AsyncIterator[Served]:
        high_volume = FaultyHighVolume(MemoryHighVolume(MemoryRows(), clock=clock, ids=ids), script)
        changelog = FaultyChangeLog(MemoryChangeLog(MemoryEntries(), clock=clock), script)
        stores = Stores(high_volume, long_term, changelog)
        tiering = build_tiering(stores, limits=limits, clock=clock, ids=ids, cleanup=cleanup)
        service = build_service(tiering, stores, limits=limits, ids=ids, mutations=mutations)
        up.gate = Gate(
            service, access or Access(enforce=enforce, keys=KeyDirectory()), controls, clock=clock, limits=limits
        )
        yield Served(service, up.gate)
        await mutations.drain(5)
        await cleanup.drain(5)
        for backend in (high_volume, long_term, changelog):
            await backend.close()

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        connections: set[object] = set()
        protocol = bounded(limits, clock)
        up = Running(
            listener.getsockname()[1],
            limits,
            script,
            failures,
            mutations,
            long_term,
            connections,
            lambda: setattr(server, "should_exit", True),
            controls,
            protocol.crowd,
        )
        settings = HttpSettings(
            limits=limits, clock=clock, ids=ids, max_requests=max_requests, draining=lambda: up.draining, audit=audit
        )
        config = uvicorn.Config(
            create_app(open_served, settings), http=protocol,
            ws="none", lifespan="on", log_config=None, server_header=False, proxy_headers=False, access_log=False,
            timeout_graceful_shutdown=grace_seconds, timeout_keep_alive=keep_alive_seconds, reset_contextvars=True,
        )  # fmt: skip
        server = uvicorn.Server(config)
        if tls is not None:
            server = DrainingServer(
                config, clock=clock, delay_seconds=0, started=lambda: None, parent=None, reload=lambda: None, tls=tls,
                limits=limits,
            )  # fmt: skip
        server.server_state.connections = connections  # type: ignore[assignment]  # because its type is many protocols
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(CLIENT_SECONDS_MAX):
                while not server.started:
                    await asyncio.sleep(0.002)
            yield up
        finally:
            server.should_exit = True
            await serving


@dataclass
class Response:
    """What came back. ``body`` is shorter than ``content-length`` says if the connection ended early."""

    status: int
    headers: dict[str, str]
    body: bytes
    informational: list[int] = field(default_factory=list)
    complete: bool = True
    """Whether the connection did not end before the response."""

    @property
    def json(self) -> dict[str, object]:
        """The body, which must be a JSON object by its content type too."""
        assert self.headers["content-type"] == "application/json"
        content = orjson.loads(self.body)
        assert isinstance(content, dict)
        return content

    @property
    def detail(self) -> str:
        """What an error says."""
        return str(self.json["detail"])

    @property
    def whole(self) -> bool:
        """Whether as many bytes came as were announced."""
        return len(self.body) == int(self.headers["content-length"])


class Connection:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def request(
        self, method: str, target: str | bytes, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> Response:
        """Send a request and read its response."""
        await self.send(head(method, target, headers, body) + (body or b""))
        return await self.response(bodiless=method == "HEAD")

    async def send(self, raw: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(raw)
        await self.writer.drain()

    async def response(self, *, bodiless: bool = False) -> Response:
        """Read one response, or as much as comes."""
        async with asyncio.timeout(CLIENT_SECONDS_MAX):
            informational = []
            status, headers = await self.response_head()
            while status < 200:
                informational.append(status)
                status, headers = await self.response_head()
            body, complete = bytearray(), True
            if not bodiless and status not in {204, 304}:
                try:
                    if headers.get("transfer-encoding") == "chunked":
                        while chunk := await self.chunk():
                            body += chunk
                    else:
                        body += await self.reader.readexactly(int(headers["content-length"]))
                except asyncio.IncompleteReadError as cut:
                    body += cut.partial
                    complete = False
            return Response(status, headers, bytes(body), informational, complete)

    async def chunk(self) -> bytes:
        """Read the next chunk of a chunked response; empty at its end."""
        async with asyncio.timeout(CLIENT_SECONDS_MAX):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def response_head(self) -> tuple[int, dict[str, str]]:
        """Read a status line and headers."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers: dict[str, str] = dict(pairs)
        assert len(headers) == len(pairs), f"a header is repeated: {pairs}"
        return int(status_line.split(" ")[1]), headers

    async def rest(self) -> bytes:
        """All that still comes, until the connection ends in one way or another."""
        received = bytearray()
        async with asyncio.timeout(CLIENT_SECONDS_MAX):
            try:
                while chunk := await self.reader.read(MIB):
                    received += chunk
            except ConnectionError:
                pass
        return bytes(received)

    async def closed_by_server(self) -> bool:
        """Whether the server closes the connection within a second, with nothing more to say."""
        try:
            async with asyncio.timeout(1):
                return await self.reader.read(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def abort(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close it, whatever state it is in."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


def head(method: str, target: str | bytes, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None) -> bytes:
    """The head of a request; with the length of ``body`` if there is one."""
    raw_target = target if isinstance(target, bytes) else target.encode()
    lines = [("host", "localhost"), *headers]
    if body is not None:
        lines.append(("content-length", str(len(body))))
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return method.encode() + b" " + raw_target + b" HTTP/1.1\r\n" + text.encode("latin-1") + b"\r\n"


async def eventually(what: str, condition: object) -> None:
    """Wait until ``condition()`` holds; fail with ``what`` if it does not within a few seconds."""
    assert callable(condition)
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)
