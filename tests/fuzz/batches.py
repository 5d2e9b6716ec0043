"""Batches for the fuzzers: as the state machine asks them, and as bytes that were damaged on their way.

Whatever becomes of the bytes of a batch, and wherever they are cut: its answer is a refusal, or made of parts, one at
most for each operation, with a status of the protocol and no fault of ours; it is cut off if and only if it is not
whole.
"""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.fuzz.fuzzers import Fuzzer
from tests.fuzz.mutations import damaged
from tests.fuzz.raw_client import cut
from tests.fuzz.serving import FuzzedServer
from tests.fuzz.wire import AnyBytes

KINDS = ("get", "head", "insert", "delete")
_BOUNDARY = "fuzz"
CONTENT_TYPE = ("content-type", f"multipart/form-data; boundary={_BOUNDARY}")
_STATUSES = frozenset({200, 201, 204, 400, 404, 413, 429, 431, 501})
_HEAD = re.compile(
    rb"\AHTTP/1\.1 200 OK\r\n(?:[^\r\n]+\r\n)*?content-type: multipart/form-data; boundary=\"([^\"]+)\"\r\n"
)


def encoded(operations: Sequence[tuple[str, str, Sequence[tuple[str, str]], bytes]]) -> bytes:
    """The body for these operations: kind, key, further headers and payload."""
    raw = b""
    for kind, key, headers, payload in operations:
        lines = [("x-sn-batch-operation-kind", kind), ("x-sn-batch-operation-key", quote(key, "/")), *headers]
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        raw += f"--{_BOUNDARY}\r\n{text}\r\n".encode("latin-1") + payload + b"\r\n"
    return raw + f"--{_BOUNDARY}--\r\n".encode()


_HEADERS: SearchStrategy[tuple[str, str]] = st.sampled_from([
    ("content-disposition", 'form-data; name="part"'), ("x-snme-a", "b"), ("x-snme-a", "%"), ("content-type", "x"),
    ("x-sn-expiration", "ttl:1s"), ("x-sn-filename", "a%0D%0Ab"), ("content-length", "1"), ("if-match", "*"),
    ("content-transfer-encoding", "base64"), ("x-sn-batch-operation-kind", "get"), ("x-other", "y" * 300),
    ("content-range", "bytes 0-0/1"), ("x-sn-batch-operation-key", "k"), ("x-long", "z" * 3_000),
])  # fmt: skip
_OPERATIONS = st.tuples(
    st.sampled_from([*KINDS, *KINDS, *KINDS, "", "put"]),
    st.sampled_from(["k", "l", "é%", "\r\nx: y", "..", ""]),
    st.lists(_HEADERS, max_size=2),
    st.sampled_from(
        [b"", b"", b"x", b"--fuzz", b"\r\n--fuz", b"y" * 65, b"z" * 257, b"\r\n--fuzz--\r\n", bytes(range(256))]
    ),
)


@st.composite
def _requests(draw: DrawFn) -> bytes:
    """Bytes of one request: its body damaged or not, framed in one way or the other, its length right or not."""
    bodies = st.lists(_OPERATIONS, max_size=11).map(encoded)
    body = draw(st.one_of(bodies, bodies, damaged(bodies, 4)))
    head = (
        b"POST /v1/objects:batch/testing/_/ HTTP/1.1\r\nhost: h\r\ncontent-type: multipart/form-data; boundary=fuzz\r\n"
    )
    if draw(st.booleans()):
        pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        end = draw(st.sampled_from([b"0\r\n\r\n", b"0\r\n\r\n", b"", b"x\r\n"]))
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + end
    off = draw(st.sampled_from([0, 0, 0, 0, 5, -5]))
    return head + b"content-length: %d\r\n\r\n" % max(0, len(body) + off) + body


class AnyBatch(AnyBytes):
    """The law of the bytes of a batch."""

    def _check_answers(self) -> None:
        logged = [event["status"] for event in self._server.logs.events if event["event"] == "request"]
        assert all(200 <= status < 500 or status == 501 for status in logged), logged
        assert self._received == b"" or self._received.startswith(b"HTTP/1.1 ")
        begun = _HEAD.match(self._received)
        if begun is None:
            return
        _, _, chunked = self._received.partition(b"\r\n\r\n")
        content, ended = _unchunked(chunked)
        pieces = (b"\r\n" + content).split(b"\r\n--" + begun[1])
        whole = pieces[-1] == b"--\r\n"
        assert whole == ended, "a response that is cut off looks whole, or the other way round"
        indices = []
        for piece in pieces[1:-1]:
            lines = dict(line.split(b": ", 1) for line in piece.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:])
            indices.append(int(lines[b"x-sn-batch-operation-index"]))
            assert int(lines[b"x-sn-batch-operation-status"][:3]) in _STATUSES
        assert len(set(indices)) == len(indices)
        assert not whole or sorted(indices) == list(range(len(indices))), "an operation was not answered"


def _unchunked(raw: bytes) -> tuple[bytes, bool]:
    """What is in the chunks that came, and whether the last one did."""
    content = b""
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        if not size or len(rest) < int(size, 16) + 2:
            return content + rest, False
        if int(size, 16) == 0:
            return content, True
        content, raw = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return content, False


def batch_fuzzers(server: FuzzedServer) -> tuple[Fuzzer, ...]:
    """The fuzzers of batches."""
    short: SearchStrategy[Any] = _requests().filter(lambda raw: len(raw) < 1_000)
    return (
        Fuzzer("batches", cut(_requests(), every_byte=False), AnyBatch(server)),
        Fuzzer("batches, byte by byte", cut(short), AnyBatch(server), 0.3),
    )
