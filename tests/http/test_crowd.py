"""Laws of `tierstore.http.crowd` and `tierstore.http.places`, on real sockets: many clients that only cost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from tests.http.harness import LIMITS, ROOT, Connection, Running, eventually, head, running
from tierstore.limits import KIB, MIB, Limits
from tierstore.testing.faults import Pause

IMPATIENT = replace(LIMITS, patience_seconds=0.1)
FEW = replace(IMPATIENT, connections_max=8)
MULTIPART = ROOT.replace("objects", "objects:multipart")
BEGUN = {
    "idle": b"",
    "head": f"GET {ROOT}/k HTTP/1.1\r\nhost: x\r\na".encode(),
    "body": head("PUT", f"{ROOT}/slow", [("content-length", "1000")]) + b"x",
    "large body": head("PUT", f"{ROOT}/slow", [("content-length", "100000")]) + b"x" * 2 * KIB,
    "chunked body": head("PUT", f"{ROOT}/slow", [("transfer-encoding", "chunked")]) + b"5\r\nhel",
    "unread": head("GET", f"{ROOT}/large"),
}
"""What a client sends, and then nothing more, nor does it read."""


@asynccontextmanager
async def held(server: Running, kind: str, count: int) -> AsyncIterator[list[Connection]]:
    """So many connections of that kind, all of which have come as far as they do."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = await stack.enter_async_context(server.connect())
            if kind == "unread":
                connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # because it is a duplex one
            await connection.send(BEGUN[kind])
            connections.append(connection)
        own = {connection.writer.get_extra_info("sockname")[1] for connection in connections}
        await eventually("they are connected", lambda: own <= ports(server))
        await asyncio.sleep(0.02)
        yield connections


def ports(server: Running) -> set[int]:
    """Of the clients whose connections the server has."""
    return {each.client[1] for each in server.connections}  # type: ignore[attr-defined]  # because their type is open


def ended(reason: str) -> float:
    """How many connections were ended for that reason, since the process began."""
    return REGISTRY.get_sample_value("tierstore_connections_ended_total", {"reason": reason}) or 0.0


def at_work() -> float | None:
    """Requests that have a place."""
    return REGISTRY.get_sample_value("tierstore_requests_in_flight")


async def served(server: Running, times: int = 3) -> None:
    """Fail unless another client's writes and reads of both tiers succeed, each on a connection of its own."""
    for number in range(times):
        for size in (10, 5 * KIB):
            payload = b"%d" % number * size
            assert (await server.request("PUT", f"{ROOT}/other", (), payload)).status == 200
            assert (await server.request("GET", f"{ROOT}/other")).body == payload


@pytest.mark.parametrize("kind", BEGUN)
async def test_who_waits_for_a_client_has_no_place(kind: str) -> None:
    """Clients that are waited for, however many, do not count as requests at work, nor as writes under way."""
    async with running(IMPATIENT, max_requests=2) as server:
        await server.request("PUT", f"{ROOT}/large", (), b"x" * IMPATIENT.object_bytes_max)
        async with AsyncExitStack() as stack:
            for _ in range(40):  # one after the other: as they come, each needs a place for a moment
                await stack.enter_async_context(held(server, kind, 2))
            await eventually("nobody is at work", lambda: at_work() == 0)
            await served(server)
            assert len(server.connections) >= 80


async def test_who_goes_on_has_a_place_again() -> None:
    """A request whose body has come is at work, and then counts against others; it never fails for having waited."""
    async with running(IMPATIENT, max_requests=1) as server, held(server, "body", 2) as (first, second):
        pauses = [Pause(), Pause()]
        server.script.at("high_volume.put_inline", *pauses)
        for connection, pause in zip((first, second), pauses, strict=True):
            await connection.send(b"x" * 999)
            await pause.reached.wait()
        assert at_work() == 2
        assert (await server.request("GET", f"{ROOT}/k")).status == 503
        for pause in pauses:
            pause.release.set()
        assert [(await connection.response()).status for connection in (first, second)] == [200, 200]
        assert at_work() == 0
        await served(server)


@pytest.mark.parametrize("kind", BEGUN)
async def test_too_many_connections_make_room(kind: str) -> None:
    """When all connections are taken, that one ends whose client was waited for longest, and a new one is served."""
    async with running(FEW) as server:
        await server.request("PUT", f"{ROOT}/large", (), b"x" * FEW.object_bytes_max)
        before = ended("connections"), ended("refused")
        async with held(server, kind, FEW.connections_max) as connections:
            await asyncio.sleep(0.15)
            await served(server, 1)
            assert ended("connections") == before[0] + 1  # the others' place is free again each time
            assert ended("refused") == before[1]
            received = await connections[0].rest() if kind != "unread" else b""
            if kind in {"head", "body", "large body", "chunked body"}:
                assert received.startswith(b"HTTP/1.1 408 ")
                assert b"needs the room" in received
            else:
                assert received == b""
        await eventually("writes have ended", lambda: len(server.mutations) == 0)
        assert (await server.request("GET", f"{ROOT}/slow")).status == 404


async def untaken(connection: Connection, server: Running) -> None:
    """Ask, without reading, until a little of an answer stays with the server, which is not enough to make it wait."""
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # because it is a duplex one
    (served_one,) = server.connections
    transport: asyncio.Transport = served_one.transport  # type: ignore[attr-defined]  # because their type is open
    for _ in range(2000):
        await connection.send(head("GET", f"{ROOT}/small"))
        await asyncio.sleep(0.002)
        if transport.get_write_buffer_size():
            return
    raise AssertionError("the system takes everything")


@pytest.mark.parametrize("then", [b"", BEGUN["body"]], ids=["idle", "body"])
async def test_who_gives_way_is_gone_soon(then: bytes) -> None:
    """It does not stay behind for as long as its client leaves what was written before: room that was made is room."""
    async with running(replace(IMPATIENT, connections_max=1, inline_bytes_max=16 * KIB)) as server:
        await server.request("PUT", f"{ROOT}/small", (), b"x" * 16 * KIB)
        await eventually("it is gone", lambda: not server.connections)
        async with server.connect() as connection:
            await untaken(connection, server)
            await connection.send(then)
            await asyncio.sleep(0.3)
            given_up = set(server.connections)
            async with server.connect() as other:
                assert (await other.request("GET", "/health")).status == 200
                await eventually("it is gone", lambda: not given_up & server.connections)


async def test_idle_clients_go_before_those_that_came_later() -> None:
    """Those end first that have been waited for longest, whatever they do."""
    async with (
        running(FEW) as server,
        held(server, "idle", 1) as (oldest,),
        held(server, "body", FEW.connections_max - 1) as others,
    ):
        await asyncio.sleep(0.15)
        await served(server, 1)
        assert await oldest.rest() == b""
        await others[0].send(b"x" * 999)
        assert (await others[0].response()).status == 200


async def test_nobody_gives_way_at_once() -> None:
    """A client has its time before it is asked to go; meanwhile it is the new one that is told to come again."""
    async with running(replace(FEW, patience_seconds=0.5)) as server:
        before = ended("refused")
        async with held(server, "body", FEW.connections_max) as connections:
            async with server.connect() as refused:
                answer = await refused.response()
                assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (
                    503,
                    "1",
                    "close",
                )
                assert "as many connections" in answer.detail
                assert await refused.closed_by_server()
            assert ended("refused") == before + 1
            await connections[0].send(b"x" * 999)
            assert (await connections[0].response()).status == 200


async def test_who_is_served_does_not_give_way() -> None:
    """Requests at work, and bodies that come fast enough, stay, whoever else comes."""
    async with running(replace(FEW, connections_max=2)) as server:
        pause = Pause()
        server.script.at("high_volume.read", pause)
        async with server.connect() as working, server.connect() as sending:
            await working.send(head("GET", f"{ROOT}/absent"))
            await pause.reached.wait()
            await sending.send(head("PUT", f"{ROOT}/steady", [("content-length", "40000")]))
            for _ in range(20):
                await sending.send(b"x" * 2000)
                await asyncio.sleep(0.02)
                async with server.connect() as refused:
                    assert (await refused.response()).status == 503
            assert (await sending.response()).status == 200
            pause.release.set()
            assert (await working.response()).status == 404


async def test_who_is_served_after_another_does_not_give_way() -> None:
    """Nor does a request that came on its connection while another was served."""
    async with running(replace(FEW, connections_max=1)) as server, server.connect() as connection:
        pauses = [Pause(), Pause()]
        server.script.at("high_volume.read", *pauses)
        await connection.send(head("GET", f"{ROOT}/absent") * 2)
        await pauses[0].reached.wait()
        pauses[0].release.set()
        await pauses[1].reached.wait()
        await asyncio.sleep(0.15)
        async with server.connect() as refused:
            assert (await refused.response()).status == 503
        pauses[1].release.set()
        assert [(await connection.response()).status for _ in range(2)] == [404, 404]


async def test_a_look_for_memory_is_not_one_for_connections() -> None:
    """That nobody gives way who holds something does not keep an idle one from giving way."""
    limits = replace(FEW, connections_max=3, client_bytes_max=KIB, body_bytes_per_second_min=1)
    async with running(limits) as server, held(server, "idle", 2), held(server, "large body", 1) as (sending,):
        await asyncio.sleep(0.15)
        await sending.send(b"x" * KIB)
        assert (await server.request("PUT", f"{ROOT}/k", (), b"x")).status == 503
        assert (await server.request("GET", f"{ROOT}/k")).status == 404


async def test_bytes_now_and_then_are_no_progress() -> None:
    """A body that drips gives way like one that has stopped."""
    limits = replace(FEW, connections_max=1, body_bytes_per_second_min=10 * KIB)
    async with running(limits) as server, held(server, "body", 1) as (dripping,):
        for _ in range(10):
            await dripping.send(b"x")
            await asyncio.sleep(0.02)
        await served(server, 1)
        assert (await dripping.response()).status == 408


@pytest.mark.parametrize("kind", ["body", "large body", "unread"])
async def test_what_clients_hold_is_bounded(kind: str) -> None:
    """When all they have sent, or have not taken, is too much, those end that are waited for, the longest first."""
    limits = replace(IMPATIENT, client_bytes_max=2 * MIB if kind == "unread" else 4 * KIB)
    async with running(limits) as server:
        await server.request("PUT", f"{ROOT}/large", (), b"x" * limits.object_bytes_max)
        before = ended("memory")
        sent = {"body": 900, "large body": 2 * KIB, "unread": 0}[kind]
        async with AsyncExitStack() as stack:
            for number in range(20):
                (connection,) = await stack.enter_async_context(held(server, kind, 1))
                if kind == "body":
                    await connection.send(b"x" * sent)
                if number % 4 == 3:
                    await asyncio.sleep(0.15)
            await served(server)
            assert ended("memory") > before
            assert 0 < len(server.connections) < 20
        await eventually("all have gone", lambda: not server.connections)
        assert server.crowd.bytes_held == 0


async def test_no_body_is_begun_without_room() -> None:
    """While nobody who holds something can go, a request with a body is refused; one without is served."""
    limits = replace(IMPATIENT, patience_seconds=5.0, client_bytes_max=KIB)
    async with running(limits) as server, held(server, "large body", 1):
        refused = await server.request("PUT", f"{ROOT}/k", (), b"x")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "holds as much for its clients" in refused.detail
        assert (await server.request("GET", f"{ROOT}/k")).status == 404
        assert (await server.request("PUT", f"{ROOT}/k", (), b"")).status == 200


async def test_nothing_is_held_for_who_has_been_answered() -> None:
    """What was kept for a body, or an answer, is given back when it ends, however it ends."""
    async with running(IMPATIENT) as server:
        for size in (1, 2 * KIB, 300_000):
            for _ in range(3):
                async with server.connect() as connection:
                    for method in ("PUT", "GET"):
                        body = b"x" * size if method == "PUT" else None
                        assert (await connection.request(method, f"{ROOT}/k", (), body)).status == 200
                    assert server.crowd.bytes_held == 0
                    await connection.send(head("PUT", f"{ROOT}/k", [("content-length", "9000")]) + b"x" * 1000)
                    await eventually("it has come", lambda: server.crowd.bytes_held == 1000)
                    connection.abort()
                    await eventually("nothing is held", lambda: server.crowd.bytes_held == 0)


async def test_what_is_kept_of_a_body() -> None:
    """Of an object that is streamed no more than the chunks under way counts; of a list of parts, all of it."""
    async with running(replace(IMPATIENT, stream_chunk_bytes=KIB)) as server:
        upload = str((await server.request("PUT", f"{MULTIPART}/k")).json["upload_id"])
        complete = f"{ROOT.replace('objects', 'objects:multipart:complete')}/k?upload_id={upload}"
        for method, target, kept in (("PUT", f"{ROOT}/k", 3 * KIB), ("POST", complete, 9000)):
            async with server.connect() as connection:
                await connection.send(head(method, target, [("content-length", "10000")]) + b"x" * 9000)
                await eventually("it has come", lambda: server.crowd.bytes_held > 0)
                await asyncio.sleep(0.05)
                assert server.crowd.bytes_held == kept
            await eventually("nothing is held", lambda: server.crowd.bytes_held == 0)


def test_there_is_room_for_many() -> None:
    """The defaults hold ten thousand connections in one worker, and more."""
    assert Limits().connections_max > 10_000
