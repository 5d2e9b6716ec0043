"""Extensions around the instant of the expiry, in real time, on two worker processes over the embedded stores.

What is exact in virtual time (`tests/simulation/test_extend_at_the_instant.py`) meets real clocks, commits and
processes here, often enough that chance finds what is wrong.
"""

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import aiohttp
import pytest

from tierstore.limits import MIB
from tierstore.testing.server import ServerProcess

OBJECTS = 48
SPREAD_SECONDS = 0.5
"""Over which the objects are stored, so that their instants come one after the other."""
BEFORE_SECONDS, AFTER_SECONDS = 0.03, 0.06
"""How long before an instant, and after it, its readers look."""
EARLIEST_SECONDS, LATEST_SECONDS = -0.1, 0.02
"""Within which of the instant its extension is sent: also on a busy machine, some are in time and some are not."""
EXTENSION = b'{"extend_expiry": {"after": "1h", "from": "now"}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with two workers."""
    with ServerProcess(tmp_path_factory.mktemp("data"), workers=2) as process:
        yield process


@dataclass
class Raced:
    """One object, and what its clients were told."""

    path: str
    extended: int = 0
    extended_at: float = 0.0
    """When the answer to the extension came."""
    reads: list[tuple[float, float, int]] = field(default_factory=list)
    """Begin, end and status."""

    def check(self) -> None:
        """Fail unless an object with one deadline at a time can have shown this."""
        found = 204
        assert self.reads
        assert {status for _, _, status in self.reads} <= {found, 404}
        assert self.extended in {204, 404}
        if self.extended == 204:
            assert all(status == found for *_, status in self.reads), "an object that was extended was absent"
            return
        gone = min((end for _, end, status in self.reads if status == 404), default=self.extended_at)
        gone = min(gone, self.extended_at)
        assert all(status == 404 for begin, _, status in self.reads if begin > gone), "an object came back"


async def _store(http: aiohttp.ClientSession, path: str, payload: bytes) -> float:
    """Store an object that lives for a second; return its instant."""
    async with http.put(path, data=io.BytesIO(payload), headers={"x-sn-expiration": "ttl:1s"}) as response:
        assert response.status == 200
    async with http.head(path) as response:
        return datetime.fromisoformat(response.headers["x-sn-time-expires"]).timestamp()


async def _race(http: aiohttp.ClientSession, raced: Raced, payload: bytes, dice: random.Random) -> None:
    await asyncio.sleep(dice.random() * SPREAD_SECONDS)
    instant = await _store(http, raced.path, payload)

    async def extend() -> None:
        await asyncio.sleep(max(instant + dice.uniform(EARLIEST_SECONDS, LATEST_SECONDS) - time.time(), 0))
        async with http.patch(raced.path, data=EXTENSION) as response:
            raced.extended = response.status
        raced.extended_at = time.monotonic()

    async def read() -> None:
        await asyncio.sleep(max(instant - BEFORE_SECONDS - time.time(), 0))
        while not raced.reads or time.time() < instant + AFTER_SECONDS or not raced.extended:
            begin = time.monotonic()
            async with http.head(raced.path) as response:
                await response.read()
            raced.reads.append((begin, time.monotonic(), response.status))

    await asyncio.gather(extend(), read(), read())


@pytest.mark.parametrize("size", [10, MIB + 1], ids=["small", "large"])
async def test_extensions_around_the_instant(server: ServerProcess, size: int) -> None:
    """Acknowledged, and no reader of either worker missed the object; or not found, and nobody saw it again."""
    dice = random.Random(size)
    objects = [Raced(f"/v1/objects/instants/org=1/{size}/{number}") for number in range(OBJECTS)]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as http:
        payload = bytes(size)
        await asyncio.gather(*(_race(http, raced, payload, random.Random(dice.random())) for raced in objects))
        for raced in objects:
            raced.check()
        told = Counter(raced.extended for raced in objects)
        assert min(told[204], told[404]) > 0, f"the instant was missed: {told}"
        for raced in objects:
            async with http.head(raced.path) as response:
                assert response.status == raced.extended
