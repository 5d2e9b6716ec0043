"""Fuzzer of requests that follow each other on one connection: the answers are the same however the bytes are cut."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import h11
from hypothesis import strategies as st

from tests.fuzz.raw_client import Cut, RawClient, cut
from tests.fuzz.serving import FuzzedServer
from tests.http.harness import CLIENT_SECONDS_MAX, head

_ROOT = "/v1/objects/testing/_"
_VOLATILE = ("date", "x-request-id")


@dataclass(frozen=True)
class Asked:
    """A request of a pipeline."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    chunks: int = 0
    """Bytes of a chunk; 0 sends the body with its length."""

    @property
    def raw(self) -> bytes:
        """Its bytes."""
        if self.body is None or not self.chunks:
            return head(self.method, self.target, self.headers, self.body) + (self.body or b"")
        pieces = [self.body[at : at + self.chunks] for at in range(0, len(self.body), self.chunks)]
        chunked = b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        start = head(self.method, self.target, [*self.headers, ("transfer-encoding", "chunked")])
        return start + chunked + b"0\r\nx-trailer: t\r\n\r\n"


_SMUGGLED = f"DELETE {_ROOT}/a HTTP/1.1\r\nhost: x\r\n\r\n".encode()
_PAYLOADS = st.sampled_from(
    [b"", b"x", b"small", b"l" * 65, b"m" * 500, _SMUGGLED, _SMUGGLED * 3, b"\r\n\r\n0\r\n\r\n", b"\x00" * 64]
)
_PLACES = st.sampled_from([f"{_ROOT}/a", f"{_ROOT}/a", f"{_ROOT}/b%2Fc#d", "/v1/objects/testing/org=1/a"])
_SOME_RANGE = st.sampled_from([(), (("range", "bytes=1-2"),), (("range", "bytes=900-"),)])
_BATCH = "/v1/objects:batch/testing/_/"
_ASKED = st.one_of(
    st.builds(
        Asked,
        st.just("PUT"),
        _PLACES,
        st.sampled_from([
            (), (("content-type", "text/x"),), (("expect", "100-continue"),), (("content-type", "x"),),
            (("x-sn-expiration", "tti:1h"), ("x-sn-filename", "%C3%A9")),
        ]),
        _PAYLOADS,
        st.sampled_from([0, 0, 1, 16, 1000]),
    ),
    st.builds(Asked, st.just("GET"), _PLACES, _SOME_RANGE),
    st.builds(Asked, st.sampled_from(["HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE"]), _PLACES),
    st.builds(Asked, st.just("GET"), st.sampled_from(["/health", "/nowhere", f"{_ROOT}/%zz", "/v1/objects/x/_/a"])),
    st.builds(Asked, st.just("POST"), st.just(_BATCH), st.just(()), _PAYLOADS, st.sampled_from([0, 16])),
)  # fmt: skip


@dataclass(frozen=True)
class Pipeline:
    """Requests, and how their bytes are cut."""

    asked: tuple[Asked, ...]
    cut: Cut


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Some requests, in pieces."""
    asked = tuple(draw(st.lists(_ASKED, min_size=1, max_size=6)))
    return Pipeline(asked, draw(cut(st.just(b"".join(each.raw for each in asked)))))


@dataclass(frozen=True)
class Answer:
    """What a client makes of a response."""

    status: int
    headers: dict[str, str]
    body: bytes
    informational: tuple[int, ...]

    @property
    def lasting(self) -> "Answer":
        """Without what is another one each time."""
        kept = {name: value for name, value in self.headers.items() if name not in _VOLATILE}
        return Answer(self.status, kept, self.body, self.informational)


class SameAnswers:
    """The law of requests that follow each other on one connection."""

    def __init__(self, server: FuzzedServer) -> None:
        self._server = server

    def __call__(self, pipeline: Pipeline) -> None:
        expected = self._on_new_stores(self._apart(pipeline.asked))
        got = self._on_new_stores(self._together(pipeline))
        closing = (at for at, answer in enumerate(expected, start=1) if answer.headers.get("connection") == "close")
        assert got == expected[: next(closing, len(expected))]

    def _on_new_stores(self, work: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
        server = self._server
        stores = server.deploy()
        try:
            answers = server.run(work)
            server.check_nothing_failed()
        finally:
            server.run(stores.aclose())
        return [answer.lasting for answer in answers]

    async def _apart(self, asked: Sequence[Asked]) -> list[Answer]:
        """Each on a connection of its own."""
        answers = []
        for each in asked:
            async with await self._server.connect() as connection:
                await connection.send(each.raw)
                got = await connection.response(bodiless=each.method == "HEAD")
            answers.append(Answer(got.status, got.headers, got.body, tuple(got.informational)))
            await self._server.deployment.settle()
        return answers

    async def _together(self, pipeline: Pipeline) -> list[Answer]:
        """All on one connection, in pieces, without waiting for an answer."""
        methods = [each.method for each in pipeline.asked]
        client = RawClient(self._server)
        try:
            await client.send(pipeline.cut.pieces)
            async with asyncio.timeout(CLIENT_SECONDS_MAX):
                while not client.closed and len(answers_in(client.received, methods)) < len(methods):
                    await client.take(1)
            await client.end()
            return answers_in(client.received, methods)
        finally:
            client.close()


def answers_in(received: bytes, methods: Sequence[str]) -> list[Answer]:
    """The whole answers that were received to requests with these methods, as another implementation reads them."""
    reader = h11.Connection(h11.CLIENT)
    if received:  # nothing would mean the end
        reader.receive_data(received)
    answers: list[Answer] = []
    for method in methods:
        reader.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        reader.send(h11.EndOfMessage())
        early, status, headers, body = [], 0, {}, b""
        while True:
            event = reader.next_event()
            if isinstance(event, h11.InformationalResponse):
                early.append(event.status_code)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
        if not isinstance(event, h11.EndOfMessage):
            return answers
        answers.append(Answer(status, headers, body, tuple(early)))
        if reader.their_state is not h11.DONE:  # it closes the connection behind this one
            return answers
        reader.start_next_cycle()
    return answers
