"""What goes wrong around a real server: cut-off bodies, clients that leave, full and read-only disks, flipped bits."""

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.helpers import flip_bit, get, put, remains, stop
from tierstore.limits import KIB, MIB
from tierstore.testing.mounts import small_disk
from tierstore.testing.server import ServerProcess

OBJECTS = "/v1/objects/failures/org=1"


def _connect(server: ServerProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    return connection


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for the tests that do not harm it."""
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [100, 2 * MIB])
async def test_a_body_cut_off_half_way_stores_nothing(server: ServerProcess, size: int, chunked: bool) -> None:
    """The client dies in the middle of its body, abruptly or politely: what was there before is still there."""
    path = f"{OBJECTS}/cut-{size}-{chunked}"
    async with aiohttp.ClientSession(server.url) as http:
        assert await put(http, path, b"before") == 200
        for abrupt in (False, True):
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
            half = b"x" * (size // 2)
            body = b"%x\r\n%s\r\n" % (len(half), half) if chunked else half
            with _connect(server) as connection:
                connection.sendall(b"PUT %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (path.encode(), framing))
                connection.sendall(body)
                if not abrupt:
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)
        await asyncio.sleep(0.2)
        assert await get(http, path) == (200, b"before")


async def test_clients_that_leave_at_every_stage_do_no_harm(tmp_path: Path) -> None:
    """Hundreds of clients that vanish at random points: the server lives, objects are old or new, nothing is left."""
    chooser = random.Random(4)
    payloads = {b"o" * 3000, b"n" * 3000, b"O" * (2 * MIB), b"N" * (2 * MIB)}
    async with ServerProcess(tmp_path) as server:
        path = f"{OBJECTS}/left"
        async with aiohttp.ClientSession(server.url) as http:
            assert await put(http, path, b"o" * 3000) == 200

            def leave(number: int) -> None:
                payload = sorted(payloads)[number % 4]
                request = chooser.choice(
                    [
                        b"PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                        % (path.encode(), len(payload), payload),
                        b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode(),
                    ]
                )
                stage = chooser.randrange(len(request) + 1) if chooser.random() < 0.5 else len(request)
                with _connect(server) as connection, contextlib.suppress(OSError):
                    connection.settimeout(0.3)
                    connection.sendall(request[:stage])
                    if chooser.random() < 0.5:
                        connection.recv(chooser.randrange(1, 5000))

            for start in range(0, 160, 8):
                await asyncio.gather(*[asyncio.to_thread(leave, start + number) for number in range(8)])
            status, payload = await get(http, path)
            assert (status, payload in payloads) == (200, True)
        await asyncio.to_thread(stop, server)
    (await remains(tmp_path)).check_settled()


def _sized(number: int) -> bytes:
    return bytes([number]) * (900 * KIB if number % 2 else 2 * MIB)


async def test_disk_full(tmp_path: Path) -> None:
    """A full disk refuses writes with 507, loses nothing, keeps serving, and accepts again when there is space."""
    with small_disk(tmp_path / "disk", "32m") as disk:
        config = {"long_term": {"reserve": "1 MiB"}, "high_volume": {"reserve": "1 MiB"}}
        async with ServerProcess(disk.path, config=config) as server, aiohttp.ClientSession(server.url) as http:
            statuses = {number: await put(http, f"{OBJECTS}/{number}", _sized(number)) for number in range(40)}
            stored = [number for number, status in statuses.items() if status == 200]
            assert len(stored) > 5
            assert {status for status in statuses.values() if status != 200} == {507}
            for number, status in statuses.items():
                expected = (200, _sized(number)) if status == 200 else (404, None)
                found, payload = await get(http, f"{OBJECTS}/{number}")
                assert (found, payload if found == 200 else None) == expected
            async with http.get("/health") as response:
                assert response.status == 200
            disk.remount("size=64m")
            assert await put(http, f"{OBJECTS}/again", b"a" * (2 * MIB)) == 200
            assert await put(http, f"{OBJECTS}/again-small", b"a") == 200
            for number in stored:
                async with http.delete(f"{OBJECTS}/{number}") as response:
                    assert response.status == 204
            await asyncio.to_thread(stop, server)
        left = await remains(disk.path)
        left.check_settled()
        assert len(left.blobs) == 1


async def test_large_objects_leave_room_for_small_ones_and_deletes(tmp_path: Path) -> None:
    """When large objects have filled the disk up to the reserve, small writes and deletes go on, and make room."""
    config = {"long_term": {"reserve": "8 MiB"}, "high_volume": {"reserve": "2 MiB"}}
    with small_disk(tmp_path / "disk", "32m") as disk:
        async with ServerProcess(disk.path, config=config) as server, aiohttp.ClientSession(server.url) as http:
            statuses = {number: await put(http, f"{OBJECTS}/{number}", b"x" * (2 * MIB)) for number in range(20)}
            assert set(statuses.values()) == {200, 507}
            for number in range(50):
                assert await put(http, f"{OBJECTS}/small-{number}", b"y" * KIB) == 200
            for number in statuses:
                async with http.delete(f"{OBJECTS}/{number}") as response:
                    assert response.status == 204
            for _ in range(100):  # the blobs go off the deletes' path
                if await put(http, f"{OBJECTS}/again", b"a" * (2 * MIB)) == 200:
                    break
                await asyncio.sleep(0.05)
            assert await get(http, f"{OBJECTS}/again") == (200, b"a" * (2 * MIB))


async def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    """On a read-only disk the server does not start, and says why; on a writable one all is there again."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        stored = {f"{OBJECTS}/small": b"small", f"{OBJECTS}/large": b"L" * (2 * MIB)}
        config = {"long_term": {"reserve": "1 MiB"}}
        async with ServerProcess(disk.path, config=config) as server, aiohttp.ClientSession(server.url) as http:
            for path, payload in stored.items():
                assert await put(http, path, payload) == 200
            await asyncio.to_thread(stop, server)
        disk.remount("ro")
        refused = ServerProcess(disk.path)
        refused.start()
        assert await asyncio.to_thread(refused.wait) == 1
        refused.close()
        assert "mounted read-only" in refused.log_text
        assert "Traceback" not in refused.log_text
        disk.remount("rw")
        async with ServerProcess(disk.path) as server, aiohttp.ClientSession(server.url) as http:
            for path, payload in stored.items():
                assert await get(http, path) == (200, payload)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
async def test_a_flipped_bit_is_never_served_as_whole(tmp_path: Path, size: int) -> None:
    """Damage on disk: the read fails loudly, is counted, and no client takes the bytes for the object."""
    damaged, whole = f"{OBJECTS}/damaged", f"{OBJECTS}/whole"
    payload = os.urandom(size)
    async with ServerProcess(tmp_path) as server, aiohttp.ClientSession(server.url) as http:
        assert await put(http, damaged, payload) == 200
        await asyncio.to_thread(stop, server)
    assert flip_bit(tmp_path, payload, size // 2) >= 1
    async with ServerProcess(tmp_path) as server, aiohttp.ClientSession(server.url) as http:
        assert await put(http, whole, payload) == 200
        for _ in range(2):
            try:
                status, _ = await get(http, damaged)
            except aiohttp.ClientPayloadError:
                status = 500  # the response was cut off before its announced end
            assert status == 500
        assert await get(http, whole) == (200, payload)
        async with http.get("/metrics") as response:
            metrics = await response.text()
        async with http.head(damaged) as response:
            assert response.status == 204
        assert await put(http, damaged, payload) == 200
        assert await get(http, damaged) == (200, payload)
    tier = "high_volume" if size <= MIB else "long_term"
    assert f'tierstore_corrupt_reads_total{{tier="{tier}"}} 2.0' in metrics
    cut_off = f'tierstore_requests_total{{operation="get",status="cut_off",tier="{tier}"}} 2.0'
    assert (cut_off in metrics) == (size > MIB), "a small damaged object is a clean 500"
