"""Batches in the audit log: one line for each operation that changes something, or is refused."""

import asyncio
import gc

import pytest

from tests.http.batches import BATCH, CONTENT_TYPE, END, OPENING, batch, begin, part, read_answer, send_batch, send_body
from tests.http.credentials import Signer, StandingClock, access_of
from tests.http.harness import eventually, head, running
from tests.http.test_audit import Lines, audited, lines
from tierstore.errors import OutcomeUnknown, Unavailable
from tierstore.http.batch_log import OPERATION
from tierstore.http.request_log import MUTATION_ENDED, REQUEST
from tierstore.service.batch import HeldBody
from tierstore.testing.faults import FailBefore, LoseReply, Pause

__all__ = ["lines"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_operation_has_its_line(lines: Lines) -> None:
    """Who, what, where, from where, and how it ended, of each insert and delete, and of what was refused."""
    signer = Signer("media")
    token = signer.token(permissions=["object.read", "object.write"])
    async with running(access=access_of(signer), clock=StandingClock()) as server:
        server.script.at(
            "high_volume.put_inline", None, FailBefore(Unavailable("away")), LoseReply(OutcomeUnknown("lost"))
        )
        answer = await send_batch(
            server,
            part("insert", "a%20b", (), b"x"),
            part("insert", "away", (), b"x"),
            part("insert", "lost", (), b"x"),
            part("insert", "eyJhbGciOiJFZERTQSJ9.e30.c2ln", [("x-sn-expiration", "soon")], b"x"),
            part("delete", "a%20b"),
            part("get", "a%20b"),
            part("head", "nothing"),
            part("what"),
            headers=[("x-os-auth", token), ("x-request-id", "r1")],
        )
    assert answer.whole
    told = {line["index"]: line for line in audited(lines)}
    assert len(told) == len(audited(lines))
    assert {index: (line["operation"], line["status"], line["audit"]) for index, line in told.items()} == {
        0: ("insert", 201, "done"),
        1: ("insert", 503, "failed"),
        2: ("insert", 503, "unknown"),
        3: ("insert", 400, "failed"),
        4: ("delete", 403, "refused"),
    }
    assert told[0]["key"] == "a b"
    assert told[3]["key"] == "(left out)"
    for line in told.values():
        wanted = {"event": OPERATION, "kid": "media", "usecase": "testing", "scopes": "org=1", "request_id": "r1"}
        wanted |= {"method": "POST", "path": BATCH}
        assert wanted.items() <= line.items()
        assert line["client"] == "127.0.0.1"
    request = next(line for line in lines if line["event"] == REQUEST)
    assert (request["operation"], request["status"]) == ("batch", 200)


async def test_a_batch_that_is_refused_has_one_line(lines: Lines) -> None:
    """As a whole, it is a request like any other."""
    async with running(enforce=True) as server:
        assert (await send_body(server, batch(part("insert", "k", (), b"x")))).status == 400
    (line,) = audited(lines)
    assert (line["event"], line["operation"], line["audit"]) == (REQUEST, "batch", "refused")


async def test_nothing_is_audited_where_that_is_off(lines: Lines) -> None:
    """Then operations have their plain lines alone."""
    async with running(audit=False) as server:
        assert (await send_batch(server, part("insert", "k", (), b"x"))).statuses == [201]
    assert audited(lines) == []
    assert [line["index"] for line in lines if line["event"] == OPERATION] == [0]


async def test_what_outlives_its_batch(lines: Lines) -> None:
    """A mutation that has begun, and whose client has left, has its audit in a second line, once it ends."""
    async with running() as server:
        pause = Pause()
        server.script.at("high_volume.put_inline", pause, pause)
        async with server.connect() as connection:
            body = batch(part("insert", "a", (), b"x"), part("insert", "b", (), b"x"))
            await connection.send(head("POST", BATCH, [CONTENT_TYPE], body) + body)
            await eventually("both have begun", lambda: len(server.mutations) == 2)
            connection.abort()
            await eventually("the request ends", lambda: any(line["event"] == REQUEST for line in lines))
        assert audited(lines) == []
        assert sorted(line["index"] for line in lines if line["event"] == OPERATION) == [0, 1]
        pause.release.set()
        await eventually("they have ended", lambda: len(server.mutations) == 0)
        await asyncio.sleep(0.01)
        told = audited(lines)
        assert {(line["event"], line["status"], line["audit"]) for line in told} == {(MUTATION_ENDED, 499, "done")}
        assert sorted((line["index"], line["key"]) for line in told) == [(0, "a"), (1, "b")]


async def test_what_has_ended_is_not_in_memory(lines: Lines) -> None:
    """A failed insert that is audited holds its body no longer than another, however long its batch goes on."""
    async with running() as server, server.connect() as connection:
        server.script.at("high_volume.put_inline", *[FailBefore(Unavailable("away")) for _ in range(20)])
        begun = await begin(connection)
        for index in range(20):
            await begun.send(part("insert", f"{index}", (), b"x"))
        await begun.send(OPENING)
        begun.opened = True
        await begun.results(20)
        gc.collect()
        assert sum(isinstance(there, HeldBody) for there in gc.get_objects()) == 0
        await begun.send(part("delete", "0") + END)
        await begun.end()
        assert read_answer(await begun.answered()).statuses == [503] * 20 + [204]
    assert [line["audit"] for line in audited(lines)] == ["failed"] * 20 + ["done"]
