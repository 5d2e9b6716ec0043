"""Laws of `tierstore.http.browsers`, and that nothing stored breaks out of its header, on raw bytes."""

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.http.harness import LIMITS, ROOT, Connection, Running, head, running
from tierstore.backends.high_volume.contract import Inline, InlineHead, Row, RowHead
from tierstore.errors import MethodNotAllowed
from tierstore.testing.faults import Answer, FailBefore
from tierstore.types.metadata import Metadata
from tierstore.types.metadata_storage import encode_metadata

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL, LARGE = b"s", b"l" * (LIMITS.inline_bytes_max + 1)
POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
MULTIPART = ROOT.replace("objects", "objects:multipart")

OPENED = [
    "text/plain", "TEXT/Plain", "text/plain; charset=utf-8", "text/plain ; a=b", "application/json", "image/png",
    "image/jpeg; q=1", "image/webp", "image/avif", "audio/mpeg", "video/mp4", 'video/webm; codecs="vp8, vorbis"',
]  # fmt: skip
OFFERED = [
    "text/html", "TEXT/HTML", "text/html; charset=utf-8", "text/html;charset=utf-7", "text/html;", "text/html ; a=b",
    "application/xhtml+xml", "application/xml", "text/xml", "image/svg+xml", "IMAGE/SVG+XML; charset=x", "image/svg",
    "application/atom+xml", "application/mathml+xml", "application/rdf+xml", "video/x+xml", "audio/xml", "text/xsl",
    "text/javascript", "application/javascript", "application/ecmascript", "text/css", "text/vbscript", "text/csv",
    "application/pdf", "application/wasm", "application/x-shockwave-flash", "application/octet-stream", "text/markdown",
    "multipart/x-mixed-replace; boundary=x", "message/rfc822", "application/unknown", "x/y", "text/plain2", "image/*",
    "application/json5", "application/manifest+json", "font/woff", "text/cache-manifest",
]  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[Running]:
    """A server that does not wait long for what clients still send when they have been refused."""
    async with running(replace(LIMITS, linger_seconds_max=0.02)) as up:
        yield up
        assert up.failures == []


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["inline", "long term"])
@pytest.mark.parametrize(
    ("content_type", "offered"), [(each, False) for each in OPENED] + [(each, True) for each in OFFERED]
)
async def test_browsers_run_nothing(server: Running, content_type: str, offered: bool, payload: bytes) -> None:
    """Whatever its type, an object is never sniffed or framed, and runs nothing; unless inert it is only offered.

    On GET, HEAD and ranges, in both tiers; and its content type comes back as it was given.
    """
    target = f"{ROOT}/typed"
    assert (await server.request("PUT", target, [("content-type", content_type)], payload)).status == 200
    answers = [
        await server.request("GET", target),
        await server.request("HEAD", target),
        await server.request("GET", target, [("range", "bytes=0-0")]),
    ]
    assert [answer.status for answer in answers] == [200, 204, 206]
    for answer in answers:
        assert answer.headers["content-type"] == content_type.strip()
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers.get("content-disposition") == ("attachment" if offered else None)


async def test_an_object_without_a_type_is_offered(server: Running) -> None:
    """Nobody said what it is."""
    await server.request("PUT", f"{ROOT}/untyped", (), SMALL)
    assert (await server.request("GET", f"{ROOT}/untyped")).headers["content-disposition"] == "attachment"


@pytest.mark.parametrize("content_type", ["text/plain", "text/html"])
async def test_a_file_name_offers_it_under_that_name(server: Running, content_type: str) -> None:
    """With a file name even what is inert is offered, as the wire protocol wants it."""
    given_ones = [("content-type", content_type), ("x-sn-filename", 'a"/..%0D%0A%C3%A4.html')]
    await server.request("PUT", f"{ROOT}/named", given_ones, SMALL)
    found = await server.request("HEAD", f"{ROOT}/named")
    assert found.headers["content-disposition"] == (
        'attachment; filename="a\\"-..--_.html"; filename*=UTF-8\'\'a%22-..--%C3%A4.html'
    )


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/keda"), ("POST", "/health"),
        ("GET", "/nowhere"), ("GET", f"{ROOT}/absent"), ("PUT", f"{ROOT}/k"), ("DELETE", f"{ROOT}/k"), ("POST", ROOT),
        ("PUT", "/v1/objects/ab/_/k"), ("PATCH", f"{ROOT}/k"), ("FROB", "/"), ("PUT", f"{MULTIPART}/k"),
    ],
)  # fmt: skip
async def test_every_response_is_not_sniffed(server: Running, method: str, target: str) -> None:
    """Errors, JSON and internal responses say so too."""
    assert (await server.request(method, target, (), b"x")).headers["x-content-type-options"] == "nosniff"


INJECTED = b"x-injected"
BREAKS = {
    "CR LF": b"\r\n", "LF": b"\n", "CR": b"\r", "NUL": b"\0", "folded": b"\r\n ", "two line ends": b"\r\n\r\n",
    "VT": b"\x0b",
    "next line": "\x85".encode(), "latin-1 next line": b"\x85", "line separator": "\u2028".encode(),
    "low byte of U+010A": "\u010d\u010a".encode(), "delete": b"\x7f",
}  # fmt: skip
FIELDS = ["content-type", "x-sn-origin", "x-sn-filename", "x-sn-expiration", "x-snme-a", "x-request-id", "range"]


def _heads(received: bytes) -> list[bytes]:
    """The heads of all responses, whose bodies hold no ``HTTP/1.1``."""
    return [part.split(b"\r\n\r\n")[0] for part in received.split(b"HTTP/1.1 ")[1:]]


def _check(received: bytes) -> None:
    """Fail if a response has a header that nobody meant, or a byte that another reader could take for a line's end."""
    heads = _heads(received)
    assert heads
    for each in heads:
        lines = each.split(b"\r\n")
        for line in lines[1:]:
            assert re.fullmatch(rb"[a-z0-9-]+: [\t -~]*", line), line
            assert not line.lower().startswith(INJECTED), line
    assert b"\n" + INJECTED not in received.lower()
    assert b"\r" + INJECTED not in received.lower()


async def _received(connection: Connection, *requests: bytes) -> bytes:
    last = head("GET", "/health", [("connection", "close")])
    await connection.send(b"".join(requests) + last)
    return await connection.rest()


def _raw(method: str, target: str, headers: Iterable[bytes] = (), body: bytes = b"") -> bytes:
    lines = [b"host: x", *headers, *([b"content-length: %d" % len(body)] if body else [])]
    return f"{method} {target} HTTP/1.1\r\n".encode() + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


@pytest.mark.parametrize("encoded", [False, True], ids=["raw", "percent-encoded"])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
async def test_no_header_breaks_out(server: Running, field: str, broken: bytes, encoded: bool) -> None:
    """What is stored from a header, or told back from it, is one line in every answer, or refused.

    Of an object, and of an upload that is completed.
    """
    text = "".join(f"%{byte:02x}" for byte in broken).encode() if encoded else broken
    value = b"text/plain;a=b" if field == "content-type" else b"a"
    header = field.encode() + b": " + value + text + INJECTED + b": yes"
    target = f"{ROOT}/split"
    for method, where in (("PUT", target), ("POST", f"{ROOT}/"), ("GET", target), ("PUT", f"{MULTIPART}/split")):
        async with server.connect() as connection:
            await connection.send(_raw(method, where, [header, b"connection: close"], b"z"))
            if received := await connection.rest():
                _check(received)
    async with server.connect() as connection:
        _check(await _received(connection, _raw("GET", target), _raw("HEAD", target)))


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
async def test_no_address_breaks_out(server: Running, broken: bytes) -> None:
    """Escaped line ends in keys, scopes and parameters are data, in a location and in a sentence, or refused."""
    text = "".join(f"%{byte:02X}" for byte in broken + INJECTED + b": yes")
    for method, target in (
        ("PUT", f"{ROOT}/a{text}"),
        ("GET", f"{ROOT}/a{text}"),
        ("HEAD", f"{ROOT}/a{text}"),
        ("POST", f"/v1/objects/testing/org=1{text}/"),
        ("POST", f"/v1/objects/testing{text}/_/"),
        ("GET", f"{ROOT}/k?os_auth=a{text}"),
        ("PUT", f"{ROOT}/k?upload_type={text}"),
        ("PUT", f"{MULTIPART}/a{text}"),
        ("DELETE", f"{MULTIPART}/k?upload_id={text}"),
        ("PUT", f"{ROOT.replace('objects', 'objects:multipart:parts')}/k?upload_id={text}&part_number={text}"),
        ("OPTIONS", f"{ROOT}/{text}"),
        ("GET", f"/{text}"),
    ):
        async with server.connect() as connection:
            _check(await _received(connection, _raw(method, target)))


@pytest.mark.parametrize("broken", ["\r\n", "\n", "\r", "\0", "\r\n ", "\x7f", "\x85", "\u010d\u010a", "\u2028"])
@pytest.mark.parametrize("where", ["content_type", "origin", "filename", "custom value", "custom name"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_a_store_has_does_not_break_out(server: Running, where: str, broken: str, method: str) -> None:
    """Metadata that no request could have stored, but another program has, is one line, or a fault without it."""
    text = f"text/plain{broken}x-injected: yes"
    metadata = {
        "content_type": Metadata(content_type=text),
        "origin": Metadata(origin=text),
        "filename": Metadata(filename=text),
        "custom value": Metadata(custom=(("a", text),)),
        "custom name": Metadata(custom=((text, "a"),)),
    }[where]
    stored = encode_metadata(metadata, size=1, time_created=1)
    if method == "GET":
        server.script.at("high_volume.read", Answer(Row(b"v", Inline(stored, b"x"), None)))
    else:
        server.script.at("high_volume.head", Answer(RowHead(b"v", InlineHead(stored), None)))
    async with server.connect() as connection:
        received = await _received(connection, _raw(method, f"{ROOT}/planted"))
    _check(received)
    status = 500 if where in {"content_type", "custom name"} else 200 if method == "GET" else 204
    assert re.findall(rb"HTTP/1\.1 (\d{3})", received) == [b"%d" % status, b"200"]


@pytest.mark.parametrize("broken", ["\r\nx-injected: yes", "\n", "\0"])
async def test_the_last_look_at_a_header(server: Running, broken: str) -> None:
    """Whoever makes a header with a line end in it, what is sent is a fault of ours, and no part of that header."""
    server.script.at("high_volume.read", FailBefore(MethodNotAllowed((f"GET{broken}",))))
    async with server.connect() as connection:
        await connection.send(_raw("GET", f"{ROOT}/planted", [b"connection: close"]))
        received = await connection.rest()
    _check(received)
    assert received.startswith(b"HTTP/1.1 500 ")
    assert b"\r\nallow" not in received
