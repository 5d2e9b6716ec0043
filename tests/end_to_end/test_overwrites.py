"""Many clients overwrite one key in both tiers while others read it: nothing is lost, mixed, torn or left over."""

import asyncio
import hashlib
import itertools
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.helpers import PROMPT_SWEEPER, put, remains, stop, until_log_is_empty
from tierstore.limits import MIB
from tierstore.testing.server import ServerProcess

SIZES = (10, MIB + 1, 700, 3 * MIB, 1 * MIB)
WRITERS = 16
ROUNDS = 12
READERS_TURNS_MIN = 20
PATH = "/v1/objects/overwrites/org=1/the-key"


def _payload(writer: int, number: int) -> bytes:
    """A payload that proves itself: a digest, then bytes that only this write has."""
    size = SIZES[(writer + number) % len(SIZES)]
    unit = b"%d/%d;" % (writer, number)
    body = (unit * (size // len(unit) + 1))[: max(size - 64, 0)]
    return hashlib.sha256(body).hexdigest().encode() + body


def _whole(payload: bytes) -> bool:
    return hashlib.sha256(payload[64:]).hexdigest().encode() == payload[:64]


async def _put(http: aiohttp.ClientSession, payload: bytes, *, may_be_refused: bool) -> None:
    """Write until it is acknowledged; under an impatient sweeper a write may be refused as given up."""
    for _ in range(100):
        status = await put(http, PATH, payload)
        if status == 200:
            return
        assert (status, may_be_refused) == (503, True)
    raise AssertionError("a write was refused a hundred times")


@pytest.mark.parametrize(("workers", "impatient"), [(1, False), (2, False), (2, True)])
async def test_overwrites_in_every_order_under_readers(tmp_path: Path, workers: int, impatient: bool) -> None:
    """16 writers, small and large in turn, and readers that never see a 404, a mix or a truncated body.

    Also with a sweeper that takes every entry at once, under the live writers. After the drain (then after one more
    sweep) not one unreferenced file is left.
    """
    server = ServerProcess(tmp_path, workers=workers, config=PROMPT_SWEEPER if impatient else None)
    async with server, aiohttp.ClientSession(server.url) as http:
        await _put(http, _payload(0, 0), may_be_refused=False)
        writing = True
        reads = 0

        async def write(writer: int) -> None:
            for number in range(ROUNDS):
                await _put(http, _payload(writer, number), may_be_refused=impatient)

        async def read() -> None:
            nonlocal reads
            while writing:
                async with http.get(PATH) as response:
                    assert response.status == 200, await response.text()
                    assert _whole(await response.read())
                async with http.head(PATH) as response:
                    assert response.status == 204
                reads += 1

        readers = [asyncio.create_task(read()) for _ in range(4)]
        await asyncio.gather(*[write(writer) for writer in range(WRITERS)])
        writing = False
        await asyncio.gather(*readers)
        assert reads > READERS_TURNS_MIN
        async with http.get(PATH) as response:
            last = await response.read()
        assert last in {_payload(writer, number) for writer, number in itertools.product(range(WRITERS), range(ROUNDS))}
        await asyncio.to_thread(stop, server)
    if impatient:
        async with ServerProcess(tmp_path, config=PROMPT_SWEEPER) as server, aiohttp.ClientSession(server.url) as http:
            await until_log_is_empty(http)
            await asyncio.to_thread(stop, server)
    (await remains(tmp_path)).check_settled()
