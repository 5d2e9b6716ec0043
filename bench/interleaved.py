"""A load generator for several servers at once: each client asks them one after the other, again and again.

``python -m bench.interleaved COUNT CONCURRENCY NAMES ADDRESS TOKENS [ADDRESS TOKENS…]``: ``COUNT`` GETs of each
address, in which ``NAME`` stands for the object's name. ``TOKENS`` is a file with a token on each line, which requests
bear in turn, or ``-``. So whatever else the machine does meanwhile meets all of the servers alike, and what their CPU
times differ by is theirs. Every answer is checked; a wrong one ends the run.
"""

import asyncio
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import uvloop

_TIMEOUT_SECONDS = 60
Target = tuple[str, Iterator[dict[str, str]]]


async def run(count: int, concurrency: int, names: int, targets: Sequence[Target]) -> None:
    """Ask each of the targets ``count`` times, by ``concurrency`` clients."""
    numbers = iter(range(count))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            for address, headers in targets:
                url = address.replace("NAME", str(number % names))
                async with session.get(url, headers=next(headers)) as response:
                    await response.read()
                    if response.status != 200:
                        raise RuntimeError(f"GET {url}: {response.status}")

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    connector = aiohttp.TCPConnector(limit=concurrency * len(targets))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
        asyncio.TaskGroup() as clients,
    ):
        for _ in range(concurrency):
            clients.create_task(client(session))


def headers_from(tokens: str) -> Iterator[dict[str, str]]:
    """The headers of one request after the other, without end."""
    if tokens == "-":
        return itertools.repeat({})
    return itertools.cycle([{"x-os-auth": f"Bearer {token}"} for token in Path(tokens).read_text().split()])


if __name__ == "__main__":
    how_often, clients_at_once, objects = (int(word) for word in sys.argv[1:4])
    pairs = zip(sys.argv[4::2], sys.argv[5::2], strict=True)
    uvloop.run(run(how_often, clients_at_once, objects, [(address, headers_from(file)) for address, file in pairs]))
