"""A client that behaves, in a process of its own: it writes an object and reads it back, again and again.

``python -m bench.steady_client ADDRESS SECONDS``: for so long, with a few tasks at once, half of which open a
connection for each request. It prints one JSON object: what went wrong (no answer in time, another status, other
bytes), how often, and the latencies in seconds, by what was done.
"""

import asyncio
import json
import sys
import time
from collections import Counter

import aiohttp
import uvloop

_TIMEOUT_SECONDS = 30
_TASKS = 4
_PAUSE_SECONDS = 0.01
_SIZE = 4096


async def run(address: str, seconds: float) -> dict[str, object]:
    """Ask for ``seconds``; return the report."""
    until = time.monotonic() + seconds
    failures: Counter[str] = Counter()
    latencies: dict[str, list[float]] = {"PUT": [], "GET": [], "PUT, new connection": [], "GET, new connection": []}

    async def ask(session: aiohttp.ClientSession, number: int, kind: str) -> None:
        target = f"{address}/steady-{number}"
        turn = 0
        while time.monotonic() < until:
            turn += 1
            payload = b"%d " % turn + bytes(_SIZE)
            for method in ("PUT", "GET"):
                began = time.perf_counter()
                try:
                    body = payload if method == "PUT" else None
                    async with session.request(method, target, data=body) as response:
                        got = await response.read()
                        if response.status != 200 or (method == "GET" and got != payload):
                            failures[f"{method}{kind}: {response.status}, {got[:100]!r}"] += 1
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    failures[f"{method}{kind}: {error!r}"] += 1
                latencies[method + kind].append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_SECONDS)

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as kept,
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as fresh,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(_TASKS):
            session, kind = (kept, "") if number % 2 else (fresh, ", new connection")
            tasks.create_task(ask(session, number, kind))
    return {"failures": dict(failures), "latencies": latencies}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(sys.argv[1], float(sys.argv[2])))))
