"""Batches as streams: results while the request arrives, slow clients on both sides, clients that leave, memory."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import structlog
from prometheus_client import REGISTRY

from tests.http.batches import (
    BATCH,
    CONTENT_TYPE,
    END,
    OPENING,
    Answer,
    Begun,
    batch,
    begin,
    part,
    read_answer,
    send_batch,
    send_body,
)
from tests.http.harness import CLIENT_SECONDS_MAX, LIMITS, ROOT, Running, eventually, head, running
from tierstore import telemetry
from tierstore.limits import KIB, MIB
from tierstore.testing.faults import Pause

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD = LIMITS.batch_held_max
LARGE = random.Random(7).randbytes(256 * KIB)
SOCKET_BUFFERS_MAX = 24 * MIB
"""More than the system keeps on the way between two sockets of this machine, both ways of counting."""


def _asked(server: Running, call: str) -> int:
    return Counter(server.script.trace)[call]


async def test_results_leave_while_the_request_arrives(server: Running) -> None:
    """A client may wait for each result before it sends the next operation."""
    async with server.connect() as connection:
        begun = await begin(connection)
        await begun.send(OPENING)
        begun.opened = True
        for number in range(0, 60, 3):
            for offset, each in enumerate(
                (
                    part("insert", f"step/{number}", (), b"x" * number),
                    part("get", f"step/{number}"),
                    part("head", "none"),
                )
            ):
                await begun.send(each + OPENING)
                begun.opened = True
                await begun.results(number + offset + 1)
        await begun.send(part("delete", "step/0") + END)
        await begun.end()
        answer = read_answer(await begun.answered())
    assert answer.whole
    assert answer.order == list(range(61))
    assert answer.statuses == [201, 200, 404] * 20 + [204]
    assert [len(answer.results[number + 1].body) for number in range(0, 60, 3)] == list(range(0, 60, 3))


async def test_continue_is_said_before_results(server: Running) -> None:
    """A client that waits for it is told to go on, once, and not when its batch is refused."""
    async with server.connect() as connection:
        body = batch(part("insert", "continue", (), b"x"))
        await connection.send(head("POST", BATCH, [CONTENT_TYPE, ("expect", "100-continue")], body))
        assert (await connection.response_head())[0] == 100
        await connection.send(body)
        assert read_answer(await connection.response()).statuses == [201]
    async with server.connect() as connection:
        await connection.send(head("POST", BATCH, [("expect", "100-continue")], body))
        assert (await connection.response()).status == 400


@pytest.mark.parametrize("piece_bytes", [1, 7, 100])
async def test_parts_may_come_in_pieces(server: Running, piece_bytes: int) -> None:
    """An object is whole in either tier, however small the pieces are in which it comes."""
    payloads = [LARGE[:size] for size in (0, 1, 2, 300, LIMITS.inline_bytes_max, LIMITS.inline_bytes_max + 1)]
    body = batch(*[part("insert", f"pieces/{number}", (), payload) for number, payload in enumerate(payloads)])
    async with server.connect() as connection:
        await connection.send(head("POST", BATCH, [CONTENT_TYPE], body))
        for start in range(0, len(body), piece_bytes):
            await connection.send(body[start : start + piece_bytes])
            await asyncio.sleep(0)
        assert read_answer(await connection.response()).statuses == [201] * len(payloads)
    for number, payload in enumerate(payloads):
        assert (await server.request("GET", f"{ROOT}/pieces/{number}")).body == payload


async def _send_all(begun: Begun, body: bytes, piece_bytes: int, pause_seconds: float) -> None:
    for start in range(0, len(body), piece_bytes):
        await begun.send(body[start : start + piece_bytes])
        await asyncio.sleep(pause_seconds)
    await begun.end()


def _mixed(count: int) -> list[bytes]:
    """Operations of all kinds, each on an object of its own, some small and some large."""
    operations = []
    for number in range(count):
        match number % 5:
            case 0:
                operations.append(part("insert", f"mixed/{number}", [("x-snme-n", str(number))], b"%d" % number * 50))
            case 1:
                operations.append(part("insert", f"mixed/{number}", (), LARGE[: 2000 + number]))
            case 2:
                operations.append(part("get", f"mixed/there/{number % 7}"))
            case 3:
                operations.append(part("head", f"mixed/there/{number % 7}"))
            case _:
                operations.append(part("delete", f"mixed/{number}"))
    return operations


async def _check_mixed(server: Running, answer: Answer, count: int) -> None:
    assert answer.whole
    assert answer.statuses == [(201, 201, 200, 204, 204)[number % 5] for number in range(count)]
    for number in range(2, count, 5):
        assert answer.results[number].body == LARGE[: 100 * 20 ** (number % 7 % 3)]
    stored = [number for number in range(count) if number % 5 < 2]
    found = await send_batch(server, *[part("get", f"mixed/{number}") for number in stored])
    for index, number in enumerate(stored):
        payload = b"%d" % number * 50 if number % 5 == 0 else LARGE[: 2000 + number]
        assert found.results[index].body == payload


async def _store_what_is_there(server: Running) -> None:
    await send_batch(
        server, *[part("insert", f"mixed/there/{number}", (), LARGE[: 100 * 20 ** (number % 3)]) for number in range(7)]
    )


async def test_a_thousand_operations(server: Running) -> None:
    """As many as a batch may have, of all kinds, sent at once and read afterwards: each is answered as it should be."""
    await _store_what_is_there(server)
    body = batch(*_mixed(1000))
    async with server.connect() as connection:
        await connection.send(head("POST", BATCH, [CONTENT_TYPE], body) + body)
        answer = read_answer(await connection.response())
    await _check_mixed(server, answer, 1000)


async def test_a_thousand_operations_with_a_slow_writer_and_a_slow_reader(server: Running) -> None:
    """A client that sends bit by bit and takes bit by bit gets the same, and the server holds a few objects of it."""
    await _store_what_is_there(server)
    async with server.connect() as connection:
        begun = await begin(connection)
        sending = asyncio.create_task(_send_all(begun, batch(*_mixed(1000)), 7777, 0.001))
        most_open = 0
        begun.status, begun.headers = await connection.response_head()
        while chunk := await connection.chunk():
            begun.received += chunk
            most_open = max(most_open, server.long_term.open_streams)
            await asyncio.sleep(0.0005)
        await sending
        answer = read_answer(begun.answered_already())
    await _check_mixed(server, answer, 1000)
    assert most_open <= HELD
    assert server.long_term.open_streams == 0


async def test_what_comes_in_is_bounded() -> None:
    """While nothing is stored, no more bodies are taken in than a batch may hold; when it goes on, all are stored."""
    async with running() as server, server.connect() as connection:
        pause, parts = Pause(), 256
        server.script.at("long_term.put", *[pause] * parts)
        begun = await begin(connection)
        body = batch(*[part("insert", f"in/{number}", (), LARGE) for number in range(parts)])
        sending = asyncio.create_task(_send_all(begun, body, 64 * KIB, 0))
        await eventually("all are held", lambda: _asked(server, "long_term.put") == HELD)
        taken = -1
        while taken != (left := connection.writer.transport.get_write_buffer_size()):  # until it stands still
            taken = left
            await asyncio.sleep(0.1)
        assert not sending.done()
        assert _asked(server, "long_term.put") == HELD
        pause.release.set()
        await sending
        answer = read_answer(await begun.answered())
        assert answer.whole
        assert answer.statuses == [201] * parts


@pytest.mark.parametrize("inline_bytes_max", [KIB, MIB])
async def test_what_goes_out_is_bounded(inline_bytes_max: int) -> None:
    """While its client reads nothing, a batch opens no more objects than it may hold; then all of them come."""
    async with running(replace(LIMITS, inline_bytes_max=inline_bytes_max)) as server, server.connect() as connection:
        assert (await server.request("PUT", f"{ROOT}/out", (), LARGE)).status == 200
        gets = 150
        body = batch(*[part("get", "out")] * gets)
        before = _asked(server, "high_volume.read")
        await connection.send(head("POST", BATCH, [CONTENT_TYPE], body) + body)
        opened = -1
        while opened != (now := _asked(server, "high_volume.read") - before):
            opened = now
            await asyncio.sleep(0.1)
        assert 0 < opened < gets
        assert (opened - HELD) * len(LARGE) < SOCKET_BUFFERS_MAX
        assert server.long_term.open_streams <= HELD
        answer = read_answer(await connection.response())
        assert answer.whole
        assert {result.body for result in answer.results.values()} == {LARGE}
        assert answer.statuses == [200] * gets
        await eventually("all are closed", lambda: server.long_term.open_streams == 0)


async def test_a_client_may_send_all_before_it_reads(server: Running) -> None:
    """However much comes back: inserts go on while gets wait for the client to read."""
    assert (await server.request("PUT", f"{ROOT}/first", (), LARGE)).status == 200
    operations = []
    for number in range(200):
        operations += [part("get", "first"), part("insert", f"then/{number}", (), LARGE[: 100 * KIB])]
    body = batch(*operations)
    async with server.connect() as connection:
        async with asyncio.timeout(CLIENT_SECONDS_MAX):
            await connection.send(head("POST", BATCH, [CONTENT_TYPE], body))
            for start in range(0, len(body), 256 * KIB):
                await connection.send(body[start : start + 256 * KIB])
        answer = read_answer(await connection.response())
    assert answer.whole
    assert answer.statuses == [200, 201] * 200


@pytest.mark.parametrize("count", [3, HELD + 4])
@pytest.mark.parametrize("sent", ["some", "all"])
async def test_a_client_that_leaves(sent: str, count: int) -> None:
    """Operations that have begun run to their end, the others are dropped, and nothing is left under way."""
    async with running() as server:
        pause, begun = Pause(), min(count, HELD)
        server.script.at("high_volume.put_inline", *[pause] * begun)
        parts = [part("insert", f"left/{number}", (), b"x") for number in range(count)]
        with structlog.testing.capture_logs() as lines:
            async with server.connect() as connection:
                body = batch(*parts)
                piece = body if sent == "all" else b"".join(parts) + OPENING
                await connection.send(head("POST", BATCH, [CONTENT_TYPE], body + body) + piece)
                await eventually("all have begun", lambda: _asked(server, "high_volume.put_inline") == begun)
                connection.abort()
                await eventually("the server knows", lambda: not server.connections)
            assert len(server.mutations) == begun
            pause.release.set()
            await eventually("they have ended", lambda: len(server.mutations) == 0)
            await eventually("the request has ended", lambda: any(line["event"] == "request" for line in lines))
        told = {line["index"]: line["status"] for line in lines if line["event"] == "batch operation"}
        assert sorted(told) == list(range(begun))
        assert set(told.values()) <= {201, 499}
        for number in range(count):
            stored = await server.request("GET", f"{ROOT}/left/{number}")
            assert stored.status == (200 if number < begun else 404)
        assert server.failures == []


async def test_a_client_that_leaves_its_results() -> None:
    """One that goes away while objects are sent to it leaves nothing open, and nothing more is read for it."""
    async with running() as server:
        assert (await server.request("PUT", f"{ROOT}/out", (), LARGE)).status == 200
        async with server.connect() as connection:
            body = batch(*[part("get", "out")] * 500)
            await connection.send(head("POST", BATCH, [CONTENT_TYPE], body) + body)
            await eventually("it sends", lambda: server.long_term.open_streams > 1)
            connection.abort()
        await eventually("all are closed", lambda: server.long_term.open_streams == 0)
        await asyncio.sleep(0.05)
        assert _asked(server, "high_volume.read") < 500
        assert REGISTRY.get_sample_value("tierstore_operations_in_flight") == 0


STALLED = replace(LIMITS, client_stall_seconds_max=0.3, body_bytes_per_second_min=1000)


async def test_a_client_that_stops_sending() -> None:
    """After the bound, what was whole has been answered, what was not with the error, and the response is cut off."""
    async with running(STALLED) as server, server.connect() as connection:
        begun = await begin(connection, part("insert", "stalled", (), b"x"))
        await begun.send(part("insert", "never", (), b"x")[:-4])
        answer = read_answer(await begun.answered())
        assert not answer.whole
        assert answer.statuses == [201, 400]
        assert "no byte of the body came" in answer.results[1].detail
        assert (await server.request("GET", f"{ROOT}/never")).status == 404


async def test_a_client_that_sends_and_does_not_read() -> None:
    """As long as it sends, a client may leave its results; once it does neither, its connection is ended."""
    async with running(STALLED) as server:
        assert (await server.request("PUT", f"{ROOT}/out", (), LARGE)).status == 200
        async with server.connect() as connection:
            begun = await begin(connection)
            await begun.send(part("get", "out") * 100)
            for number in range(20):
                await begun.send(part("insert", f"slow/{number}", (), b"x" * 400))
                await asyncio.sleep(0.1)
            await begun.send(END)
            await begun.end()
            answer = read_answer(await begun.answered())
            assert answer.whole
            assert answer.statuses == [200] * 100 + [201] * 20
        async with server.connect() as connection:
            begun = await begin(connection)
            await begun.send(part("get", "out") * 100)
            await eventually("the server ends it", lambda: server.long_term.open_streams > 0)
            await eventually("the server ends it", lambda: server.long_term.open_streams == 0)
            with pytest.raises((AssertionError, ConnectionError, asyncio.IncompleteReadError)):
                await begun.results(100)


async def test_a_server_that_stops() -> None:
    """When its time is up, a batch is cut off; what has begun is stored."""
    async with running(grace_seconds=1) as server, server.connect() as connection:
        pause = Pause()
        server.script.at("high_volume.put_inline", None, pause)
        begun = await begin(connection, part("insert", "stop/0", (), b"x"))
        await begun.send(part("insert", "stop/1", (), b"x") + OPENING)
        await pause.reached.wait()
        server.stop()
        answer = read_answer(await begun.answered())
        assert not answer.whole
        assert answer.statuses == [201]
        pause.release.set()
        await eventually("it is stored", lambda: len(server.mutations) == 0)
        assert server.failures == []


@pytest.fixture(autouse=True)
def _gauges_begin_at_nothing() -> None:
    """The metrics are the process's, and other tests leave operations that never end."""
    telemetry.operations_in_flight.set(0)
    telemetry.operations_waiting.set(0)


FEW_TURNS = replace(LIMITS, operations_max=4, operations_queue_max=4, operation_wait_seconds_max=0.2)


async def test_a_batch_leaves_turns_to_single_requests() -> None:
    """While a batch of a thousand stands still in the stores it has its share of the turns, and others have theirs."""
    async with running(FEW_TURNS) as server:
        assert (await server.request("PUT", f"{ROOT}/single", (), b"single")).status == 200
        pause = Pause()
        server.script.at("high_volume.put_inline", pause, pause)
        body = batch(*[part("insert", f"share/{number}", (), b"x") for number in range(1000)])
        sending = asyncio.create_task(send_body(server, body))
        await eventually("it has its share", lambda: REGISTRY.get_sample_value("tierstore_operations_in_flight") == 2)
        for _ in range(50):
            assert (await server.request("GET", f"{ROOT}/single")).body == b"single"
            assert REGISTRY.get_sample_value("tierstore_operations_in_flight") == 2
            assert REGISTRY.get_sample_value("tierstore_operations_waiting") == 0
        pause.release.set()
        answer = read_answer(await sending)
        assert answer.whole
        assert answer.statuses == [201] * 1000  # none was refused for being one of many


async def test_single_requests_are_served_between_the_operations_of_a_batch(server: Running) -> None:
    """Of a thousand operations that never wait, a few dozen at most are run while one single request is."""
    assert (await server.request("PUT", f"{ROOT}/single", (), b"single")).status == 200
    body = batch(*[part("insert", f"between/{number}", (), b"x") for number in range(1000)])
    asked = partial(_asked, server, "high_volume.put_inline")
    async with server.connect() as connection:
        start = asked()
        sending = asyncio.create_task(send_body(server, body))
        most, rounds = 0, 0
        while not sending.done():
            before = asked()
            assert (await connection.request("GET", f"{ROOT}/single")).body == b"single"
            if start < before and asked() < start + 1000:
                most, rounds = max(most, asked() - before), rounds + 1
        assert read_answer(await sending).statuses == [201] * 1000
    assert rounds >= 10
    assert most <= 100


async def test_more_batches_than_a_worker_has_under_way() -> None:
    """The next one is 429 at once, and its body is not read; when one has ended, another one may come."""
    async with running(replace(LIMITS, batches_max=2)) as server:
        async with server.connect() as first, server.connect() as second:
            for connection in (first, second):
                await begin(connection, part("insert", "under-way", (), b"x"))
            refused = await send_body(server, batch(part("insert", "refused", (), b"x")))
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert (await server.request("GET", f"{ROOT}/refused")).status == 404
        await eventually("they have ended", lambda: len(server.mutations) == 0)
        await eventually("the server knows", lambda: not server.connections)
        assert (await send_batch(server, part("insert", "taken", (), b"x"))).statuses == [201]
