"""Resumable uploads of the public client, through lines that break and servers that die, and across processes."""

import asyncio
import io
import os
from pathlib import Path

import aiohttp
import pytest
from objectstore_client import Client, RequestError, Session, Usecase

from tests.end_to_end.broken_uploads import SENT_MAX, session_at, upload_through_a_broken_line
from tests.end_to_end.helpers import PROMPT_SWEEPER, get, put, remains, send_once, stop, until_swept
from tests.engines.deployment import EMBEDDED, Deployment
from tierstore.limits import MIB

_OBJECTS = "/v1/objects/attachments/org=17"


@pytest.fixture
def deployment() -> Deployment:
    """Where the servers keep things."""
    return EMBEDDED


async def test_a_line_that_is_cut_and_a_server_that_is_killed(deployment: Deployment, tmp_path: Path) -> None:
    """The object is whole, little more than its size was sent, and nothing is left over.

    Where the store has to know the size of a part, a unit may be sent again for each time that it broke.
    """
    data = tmp_path / "data"
    seed = 103 if deployment.part_bytes_min else 17  # breaks once in a unit, for clients give up when they get nowhere
    cost = await asyncio.to_thread(
        upload_through_a_broken_line, data, deployment, size=40 * MIB, cuts=3, kills=1, seed=seed, threshold_bytes=1
    )
    assert (cost.cuts, cost.kills, cost.whole) == (3, 1, True), cost
    sent_again = (cost.cuts + cost.kills) * deployment.part_bytes_min
    assert cost.bytes_read <= SENT_MAX * cost.size + sent_again, cost
    with deployment.server(data, config=PROMPT_SWEEPER) as server:
        await until_swept(server, deployment)
        await asyncio.to_thread(stop, server)
    (await remains(data, deployment)).check_settled()


@pytest.mark.parametrize("size", [0, 1, 100, 5 * MIB])
async def test_objects_of_any_size(deployment: Deployment, tmp_path: Path, size: int) -> None:
    """From the first byte on an upload is a session, whose object is like any other; with a key of the server too."""
    payload = os.urandom(size)
    with deployment.server(tmp_path / "data") as server:
        session = session_at(server.port)
        await asyncio.to_thread(_put_and_read, session, payload)
        operations = [line["operation"] for line in server.logs("request") if line["operation"] != "internal"]
        assert operations.count("create_session") == operations.count("append") == (2 if size else 0)


def _put_and_read(session: Session, payload: bytes) -> None:
    for key in (session.put(io.BytesIO(payload), key="k", resumable_threshold_bytes=1, metadata={"a": "b"}),
                session.put(io.BytesIO(payload), resumable_threshold_bytes=1)):  # fmt: skip
        found = session.get(key)
        assert found is not None
        assert found.payload.read() == payload
    head = session.head("k")
    assert head is not None
    assert head.custom == {"a": "b"}


async def test_compressed_by_the_client(deployment: Deployment, tmp_path: Path) -> None:
    """What is sent is recorded as compressed, and comes back as it was."""
    payload = b"compressible" * 100_000

    def upload(port: int) -> bytes:
        session = Client(f"http://127.0.0.1:{port}").session(Usecase("attachments"), org=17)
        session.put(io.BytesIO(payload), key="k", resumable_threshold_bytes=1)
        found = session.get("k")
        assert found is not None
        return found.payload.read()

    with deployment.server(tmp_path / "data") as server:
        assert await asyncio.to_thread(upload, server.port) == payload
        assert "create_session" in {line["operation"] for line in server.logs("request")}


async def test_a_client_that_must_not_is_told_so(deployment: Deployment, tmp_path: Path) -> None:
    """A refusal by policy is one at the beginning, before the payload is sent."""
    policy = {"usecases": {"policies": {"attachments": {"expirations": ["ttl"]}}}}
    with deployment.server(tmp_path / "data", config=policy) as server:
        with pytest.raises(RequestError):
            await asyncio.to_thread(
                session_at(server.port).put, io.BytesIO(b"x" * MIB), key="k", resumable_threshold_bytes=1
            )
        assert session_at(server.port).head("k") is None


async def test_a_session_is_no_process_own(deployment: Deployment, tmp_path: Path) -> None:
    """Begun on one server, gone on with on another, both killed in turn: what was acknowledged is there."""
    unit = deployment.part_bytes_min or MIB
    data, payload = tmp_path / "data", os.urandom(9 * unit)
    with deployment.server(data) as first, deployment.server(data) as second:
        async with aiohttp.ClientSession(first.url) as one, aiohttp.ClientSession(second.url) as two:
            send_once(one)
            send_once(two)
            session = await _created(one, len(payload))
            assert await _append(one, session, payload, 0, unit) == (204, unit)
            assert await _append(two, session, payload, unit, 3 * unit) == (204, 3 * unit)
            assert await _append(one, session, payload, unit, 2 * unit) == (409, 3 * unit)
            first.kill()
            assert await _append(two, session, payload, 3 * unit, 3 * unit) == (204, 3 * unit)
            second.kill()
    with deployment.server(data) as third:
        async with aiohttp.ClientSession(third.url) as http:
            assert await _query(http, session) == (204, 3 * unit)
            assert await _append(http, session, payload, 3 * unit, len(payload)) == (201, None)
            assert await get(http, f"{_OBJECTS}/k") == (200, payload)
        await asyncio.to_thread(stop, third)
    (await remains(data, deployment)).check_recoverable()


async def test_processes_race_for_one_session(deployment: Deployment, tmp_path: Path) -> None:
    """Clients that send one stream through different processes: each piece counts once, and the object is whole."""
    unit = deployment.part_bytes_min
    data, payload = tmp_path / "data", os.urandom(6 * max(unit, MIB))
    with deployment.server(data) as first, deployment.server(data) as second:
        async with aiohttp.ClientSession(first.url) as one, aiohttp.ClientSession(second.url) as two:
            session = await _created(one, len(payload))

            async def upload(http: aiohttp.ClientSession, piece: int) -> int:
                offset, conflicts = 0, 0
                while True:
                    stop = min(offset + piece, len(payload))
                    status, held = await _append(http, session, payload, offset, stop)
                    conflicts += status == 409
                    if status == 201:
                        return conflicts
                    if status == 503 and stop == len(payload):  # another one has the store assemble it
                        await asyncio.sleep(0.05)
                        continue
                    assert status in {204, 409}
                    assert held is not None
                    offset = held

            least = max(unit, MIB // 4)
            racers = (upload((one, two)[number % 2], least + 10_000 * number) for number in range(6))
            assert sum(await asyncio.gather(*racers)) > 0
            for http in (one, two):
                assert await get(http, f"{_OBJECTS}/k") == (200, payload)
        await asyncio.to_thread(stop, first)
        await asyncio.to_thread(stop, second)
    (await remains(data, deployment)).check_recoverable()


async def test_abandoned_and_cancelled_sessions_leave_nothing(deployment: Deployment, tmp_path: Path) -> None:
    """One is ended by its client, one by time; the object that was there stays."""
    sent = max(deployment.part_bytes_min, 4 * MIB)
    data, payload = tmp_path / "data", os.urandom(sent + MIB)
    with deployment.server(data, config=PROMPT_SWEEPER | {"uploads": {"retention": 2}}) as server:
        async with aiohttp.ClientSession(server.url) as http:
            assert await put(http, f"{_OBJECTS}/k", b"before") == 200
            cancelled, abandoned = await _created(http, len(payload)), await _created(http, len(payload))
            for session in (cancelled, abandoned):
                assert (await _append(http, session, payload, 0, sent))[0] == 204
            async with http.delete(cancelled) as response:
                assert response.status == 204
            assert (await _query(http, cancelled))[0] == 404
            await until_swept(server, deployment)
            assert (await _query(http, abandoned))[0] == 404
            assert await get(http, f"{_OBJECTS}/k") == (200, b"before")
        await asyncio.to_thread(stop, server)
    (await remains(data, deployment)).check_settled()


async def _created(http: aiohttp.ClientSession, length: int) -> str:
    """The address of a new session."""
    headers = {"upload-length": str(length)}
    async with http.put(f"{_OBJECTS}/k", params={"upload_type": "resumable"}, headers=headers) as response:
        assert response.status == 200
        return f"{_OBJECTS}/k?session={(await response.json())['session']}"


async def _append(
    http: aiohttp.ClientSession, session: str, payload: bytes, start: int, stop: int
) -> tuple[int, int | None]:
    """The answer to a piece: status and offset."""
    headers = {"upload-offset": str(start)}
    async with http.put(session, data=io.BytesIO(payload[start:stop]), headers=headers) as response:
        offset = response.headers.get("upload-offset")
        return response.status, None if offset is None else int(offset)


async def _query(http: aiohttp.ClientSession, session: str) -> tuple[int, int | None]:
    """What has become of the session: status and offset."""
    async with http.put(session, headers={"upload-offset": "*"}) as response:
        offset = response.headers.get("upload-offset")
        return response.status, None if offset is None else int(offset)
