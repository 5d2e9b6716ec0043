"""Batches against the real server with its embedded stores: many, large, slow, and in bounded memory."""

import asyncio
import random
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.helpers import remains
from tests.engines.deployment import EMBEDDED, Deployment
from tests.http.batches import BATCH, CONTENT_TYPE, Answer, batch, begin, part, read_answer
from tests.http.harness import Connection, head
from tierstore.limits import KIB, MIB
from tierstore.testing.server import HOST, ServerProcess

OBJECT = random.Random(9).randbytes(MIB)
OBJECTS = 160
RSS_GROWTH_MAX = 64 * MIB
"""Less than half of what goes through; a batch holds 8 MiB on their way in, and 8 MiB on their way out."""


@pytest.fixture
def deployment() -> Deployment:
    """Where the servers keep things."""
    return EMBEDDED


async def _connect(server: ServerProcess) -> Connection:
    return Connection(*await asyncio.open_connection(HOST, server.port))


async def _ask(server: ServerProcess, *parts: bytes) -> Answer:
    body = batch(*parts)
    async with await _connect(server) as connection:
        sending = asyncio.create_task(connection.send(head("POST", BATCH, [CONTENT_TYPE], body) + body))
        answer = read_answer(await connection.response())
        await sending
        return answer


def _payload(number: int) -> bytes:
    return OBJECT[number:] + OBJECT[:number]


@pytest.mark.parametrize("inline_max", ["1 MiB", "64 KiB"])
async def test_memory_is_bounded(deployment: Deployment, tmp_path: Path, inline_max: str) -> None:
    """A server takes in, and gives to a slow reader, far more than it holds, in either tier; nothing is left over."""
    with deployment.server(tmp_path / "data", config={"tiering": {"inline_max": inline_max}}) as server:
        process = psutil.Process(server.pid)
        warm = [part("insert", f"warm/{number}", (), OBJECT) for number in range(16)]
        assert (await _ask(server, *warm, *[part("get", f"warm/{number}") for number in range(16)])).whole
        before = most = process.memory_info().rss
        async with await _connect(server) as connection:
            begun = await begin(connection)

            async def send() -> None:
                for number in range(OBJECTS):
                    await begun.send(part("insert", f"big/{number}", (), _payload(number)))
                await begun.send(batch())
                await begun.end()

            sending = asyncio.create_task(send())
            while not sending.done():
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.01)
            await sending
            put = read_answer(await begun.answered())
        assert put.whole
        assert put.statuses == [201] * OBJECTS
        body = batch(*[part("get", f"big/{number}") for number in range(OBJECTS)])
        async with await _connect(server) as connection:
            begun = await begin(connection)
            await begun.send(body)
            await begun.end()
            begun.status, begun.headers = await connection.response_head()
            while chunk := await connection.chunk():
                begun.received += chunk
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.001)
            got = read_answer(begun.answered_already())
        assert got.whole
        assert [got.results[number].body == _payload(number) for number in range(OBJECTS)] == [True] * OBJECTS
        assert most - before < RSS_GROWTH_MAX, f"{(most - before) / MIB:.0f} MiB more"
        gone = await _ask(server, *[part("delete", f"big/{number}") for number in range(OBJECTS)])
        assert gone.statuses == [204] * OBJECTS
    (await remains(tmp_path / "data", deployment)).check_recoverable()


async def test_a_thousand_mixed_operations(deployment: Deployment, tmp_path: Path) -> None:
    """Several batches of a thousand at the same time, with other requests beside them: each operation is answered."""
    with deployment.server(tmp_path / "data", config={"tiering": {"inline_max": "16 KiB"}}) as server:

        def operations(name: str) -> list[bytes]:
            parts = []
            for number in range(250):
                size = 100 if number % 25 else 40 * KIB
                key = f"{name}/{number}"
                parts += [part("insert", key, (), OBJECT[number : number + size]), part("head", "none")]
                parts += [part("get", "shared"), part("delete", f"{name}/none/{number}")]
            return parts

        assert (await _ask(server, part("insert", "shared", (), OBJECT[: 20 * KIB]))).statuses == [201]
        beside = asyncio.create_task(_single_requests(server))
        answers = await asyncio.gather(*[_ask(server, *operations(f"batch-{number}")) for number in range(4)])
        beside.cancel()
        for answer in answers:
            assert answer.whole
            assert answer.statuses == [201, 404, 200, 204] * 250
        read = await _ask(server, *[part("get", f"batch-3/{number}") for number in range(250)])
        for number in range(250):
            assert read.results[number].body == OBJECT[number : number + (100 if number % 25 else 40 * KIB)]
    (await remains(tmp_path / "data", deployment)).check_recoverable()


async def _single_requests(server: ServerProcess) -> None:
    async with await _connect(server) as connection:
        while True:
            answer = await connection.request("GET", BATCH.replace("objects:batch", "objects") + "shared")
            assert answer.body == OBJECT[: 20 * KIB]
