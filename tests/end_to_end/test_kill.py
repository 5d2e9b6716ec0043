"""``kill -9`` in the middle of many writes: what was acknowledged is there and whole, the rest is absent or whole.

At every step of completing an upload: `tests.end_to_end.test_multipart_kill`.
"""

import asyncio
import hashlib
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.helpers import PROMPT_SWEEPER, get, put, remains, stop, until_swept
from tierstore.limits import KIB, MIB
from tierstore.testing.server import ServerProcess

OBJECTS = "/v1/objects/killed/org=1"
WRITES = 200


def _payload(number: int) -> bytes:
    size = (500, 100 * KIB, MIB + 1, 3 * MIB)[number % 4]
    seed = hashlib.sha256(b"%d" % number).digest()
    return (seed * (size // len(seed) + 1))[:size]


@pytest.mark.parametrize(("workers", "kill_after"), [(1, 1), (1, 60), (2, 120)])
async def test_kill_9_in_the_middle_of_200_writes(tmp_path: Path, workers: int, kill_after: int) -> None:
    """After a restart every acknowledged object is whole, every other absent or whole; after a sweep no orphan."""
    acknowledged: set[int] = set()
    config = PROMPT_SWEEPER | {"sweeper": {"grace": 2, "second_visit": 0, "period": 1}}

    async def write(http: aiohttp.ClientSession, number: int) -> None:
        try:
            if await put(http, f"{OBJECTS}/{number}", _payload(number)) == 200:
                acknowledged.add(number)
        except aiohttp.ClientError:
            return

    async with ServerProcess(tmp_path, workers=workers, config=config) as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(server.url, connector=connector) as http:
            writes = [asyncio.create_task(write(http, number)) for number in range(WRITES)]
            while len(acknowledged) < kill_after:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(server.kill)
            await asyncio.gather(*writes)
    assert len(acknowledged) < WRITES, "the kill came after the last write: it tests nothing"
    (await remains(tmp_path)).check_recoverable()

    async with ServerProcess(tmp_path, config=config) as server:
        async with aiohttp.ClientSession(server.url) as http:
            for number in range(WRITES):
                status, payload = await get(http, f"{OBJECTS}/{number}")
                if status == 404:
                    assert number not in acknowledged, f"object {number} was acknowledged and is lost"
                else:
                    assert (status, payload) == (200, _payload(number))
        await until_swept(server)
        await asyncio.to_thread(stop, server)
    (await remains(tmp_path)).check_settled()
