"""Clients that hold connections and give nothing for it, in a process of their own.

``python -m bench.slow_clients PORT COUNT SMALL LARGE KIND…``: ``COUNT`` connections to that port of this machine, in
equal parts of each of these kinds (`KINDS`); whatever the server closes is opened again. ``SMALL`` and ``LARGE`` are
addresses (paths) of objects that are asked for and not read. It prints one line of JSON once all are open, and another
when its standard input ends: how many were open then, and how many there were in all, by kind.
"""

import asyncio
import itertools
import json
import socket
import sys
from collections import Counter
from typing import Final

import uvloop

KINDS: Final = ("idle", "head", "body", "unread")
"""Nothing is sent; a head comes byte by byte; a body does; answers are not read."""
_HOST = "127.0.0.1"
_AT_ONCE = 100
_DRIP_SECONDS = 2.0
_DRIPS = 50
"""So often in that time, those whose turn it is."""
_RETRY_SECONDS = 0.5
_RECEIVED_MAX = 4096
"""The system's buffer of a client that does not read: what the server sends stays with the server."""
_LARGE_ONE_IN = 32
_PIPELINED = 2
_BODY_BYTES = 1_000_000


class _Held(asyncio.Protocol):
    """One connection."""

    def __init__(self, clients: "SlowClients", kind: str) -> None:
        self._clients = clients
        self.kind = kind
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # because it is a socket
        self.transport = transport
        self._clients.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # because it is a callback
        self._clients.closed(self)


class SlowClients:
    """``count`` connections, kept open."""

    def __init__(self, port: int, count: int, small: str, large: str, kinds: list[str]) -> None:
        self._port = port
        self._count = count
        self._small = small
        self._large = large
        self._kinds = kinds
        self._open: dict[_Held, None] = {}
        self._made: Counter[str] = Counter()
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._numbers = itertools.count()
        self.all_open = asyncio.Event()

    async def run(self) -> None:
        """Open them, keep them, let them drip, until cancelled."""
        for number in range(self._count):
            self._wanted.put_nowait(self._kinds[number % len(self._kinds)])
        async with asyncio.TaskGroup() as group:
            group.create_task(self._drip())
            for _ in range(_AT_ONCE):
                group.create_task(self._connect_all())

    def report(self) -> dict[str, dict[str, int]]:
        """How many are open, and how many there have been, by kind."""
        return {"open": dict(Counter(held.kind for held in self._open)), "made": dict(self._made)}

    def opened(self, held: _Held) -> None:
        self._open[held] = None
        self._made[held.kind] += 1
        if held.kind == "unread":
            held.transport.pause_reading()
        held.transport.write(self._beginning(held.kind))
        if len(self._open) == self._count:
            self.all_open.set()

    def closed(self, held: _Held) -> None:
        del self._open[held]
        self._wanted.put_nowait(held.kind)

    def _beginning(self, kind: str) -> bytes:
        number = next(self._numbers)
        match kind:
            case "head":
                return f"GET {self._small} HTTP/1.1\r\nhost: slow\r\nx-slow: ".encode()
            case "body":
                target = f"{self._small}-{number}"
                return f"PUT {target} HTTP/1.1\r\nhost: slow\r\ncontent-length: {_BODY_BYTES}\r\n\r\n".encode()
            case "unread":
                wanted = self._large if number % _LARGE_ONE_IN < len(self._kinds) else self._small
                return f"GET {wanted} HTTP/1.1\r\nhost: slow\r\n\r\n".encode() * _PIPELINED
            case _:
                return b""

    async def _connect_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            kind = await self._wanted.get()
            connection = socket.socket()
            connection.setblocking(False)
            if kind == "unread":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED_MAX)
            try:
                await loop.sock_connect(connection, (_HOST, self._port))
                await loop.create_connection(lambda: _Held(self, kind), sock=connection)  # noqa: B023  # because it is called at once
            except OSError:
                connection.close()
                self._wanted.put_nowait(kind)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _drip(self) -> None:
        for step in itertools.cycle(range(_DRIPS)):
            await asyncio.sleep(_DRIP_SECONDS / _DRIPS)
            for held in list(self._open)[step::_DRIPS]:
                if held.kind in {"head", "body"} and not held.transport.is_closing():
                    held.transport.write(b"x")


async def main(port: int, count: int, small: str, large: str, kinds: list[str]) -> None:
    """Hold the connections until standard input ends."""
    clients = SlowClients(port, count, small, large, kinds)
    running = asyncio.create_task(clients.run())
    opening = asyncio.create_task(clients.all_open.wait())
    await asyncio.wait((running, opening), return_when=asyncio.FIRST_COMPLETED)
    print(json.dumps(clients.report()), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(clients.report()), flush=True)
    running.cancel()
    await asyncio.wait((running,))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
