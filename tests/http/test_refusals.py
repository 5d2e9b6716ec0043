"""What is refused, how it is said, and what becomes of the connection."""

import asyncio
from io import BytesIO

import aiohttp
import pytest

from tests.http.harness import LIMITS, ROOT, Running, eventually, head, running
from tierstore.errors import Busy, OutcomeUnknown, StorageFull, Unavailable
from tierstore.testing.faults import FailBefore, Pause

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_upload_session_is_no_delete(server: Running) -> None:
    """Cancelling an upload that cannot exist does not delete the object under its key."""
    await server.request("PUT", f"{ROOT}/kept", (), b"payload")
    assert (await server.request("DELETE", f"{ROOT}/kept?session=x")).status == 404
    assert (await server.request("PUT", f"{ROOT}/kept?session=x", (), b"part")).status == 404
    assert (await server.request("GET", f"{ROOT}/kept?session=x")).body == b"payload"


@pytest.mark.parametrize("parameter", ["upload_id=x", "part_number=1", "a=b&uploadId=x", "partNumber=1", "upload%5Fid"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_a_part_at_the_address_of_the_object(server: Running, method: str, parameter: str) -> None:
    """What is meant for an upload neither replaces nor deletes the object: 400 before the body, with where to go."""
    await server.request("PUT", f"{ROOT}/in-parts", (), b"payload")
    target = f"{ROOT}/?{parameter}" if method == "POST" else f"{ROOT}/in-parts?{parameter}"
    before = len(server.script.trace)
    async with server.connect() as connection:
        await connection.send(head(method, target, [("expect", "100-continue")], b"part"))
        refused = await connection.response()
        assert (refused.status, refused.informational) == (400, [])
        assert "parts and uploads have addresses of their own: /v1/objects:multipart" in refused.detail
    assert len(server.script.trace) == before
    assert (await server.request("GET", f"{ROOT}/in-parts?{parameter}")).body == b"payload"


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", ROOT, "POST"),
        ("PUT", f"{ROOT}/", "POST"),
        ("DELETE", f"{ROOT}/", "POST"),
        ("PATCH", f"{ROOT}/", "POST"),
        ("OPTIONS", ROOT, "POST"),
        ("POST", f"{ROOT}/k", "GET, HEAD, PUT, DELETE, PATCH"),
        ("OPTIONS", f"{ROOT}/k", "GET, HEAD, PUT, DELETE, PATCH"),
        ("TRACE", f"{ROOT}/k", "GET, HEAD, PUT, DELETE, PATCH"),
        ("PROPFIND", f"{ROOT}/k", "GET, HEAD, PUT, DELETE, PATCH"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
    ],
)
async def test_other_methods(server: Running, method: str, target: str, allowed: str) -> None:
    """405 names the methods that the address has."""
    refused = await server.request(method, target)
    assert refused.status == 405
    assert sorted(refused.headers["allow"].split(", ")) == sorted(allowed.split(", "))
    assert refused.detail


@pytest.mark.parametrize(
    "target",
    ["/", "/v1", "/v1/", "/v1/objects", "/v1/objects/", "/v1/objects/abc", "/v1/objectsx/abc/_/k",
     "/v2/objects/abc/_/k", "/v1/objects:batch", "/v1/objects:other/abc/_/", "/v1/objects:/abc/_/",
     "//v1/objects/abc/_/k", "/keda/", "/health/", "/v1/%6Fbjects/abc/_/k", "/../v1/objects/abc/_/k", "*"],
)  # fmt: skip
async def test_unknown_addresses(server: Running, target: str) -> None:
    """404 in JSON; nothing is redirected or normalised."""
    refused = await server.request("GET", target)
    assert refused.status == 404
    assert refused.detail


@pytest.mark.parametrize(
    "target",
    ["/v1/objects/ab/_/k", "/v1/objects/a.c/_/k", "/v1/objects/abc/org/k", "/v1/objects/abc/org=/k",
     "/v1/objects/abc/org=1,a=2/k", f"{ROOT}/%zz", f"{ROOT}/%FF", f"{ROOT}/%", f"{ROOT}/{'k' * 4097}",
     f"{ROOT}/k?upload_type=other", f"{ROOT}/k?%zz=1"],
)  # fmt: skip
async def test_malformed_addresses(server: Running, target: str) -> None:
    """400 in JSON says what is wrong; nothing is stored or read."""
    before = len(server.script.trace)
    refused = await server.request("PUT", target, (), b"payload")
    assert refused.status == 400
    assert refused.detail
    assert len(server.script.trace) == before


@pytest.mark.parametrize(
    "headers",
    [
        [("content-type", "nonsense")],
        [("content-encoding", "gzip")],
        [("x-sn-expiration", "sometimes")],
        [("x-sn-filename", "%zz")],
        [("x-sn-filename", "a"), ("x-sn-filename", "b")],
    ],
)
async def test_malformed_metadata(server: Running, headers: list[tuple[str, str]]) -> None:
    """400 before the body is read; nothing is stored."""
    refused = await server.request("PUT", f"{ROOT}/bad-metadata", headers, b"payload")
    assert refused.status == 400
    assert (await server.request("GET", f"{ROOT}/bad-metadata")).status == 404


async def test_long_targets(server: Running) -> None:
    """A request target beyond the bound is 414, in path or query; up to it, it is read."""
    longest = f"{ROOT}/k?"
    longest += "q" * (LIMITS.target_bytes_max - len(longest) + 1)
    assert (await server.request("GET", longest)).status == 404
    for target in (longest + "q", f"{ROOT}/" + "k" * LIMITS.target_bytes_max):
        assert (await server.request("GET", target)).status == 414


async def test_large_headers(server: Running) -> None:
    """Headers beyond the bound are 431, one large or many small ones; so is metadata beyond its own."""
    for headers in (
        [("x-large", "x" * LIMITS.header_bytes_max)],
        [(f"x-{number}", "") for number in range(LIMITS.header_bytes_max // 8)],
        [("x-snme-large", "x" * (LIMITS.metadata_bytes_max + 1))],
        [(f"x-snme-{number}", "") for number in range(LIMITS.custom_metadata_max + 1)],
    ):
        refused = await server.request("PUT", f"{ROOT}/large-headers", headers, b"payload")
        assert refused.status == 431
        assert refused.detail
    others = [("host", "localhost"), ("content-length", "7"), ("x-large", "")]
    room = LIMITS.header_bytes_max - sum(len(name) + len(value) + len(": \r\n") for name, value in others)
    for size, status in ((room, 200), (room + 1, 431)):
        response = await server.request("PUT", f"{ROOT}/large-headers", [("x-large", "x" * size)], b"payload")
        assert response.status == status


async def test_many_headers(server: Running) -> None:
    """As many headers as may be are read; one more is 431, whatever they are, and the connection goes on."""
    async with server.connect() as connection:
        for count, status in ((LIMITS.headers_max, 200), (LIMITS.headers_max + 1, 431)):
            headers = [("x-same", "")] * (count - len(("host", "content-length")))
            response = await connection.request("PUT", f"{ROOT}/many-headers", headers, b"payload")
            assert response.status == status
            assert ("at most 256 headers" in str(response.json.get("detail"))) == (status == 431)
        assert (await connection.request("GET", f"{ROOT}/many-headers")).status == 200


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Unavailable("the store is away"), 503, "1"),
        (OutcomeUnknown("the reply was lost"), 503, "1"),
        (Busy("the queue is full"), 429, "1"),
        (StorageFull("the disk is full"), 507, "30"),
    ],
)
async def test_passing_conditions(server: Running, error: Unavailable, status: int, retry_after: str) -> None:
    """A condition that passes says when to try again, and trying again works."""
    for call, method in (("high_volume.read", "GET"), ("high_volume.head", "HEAD")):
        server.script.at(call, FailBefore(error))
        refused = await server.request(method, f"{ROOT}/passing")
        assert (refused.status, refused.headers["retry-after"]) == (status, retry_after)
        if method == "GET":
            assert refused.json == {"detail": str(error)}
        assert (await server.request(method, f"{ROOT}/passing")).status == 404


async def test_faults_of_ours(server: Running) -> None:
    """What nobody expected is a 500 that names the request and no internals, and the server goes on."""
    server.script.at("high_volume.read", FailBefore(RuntimeError("secret")))
    async with server.connect() as connection:
        refused = await connection.request("GET", f"{ROOT}/fault", [("x-request-id", "the-id")])
        assert refused.status == 500
        assert "secret" not in refused.detail
        assert "the-id" in refused.detail
        assert (await connection.request("GET", f"{ROOT}/fault")).status == 404


async def test_the_bound_on_requests() -> None:
    """Beyond ``max_requests`` under way, a request is refused at once, internal routes are not, and it passes."""
    async with running(max_requests=2) as server:
        pauses = [Pause(), Pause()]
        server.script.at("high_volume.read", *pauses)
        slow = [asyncio.create_task(server.request("GET", f"{ROOT}/k")) for _ in pauses]
        for pause in pauses:
            await pause.reached.wait()
        refused = await server.request("PUT", f"{ROOT}/k", (), b"payload")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert (await server.request("GET", "/health")).status == 200
        assert "tierstore_requests_in_flight 2.0" in (await server.request("GET", "/metrics")).body.decode()
        for pause in pauses:
            pause.release.set()
        assert [response.status for response in await asyncio.gather(*slow)] == [404, 404]
        assert (await server.request("PUT", f"{ROOT}/k", (), b"payload")).status == 200


async def test_a_connection_goes_on_after_errors(server: Running) -> None:
    """Requests that were refused with a short body leave the connection in order for the next."""
    async with server.connect() as connection:
        for _ in range(3):
            for method, target, status in (
                ("PUT", "/v1/objects/ab/_/k", 400),
                ("GET", f"{ROOT}/absent", 404),
                ("POST", f"{ROOT}/k", 405),
                ("PUT", f"{ROOT}/k?upload_type=resumable", 400),
                ("PUT", f"{ROOT}/kept-alive", 200),
                ("DELETE", f"{ROOT}/absent", 204),
            ):
                response = await connection.request(method, target, (), b"GET / HTTP/1.1\r\n\r\n")
                assert response.status == status
                assert "connection" not in response.headers


async def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    """Requests sent without waiting are answered one after the other, refused ones too."""
    async with server.connect() as connection:
        await connection.send(
            head("PUT", f"{ROOT}/piped", (), b"12345")
            + b"12345"
            + head("PUT", "/v1/objects/ab/_/k", (), b"12345")
            + b"12345"
            + head("GET", f"{ROOT}/piped")
            + head("GET", f"{ROOT}/absent")
        )
        answers = [await connection.response() for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 400, 200, 404]
        assert answers[2].body == b"12345"


@pytest.mark.parametrize("length", ["content-length: 10000000000000\r\n", "transfer-encoding: chunked\r\n"])
@pytest.mark.parametrize("target", ["/v1/objects/ab/_/k", "/unknown", f"{ROOT}/k?upload_type=resumable", f"{ROOT}/k/"])
async def test_a_long_body_is_not_taken_in(server: Running, length: str, target: str) -> None:
    """A request that is refused with a long body to come is answered at once, and its connection closed."""
    async with server.connect() as connection:
        method = "POST" if target.endswith("/") else "PUT"
        await connection.send(f"{method} {target} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n".encode())
        refused = await connection.response()
        assert refused.status in {400, 404, 405, 501}
        assert refused.headers["connection"] == "close"
        assert refused.detail
        assert await connection.closed_by_server()


async def test_a_client_that_sends_on_sees_the_answer(server: Running) -> None:
    """The answer to a refused request reaches a client that sends its whole body before it reads."""
    payload = b"x" * (LIMITS.object_bytes_max + 1)
    for _ in range(3):
        refused = await server.request("PUT", f"{ROOT}/too-large", (), payload)
        assert (refused.status, refused.headers["connection"]) == (413, "close")
        assert "at most" in refused.detail
    url = f"{server.url}{ROOT}/too-large"
    async with aiohttp.ClientSession() as session, session.put(url, data=BytesIO(payload)) as answer:
        assert answer.status == 413
        assert "at most" in (await answer.json())["detail"]


async def test_a_client_that_never_stops_sending_is_cut_off(server: Running) -> None:
    """What is taken in from a refused client is bounded."""
    async with server.connect() as connection:
        await connection.send(head("PUT", "/v1/objects/ab/_/k", [("content-length", str(10**13))]))
        sent = 0
        while sent < 8 * LIMITS.linger_bytes_max:
            try:
                await connection.send(b"x" * 1_000_000)
            except ConnectionError:
                break
            sent += 1_000_000
        assert sent < 4 * LIMITS.linger_bytes_max


async def test_expect_continue(server: Running) -> None:
    """A client that asks first is told to go on, or refused and its connection closed without its body."""
    async with server.connect() as connection:
        await connection.send(head("PUT", f"{ROOT}/expected", [("expect", "100-continue")], b"payload"))
        status, _ = await connection.response_head()
        assert status == 100
        await connection.send(b"payload")
        assert (await connection.response()).status == 200
        assert (await connection.request("GET", f"{ROOT}/expected")).body == b"payload"
    async with server.connect() as connection:
        await connection.send(head("PUT", "/v1/objects/ab/_/k", [("expect", "100-continue")], b"payload"))
        refused = await connection.response()
        assert (refused.status, refused.informational) == (400, [])
        assert await connection.closed_by_server()


async def test_an_upgrade_without_a_body_is_passed_over(server: Running) -> None:
    """A client may offer another protocol and is answered in this one."""
    await server.request("PUT", f"{ROOT}/upgraded", (), b"payload")
    offer = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")]
    assert (await server.request("GET", f"{ROOT}/upgraded", offer)).body == b"payload"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("GET /health HTTP/1.1\r\n\r\n", 400),
        (f"GET {ROOT}/k HTTP/1.0\r\n\r\n", 404),
        (f"GET {ROOT}/k HTTP/1.1\r\nhost: x\r\nrange: bytes=0-1\r\nrange: bytes=2-3\r\n\r\n", 400),
        (f"GET {ROOT}/caf\u00e9 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (f"FROB {ROOT}/k HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (f"PUT {ROOT}/k HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi", 200),
    ],
)
async def test_what_is_ambiguous(server: Running, raw: str, status: int) -> None:
    """What two readers could understand in two ways is refused, in JSON and with a request id, like everything."""
    async with server.connect() as connection:
        await server.request("DELETE", f"{ROOT}/k")
        await connection.send(raw.encode())
        answer = await connection.response()
        assert answer.status == status
        assert answer.headers["x-request-id"]
        assert status == 200 or answer.detail


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
@pytest.mark.parametrize("condition", ["if-match", "if-none-match", "if-unmodified-since"])
async def test_conditional_mutations_are_not_offered(server: Running, method: str, condition: str) -> None:
    """A mutation whose condition cannot be checked is refused before its body; a conditional read is a read."""
    await server.request("PUT", f"{ROOT}/conditional", (), b"before")
    target = f"{ROOT}/" if method == "POST" else f"{ROOT}/conditional"
    async with server.connect() as connection:
        await connection.send(head(method, target, [(condition, "*"), ("expect", "100-continue")], b"after"))
        refused = await connection.response()
        assert (refused.status, refused.informational) == (501, [])
        assert "conditional" in refused.detail
    got = await server.request("GET", f"{ROOT}/conditional", [(condition, "*")])
    assert (got.status, got.body) == (200, b"before")


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_fragment_does_not_replace_the_object(server: Running, method: str) -> None:
    """A body with content-range is 400 before it is read (RFC 9110, section 14.5)."""
    await server.request("PUT", f"{ROOT}/whole", (), b"whole")
    target = f"{ROOT}/" if method == "POST" else f"{ROOT}/whole"
    headers = [("content-range", "bytes 0-1/5"), ("expect", "100-continue")]
    async with server.connect() as connection:
        await connection.send(head(method, target, headers, b"fr"))
        refused = await connection.response()
        assert (refused.status, refused.informational) == (400, [])
    assert (await server.request("GET", f"{ROOT}/whole")).body == b"whole"


async def test_far_positions_of_ranges(server: Running) -> None:
    """A position may have any number of digits."""
    await server.request("PUT", f"{ROOT}/ranged", (), b"0123456789")
    for last in ("9" * 20, "9" * 10_000):
        got = await server.request("GET", f"{ROOT}/ranged", [("range", f"bytes=5-{last}")])
        assert (got.status, got.body) == (206, b"56789")
        assert (await server.request("GET", f"{ROOT}/ranged", [("range", f"bytes={last}-")])).status == 416


async def test_requests_cut_off_by_a_stop() -> None:
    """What has not ended when the server has waited long enough is 503, in JSON, or a response cut short."""
    body = b"x" * LIMITS.object_bytes_max
    async with running(grace_seconds=1) as server, server.connect() as slow, server.connect() as half:
        await server.request("PUT", f"{ROOT}/stopped", (), body)
        await half.send(head("GET", f"{ROOT}/stopped"))
        await half.response_head()
        await slow.send(head("PUT", f"{ROOT}/slow", [("content-length", "10")]) + b"12345")
        await eventually("the body arrives", lambda: len(server.mutations) == 1)
        server.stop()
        refused = await slow.response()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "stopping" in refused.detail
        assert refused.headers["x-request-id"]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await half.reader.readexactly(len(body))
