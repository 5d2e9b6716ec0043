"""Connections that only cost, against the real server: as the configuration and the limit on open files bound them."""

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.helpers import get, put
from tierstore.testing.server import HOST, ServerProcess

LARGE = b"l" * 2_000_000


async def test_the_configured_bound(tmp_path: Path) -> None:
    """With ``http.connections_max`` idle connections a client is served all the same, in both tiers."""
    async with ServerProcess(tmp_path, config={"http": {"connections_max": 20}}) as server:
        idle = [await asyncio.open_connection(HOST, server.port) for _ in range(20)]
        try:
            await asyncio.sleep(2.5)  # every client is waited for a while
            async with aiohttp.ClientSession(f"{server.url}/v1/objects/many/_/") as http:
                for name, payload in (("small", b"s"), ("large", LARGE)):
                    assert await put(http, name, payload) == 200
                    assert await get(http, name) == (200, payload)
            async with aiohttp.ClientSession(server.url) as http:
                _, metrics = await get(http, "/metrics")
            assert b"\ntierstore_connections_max 20.0\n" in metrics
            assert b'tierstore_connections_ended_total{reason="connections"} 0.0' not in metrics
            assert b'tierstore_connections_ended_total{reason="refused"} 0.0' in metrics
            assert await idle[0][0].read() == b""
        finally:
            for _, writer in idle:
                writer.close()


@pytest.mark.parametrize(("allowed", "wanted", "taken"), [(400, 1000, 136), (400, 100, 100), (150, 1000, 11)])
def test_connections_leave_files_to_the_stores(allowed: int, wanted: int, taken: int) -> None:
    """Where few open files are allowed, at most half of those that are not the process's own are connections'."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({allowed}, {allowed}));"
        f"from tierstore.process.open_files import connections_that_fit; print(connections_that_fit({wanted}))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == f"{taken}"
    assert ("fewer connections" in ended.stdout + ended.stderr) == (taken < wanted)
