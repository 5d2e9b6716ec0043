"""The load generator, in a process of its own, so that the server's CPU time is the server's alone.

``python -m bench.load ADDRESS OPERATION SIZE COUNT CONCURRENCY NAMES`` prints one JSON object: the seconds that it
took, and the median and 99th percentile of the latencies. ``NAME`` in the address stands for the object's name. Every
answer is checked; a wrong one ends the run.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import aiohttp
import uvloop

_TIMEOUT_SECONDS = 60


async def _put(session: aiohttp.ClientSession, address: str, payload: bytes) -> None:
    async with session.put(address, data=payload) as response:
        await response.read()
        if response.status not in {200, 201}:
            raise RuntimeError(f"PUT {address}: {response.status}")


async def _get(session: aiohttp.ClientSession, address: str, payload: bytes) -> None:
    async with session.get(address) as response:
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
        if response.status != 200 or size != len(payload):
            raise RuntimeError(f"GET {address}: {response.status}, {size} bytes")


async def run(address: str, operation: str, size: int, count: int, concurrency: int, names: int) -> dict[str, float]:
    """Do ``count`` operations, ``concurrency`` at a time, on ``names`` objects in turn."""
    payload = bytes(index % 251 for index in range(1024)) * (size // 1024)
    act = _put if operation == "put" else _get
    addresses: Iterator[str] = iter([address.replace("NAME", str(number % names)) for number in range(count)])
    latencies: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for own_address in addresses:
            began = time.perf_counter()
            await act(session, own_address, payload)
            latencies.append(time.perf_counter() - began)

    connector = aiohttp.TCPConnector(limit=concurrency)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(concurrency):
                clients.create_task(client(session))
        seconds = time.perf_counter() - began
    latencies.sort()
    return {
        "seconds": seconds,
        "median_seconds": latencies[len(latencies) // 2],
        "p99_seconds": latencies[len(latencies) * 99 // 100],
    }


if __name__ == "__main__":
    words = sys.argv[1:]
    numbers = [int(word) for word in words[2:]]
    print(json.dumps(uvloop.run(run(words[0], words[1], *numbers))))
