"""Limits on rates, on a real server of two workers under load: they hold for both together, however clients connect."""

import asyncio
import http.client
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import pytest

from tierstore.limits import KIB, MIB
from tierstore.testing.server import HOST, ServerProcess

TOLERANCE = 0.05
WARM_UP_SECONDS = 1.2
"""More than the second that the bursts of these tests last."""
MEASURED_SECONDS = 2.0
_PAUSE_SECONDS = 0.004
"""How long a client that was refused waits: far less than it is told, so that no room is left unused."""
_CONNECTIONS_MAX = 64


@dataclass
class _Client:
    """One connection that asks again and again, and keeps when it was not refused, and with what."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: bytes
    admitted: list[float] = field(default_factory=list)
    refused: int = 0

    @classmethod
    async def connect(cls, server: ServerProcess, request: bytes) -> Self:
        """A client on a connection of its own."""
        return cls(*await asyncio.open_connection(HOST, server.port), request)

    @property
    def port(self) -> int:
        """Its own."""
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    async def run(self, end: float) -> None:
        """Ask until ``end``, on the monotonic clock."""
        while time.monotonic() < end:
            self.writer.write(self.request)
            head = await self.reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            if not self.request.startswith(b"HEAD"):
                await self.reader.readexactly(int(fields[b"content-length"]))
            if head.split(b" ")[1] == b"429":
                assert int(fields[b"retry-after"]) >= 1
                self.refused += 1
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                self.admitted.append(time.monotonic())


async def _connected(server: ServerProcess, request: bytes, fewest: int) -> list[_Client]:
    """At least so many clients, as many as it takes for each worker to have one."""
    clients: list[_Client] = []
    while len(clients) < _CONNECTIONS_MAX:
        clients.append(await _Client.connect(server, request))
        if len(clients) >= fewest and all(_held(clients, pid) for pid in server.worker_pids):
            return clients
    raise AssertionError("one worker takes all connections")


def _held(clients: list[_Client], pid: int) -> int:
    """How many of the clients' connections the worker has."""
    ports = {client.port for client in clients}
    return sum(bool(found.raddr) and found.raddr.port in ports for found in psutil.Process(pid).net_connections("tcp"))


async def _rate(clients: list[_Client]) -> float:
    """How many requests of the clients are admitted in a second, once the burst is used up."""
    begin = time.monotonic() + WARM_UP_SECONDS
    end = begin + MEASURED_SECONDS
    async with asyncio.timeout(30):
        await asyncio.gather(*(client.run(end + 0.2) for client in clients))
    for client in clients:
        client.writer.close()
    assert all(client.refused for client in clients)
    return sum(begin <= moment < end for client in clients for moment in client.admitted) / MEASURED_SECONDS


def _head(scopes: str) -> bytes:
    return f"HEAD /v1/objects/limits/{scopes}/absent HTTP/1.1\r\nhost: x\r\n\r\n".encode()


def _put(size: int) -> bytes:
    head = f"PUT /v1/objects/limits/org=1/object HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + bytes(size)


async def _both_workers(server: ServerProcess) -> float:
    return await _rate(await _connected(server, _head("_"), 8))


async def _one_connection(server: ServerProcess) -> float:
    return await _rate([await _Client.connect(server, _head("org=1"))])


async def _uneven_connections(server: ServerProcess) -> float:
    clients = await _connected(server, _head("org=1"), 8)
    first, second = server.worker_pids
    fewer, more = sorted(([client for client in clients if _held([client], pid)] for pid in (first, second)), key=len)
    for spare in fewer[1:]:
        spare.writer.close()
    return await _rate([fewer[0], *more])


async def _bodies(server: ServerProcess) -> float:
    return await _rate(await _connected(server, _put(16 * KIB), 4)) * 16 * KIB


_THROUGHPUT = {"throughput": {"rate": 300, "scope_percent": 50}}


@pytest.mark.parametrize(
    ("config", "load", "wanted"),
    [
        (_THROUGHPUT, _both_workers, 150),
        (_THROUGHPUT, _one_connection, 150),
        (_THROUGHPUT, _uneven_connections, 150),
        ({"throughput": {"rate": 300}}, _both_workers, 300),
        ({"bandwidth": {"rate": 2 * MIB}}, _bodies, 2 * MIB),
    ],
    ids=["scope", "one-connection", "uneven-connections", "server", "bandwidth"],
)
async def test_two_workers_hold_a_limit(
    tmp_path: Path,
    config: dict[str, dict[str, object]],
    load: Callable[[ServerProcess], Awaitable[float]],
    wanted: float,
) -> None:
    """What is admitted is what the limit says, no more and no less by more than 5 %, however clients are connected."""
    async with ServerProcess(tmp_path, workers=2, config=config) as server:
        assert await load(server) == pytest.approx(wanted, rel=TOLERANCE)
        metrics = await asyncio.to_thread(_metrics, server, "/metrics")
        kind = "bandwidth" if "bandwidth" in config else "throughput"
        assert sum(value for name, value in metrics.items() if kind in name and 'outcome="refused"' in name) > 0
        shares = await asyncio.to_thread(_metrics, server, "/keda")
        share = shares[f"tierstore_load_{kind}"]
        assert 0 <= share <= shares["tierstore_load"] < 2
        assert share > 0.5 or "scope_percent" in config.get("throughput", {})


def _metrics(server: ServerProcess, path: str) -> dict[str, float]:
    with closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
