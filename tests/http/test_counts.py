"""Whatever clients do, and however they go: when all is over, nothing is counted as under way any more."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from tests.http.harness import LIMITS, ROOT, Connection, Running, eventually, head, running
from tierstore.limits import KIB

CROWDED = replace(
    LIMITS,
    connections_max=12,
    patience_seconds=0.03,
    client_bytes_max=300 * KIB,
    operations_max=2,
    operations_queue_max=6,
    operation_wait_seconds_max=0.2,
    stream_chunk_bytes=16 * KIB,
    client_stall_seconds_max=0.4,
    request_head_seconds_max=0.5,
    linger_seconds_max=0.05,
)
"""So little room that clients meet each bound all the time."""
CLIENTS = 24
REQUESTS_OF_A_CLIENT = 10
SIZES = (0, 10, 900, 3 * KIB, 200 * KIB)
GAUGES = (
    "tierstore_requests_in_flight",
    "tierstore_operations_in_flight",
    "tierstore_operations_waiting",
    "tierstore_connections",
)


def payload_of(size: int) -> bytes:
    """What objects of a size hold; a mix, or a part, of it is none."""
    return b"%d:" % size * (size // (len(str(size)) + 1)) + b"x" * (size % (len(str(size)) + 1))


def multipart(kind: str) -> str:
    """The address of uploads, of this kind of request."""
    return f"{ROOT.replace('objects', f'objects:multipart{kind}')}/film"


class Client:
    """One that sends what it likes, as slowly as it likes, and goes when it likes."""

    def __init__(self, server: Running, upload: str, rng: random.Random) -> None:
        self._server = server
        self._upload = upload
        self._rng = rng

    async def run(self) -> None:
        """All its requests, each on a connection of its own."""
        for _ in range(REQUESTS_OF_A_CLIENT):
            with suppress(OSError, EOFError, AssertionError, ValueError, IndexError, RuntimeError):  # it was cut off
                async with self._server.connect() as connection, asyncio.timeout(0.6):
                    await self._one(connection)

    async def _one(self, connection: Connection) -> None:
        rng = self._rng
        request = rng.choice([self._put, self._chunked, self._get, self._part, self._complete, self._delete])()
        request *= rng.choice([1, 1, 1, 2, 5])
        if rng.random() < 0.2:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # because it is a duplex one
        stop = rng.choice([len(request), len(request), rng.randrange(len(request) + 1)])
        while request[:stop]:
            piece = rng.choice([stop, rng.randrange(1, stop + 1), max(1, stop // 20)])
            await connection.send(request[:piece])
            request, stop = request[piece:], stop - piece
            await asyncio.sleep(rng.choice([0, 0, 0.01, 0.08]))
        match rng.randrange(4):
            case 0:
                connection.abort()
            case 1:
                await asyncio.sleep(rng.choice([0, 0.001, 0.05]))
            case _:
                await connection.response()

    def _put(self) -> bytes:
        size = self._rng.choice(SIZES)
        fields = [("content-length", str(size))]
        if self._rng.random() < 0.2:
            fields.append(("expect", "100-continue"))
        return head("PUT", f"{ROOT}/{self._rng.randrange(3)}", fields) + payload_of(size)

    def _chunked(self) -> bytes:
        payload = payload_of(self._rng.choice(SIZES))
        pieces = [payload[at : at + 5000] for at in range(0, len(payload), 5000)]
        chunks = b"".join(b"%x;extension=%d\r\n%s\r\n" % (len(each), len(each), each) for each in pieces)
        sent = head("PUT", f"{ROOT}/{self._rng.randrange(3)}", [("transfer-encoding", "chunked")]) + chunks
        return sent + b"0\r\ntrailer: x\r\n\r\n"

    def _get(self) -> bytes:
        return head(self._rng.choice(["GET", "GET", "HEAD"]), f"{ROOT}/{self._rng.randrange(3)}")

    def _delete(self) -> bytes:
        return head("DELETE", f"{ROOT}/{self._rng.randrange(3)}")

    def _part(self) -> bytes:
        size = self._rng.choice(SIZES)
        target = f"{multipart(':parts')}?upload_id={self._upload}&part_number={self._rng.randrange(1, 9)}"
        return head("PUT", target, [("content-length", str(size))]) + payload_of(size)

    def _complete(self) -> bytes:
        body = b'{"parts":[{"part_number":1,"etag":"x"}]}' + b" " * self._rng.choice([0, 9000])
        target = f"{multipart(':complete')}?upload_id={self._upload}"
        return head("POST", target, [("content-length", str(len(body)))]) + body


def gauges() -> dict[str, float | None]:
    """What is told to those who watch."""
    return {name: REGISTRY.get_sample_value(name) for name in GAUGES}


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_counted_when_all_is_over(seed: int) -> None:
    """Connections, what they hold, requests at work, operations, writes and streams: none is left, and none too few.

    And what can be read then is what one client has sent, all of it.
    """
    rng = random.Random(seed)
    before = gauges()
    async with running(CROWDED, max_requests=3) as server:
        upload = str((await server.request("PUT", multipart(""))).json["upload_id"])
        operations = server.gate._service._operations
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(Client(server, upload, random.Random(rng.random())).run())
        over: dict[str, Callable[[], object]] = {
            "no connection": lambda: len(server.crowd) == 0,
            "nothing held": lambda: server.crowd.bytes_held == 0,
            "no operation": lambda: (operations.running, operations.with_clients, operations.waiting) == (0, 0, 0),
            "no mutation": lambda: len(server.mutations) == 0,
            "no stream": lambda: server.long_term.open_streams == 0,
            "as before for those who watch": lambda: gauges() == before,
        }
        for what, holds in over.items():
            await eventually(what, holds)
        assert server.failures == []
        for key in range(3):
            found = await server.request("GET", f"{ROOT}/{key}")
            assert found.status == 404 or found.body == payload_of(len(found.body))
