"""Faults of engines as operators and clients see them: a sentence at the start, 503 and advice later, recovery."""

import asyncio
import io
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.end_to_end.helpers import get, put, stop
from tests.engines.bigtable_emulator import VARIABLE, BigtableEmulator
from tests.engines.deployment import Deployment, Settings, merged
from tests.engines.deployments import bigtable_and_s3, deployment_called, postgres_and_s3
from tests.engines.engine import HOST, free_ports
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import SeaweedFs
from tests.http.batches import BATCH, CONTENT_TYPE, batch, part, read_answer
from tests.http.harness import Connection, head
from tests.kill.history import Write
from tests.kill.remains import check_remains
from tierstore.build import check_stores
from tierstore.errors import StartupError
from tierstore.limits import MIB
from tierstore.testing.server import ServerProcess
from tierstore.testing.tcp_proxy import TcpProxy

OBJECTS = "/v1/objects/faults/org=1"
SMALL, LARGE = f"{OBJECTS}/small", f"{OBJECTS}/large"
PAYLOAD = random.Random(11).randbytes(3 * MIB)
PAYLOADS = {SMALL: PAYLOAD[:1000], LARGE: PAYLOAD}
NEW = (f"{SMALL}-new", f"{LARGE}-new", f"{OBJECTS}/batched")
"""Written while an engine is away."""
IMPATIENT: Settings = {"high_volume": {"timeout": 1}, "change_log": {"timeout": 1}, "long_term": {"timeout": 1}}
ANSWER_SECONDS_MAX = 20.0
RECOVER_SECONDS_MAX = 30.0


# At the start


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a deployment, and the words that have to be in the sentence about it."""

    pair: str
    words: str
    settings: Mapping[str, Mapping[str, object]]
    environment: Mapping[str, str]


def _mistake(
    pair: str, words: str, environment: Mapping[str, str] | None = None, **settings: dict[str, object]
) -> Mistake:
    return Mistake(pair, words, settings, environment or {})


NOBODY = f"{HOST}:1"
MISTAKES = {
    "no PostgreSQL": _mistake("postgres-s3", NOBODY, high_volume={"url": f"postgresql://postgres@{NOBODY}/postgres"}),
    "no such user": _mistake("postgres-s3", "nobody", high_volume={"url": "postgresql://nobody@{postgres}/postgres"}),
    "no such database": _mistake("postgres-s3", "none", high_volume={"url": "postgresql://postgres@{postgres}/none"}),
    "no S3": _mistake("postgres-s3", NOBODY, long_term={"endpoint": f"http://{NOBODY}"}),
    "no bucket": _mistake("postgres-s3", "elsewhere", long_term={"bucket": "elsewhere"}),
    "a wrong secret": _mistake("postgres-s3", "ignature", {"AWS_SECRET_ACCESS_KEY": "not-the-secret"}),
    "an unknown key": _mistake("postgres-s3", "ccess", {"AWS_ACCESS_KEY_ID": "unknown"}),
    "no Bigtable": _mistake("bigtable-s3", NOBODY, {VARIABLE: NOBODY}),
    "no bucket of Google's": _mistake("postgres-gcs", "elsewhere", long_term={"bucket": "elsewhere"}),
    "no credentials of Google's": _mistake(
        "postgres-gcs", "credentials", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/credentials.json"}
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_keeps_a_server_from_starting_is_told_in_a_sentence(
    request: pytest.FixtureRequest, postgres: Postgres, mistake: str, tmp_path: Path
) -> None:
    """An engine that is down, a wrong name, a missing bucket, credentials that are not good: words, and no secret."""
    wrong = MISTAKES[mistake]
    settings = {
        section: {name: str(value).format(postgres=postgres.address) for name, value in names.items()}
        for section, names in wrong.settings.items()
    }
    with deployment_called(wrong.pair, request.getfixturevalue, tmp_path) as sound:
        deployment = replace(
            sound,
            settings=merged(sound.settings, IMPATIENT, settings),
            environment={**sound.environment, **wrong.environment},
        )
        with deployment.environment_here(), pytest.raises(StartupError) as refused:
            check_stores(deployment.config(tmp_path / "data"))
    assert wrong.words in str(refused.value)
    assert "\n" not in str(refused.value)
    for secret in (sound.environment.get("AWS_SECRET_ACCESS_KEY", "\n"), "not-the-secret"):
        assert secret not in str(refused.value)


async def test_a_server_that_cannot_start_ends(postgres: Postgres, seaweedfs: SeaweedFs, tmp_path: Path) -> None:
    """With an exit code of its own, one sentence, and within seconds."""
    sound = postgres_and_s3(postgres, seaweedfs)
    url = f"postgresql://postgres@{HOST}:{free_ports(1)[0]}/postgres"
    deployment = replace(sound, settings=merged(sound.settings, IMPATIENT, {"high_volume": {"url": url}}))
    server = deployment.server(tmp_path)
    try:
        server.start()
        assert await asyncio.to_thread(server.wait) == 1
    finally:
        server.close()
    assert server.log_text.startswith("tierstore: ")
    assert len(server.log_text.splitlines()) == 1


# While serving


@dataclass
class Broken:
    """A server, and the line to one of its engines."""

    server: ServerProcess
    http: aiohttp.ClientSession
    line: TcpProxy

    async def until_ready(self) -> None:
        """Wait until the server is ready again, without any help."""
        await asyncio.to_thread(
            self.server.wait_until, lambda: self.server.status("/ready") == 200, "is ready again", RECOVER_SECONDS_MAX
        )

    async def refused(self, method: str, path: str, **more: Any) -> str:
        """What a request is told that cannot be done now: 503 with advice, in time."""
        async with asyncio.timeout(ANSWER_SECONDS_MAX), self.http.request(method, path, **more) as answer:
            text = await answer.text()
            assert answer.status == 503, (answer.status, text)
            assert int(answer.headers["retry-after"]) >= 1
            return text


Lines = Callable[[TcpProxy, TcpProxy], Deployment]


@asynccontextmanager
async def serving(
    make: Lines, ports: tuple[int, int], broken: str, data: Path
) -> AsyncIterator[tuple[Broken, Deployment]]:
    """A server with an object in each tier, and the line to the engine that ``broken`` names: rows or blobs."""
    async with TcpProxy(HOST, ports[0]) as rows, TcpProxy(HOST, ports[1]) as blobs:
        deployment = make(rows, blobs)
        server = deployment.server(data, config=IMPATIENT)
        try:
            server.start()
            await asyncio.to_thread(server.wait_ready)
            async with aiohttp.ClientSession(server.url) as http:
                for path, payload in PAYLOADS.items():
                    assert await put(http, path, payload) == 200
                yield Broken(server, http, rows if broken == "rows" else blobs), deployment
        finally:
            await asyncio.to_thread(server.close)


@pytest_asyncio.fixture(params=["postgres", "bigtable", "s3"])
async def broken(
    request: pytest.FixtureRequest, seaweedfs: SeaweedFs, tmp_path: Path
) -> AsyncIterator[tuple[Broken, Deployment]]:
    """A server with the line to each engine in turn."""
    rows = request.getfixturevalue("bigtable_emulator" if request.param == "bigtable" else "postgres")

    def make(rows_line: TcpProxy, blobs_line: TcpProxy) -> Deployment:
        if isinstance(rows, BigtableEmulator):
            return bigtable_and_s3(rows, seaweedfs, rows_line, blobs_line)
        return postgres_and_s3(rows, seaweedfs, rows_line, blobs_line)

    which = "blobs" if request.param == "s3" else "rows"
    async with serving(make, (rows.port, seaweedfs.port), which, tmp_path / "data") as running:
        yield running


async def test_an_engine_that_fails_in_many_ways(broken: tuple[Broken, Deployment], tmp_path: Path) -> None:
    """It is slow, refuses connections, gives no answers, and loses them: what needs it is 503 with advice, in time.

    And so is readiness; what does not need it is served. Then all is well again by itself, in the same process; nothing
    that was acknowledged is lost, nothing is half done, and in the end nothing is left over.
    """
    running, deployment = broken
    needs_rows = running.line is deployment.lines[0]
    pids = running.server.worker_pids
    await _check_slow(running)
    for fault in (running.line.refuse, running.line.hold):
        fault()
        await _check_away(running, needs_rows)
        running.line.resume()
        await running.until_ready()
        await _check_back(running)
    await _check_lost_answers(running)
    assert running.server.worker_pids == pids
    await asyncio.to_thread(stop, running.server)
    keys = [path.removeprefix(f"{OBJECTS}/") for path in (*PAYLOADS, *NEW)]
    await check_remains(tmp_path / "data", {key: Write("", key) for key in keys}, deployment)


async def _check_slow(running: Broken) -> None:
    """An engine that takes its time costs time, and nothing else."""
    running.line.delay_seconds = 0.005
    await _check_back(running)
    running.line.delay_seconds = 0.0


async def _check_away(running: Broken, needs_rows: bool) -> None:
    """While the engine is away."""
    await running.refused("GET", "/ready")
    async with running.http.get("/health") as alive:
        assert alive.status == 200
    refused = [running.refused("GET", LARGE), running.refused("PUT", f"{LARGE}-new", data=io.BytesIO(PAYLOAD))]
    if needs_rows:
        refused += [running.refused(method, SMALL) for method in ("GET", "HEAD")]
        refused += [running.refused("DELETE", f"{SMALL}-new"), running.refused("PUT", f"{SMALL}-new", data=b"new")]
        refused.append(_refused_batch(running.server))
    else:
        assert await get(running.http, SMALL) == (200, PAYLOADS[SMALL])
    await asyncio.gather(*refused)


async def _refused_batch(server: ServerProcess) -> str:
    """A batch is answered, and each of its operations is refused with advice."""
    path = BATCH.replace("/testing/", "/faults/")
    body = batch(part("get", "small"), part("insert", "batched", (), b"new"), part("head", "large"))
    async with Connection(*await asyncio.open_connection(HOST, server.port)) as connection:
        await connection.send(head("POST", path, [CONTENT_TYPE], body) + body)
        answer = read_answer(await connection.response())
    assert answer.whole
    assert answer.statuses == [503] * 3
    assert all(int(result.headers["retry-after"]) >= 1 for result in answer.results.values())
    return "503"


async def _check_back(running: Broken) -> None:
    """What was acknowledged is there. What was refused may have come through late, whole, and can be done again."""
    for path, payload in PAYLOADS.items():
        assert await get(running.http, path) == (200, payload)
    for path in NEW:
        status, found = await get(running.http, path)
        assert status == 404 or (status, found) in {(200, b"new"), (200, PAYLOAD)}
        assert await put(running.http, path, b"new") == 200
        assert await get(running.http, path) == (200, b"new")


async def _check_lost_answers(running: Broken) -> None:
    """A write whose answer was lost on the way from the engine is 503, if nobody knows; and it is not half done."""
    running.line.lose_answers()
    possible = {}
    for path, payload in PAYLOADS.items():
        async with running.http.put(path, data=io.BytesIO(payload[::-1])) as answer:
            possible[path] = [payload[::-1]] if answer.status == 200 else [payload, payload[::-1]]
            assert answer.status in {200, 503}
    running.line.resume()
    await running.until_ready()
    for path, payloads in possible.items():
        status, found = await get(running.http, path)
        assert (status, found in payloads) == (200, True)
        assert await get(running.http, path) == (200, found)
