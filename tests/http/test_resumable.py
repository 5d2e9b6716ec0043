"""Resumable uploads on real sockets: every answer, every refusal, connections that break, attempts at the same time."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from zlib import crc32

import pytest

from tests.http.credentials import Signer, StandingClock, access_of
from tests.http.harness import LIMITS, ROOT, Connection, Response, Running, head, running
from tests.http.test_request_log import Lines, last, lines
from tierstore.admission.rate_limits import Bandwidth
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.errors import OutcomeUnknown, StorageFull, Unavailable
from tierstore.limits import KIB
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import FailBefore, LoseReply, Pause
from tierstore.types.ids import ObjectId, Scope

__all__ = ["lines"]  # the fixture

UNIT = 4 * KIB
RESUMABLE = replace(LIMITS, session_unit_bytes_min=UNIT, parts_max=1000)
WHOLE = bytes(range(256)) * 256
"""64 KiB: 16 units."""


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    """A server with small units."""
    async with running(RESUMABLE) as up:
        yield up
        assert up.failures == []


async def created(
    server: Running, length: int = len(WHOLE), key: str = "k", headers: Iterable[tuple[str, str]] = ()
) -> str:
    """The address of a new session."""
    answer = await server.request(
        "PUT", f"{ROOT}/{key}?upload_type=resumable", [*headers, ("upload-length", str(length))], b""
    )
    assert (answer.status, answer.json["key"], answer.json["granularity"]) == (200, key, 0)
    return f"{ROOT}/{key}?session={answer.json['session']}"


async def send(server: Running, session: str, offset: int, stop: int = len(WHOLE)) -> Response:
    """Append the bytes of `WHOLE` from ``offset`` to ``stop``."""
    return await server.request("PUT", session, [("upload-offset", str(offset))], WHOLE[offset:stop])


async def asked(server: Running, session: str) -> Response:
    """What has become of the session."""
    return await server.request("PUT", session, [("upload-offset", "*")], b"")


async def offset_of(server: Running, session: str) -> int:
    """What the session holds."""
    answer = await asked(server, session)
    assert (answer.status, answer.body) == (204, b"")
    return int(answer.headers["upload-offset"])


async def until_held(server: Running, session: str, offset: int) -> None:
    """Wait until the session holds so much: of a connection that broke the server has heard later."""
    async with asyncio.timeout(10):
        while await offset_of(server, session) != offset:
            await asyncio.sleep(0.02)


async def payload(server: Running, key: str = "k") -> bytes | None:
    """The object, or None."""
    answer = await server.request("GET", f"{ROOT}/{key}")
    assert answer.status in {200, 404}
    return answer.body if answer.status == 200 else None


async def cut(server: Running, session: str, offset: int, come: int, announced: int) -> None:
    """Send ``come`` bytes of a longer body, then go away without a word."""
    connection = Connection(*await asyncio.open_connection("127.0.0.1", server.port))
    raw = head("PUT", session, [("upload-offset", str(offset)), ("content-length", str(announced))])
    await connection.send(raw + WHOLE[offset : offset + come])
    connection.writer.close()
    await connection.close()


async def test_a_whole_upload(server: Running) -> None:
    """Created, sent in pieces, asked for, complete: and read like any object, with its metadata, in ranges."""
    session = await created(server, headers=[("content-type", "text/plain"), ("x-snme-a", "b")])
    assert await offset_of(server, session) == 0
    first = await send(server, session, 0, 10_000)
    assert (first.status, first.body, first.headers["upload-offset"]) == (204, b"", "10000")
    assert await payload(server) is None
    last = await send(server, session, 10_000)
    assert (last.status, last.json) == (201, {"key": "k"})
    assert "upload-offset" not in last.headers
    got = await server.request("GET", f"{ROOT}/k")
    assert (got.body, got.headers["content-type"], got.headers["x-snme-a"]) == (WHOLE, "text/plain", "b")
    assert got.headers["x-sn-size"] == str(len(WHOLE))
    ranged = await server.request("GET", f"{ROOT}/k", [("range", "bytes=4090-4099")])
    assert (ranged.status, ranged.body) == (206, WHOLE[4090:4100])
    assert (await server.request("HEAD", f"{ROOT}/k")).headers["x-sn-size"] == str(len(WHOLE))


async def test_post_makes_the_key(server: Running) -> None:
    """With and without the last slash; the session belongs to that key."""
    for target in (f"{ROOT}?upload_type=resumable", f"{ROOT}/?upload_type=resumable"):
        answer = await server.request("POST", target, [("upload-length", "5")], b"")
        assert answer.status == 200
        key = answer.json["key"]
        session = f"{ROOT}/{key}?session={answer.json['session']}"
        assert (await send(server, session, 0, 5)).status == 201
        assert await payload(server, str(key)) == WHOLE[:5]


@pytest.mark.parametrize("length", [0, 1, KIB, KIB + 1])
async def test_lengths_on_both_sides_of_the_tiers(server: Running, length: int) -> None:
    """An object of no bytes too."""
    session = await created(server, length)
    assert (await send(server, session, 0, length)).status == 201
    assert (await asked(server, session)).status == 201
    assert await payload(server) == WHOLE[:length]


@pytest.mark.parametrize("come", [0, 1, UNIT - 1, UNIT, 3 * UNIT + 17, len(WHOLE) - 1])
async def test_a_connection_that_breaks(server: Running, come: int) -> None:
    """All that has come is kept, and the upload goes on from there."""
    session = await created(server)
    await cut(server, session, 0, come, len(WHOLE))
    await until_held(server, session, come)
    assert (await send(server, session, come)).status == 201
    assert await payload(server) == WHOLE


async def test_a_client_that_stops_sending() -> None:
    """It is told so after a while, and what it has sent is kept."""
    async with running(replace(RESUMABLE, client_stall_seconds_max=0.2)) as server:
        session = await created(server)
        async with server.connect() as connection:
            fields = [("upload-offset", "0"), ("content-length", str(len(WHOLE)))]
            await connection.send(head("PUT", session, fields) + WHOLE[:5000])
            answer = await connection.response()
            assert (answer.status, "no byte of the body came" in answer.detail) == (400, True)
        assert await offset_of(server, session) == 5000


async def test_a_store_with_smallest_parts() -> None:
    """It says so when the upload is created; short pieces are refused; a cut costs the unit that was not whole."""
    async with running(replace(RESUMABLE, part_bytes_min=UNIT)) as server:
        answer = await server.request(
            "PUT", f"{ROOT}/k?upload_type=resumable", [("upload-length", str(len(WHOLE)))], b""
        )
        assert answer.json["granularity"] == UNIT
        session = f"{ROOT}/k?session={answer.json['session']}"
        refused = await send(server, session, 0, UNIT - 1)
        assert (refused.status, f"{UNIT} bytes" in refused.detail) == (400, True)
        await cut(server, session, 0, 3 * UNIT + 17, len(WHOLE))
        await until_held(server, session, 3 * UNIT)
        assert (await send(server, session, 3 * UNIT)).status == 201
        assert await payload(server) == WHOLE


@pytest.mark.parametrize("length", [0, 1, len(WHOLE)])
async def test_a_store_whose_parts_leave_no_unit(length: int) -> None:
    """501, whatever the length, and the object can be sent as a whole; one byte less, and it is offered."""
    half = LIMITS.part_bytes_max // 2
    for least, status in ((half, 200), (half + 1, 501)):
        async with running(replace(RESUMABLE, part_bytes_min=least)) as server:
            target, fields = f"{ROOT}/k?upload_type=resumable", [("upload-length", str(length))]
            answer = await server.request("PUT", target, fields, b"")
            assert answer.status == status
            assert (await server.request("POST", target.replace("/k?", "/?"), fields, b"")).status == status
            assert server.script.trace.count("long_term.initiate") == (2 if status == 200 else 0)
            assert (await server.request("PUT", f"{ROOT}/k", body=WHOLE[:length])).status == 200
            assert await payload(server) == WHOLE[:length]


@pytest.mark.parametrize("offset", [1, 9_999, 10_001, 65_536])
async def test_another_offset(server: Running, offset: int) -> None:
    """409 with the true one, before the body is read."""
    session = await created(server)
    await send(server, session, 0, 10_000)
    stop = min(offset + 8, len(WHOLE))
    fields = [("upload-offset", str(offset)), ("expect", "100-continue")]
    async with server.connect() as connection:
        await connection.send(head("PUT", session, fields, WHOLE[offset:stop]))
        refused = await connection.response()
    assert (refused.status, refused.informational, refused.headers["upload-offset"]) == (409, [], "10000")
    assert "10000" in refused.detail
    assert await offset_of(server, session) == 10_000


async def test_a_repeated_piece(server: Running) -> None:
    """In the middle it is 409 with the true offset; the last one finds the upload complete."""
    session = await created(server)
    await send(server, session, 0, 10_000)
    assert (await send(server, session, 0, 10_000)).headers["upload-offset"] == "10000"
    await send(server, session, 10_000)
    for again in (10_000, 0, len(WHOLE)):
        assert (await send(server, session, again)).status == 201
    assert (await asked(server, session)).status == 201
    await server.request("PUT", f"{ROOT}/k", (), b"later")
    assert (await send(server, session, 10_000)).status == 201
    assert await payload(server) == b"later"


@pytest.mark.parametrize("call", ["high_volume.point", "long_term.complete", "changelog.claim", "long_term.list_parts"])
@pytest.mark.parametrize("fault", [FailBefore, LoseReply])
async def test_the_last_piece_fails(server: Running, call: str, fault: type[FailBefore] | type[LoseReply]) -> None:
    """503, or success after all; asking for the offset finishes the upload."""
    session = await created(server)
    server.script.at(call, fault(OutcomeUnknown("lost")))
    answer = await send(server, session, 0)
    assert answer.status in {201, 503}
    assert (await asked(server, session)).status == 201
    assert await payload(server) == WHOLE


async def test_faults_of_the_stores(server: Running) -> None:
    """507 and 503, with the offset where it was; a retry goes on."""
    session = await created(server)
    server.script.at("long_term.upload_part", None, FailBefore(StorageFull("full")), FailBefore(Unavailable("away")))
    assert (await send(server, session, 0)).status == 507
    assert await offset_of(server, session) == UNIT
    assert (await send(server, session, UNIT)).status == 503
    assert (await send(server, session, UNIT)).status == 201
    assert await payload(server) == WHOLE


async def test_attempts_at_the_same_time(server: Running) -> None:
    """Of any number with the same offset one wins; the others are told the true offset, and go on from there."""
    session = await created(server)
    pauses = [Pause() for _ in range(4)]
    server.script.at("long_term.upload_part", *pauses)
    attempts = [asyncio.create_task(send(server, session, 0, UNIT + number)) for number in range(4)]
    for pause in pauses:
        await pause.reached.wait()
    for pause in pauses:
        pause.release.set()
    answers = await asyncio.gather(*attempts)
    held = await offset_of(server, session)
    assert sorted(answer.status for answer in answers) == [204, 409, 409, 409]
    assert {answer.headers["upload-offset"] for answer in answers if answer.status == 204} == {str(held)}
    assert {int(answer.headers["upload-offset"]) for answer in answers if answer.status == 409} <= {UNIT, held}
    assert (await send(server, session, held)).status == 201
    assert await payload(server) == WHOLE


async def test_cancel(server: Running) -> None:
    """204, again too; the session is gone, its bytes are, and the object that is there is not touched."""
    await server.request("PUT", f"{ROOT}/k", (), b"before")
    session = await created(server)
    await send(server, session, 0, 10_000)
    assert (await server.request("DELETE", session)).status == 204
    assert (await server.request("DELETE", session)).status == 204
    assert (await send(server, session, 10_000)).status == 404
    assert (await asked(server, session)).status == 404
    assert await payload(server) == b"before"


async def test_cancelling_what_is_complete(server: Running) -> None:
    """404, and the object stays."""
    session = await created(server)
    await send(server, session, 0)
    assert (await server.request("DELETE", session)).status == 404
    assert await payload(server) == WHOLE


@pytest.mark.parametrize("token", ["", "x", "A" * 28, "A" * 5000, "%00", "../..", "Ag" + "A" * 40])
async def test_a_session_that_never_was(server: Running, token: str) -> None:
    """404, whatever is asked; the object under its key is not touched."""
    await server.request("PUT", f"{ROOT}/kept", (), b"payload")
    target = f"{ROOT}/kept?session={token}"
    assert (await send(server, target, 0, 10)).status == 404
    assert (await asked(server, target)).status == 404
    assert (await server.request("DELETE", target)).status == 404
    assert await payload(server, "kept") == b"payload"


async def test_a_session_belongs_to_its_object(server: Running) -> None:
    """At another key it is unknown; and an upload's id is no session, nor the other way round."""
    session = await created(server)
    token = session.partition("session=")[2]
    assert (await asked(server, f"{ROOT}/other?session={token}")).status == 404
    begun = await server.request("PUT", f"{ROOT.replace('objects', 'objects:multipart')}/k", (), b"")
    assert (await asked(server, f"{ROOT}/k?session={begun.json['upload_id']}")).status == 404
    parts = f"{ROOT.replace('objects', 'objects:multipart:parts')}/k?upload_id={token}"
    assert (await server.request("GET", parts)).status == 400
    assert (await server.request("PUT", f"{parts}&part_number=1", (), b"x")).status == 400
    assert await offset_of(server, session) == 0


async def test_a_session_takes_no_parts_of_its_client(server: Running) -> None:
    """An upload id made of its token is none: its parts cannot be replaced, nor left out; nor the other way round."""
    session = await created(server)
    await send(server, session, 0, 10_000)
    forged = _with_format(session.partition("session=")[2], 1)
    families = {name: ROOT.replace("objects", f"objects:multipart{name}") for name in ("", ":parts", ":complete")}
    query = f"/k?upload_id={forged}"
    assert (await server.request("GET", families[":parts"] + query)).status == 400
    assert (await server.request("PUT", f"{families[':parts']}{query}&part_number=1", (), b"x")).status == 400
    assert (await server.request("POST", families[":complete"] + query, (), b'{"parts": []}')).status == 400
    assert (await server.request("DELETE", families[""] + query)).status == 400
    assert await offset_of(server, session) == 10_000
    assert (await send(server, session, 10_000)).status == 201
    assert await payload(server) == WHOLE
    upload = str((await server.request("PUT", f"{families['']}/k", (), b"")).json["upload_id"])
    target = f"{ROOT}/k?session={_with_format(upload, 2)}"
    assert (await asked(server, target)).status == 404
    assert (await server.request("DELETE", target)).status == 404
    assert (await server.request("GET", f"{families[':parts']}/k?upload_id={upload}")).status == 200


def _with_format(token: str, form: int) -> str:
    """The token with another format byte, and the checksum that goes with it."""
    content = bytes([form]) + base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[1:-4]
    path = ObjectId("testing", (Scope("org", "1"),), "k").storage_path
    checksum = crc32(path.encode(), crc32(content)).to_bytes(4)
    return base64.urlsafe_b64encode(content + checksum).rstrip(b"=").decode()


REFUSED_CREATIONS: dict[str, tuple[str, list[tuple[str, str]], bytes, int]] = {
    "no length": ("", [], b"", 400),
    "no number": ("", [("upload-length", "ten")], b"", 400),
    "a sign": ("", [("upload-length", "+5")], b"", 400),
    "below zero": ("", [("upload-length", "-1")], b"", 400),
    "empty": ("", [("upload-length", "")], b"", 400),
    "a list": ("", [("upload-length", "5, 5")], b"", 400),
    "twice": ("", [("upload-length", "5"), ("upload-length", "5")], b"", 400),
    "endless": ("", [("upload-length", "9" * 19)], b"", 400),
    "too large": ("", [("upload-length", str(RESUMABLE.object_bytes_max + 1))], b"", 413),
    "a body": ("", [("upload-length", "5")], b"12345", 400),
    "bad metadata": ("", [("upload-length", "5"), ("content-type", "nonsense")], b"", 400),
    "bad expiration": ("", [("upload-length", "5"), ("x-sn-expiration", "ttl:x")], b"", 400),
    "a condition": ("", [("upload-length", "5"), ("if-none-match", "*")], b"", 501),
    "the type twice": ("&upload_type=resumable", [("upload-length", "5")], b"", 400),
    "another type": ("x", [("upload-length", "5")], b"", 400),
}


@pytest.mark.parametrize("name", REFUSED_CREATIONS)
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_what_does_not_begin_an_upload(server: Running, name: str, method: str) -> None:
    """It is refused in words, before anything is recorded."""
    query, headers, body, status = REFUSED_CREATIONS[name]
    target = f"{ROOT}/{'k' if method == 'PUT' else ''}?upload_type=resumable{query}"
    before = len(server.script.trace)
    refused = await server.request(method, target, headers, body)
    assert refused.status == status
    assert refused.detail
    assert len(server.script.trace) == before
    assert await payload(server) is None


REFUSED_PIECES: dict[str, tuple[list[tuple[str, str]], bytes | None, int]] = {
    "no offset": ([], b"12345", 400),
    "no number": ([("upload-offset", "x")], b"12345", 400),
    "a sign": ([("upload-offset", "-1")], b"12345", 400),
    "endless": ([("upload-offset", "9" * 30)], b"12345", 400),
    "twice": ([("upload-offset", "0"), ("upload-offset", "0")], b"12345", 400),
    "a query with a body": ([("upload-offset", "*")], b"12345", 400),
    "no length": ([("upload-offset", "0")], None, 400),
    "in chunks": ([("upload-offset", "0"), ("transfer-encoding", "chunked")], None, 400),
    "a range": ([("upload-offset", "0"), ("content-range", "bytes 0-4/5")], b"12345", 400),
    "a condition": ([("upload-offset", "0"), ("if-match", "x")], b"12345", 501),
    "beyond the end": ([("upload-offset", "0")], b"x" * 101, 400),
    "beyond the end, from elsewhere": ([("upload-offset", "99")], b"xx", 400),
}


@pytest.mark.parametrize("name", REFUSED_PIECES)
async def test_what_is_no_piece(server: Running, name: str) -> None:
    """It is refused in words, and nothing of it is stored."""
    headers, body, status = REFUSED_PIECES[name]
    session = await created(server, 100)
    refused = await server.request("PUT", session, headers, body)
    assert refused.status == status
    assert refused.detail
    assert await offset_of(server, session) == 0


@pytest.mark.parametrize("query", ["", "?Session=token", "?x=1"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_piece_without_its_session(server: Running, method: str, query: str) -> None:
    """400: what lost its session on the way is not taken for a whole object, and replaces none."""
    await server.request("PUT", f"{ROOT}/k", (), b"before")
    target = f"{ROOT}/{'k' if method == 'PUT' else ''}{query}"
    answer = await server.request(method, target, [("upload-offset", "6")], b"the end")
    assert answer.status == 400
    assert b"session" in answer.body
    assert await payload(server) == b"before"


async def test_parameters_that_do_not_go_together(server: Running) -> None:
    """400: a session with a creation, one with POST, and a session twice; none of it replaces or deletes the object."""
    await server.request("PUT", f"{ROOT}/k", (), b"before")
    session = await created(server)
    token = session.partition("?")[2]
    for method, target in (
        ("PUT", f"{session}&upload_type=resumable"),
        ("PUT", f"{session}&{token}"),
        ("POST", f"{ROOT}/?{token}"),
        ("DELETE", f"{session}&upload_type=resumable"),
        ("DELETE", f"{ROOT}/k?upload_type=resumable"),
        ("PUT", f"{ROOT}/k?upload_type=other"),
    ):
        answer = await server.request(method, target, [("upload-offset", "0"), ("upload-length", "5")], b"")
        assert answer.status == 400, (method, target)
    assert await payload(server) == b"before"


STEPS = [
    ("PUT", f"{ROOT}/k?upload_type=resumable", ("upload-length", "5")),
    ("POST", f"{ROOT}/?upload_type=resumable", ("upload-length", "5")),
    ("PUT", f"{ROOT}/k?session=x", ("upload-offset", "0")),
    ("PUT", f"{ROOT}/k?session=x", ("upload-offset", "*")),
    ("DELETE", f"{ROOT}/k?session=x", ("x-ignored", "")),
]
"""Every step of a resumable upload, with what it needs."""


async def test_every_step_needs_to_be_allowed_to_write() -> None:
    """No more and no less; without it, nothing is asked of the stores."""
    signer = Signer("known")
    async with running(RESUMABLE, access=access_of(signer), clock=StandingClock()) as server:
        for method, target, header in STEPS:
            for permissions in (["object.write"], ["object.read", "object.delete"], []):
                before = len(server.script.trace)
                token = ("x-os-auth", signer.token(permissions=permissions))
                answer = await server.request(method, target, [header, token], b"")
                assert (answer.status == 403) is ("object.write" not in permissions), (method, target, answer)
                assert answer.status in {200, 403, 404}
                assert answer.status == 200 or len(server.script.trace) == before
            assert (await server.request(method, target, [header], b"")).status == 400


async def test_the_policy_of_the_usecase_holds_from_the_beginning() -> None:
    """What it forbids is not begun."""
    policy = UsecasePolicy(expirations=("ttl",), ttl_seconds_max=60)
    async with running(RESUMABLE, rules=Rules(policies=UsecasePolicies({"testing": policy}))) as server:
        for method, target, header in STEPS[:2]:
            for expiration, status in (("manual", 400), ("ttl:61s", 400), ("ttl:60s", 200)):
                answer = await server.request(method, target, [header, ("x-sn-expiration", expiration)], b"")
                assert answer.status == status


async def test_bytes_are_counted() -> None:
    """Each piece counts against the bandwidth, what was cut off too; beyond it, 429 before the body is read."""
    clock = ManualClock()
    async with running(RESUMABLE, rules=Rules(bandwidth=Bandwidth(each_scope=10_000)), clock=clock) as server:
        session = await created(server)
        assert (await send(server, session, 0, 8_000)).status == 204
        assert (await send(server, session, 8_000, 16_000)).status == 204
        refused = await send(server, session, 16_000)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert await offset_of(server, session) == 16_000


async def test_the_log_names_the_upload(server: Running, lines: Lines) -> None:
    """All requests of one session can be found together, each by its operation."""
    session = await created(server)
    await send(server, session, 0, 10)
    await asked(server, session)
    await server.request("DELETE", session)
    line = await last(lines, 4)
    written = [line for line in lines if line["event"] == "request"]
    assert [line["operation"] for line in written] == ["create_session", "append", "append", "cancel_session"]
    assert {line["upload"] for line in written} == {line["upload"]}
    assert [line["bytes_in"] for line in written] == [0, 10, 0, 0]
