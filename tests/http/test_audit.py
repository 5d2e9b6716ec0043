"""The audit log: who changed something, or was refused, and how it ended; one line for each, whatever the level is."""

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog
from structlog.typing import EventDict

from tests.http.credentials import Signer, StandingClock, access_of
from tests.http.harness import LIMITS, ROOT, Running, eventually, head, running
from tierstore import audit
from tierstore.admission.authentication import Access
from tierstore.admission.conditions import Condition
from tierstore.admission.keys import KeyDirectory
from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth, Throughput, rate_of
from tierstore.admission.rules import Rules
from tierstore.admission.usecases import UsecasePolicies, UsecasePolicy
from tierstore.errors import OutcomeUnknown, Unavailable
from tierstore.http import app, request_log, uploads
from tierstore.http.request_log import MUTATION_ENDED, MUTATIONS, REQUEST
from tierstore.http.routes import ObjectRoutes
from tierstore.idsource import SystemIds
from tierstore.tasks import TaskOwner
from tierstore.testing.clock import ManualClock
from tierstore.testing.faults import FailBefore, Fault, LoseReply, Pause

pytestmark = pytest.mark.asyncio(loop_scope="module")

Lines = list[EventDict]

MULTIPART = ROOT.replace("objects", "objects:multipart")
PARTS = ROOT.replace("objects", "objects:multipart:parts")
COMPLETE = ROOT.replace("objects", "objects:multipart:complete")


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged during a test, whatever an earlier test has configured."""
    before = structlog.get_config()
    for logger in (app._log, request_log._log, uploads._log, audit.log):
        vars(logger).pop("bind", None)  # one that was used under another configuration may have kept it
    structlog.reset_defaults()
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as captured:
        yield captured
    structlog.configure(**before)


def audited(lines: Lines) -> Lines:
    """The lines of the audit log."""
    return [line for line in lines if "audit" in line]


async def the_line(lines: Lines, count: int = 1) -> EventDict:
    """The last line of the audit log, of which there are ``count``, and soon are no more."""
    await eventually("the line is written", lambda: len(audited(lines)) >= count)
    await asyncio.sleep(0.02)
    assert len(audited(lines)) == count
    return audited(lines)[-1]


async def begin(server: Running, key: str = "film") -> tuple[str, bytes]:
    """Begin an upload with one part; return its query, and what completes it."""
    begun = await server.request("PUT", f"{MULTIPART}/{key}")
    query = f"?upload_id={begun.json['upload_id']}"
    part = await server.request("PUT", f"{PARTS}/{key}{query}&part_number=1", (), b"part")
    return query, document(part.json["etag"])


def document(etag: object) -> bytes:
    """What completes an upload of one part."""
    return json.dumps({"parts": [{"part_number": 1, "etag": etag}]}).encode()


async def test_every_operation_that_changes_something_is_known() -> None:
    """A route with another method than GET and HEAD is audited; one that is added has to be named here, or is found."""
    listed = list(ObjectRoutes(LIMITS, TaskOwner(1, lambda *_: None), SystemIds()).listed())
    assert {each.route.operation for each in listed if each.method not in {"GET", "HEAD"}} == MUTATIONS
    assert MUTATIONS.isdisjoint(each.route.operation for each in listed if each.method in {"GET", "HEAD"})


async def test_every_mutation_has_one_line(lines: Lines) -> None:
    """Who, what, where, from where, and how it ended, of every kind of mutation; nothing of reads."""
    signer = Signer("media")
    bearer = [("x-os-auth", signer.token())]
    async with running(access=access_of(signer), clock=StandingClock()) as server:
        done = 0

        async def ask(method: str, target: str, body: bytes | None = None) -> tuple[dict[str, object], EventDict]:
            nonlocal done
            done += 1
            answer = await server.request(method, target, [*bearer, ("x-request-id", f"r{done}")], body)
            return answer.json if answer.body else {}, await the_line(lines, done)

        for method, target, body, operation, key in (
            ("PUT", f"{ROOT}/a%20b%2Fc", b"x", "put", "a b/c"),
            ("POST", f"{ROOT}/", b"x", "put", None),
            ("PUT", f"{ROOT}/large", bytes(LIMITS.inline_bytes_max + 1), "put", "large"),
            ("DELETE", f"{ROOT}/large", None, "delete", "large"),
            ("POST", f"{MULTIPART}/", None, "initiate_upload", None),
        ):
            answer, line = await ask(method, target, body)
            wanted = {
                "event": REQUEST,
                "log_level": "info",
                "audit": "done",
                "kid": "media",
                "operation": operation,
                "usecase": "testing",
                "scopes": "org=1",
                "key": key or answer["key"],
                "client": "127.0.0.1",
                "request_id": f"r{done}",
                "method": method,
                "path": target,
            }
            assert {name: line[name] for name in wanted} == wanted
            assert isinstance(line["client_port"], int)
            assert "error" not in line
        answer, line = await ask("PUT", f"{MULTIPART}/film")
        query, upload = f"?upload_id={answer['upload_id']}", line["upload"]
        answer, line = await ask("PUT", f"{PARTS}/film{query}&part_number=1", b"part")
        assert (line["operation"], line["upload"], line["audit"]) == ("upload_part", upload, "done")
        _, line = await ask("POST", f"{COMPLETE}/film{query}", document("wrong"))
        assert (line["operation"], line["upload"], line["audit"]) == ("complete_upload", upload, "failed")
        assert (line["status"], line["outcome"], line["error"]) == (200, "InvalidPart", "InvalidPart")
        _, line = await ask("POST", f"{COMPLETE}/film{query}", document(answer["etag"]))
        assert (line["operation"], line["upload"], line["audit"]) == ("complete_upload", upload, "done")
        assert (line["status"], line["outcome"]) == (200, "completed")
        answer, _ = await ask("PUT", f"{MULTIPART}/film")
        _, line = await ask("DELETE", f"{MULTIPART}/film?upload_id={answer['upload_id']}")
        assert (line["operation"], line["key"], line["audit"]) == ("abort_upload", "film", "done")
        _, line = await ask("DELETE", f"{MULTIPART}/film{query}")
        assert (line["audit"], line["status"], line["error"]) == ("failed", 404, "NoSuchUpload")
        begun = await server.request(
            "PUT", f"{ROOT}/stream?upload_type=resumable", [*bearer, ("upload-length", "4")], b""
        )
        done += 1
        line = await the_line(lines, done)
        assert (line["operation"], line["key"], line["audit"]) == ("create_session", "stream", "done")
        session, upload = f"{ROOT}/stream?session={begun.json['session']}", line["upload"]
        await server.request("PUT", session, [*bearer, ("upload-offset", "0")], b"part")
        done += 1
        line = await the_line(lines, done)
        assert (line["operation"], line["upload"], line["audit"], line["status"]) == ("append", upload, "done", 201)
        _, line = await ask("DELETE", session)
        assert (line["operation"], line["audit"], line["error"]) == ("cancel_session", "failed", "NoSuchUpload")
        _, line = await ask("PUT", f"{ROOT}/wrong?upload_type=x", b"x")
        assert (line["audit"], line["status"], line["error"]) == ("failed", 400, "InvalidRequest")
        for method, target in (("GET", "film"), ("HEAD", "film"), ("GET", "absent")):
            await server.request(method, f"{ROOT}/{target}", bearer)
        await server.request("GET", "/metrics")
        await the_line(lines, done)


def rules(**changed: Any) -> Rules:
    """Rules that stop something."""
    return replace(Rules(), **changed)


REFUSALS = {
    "killswitch": (rules(killswitches=Killswitches((Condition(usecase="testing"),))), "Forbidden", 403),
    "throughput": (rules(throughput=Throughput(all_requests=rate_of(0.001, 1))), "RateLimited", 429),
    "bandwidth": (rules(bandwidth=Bandwidth(all_bytes=1)), "RateLimited", 429),
    "policy": (rules(policies=UsecasePolicies({}, UsecasePolicy(expirations=("ttl",)))), "PolicyViolation", 400),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_what_a_rule_refuses_has_one_line(lines: Lines, name: str) -> None:
    """A killswitch, a limit or a policy: the line says which, and whose request it was."""
    in_force, error, status = REFUSALS[name]
    async with running(clock=ManualClock(), rules=in_force) as server:
        refused = 0
        for _ in range(3):
            answer = await server.request("PUT", f"{ROOT}/k", (), b"x" * 100)
            refused += answer.status != 200
        assert refused >= 2
    await eventually("all are there", lambda: len(audited(lines)) == 3)
    found = [line for line in audited(lines) if line["audit"] == "refused"]
    assert len(found) == refused
    for line in found:
        assert (line["error"], line["status"], line["operation"], line["key"]) == (error, status, "put", "k")
        assert (line["usecase"], line["client"]) == ("testing", "127.0.0.1")


async def test_refused_credentials_have_one_line(lines: Lines) -> None:
    """No, bad and insufficient credentials, of reads too; the key's id is there as the caller wrote it."""
    known, stranger = Signer("known"), Signer("stranger")
    async with running(access=access_of(known, permissions=["object.read"]), clock=StandingClock()) as server:
        for number, (method, headers, error, status, kid) in enumerate(
            (
                ("GET", [], "UnreadableCredentials", 400, None),
                ("GET", [("x-os-auth", stranger.token())], "Unauthenticated", 401, "stranger"),
                ("DELETE", [("x-os-auth", known.token())], "Forbidden", 403, "known"),
                ("GET", [("x-os-auth", known.token(res={"os:usecase": "other"}))], "Forbidden", 403, "known"),
            ),
            start=1,
        ):
            await server.request(method, f"{ROOT}/k", headers)
            line = await the_line(lines, number)
            assert (line["audit"], line["error"], line["status"]) == ("refused", error, status)
            assert (line.get("kid"), line["key"], line["usecase"]) == (kid, "k", "testing")


async def test_what_is_beyond_a_bound_has_one_line(lines: Lines) -> None:
    """A full queue in front of the stores, and as many requests under way as there may be: both are refusals."""
    limits = replace(LIMITS, operations_max=1, operations_queue_max=0)
    for bounds, error, status in (
        ({"limits": limits}, "Busy", 429),
        ({"max_requests": 1}, "Overloaded", 503),
    ):
        lines.clear()
        async with running(**bounds) as server:
            server.script.at("high_volume.read", pause := Pause())
            waiting = asyncio.create_task(server.request("GET", f"{ROOT}/k"))
            await pause.reached.wait()
            assert (await server.request("GET", f"{ROOT}/other")).status == status
            line = await the_line(lines)
            assert (line["audit"], line["error"], line["status"]) == ("refused", error, status)
            pause.release.set()
            await waiting


@pytest.mark.parametrize(
    ("faults", "outcome", "status"),
    [
        ([FailBefore(Unavailable("away"))], "failed", 503),
        ([FailBefore(RuntimeError("odd"))], "unknown", 500),
        ([LoseReply(OutcomeUnknown("lost"))] * 10, "unknown", 503),
    ],
)
async def test_a_mutation_that_fails_says_what_is_known(
    lines: Lines, faults: list[Fault], outcome: str, status: int
) -> None:
    """``failed`` if nothing was changed; ``unknown`` if the stores do not tell, or something broke."""
    async with running() as server:
        server.script.at("high_volume.delete_inline", *faults)
        answer = await server.request("DELETE", f"{ROOT}/k")
        line = await the_line(lines)
        assert (line["audit"], line["status"], answer.status) == (outcome, status, status)


async def test_a_client_that_leaves_before_its_payload_has_changed_nothing(lines: Lines) -> None:
    """An upload that breaks off is ``failed``, once."""
    async with running() as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/k", [("content-length", "10")]) + b"12345")
        await eventually("the body arrives", lambda: len(server.mutations) == 1)
        connection.abort()
        line = await the_line(lines)
        assert (line["audit"], line["status"]) == ("failed", 499)


async def test_a_client_that_leaves_after_its_payload_is_audited_by_what_was_done(lines: Lines) -> None:
    """A write that goes on without its client has one line, when it is done, and that says so."""
    async with running() as server, server.connect() as connection:
        server.script.at("high_volume.put_inline", pause := Pause())
        await connection.send(head("PUT", f"{ROOT}/k", (), b"x") + b"x")
        await pause.reached.wait()
        connection.abort()
        await eventually("the server knows", lambda: not server.connections)
        assert audited(lines) == []
        pause.release.set()
        line = await the_line(lines)
        assert (line["audit"], line["status"], line["event"]) == ("done", 499, REQUEST)
        assert (await server.request("GET", f"{ROOT}/k")).body == b"x"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_completion_that_its_client_left_is_audited_when_it_has_ended(lines: Lines, fails: bool) -> None:
    """The request's own line has no ``audit``; a second one has, with what became of the upload."""
    async with running() as server:
        query, body = await begin(server)
        lines.clear()
        async with server.connect() as connection:
            server.script.at("long_term.complete", pause := Pause())
            if fails:
                server.script.at("high_volume.point", FailBefore(RuntimeError("odd")))
            await connection.send(head("POST", f"{COMPLETE}/film{query}", [("x-request-id", "left")], body) + body)
            await pause.reached.wait()
            connection.abort()
            await eventually("the request ends", lambda: any(line["event"] == REQUEST for line in lines))
            [request] = [line for line in lines if line["event"] == REQUEST]
            assert request["status"] == 499
            assert audited(lines) == []
            pause.release.set()
            line = await the_line(lines)
        assert (line["event"], line["request_id"], line["status"]) == (MUTATION_ENDED, "left", 499)
        assert (line["operation"], line["key"], line["client"]) == ("complete_upload", "film", "127.0.0.1")
        assert line["upload"] == request["upload"]
        assert line["audit"] == ("unknown" if fails else "done")
        assert line.get("error") == ("RuntimeError" if fails else None)
        assert (await server.request("GET", f"{ROOT}/film")).status == (404 if fails else 200)
        server.failures.clear()


async def test_a_write_that_outlives_its_request_at_a_stop_is_audited_when_it_has_ended(lines: Lines) -> None:
    """A stop answers 503 for a write that still goes on; what the audit log says of it is what became of it."""
    async with running(grace_seconds=1) as server, server.connect() as connection:
        server.script.at("high_volume.put_inline", pause := Pause())
        await connection.send(head("PUT", f"{ROOT}/k", (), b"x") + b"x")
        await pause.reached.wait()
        server.stop()
        assert (await connection.response()).status == 503
        assert audited(lines) == []
        pause.release.set()
        line = await the_line(lines)
        assert (line["audit"], line["status"], line["event"]) == ("done", 503, MUTATION_ENDED)


async def test_what_would_be_refused_is_said(lines: Lines) -> None:
    """Without enforcement: a read that would be refused is ``would_refuse``, a mutation is what became of it."""
    stranger = Signer("stranger")
    async with running(access=access_of(Signer("known"), enforce=False), clock=StandingClock()) as server:
        for number, (method, outcome, status) in enumerate((("PUT", "done", 200), ("GET", "would_refuse", 200)), 1):
            await server.request(method, f"{ROOT}/k", [("x-os-auth", stranger.token())], b"x" if number == 1 else None)
            line = await the_line(lines, number)
            assert (line["audit"], line["status"], line["log_level"]) == (outcome, status, "warning")
            assert (line["kid"], line["key"]) == ("stranger", "k")
            assert line["passed_over"].startswith("Unauthenticated: ")
    async with running(access=Access(enforce=False, keys=KeyDirectory())) as server:
        await server.request("GET", f"{ROOT}/k")
        await the_line(lines, 2)


async def test_the_level_does_not_matter(lines: Lines) -> None:
    """At level critical there are audit lines, and no others."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    async with running(rules=REFUSALS["killswitch"][0]) as server:
        await server.request("GET", f"{ROOT}/k")
        await server.request("PUT", "/v1/objects/other/_/k", (), b"x")
        await server.request("GET", "/v1/objects/other/_/k")
        await the_line(lines, 2)
    assert [line["audit"] for line in lines] == ["refused", "done"]


async def test_it_can_be_switched_off(lines: Lines) -> None:
    """Without it no line says who the client is, and at level warning there is none."""
    async with running(audit=False) as server:
        query, body = await begin(server)
        async with server.connect() as connection:
            server.script.at("long_term.complete", pause := Pause())
            await connection.send(head("POST", f"{COMPLETE}/film{query}", (), body) + body)
            await pause.reached.wait()
        pause.release.set()
        await eventually("it ends", lambda: len(server.mutations) == 0)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        before = len(lines)
        await server.request("PUT", f"{ROOT}/k", (), b"x")
        assert len(lines) == before
    assert before >= 3
    assert not [line for line in lines if {"audit", "client", "key"} & line.keys()]
