"""Laws of `tierstore.http.connection`, on real sockets: what never ends, comes too slowly, or is not taken."""

import asyncio
import re
from dataclasses import replace

import pytest

from tests.http.harness import LIMITS, ROOT, Connection, Response, eventually, head, running
from tierstore.limits import KIB, MIB
from tierstore.testing.faults import Pause

TIGHT = replace(LIMITS, request_head_seconds_max=0.15, target_bytes_max=400, header_bytes_max=600)
IMPATIENT = replace(LIMITS, client_stall_seconds_max=0.2, inline_bytes_max=MIB, body_bytes_per_second_min=100 * KIB)
HEAD = f"GET {ROOT}/absent HTTP/1.1\r\nhost: x\r\n".encode()
UPGRADE = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


async def refusal(connection: Connection) -> Response:
    """The answer to what is no request, in the form of all others, and the end of the connection."""
    refused = await connection.response()
    assert refused.headers["connection"] == "close"
    assert refused.headers["x-request-id"]
    assert refused.detail
    assert await connection.closed_by_server()
    return refused


@pytest.mark.parametrize("before", [b"", b"\r\n", b"GET /", HEAD])
async def test_a_head_that_stops_is_given_up(before: bytes) -> None:
    """A connection that is silent before the end of a head gets 408 and is closed."""
    async with running(TIGHT) as server, server.connect() as connection:
        await connection.send(before)
        assert (await refusal(connection)).status == 408


@pytest.mark.parametrize("before", [b"\r\n", HEAD])
async def test_a_later_head_that_stops_is_given_up(before: bytes) -> None:
    """What follows an answer has the same bound, be it no more than an empty line."""
    async with running(TIGHT) as server, server.connect() as connection:
        assert (await connection.request("GET", f"{ROOT}/absent")).status == 404
        await connection.send(before)
        assert (await refusal(connection)).status == 408


async def test_a_head_that_trickles_is_given_up() -> None:
    """Bytes that keep coming do not make the time for a head any longer."""
    async with running(TIGHT) as server, server.connect() as connection:
        await connection.send(HEAD)
        answering = asyncio.create_task(connection.response())
        while not answering.done():
            await connection.send(b"a: b\r\n")
            await asyncio.sleep(0.02)
        assert (await answering).status == 408


async def test_a_head_that_never_ends_is_refused() -> None:
    """A head beyond the bound gets 431 and the connection is closed."""
    async with running(replace(TIGHT, request_head_seconds_max=5)) as server, server.connect() as connection:
        await connection.send(HEAD)
        await asyncio.sleep(0.02)
        await connection.send(b"x" * 3000)
        assert (await refusal(connection)).status == 431


async def test_a_slow_body_is_not_a_slow_head() -> None:
    """The bounds end with the head: a body may be larger and slower, and the connection be used again after a pause."""
    async with running(TIGHT) as server, server.connect() as connection:
        for _ in range(2):
            await connection.send(head("PUT", f"{ROOT}/slow", [("content-length", "9000")]))
            for _ in range(3):
                await asyncio.sleep(0.07)
                await connection.send(b"x" * 3000)
            assert (await connection.response()).status == 200
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("behind", [HEAD, b"\0nonsense\r\n\r\n"])
async def test_an_answer_under_way_is_not_mixed_with_another(behind: bytes) -> None:
    """While a response is owed, or half sent, what is no request ends the connection without a stray byte."""
    async with running(replace(LIMITS, request_head_seconds_max=0.15)) as server:
        payload = b"x" * LIMITS.object_bytes_max
        await server.request("PUT", f"{ROOT}/large", (), payload)
        async with server.connect() as connection:
            await connection.send(head("GET", f"{ROOT}/large"))
            await connection.response_head()
            await connection.send(behind)
            await asyncio.sleep(0.3)
            received = await connection.rest()
            assert len(received) < len(payload)
            assert set(received) == {ord("x")}
        server.script.at("high_volume.read", pause := Pause())
        async with server.connect() as connection:
            await connection.send(head("GET", f"{ROOT}/large"))
            await pause.reached.wait()
            await connection.send(behind)
            assert await connection.rest() == b""
            pause.release.set()


TRAILERS = (
    b"0\r\nx-snme-evil: yes\r\nx-request-id: trailer\r\nx-sn-expiration: ttl:5d\r\ncontent-type: text/html\r\n\r\n"
)


@pytest.mark.parametrize("pause", [0, 0.05])
@pytest.mark.parametrize("upgrade", ["", UPGRADE])
async def test_trailers_are_dropped(pause: float, upgrade: str) -> None:
    """Fields behind a chunked body are no metadata, however the bytes arrive."""
    async with running() as server, server.connect() as connection:
        start = f"PUT {ROOT}/trailed HTTP/1.1\r\nhost: x\r\n{upgrade}transfer-encoding: chunked\r\n\r\n".encode()
        if pause:
            await connection.send(start)
            await asyncio.sleep(pause)
            start = b""
        await connection.send(start + b"5\r\nhello\r\n" + TRAILERS)
        stored = await connection.response()
        assert stored.status == 200
        assert stored.headers["x-request-id"] != "trailer"
        got = await server.request("GET", f"{ROOT}/trailed")
        assert (got.body, got.headers["content-type"]) == (b"hello", "application/octet-stream")
        assert not {"x-snme-evil", "x-sn-expiration"} & set(got.headers)


@pytest.mark.parametrize("flood", [b"a: b\r\n" * 1000, b"x" * 6000], ids=["many", "one"])
@pytest.mark.parametrize("before", [b"0\r\n", b"0\r\nlong: ", b"5;x="])
async def test_what_is_between_chunks_is_bounded(flood: bytes, before: bytes) -> None:
    """Trailers and chunk extensions without end are 431, and nothing is stored."""
    async with running(replace(TIGHT, request_head_seconds_max=5)) as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/flooded", [("transfer-encoding", "chunked")]))
        await connection.send(b"2\r\nhi\r\n")
        await asyncio.sleep(0.05)
        await connection.send(before)
        await connection.send(flood)
        assert (await refusal(connection)).status in ({400} if before == b"5;x=" and b"\r" in flood else {400, 431})
        assert (await server.request("GET", f"{ROOT}/flooded")).status == 404


async def test_trailers_that_trickle_are_given_up() -> None:
    """Trailers have as long as a head."""
    async with running(TIGHT) as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/trickled", [("transfer-encoding", "chunked")]) + b"2\r\nhi\r\n0\r\n")
        answering = asyncio.create_task(connection.response())
        while not answering.done():
            await connection.send(b"a: b\r\n")
            await asyncio.sleep(0.02)
        assert (await answering).status == 408
        assert (await server.request("GET", f"{ROOT}/trickled")).status == 404


async def test_a_body_that_turns_out_malformed_is_refused() -> None:
    """What is no chunk is 400 to the request whose body it is, and nothing is stored."""
    async with running() as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/malformed", [("transfer-encoding", "chunked")]) + b"2\r\nhi\r\n")
        await asyncio.sleep(0.05)
        await connection.send(b"ZZ\r\n")
        assert (await refusal(connection)).status == 400
        assert (await server.request("GET", f"{ROOT}/malformed")).status == 404


async def test_pipelining_is_bounded() -> None:
    """Of too many requests at once the first ones are answered, in order, and the connection closed behind them."""
    async with running(replace(LIMITS, pipelined_requests_max=3)) as server, server.connect() as connection:
        server.script.at("high_volume.read", pause := Pause())
        await connection.send(b"".join(head("GET", f"{ROOT}/absent", [("x-request-id", f"{n}")]) for n in range(1000)))
        await pause.reached.wait()
        await connection.send(head("GET", f"{ROOT}/absent") * 1000)
        pause.release.set()
        ids = re.findall(rb"x-request-id: (\w+)", received := await connection.rest())
        assert ids == [b"0", b"1", b"2", b"3"]
        assert received.count(b"connection: close") == 1
        assert server.script.trace.count("high_volume.read") == 4


async def test_pipelined_bodies_wait_in_the_socket() -> None:
    """The body of a request that waits is not taken in before its turn."""
    async with running() as server, server.connect() as connection:
        body = b"x" * LIMITS.object_bytes_max
        server.script.at("high_volume.read", pause := Pause())
        await connection.send(head("GET", f"{ROOT}/absent") + head("PUT", f"{ROOT}/later", (), body))
        await pause.reached.wait()
        sending = asyncio.create_task(connection.send(body))
        await asyncio.sleep(0.1)
        [held] = server.connections
        waiting = held.pipeline[0][0]  # type: ignore[attr-defined]  # because the server does not type its connections
        assert len(waiting.body) < MIB
        pause.release.set()
        await sending
        assert [(await connection.response()).status for _ in range(2)] == [404, 200]


@pytest.mark.parametrize("size", [1000, IMPATIENT.inline_bytes_max, IMPATIENT.object_bytes_max])
@pytest.mark.parametrize("times", [1, 6])
async def test_a_client_that_takes_nothing_is_let_go(size: int, times: int) -> None:
    """It holds neither a request's place nor a socket; not even when its connection is closed with bytes unsent."""
    async with running(IMPATIENT, keep_alive_seconds=1) as server:
        await server.request("PUT", f"{ROOT}/unread", (), b"x" * size)
        async with server.connect() as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # because it is a duplex one
            await connection.send(head("GET", f"{ROOT}/unread") * times)
            await eventually("the connection ends", lambda: not server.connections)
        await eventually("the requests end", lambda: server.long_term.open_streams == 0)
        metrics = (await server.request("GET", "/metrics")).body.decode()
        assert "tierstore_requests_in_flight 0.0" in metrics


async def test_a_slow_reader_gets_everything() -> None:
    """A client that takes its bytes steadily may take longer than one may stall."""
    limits = replace(IMPATIENT, client_stall_seconds_max=0.5, body_bytes_per_second_min=10 * KIB)
    async with running(limits) as server:
        payload = b"x" * IMPATIENT.object_bytes_max
        await server.request("PUT", f"{ROOT}/steady", (), payload)
        async with server.connect() as connection:
            await connection.send(head("GET", f"{ROOT}/steady"))
            await connection.response_head()
            left = len(payload)
            while left:
                left -= len(await connection.reader.readexactly(min(left, 512 * KIB)))
                await asyncio.sleep(0.07)


async def test_a_slow_writer_is_refused() -> None:
    """A byte now and then does not keep a request under way."""
    async with running(IMPATIENT) as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/trickle", [("content-length", "1000000")]))
        answering = asyncio.create_task(connection.response())
        while not answering.done():
            await connection.send(b"x")
            await asyncio.sleep(0.02)
        refused = await answering
        assert refused.status == 400
        assert "bytes a second" in refused.detail


@pytest.mark.parametrize("size", [0, 5, 2 * MIB])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("pause", [0, 0.05])
async def test_a_body_with_an_offered_upgrade_is_stored(size: int, framing: str, pause: float) -> None:
    """An upgrade that is not taken up is passed over; the answer closes the connection (RFC 9110, section 7.8)."""
    body = b"u" * size
    how, sent = f"content-length: {size}", body
    if framing == "chunked":
        how, sent = "transfer-encoding: chunked", (b"%x\r\n%s\r\n" % (size, body) if body else b"") + b"0\r\n\r\n"
    async with running() as server, server.connect() as connection:
        start = f"PUT {ROOT}/up HTTP/1.1\r\nhost: x\r\n{UPGRADE}{how}\r\n\r\n".encode()
        if pause:
            await connection.send(start)
            await asyncio.sleep(pause)
            start = b""
        await connection.send(start + sent)
        stored = await connection.response()
        assert (stored.status, stored.headers["connection"]) == (200, "close")
        assert await connection.closed_by_server()
        assert (await server.request("GET", f"{ROOT}/up")).body == body


async def test_a_departure_ends_the_requests_that_wait() -> None:
    """When a client with several requests goes away, those that wait are not begun."""
    async with running() as server:
        await server.request("PUT", f"{ROOT}/large", (), b"x" * LIMITS.object_bytes_max)
        async with server.connect() as connection:
            await connection.send(head("GET", f"{ROOT}/large") + head("DELETE", f"{ROOT}/large") * 3)
            await connection.response_head()
            connection.abort()
            await eventually("the connection ends", lambda: not server.connections)
        await eventually("the request ends", lambda: server.long_term.open_streams == 0)
        await asyncio.sleep(0.02)
        assert (await server.request("HEAD", f"{ROOT}/large")).status == 204
