"""A resumable upload of the public client through a line that is cut, to a server that is killed; and what it cost.

The line is a TCP proxy that ends connections with a reset whenever so many bytes of the client have come through as a
seed says, and has the server killed (-9) and started again at others. Bytes are counted where the client reads its
input, and so before all buffers: what was read again was sent again.
"""

import asyncio
import hashlib
import io
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import urllib3
from objectstore_client import Client, Session, Usecase

from tests.engines.deployment import EMBEDDED, Deployment
from tierstore.limits import MIB
from tierstore.testing.server import HOST

_BLOCK_BYTES = MIB + 7
"""What the payload repeats: no divisor of any unit, so that no unit equals another."""
_BUFFER_BYTES = 256 * 1024
"""Of each end's socket: what is on the line when it is cut. By itself, loopback takes several MiB."""
_CHUNK_BYTES = 64 * 1024
_TRIES, _PAUSE_SECONDS = 300, 0.1
SENT_MAX = 1.2
"""How much may be sent, as a multiple of the size."""


class GeneratedPayload(io.RawIOBase):
    """``size`` bytes drawn from ``seed``, as a file that can be read from anywhere; ``bytes_read`` counts."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.size = size
        self.bytes_read = 0
        self._block = Random(seed).randbytes(_BLOCK_BYTES)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        start = self._position % _BLOCK_BYTES
        chunk = self._block[start : start + min(len(buffer), self.size - self._position)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        self.bytes_read += len(chunk)
        return len(chunk)

    def digest(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _BLOCK_BYTES):
            digest.update(self._block[: self.size - start])
        return digest.hexdigest()


@dataclass(frozen=True)
class Cost:
    """What an upload took."""

    size: int
    bytes_read: int
    """By the client, of its input: each byte once if nothing goes wrong."""
    bytes_through: int
    """That came from the client to the line, heads included."""
    cuts: int
    kills: int
    seconds: float
    whole: bool
    """Whether the object's digest is the payload's."""


class Line:
    """The proxy: forwards to ``port()``, and calls ``events[n]`` when ``at[n]`` bytes have come; on a thread."""

    def __init__(self, port: Callable[[], int], events: list[tuple[int, Callable[[], None] | None]]) -> None:
        self._port = port
        self._events = events
        self._connections: set[asyncio.WriteTransport] = set()
        self.bytes_through = 0
        self.cuts = 0
        self.port = 0

    @contextmanager
    def open(self) -> Iterator["Line"]:
        """Forward until the end of the block."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        ended = asyncio.Event()

        async def serve() -> None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            listener.bind((HOST, 0))
            server = await asyncio.start_server(self._forward, sock=listener)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await ended.wait()
            server.close()
            self._cut()
            await asyncio.sleep(0.1)

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            started.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(20)
            loop.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await self._connected()
        except OSError:
            writer.transport.abort()
            return
        ends = {writer.transport, back.transport}
        self._connections |= ends
        answers = asyncio.ensure_future(self._copy(there, writer))
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                back.write(chunk)
                self.bytes_through += len(chunk)
                await self._happen()
                await back.drain()
        except OSError:
            pass
        finally:
            for end in ends:
                end.abort()
            self._connections -= ends
            await answers

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server; while it starts, clients wait, for they give up when they get nowhere thrice."""
        for _ in range(_TRIES):
            with suppress(OSError):
                return await asyncio.open_connection(HOST, self._port(), limit=_BUFFER_BYTES)
            await asyncio.sleep(_PAUSE_SECONDS)
        return await asyncio.open_connection(HOST, self._port())

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()

    async def _happen(self) -> None:
        while self._events and self.bytes_through >= self._events[0][0]:
            _, event = self._events.pop(0)
            if event is None:
                self.cuts += 1
            else:
                await asyncio.get_running_loop().run_in_executor(None, event)
            self._cut()

    def _cut(self) -> None:
        for transport in self._connections:
            transport.abort()


def upload_through_a_broken_line(
    data: Path, deployment: Deployment = EMBEDDED, *, size: int, cuts: int, kills: int, seed: int, threshold_bytes: int
) -> Cost:
    """Put ``size`` bytes, and read them back from a server that was started anew. Blocks."""
    random = Random(seed)
    payload = GeneratedPayload(size, seed)
    server = deployment.server(data, workers=2)
    killed = 0

    def restart() -> None:
        nonlocal server, killed
        server.kill()
        server.close()
        killed += 1
        server = deployment.server(data, workers=2)
        server.start()
        server.wait_ready()

    events: list[tuple[int, Callable[[], None] | None]] = []
    events += [(random.randrange(size), None) for _ in range(cuts)]
    events += [(random.randrange(size), restart) for _ in range(kills)]
    events.sort(key=lambda event: event[0])
    begun = time.monotonic()
    try:
        server.start()
        server.wait_ready()
        with Line(lambda: server.port, events).open() as line:
            key = session_at(line.port).put(
                io.BufferedReader(payload), key="broken", resumable_threshold_bytes=threshold_bytes
            )
        seconds = time.monotonic() - begun
        restart()
        killed -= 1
        return Cost(
            size=size,
            bytes_read=payload.bytes_read,
            bytes_through=line.bytes_through,
            cuts=line.cuts,
            kills=killed,
            seconds=seconds,
            whole=digest_at(server.port, key) == payload.digest(),
        )
    finally:
        server.close()


def run(seconds: float, seed: int) -> Mapping[str, int]:
    """For a soak: uploads of 600 MiB, each cut off 30 times while the server is killed 3 times, one after the other."""
    ends = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    for number in count(seed):
        if time.monotonic() >= ends and counts:
            break
        with tempfile.TemporaryDirectory(prefix="tierstore-broken-") as directory:
            threshold = (1, 64 * MIB)[number % 2]
            cost = upload_through_a_broken_line(
                Path(directory) / "data", size=600 * MIB, cuts=30, kills=3, seed=number, threshold_bytes=threshold
            )
        assert cost.whole, f"seed {number}: {cost}"
        assert cost.bytes_read <= SENT_MAX * cost.size, f"seed {number}: {cost}"
        counts += Counter(
            {
                "uploads": 1,
                "cuts": cost.cuts,
                "kills": cost.kills,
                "MiB of payload": cost.size // MIB,
                "MiB sent": cost.bytes_read // MIB,
            }
        )
    return counts


def session_at(port: int) -> Session:
    """A tenant's session at a server, or at a line to it; patient, for machines may be busy."""
    timeout = urllib3.Timeout(connect=10, read=60)
    options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)]
    client = Client(f"http://{HOST}:{port}", connection_kwargs={"timeout": timeout, "socket_options": options})
    return client.session(Usecase("attachments", compression="none"), org=17)


def digest_at(port: int, key: str) -> str:
    """SHA-256 of an object."""
    found = session_at(port).get(key)
    assert found is not None, "the object is not there"
    digest = hashlib.sha256()
    with found.payload as stream:
        while chunk := stream.read(MIB):
            digest.update(chunk)
    return digest.hexdigest()
