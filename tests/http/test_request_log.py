"""Request ids, and the line that every request leaves."""

import logging
from collections.abc import Iterator
from urllib.parse import unquote

import pytest
import structlog
from structlog.typing import EventDict

from tests.http.harness import LIMITS, ROOT, Running, eventually, head, running
from tierstore import audit
from tierstore.errors import Unavailable
from tierstore.http import app, request_log, uploads
from tierstore.testing.faults import FailBefore
from tierstore.types.ids import ObjectId, Scope
from tierstore.types.multipart import UploadId

pytestmark = pytest.mark.asyncio(loop_scope="module")

Lines = list[EventDict]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged during a test, whatever an earlier test has configured."""
    before = structlog.get_config()
    for logger in (app._log, request_log._log, uploads._log, audit.log):
        vars(logger).pop("bind", None)  # a logger that was used under another configuration may have kept it
    structlog.reset_defaults()
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as captured:
        yield captured
    structlog.configure(**before)


async def last(lines: Lines, count: int = 1) -> EventDict:
    """The last line about a request, once there are ``count`` of them."""

    def requests() -> Lines:
        return [line for line in lines if line["event"] == "request"]

    await eventually("the line is written", lambda: len(requests()) >= count)
    return requests()[-1]


@pytest.mark.parametrize("given", ["a", "A-z_0.9:x", "x" * 128])
async def test_a_clients_request_id_is_kept(server: Running, given: str) -> None:
    """An id that a client sent comes back, on every kind of answer."""
    for method, target, status in (
        ("PUT", f"{ROOT}/id", 200),
        ("GET", f"{ROOT}/id", 200),
        ("HEAD", f"{ROOT}/id", 204),
        ("GET", f"{ROOT}/absent", 404),
        ("GET", "/unknown", 404),
        ("POST", f"{ROOT}/id", 405),
        ("GET", "/ready", 200),
        ("POST", "/ready", 405),
    ):
        got = await server.request(method, target, [("x-request-id", given)], b"" if method == "PUT" else None)
        assert (got.status, got.headers["x-request-id"]) == (status, given)


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a/b", '"', "a\tb", "é", "<script>"])
async def test_other_request_ids_are_replaced(server: Running, given: str) -> None:
    """An id that could not be searched for or shown safely is not taken over; each request gets its own."""
    ids = {
        (await server.request("GET", "/health", [("x-request-id", given)])).headers["x-request-id"] for _ in range(3)
    }
    assert len(ids) == 3
    assert given not in ids


async def test_a_line_for_each_request(server: Running, lines: Lines) -> None:
    """The line says what was asked, by its path as it came, and what became of it; no query, header or payload."""
    payload = b"l" * (LIMITS.inline_bytes_max + 1)
    headers = [("x-request-id", "r1"), ("x-snme-secret", "hidden-header")]
    await server.request("PUT", f"{ROOT}/logged/%C3%A9%2F?a=hidden-query", headers, payload)
    line = await last(lines)
    duration, port = line.pop("duration_ms"), line.pop("client_port")
    assert 0 < port < 65536
    assert isinstance(duration, float)
    assert 0 < duration < 10_000
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "PUT",
        "path": f"{ROOT}/logged/%C3%A9%2F",
        "usecase": "testing",
        "scopes": "org=1",
        "operation": "put",
        "tier": "long_term",
        "status": 200,
        "bytes_in": len(payload),
        "bytes_out": 0,
        "request_id": "r1",
        "audit": "done",
        "key": "logged/é/",
        "client": "127.0.0.1",
    }
    await server.request("GET", f"{ROOT}/logged/%C3%A9%2F", [("range", "bytes=0-9")])
    line = await last(lines, 2)
    assert (line["status"], line["bytes_out"], line["bytes_in"]) == (206, 10, 0)
    assert "hidden" not in str(lines)


@pytest.mark.parametrize(
    ("key", "logged"),
    [
        ("a%3Fos_auth%3Dx.y.z", "a%3Fos_auth%3D(left out)"),
        ("a%3Fos_sig=abc&os_kid=k/b", "a%3Fos_sig=(left out)&os_kid=k/b"),
        ("a#OS_SIG=abc", "a%23OS_SIG=(left out)"),
        ("eyJhbGciOiJFZERTQSJ9.eyJleHAiOjF9.c2ln/x", "(left out)/x"),
        ("eyJhbGciOiJFZERTQSJ9%2EeyJleHAiOjF9%2Ec2ln", "(left out)"),
        ("eyJ.txt", "eyJ.txt"),
        ("os_signature/os_auth", "os_signature/os_auth"),
    ],
)
async def test_credentials_in_a_path_are_left_out(server: Running, lines: Lines, key: str, logged: str) -> None:
    """What a client puts into a path by mistake, a token or a signature, is not logged; what merely looks so is."""
    await server.request("DELETE", f"{ROOT}/{key}")
    line = await last(lines)
    assert line["path"] == f"{ROOT}/{logged}"
    assert line["key"] == unquote(logged)


async def test_failures_say_why(server: Running, lines: Lines) -> None:
    """A refused request's line has the error; a fault of ours has a line of its own, with the traceback and the id."""
    server.script.at("high_volume.read", FailBefore(Unavailable("the store is away")), FailBefore(RuntimeError("odd")))
    await server.request("GET", f"{ROOT}/failing")
    line = await last(lines)
    assert (line["status"], line["error"], line["detail"]) == (503, "Unavailable", "the store is away")
    await server.request("GET", f"{ROOT}/failing", [("x-request-id", "r2")])
    line = await last(lines, 2)
    assert (line["status"], line["error"]) == (500, "RuntimeError")
    [fault] = [line for line in lines if line["event"] == "request failed"]
    assert isinstance(fault["exc_info"], RuntimeError)
    assert fault["request_id"] == "r2"
    assert fault["log_level"] == "error"


async def test_internal_routes_are_logged_at_debug(server: Running, lines: Lines) -> None:
    """Probes and scrapes do not fill the log."""
    await server.request("GET", "/health")
    line = await last(lines)
    assert (line["log_level"], line["path"], line["status"]) == ("debug", "/health", 200)


async def test_nothing_is_logged_below_the_level(server: Running, lines: Lines) -> None:
    """At level warning, a request that changes nothing leaves no line."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    await server.request("GET", f"{ROOT}/quiet")
    await server.request("GET", "/health")
    assert lines == []


@pytest.mark.parametrize("framing", ["content-length: 10", "transfer-encoding: chunked"])
async def test_departures_are_logged_as_499(server: Running, lines: Lines, framing: str) -> None:
    """A client that goes away half-way is no error of its request's form, and no success."""
    async with server.connect() as connection:
        await connection.send(f"PUT {ROOT}/departed HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode() + b"5\r\nhello")
        await eventually("the body arrives", lambda: len(server.mutations) == 1)
        connection.abort()
    line = await last(lines)
    assert line["status"] == 499
    assert line["bytes_in"] in {5, 8}


async def test_a_departure_from_a_download_is_logged(server: Running, lines: Lines) -> None:
    """A download that its client left is 499, with the bytes that were sent until then."""
    payload = bytes(LIMITS.object_bytes_max)
    await server.request("PUT", f"{ROOT}/left", (), payload)
    async with server.connect() as connection:
        await connection.send(head("GET", f"{ROOT}/left"))
        await connection.response_head()
        connection.abort()
    line = await last(lines, 2)
    assert (line["method"], line["status"]) == ("GET", 499)
    assert 0 < line["bytes_out"] < len(payload)


async def test_overlong_paths_are_cut_in_the_log(server: Running, lines: Lines) -> None:
    """What is too long to be read is too long to be logged."""
    await server.request("GET", "/" + "x" * (LIMITS.target_bytes_max + 1000))
    line = await last(lines)
    assert (line["status"], len(line["path"])) == (414, LIMITS.target_bytes_max)


async def test_what_is_no_request_is_logged_and_counted(server: Running, lines: Lines) -> None:
    """What the parser refuses has a line and a request id too, without its query, and counts."""
    async with server.connect() as connection:
        await connection.send(
            f"GET {ROOT}/odd?secret HTTP/1.1\r\nx-request-id: r3\r\na: b\r\nbad name: 1\r\n\r\n".encode()
        )
        refused = await connection.response()
        assert (refused.status, refused.headers["x-request-id"]) == (400, "r3")
    line = await last(lines)
    assert (line["method"], line["path"], line["operation"]) == ("", f"{ROOT}/odd", "unknown")
    assert (line["status"], line["error"], line["request_id"]) == (400, "InvalidRequest", "r3")
    metrics = (await server.request("GET", "/metrics")).body.decode()
    assert 'tierstore_requests_total{operation="unknown",status="400",tier="none"}' in metrics


async def test_departures_with_requests_waiting_are_no_faults(server: Running, lines: Lines) -> None:
    """A client that goes away with requests on the way leaves 499s, and no traceback."""
    await server.request("PUT", f"{ROOT}/left", (), bytes(LIMITS.object_bytes_max))
    async with server.connect() as connection:
        await connection.send(head("GET", f"{ROOT}/left") + head("GET", f"{ROOT}/left") * 3)
        await connection.response_head()
        connection.abort()
    line = await last(lines, 2)
    assert (line["method"], line["status"]) == ("GET", 499)
    await eventually("the connection ends", lambda: not server.connections)
    assert {line["log_level"] for line in lines} == {"info"}


async def test_what_a_stop_cuts_off_is_no_fault(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    """A request that a stop ends is logged as what its client saw, without a traceback from the server."""
    async with running(grace_seconds=1) as server, server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/slow", [("content-length", "10")]) + b"12345")
        await eventually("the body arrives", lambda: len(server.mutations) == 1)
        server.stop()
        assert (await connection.response()).status == 503
    line = await last(lines)
    assert (line["status"], line["error"], line["log_level"]) == (503, "Unavailable", "info")
    assert not [record for record in caplog.records if record.exc_info]


async def test_the_revision_of_an_upload_is_logged(server: Running, lines: Lines) -> None:
    """Every request of an upload has its UUID, by which operators find it, from the first to one that is refused."""
    begun = await server.request("PUT", "/v1/objects:multipart/testing/org=1/found")
    upload_id = str(begun.json["upload_id"])
    uuid = str(UploadId.decode(upload_id, ObjectId("testing", (Scope("org", "1"),), "found"), LIMITS).revision.uuid)
    assert (await last(lines))["upload"] == uuid
    place = f"testing/org=1/found?upload_id={upload_id}"
    document = b'{"parts": [{"part_number": 1, "etag": "none"}]}'
    for number, (method, kind, query, body) in enumerate(
        [
            ("PUT", ":parts", "&part_number=1", b"part"),
            ("PUT", ":parts", "&part_number=0", b"part"),
            ("GET", ":parts", "", None),
            ("POST", ":complete", "", document),
            ("DELETE", "", "", None),
            ("DELETE", "", "", None),
        ],
        start=2,
    ):
        await server.request(method, f"/v1/objects:multipart{kind}/{place}{query}", (), body)
        assert (await last(lines, number))["upload"] == uuid
    await server.request("DELETE", "/v1/objects:multipart/testing/org=1/found?upload_id=x")
    assert "upload" not in await last(lines, 8)
    assert upload_id not in str(lines)
