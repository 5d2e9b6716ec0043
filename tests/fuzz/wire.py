"""Fuzzers of the connection, on a real socket: bytes of any kind, in pieces of any size.

Each request that is found in them gets one answer, none of which tells of a fault of ours; the connection ends, and
nothing stays under way. Beside it, `tests.fuzz.pipelines` and `tests.fuzz.credentials`.
"""

import asyncio
import re

from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tests.fuzz.credentials import WITH_CREDENTIALS, NeverWrittenDown
from tests.fuzz.fuzzers import Fuzzer
from tests.fuzz.mutations import damaged
from tests.fuzz.pipelines import SameAnswers, pipelines
from tests.fuzz.raw_client import QUIET_TURNS, Cut, RawClient, cut
from tests.fuzz.serving import FuzzedServer
from tierstore.limits import Limits

LIMITS = Limits.tiny()
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_DISCONNECTED = 499
_ENDED_POLLS_MAX = 5_000


_METHODS = st.sampled_from([
    b"GET", b"PUT", b"HEAD", b"DELETE", b"POST", b"PATCH", b"OPTIONS", b"CONNECT", b"TRACE", b"get", b"PRI",
    b"M-SEARCH", b"", b"G\x00T",
    b"QUERY", b"SOURCE", b"\xff", b"HTTP/1.1",
])  # fmt: skip
_TARGETS = st.sampled_from([
    b"/", b"*", b"", b"x", b"//", b"/health", b"/ready", b"/metrics", b"/v1/objects/testing/_/k",
    b"/v1/objects/testing/_/",
    b"/v1/objects/testing/org=1/a%2Fb?x=y#z", b"http://h/v1/objects/testing/_/k", b"http://", b"h:80",
    b"/v1/objects:batch/testing/_/",
    b"/v1/objects:multipart/testing/_/k", b"/v1/objects:multipart:parts/testing/_/k?upload_id=AA&part_number=1",
    b"/v1/objects:multipart:complete/testing/_/k?upload_id=AA", b"/v1/objects/testing/_/\xc3\xa9", b"/\xff",
    b"/v1/objects/testing/_/%zz",
    b"/v1/objects/testing/_/k?upload_type=resumable", b"/" + b"a" * 33_000, b"/a b", b"?", b"#",
    b"/v1/objects/testing/_/k?\x00",
])  # fmt: skip
_VERSIONS = st.sampled_from(
    [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"", b"http/1.1"]
)
_LINES = st.sampled_from([
    b"host: h", b"host: h", b"Host:", b"host: a\r\nhost: b", b"content-length: 5", b"content-length: 0",
    b"content-length: -1",
    b"content-length: +5", b"content-length: 5, 5", b"content-length: 5\r\ncontent-length: 6",
    b"content-length: 99999999999999999999",
    b"content-length: 5 ", b"content-length: 0x5", b"transfer-encoding: chunked", b"transfer-encoding: gzip",
    b"transfer-encoding: chunked, chunked",
    b"transfer-encoding: identity", b"transfer-encoding:\tchunked", b"transfer-encoding : chunked",
    b"Transfer-Encoding: CHUNKED",
    b"transfer-encoding: gzip, chunked", b"transfer-encoding: chunked\r\ntransfer-encoding: x", b"expect: 100-continue",
    b"expect: x",
    b"connection: close", b"connection: keep-alive", b"connection: upgrade\r\nupgrade: h2c",
    b"connection: upgrade\r\nupgrade: websocket",
    b"range: bytes=0-1", b"range: bytes=9-1", b"range: x", b"if-none-match: *", b"content-type: text/plain",
    b"content-type: x",
    b"x-sn-expiration: ttl:1s", b"x-sn-filename: %", b"x-snme-a: b", b"x-snme-\xff: b", b"content-md5: AAAA",
    b"x-request-id: r", b": x",
    b" folded: x", b"a: b\r\n c", b"a\x00: b", b"a: \x00", b"a: \xff", b"no colon", b"a: " + b"b" * 3_000,
    b"x-big: " + b"b" * 66_000,
    b"x-os-auth: Bearer t", b"authorization: Basic x", b"content-encoding: zstd", b"content-range: bytes 0-1/2",
    b"a: b\nc: d", b"a: b\rc: d",
    b"trailer: x", b"te: trailers", b"upgrade: x", b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA",
])  # fmt: skip
_BODIES = st.sampled_from([
    b"", b"", b"hello", b"hello world", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\nt: x\r\n\r\n",
    b"5\r\nhello", b"5\r\nhelloX0\r\n\r\n",
    b"fffffffffffffffff\r\n", b"-1\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\nhello\n0\n\n",
    b'{"parts": []}',
    b"ffffffff\r\nx", b"0\r\nt: " + b"x" * 3_000 + b"\r\n\r\n", b"1;" + b"x" * 5_000 + b"\r\nx\r\n0\r\n\r\n",
    b"x" * 70_000,
])  # fmt: skip


def _message(method: bytes, target: bytes, version: bytes, lines: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join([b" ".join([method, target, version]), *lines, b"", b""]) + body


_MESSAGES = st.builds(_message, _METHODS, _TARGETS, _VERSIONS, st.lists(_LINES, max_size=5), _BODIES)
_STREAMS = st.lists(_MESSAGES, min_size=1, max_size=4).map(b"".join)
_ANY_BYTES = st.one_of(_STREAMS, _STREAMS, damaged(_STREAMS, 4), st.binary(max_size=200))


class AnyBytes:
    """The law of bytes of any kind."""

    def __init__(self, server: FuzzedServer) -> None:
        self._server = server

    def __call__(self, given: Cut) -> None:
        server = self._server
        stores = server.deploy()
        try:
            server.run(self._exchange(given))
            self._check_answers()
            server.check_nothing_failed()
        finally:
            server.logs.clear()
            server.run(stores.aclose())

    async def _exchange(self, given: Cut) -> None:
        client = RawClient(self._server)
        try:
            await client.send(given.pieces)
            await client.take(QUIET_TURNS)
            await client.end()
            self._received = client.received
        finally:
            client.close()
        for _ in range(_ENDED_POLLS_MAX):
            if not self._server.connections and not self._server.tasks:
                break
            await asyncio.sleep(0.001)
        assert not self._server.connections, "the connection does not end"
        assert not self._server.tasks, "a request does not end"
        await self._server.deployment.settle()
        assert REGISTRY.get_sample_value("tierstore_requests_in_flight") == 0

    def _check_answers(self) -> None:
        logged = [event["status"] for event in self._server.logs.events if event["event"] == "request"]
        assert all(200 <= status < 500 or status == 501 for status in logged), logged
        sent = [int(status) for status in _STATUS.findall(self._received) if not status.startswith(b"1")]
        told = [status for status in logged if status != _DISCONNECTED]
        assert sent == told[: len(sent)], f"{sent} were sent, {logged} were logged"
        assert self._received == b"" or self._received.startswith(b"HTTP/1.1 ")


def open_fuzzers(server: FuzzedServer) -> tuple[Fuzzer, ...]:
    """The fuzzers of a server that lets everybody in."""
    return (
        Fuzzer("any bytes", cut(_ANY_BYTES, every_byte=False), AnyBytes(server)),
        Fuzzer("any bytes, one by one", cut(_ANY_BYTES.filter(lambda raw: len(raw) < 1_000)), AnyBytes(server), 0.5),
        Fuzzer("pipelines", pipelines(), SameAnswers(server), 0.5),
    )


def guarded_fuzzers(server: FuzzedServer) -> tuple[Fuzzer, ...]:
    """Those of one that enforces authentication."""
    return (Fuzzer("credentials", WITH_CREDENTIALS, NeverWrittenDown(server)),)
