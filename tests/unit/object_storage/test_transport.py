"""Requests over HTTP, to a server on loopback that answers as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import structlog
from aiohttp import web
from yarl import URL

from tierstore.clock import SystemClock
from tierstore.errors import InvariantBroken, Unavailable
from tierstore.limits import KIB, Limits
from tierstore.object_storage.payload import OutgoingPayload
from tierstore.object_storage.transport import Answer, Transport, until_whole
from tierstore.tasks import TaskOwner
from tierstore.testing.ids import SeededIds
from tierstore.testing.laws.long_term import Boom, Source, cut, payload

LIMITS = replace(
    Limits(), object_store_attempts_max=3, object_store_pause_seconds_max=0.2, operation_wait_seconds_max=0.1
)
CONTENT = payload(300_000)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Anybody:
    """Requests without credentials; renewed as often as the server says "expired"."""

    async def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        del method, url
        return headers

    def renew(self, answer: Answer) -> bool:
        return answer.body == b"expired"


class Waits(SystemClock):
    """The system's clock, which tells how long it was slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@asynccontextmanager
async def served(handler: Handler, clock: SystemClock | None = None) -> AsyncIterator[tuple[Transport, URL]]:
    """A transport, and where ``handler`` answers."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    transport = Transport(
        Anybody(), tls=None, connections_max=4, timeout_seconds=0.5, limits=LIMITS, clock=clock or SystemClock(),
        ids=SeededIds(1),
    )  # fmt: skip
    try:
        yield transport, URL(f"http://127.0.0.1:{runner.addresses[0][1]}/x")
    finally:
        await transport.close()
        await runner.cleanup()


def outgoing(source: AsyncIterator[bytes], size: int, tail: bytes = b"tail") -> OutgoingPayload:
    """A payload that ends in ``tail``."""
    return OutgoingPayload(source, size, digests=(), tail_bytes=len(tail), tail=lambda: tail, stall_seconds=0.5)


def answering(*answers: web.Response | Callable[[], web.Response]) -> tuple[Handler, list[web.Request]]:
    """A handler that gives each of these answers once, the last one again and again; and the requests."""
    asked: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(request)
        return answer() if callable(answer) else answer

    return handler, asked


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[], web.Response]:
    """An answer, made anew each time."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda: web.Response(status=code, body=body, headers=named)


@pytest.mark.parametrize("chunk", [1_000, 100_000, 300_000])
async def test_a_payload_has_its_length_and_its_end(chunk: int) -> None:
    """Stores want a Content-Length; what comes is the payload and its tail."""
    received: list[tuple[Mapping[str, str], bytes]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        received.append((request.headers, await request.read()))
        return web.Response()

    async with served(handler) as (transport, url):
        sent = outgoing(Source(cut(CONTENT, chunk)), len(CONTENT))
        assert (await transport.send("PUT", url, sent)).is_success
    ((headers, body),) = received
    assert body == CONTENT + b"tail"
    assert headers["Content-Length"] == str(len(CONTENT) + 4)
    assert "Transfer-Encoding" not in headers
    assert "Expect" not in headers
    assert sent.is_whole


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1, 0])
async def test_a_payload_of_another_length_never_ends(size: int) -> None:
    """The server sees a request that is cut off."""
    ended: list[bool] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            await request.read()
        finally:
            ended.append(request.content.exception() is None)
        return web.Response()

    async with served(handler) as (transport, url):
        with pytest.raises(InvariantBroken):
            await transport.send("PUT", url, outgoing(Source(cut(CONTENT, 1_000)), size))
        await asyncio.sleep(0.05)
    assert True not in ended


async def test_nothing_is_taken_after_an_early_answer() -> None:
    """A store that refuses a part before it has come is heard, and the source is left alone."""
    handler, _ = answering(status(404))
    async with served(handler) as (transport, url):
        source = Source(cut(CONTENT, 100_000), pause_at=2)
        sent = outgoing(source, len(CONTENT))
        assert (await transport.send("PUT", url, sent)).status == 404
        source.release.set()
        await asyncio.sleep(0.05)
        assert source.taken == 2
        assert not sent.is_whole


async def test_a_success_before_the_end_is_none() -> None:
    """Who says that it has stored what it has not had yet, a proxy perhaps, is not believed."""
    handler, _ = answering(status(200))
    async with served(handler) as (transport, url):
        source = Source(cut(CONTENT, 100_000), pause_at=2)
        sent = outgoing(source, len(CONTENT))
        with pytest.raises(Unavailable, match="before it had all"):
            await transport.send("PUT", url, sent)
        assert not sent.is_whole


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
async def test_passing_refusals_are_repeated(code: int) -> None:
    """As often as may be; others, and what may not be repeated, are not."""
    for repeat, count in ((True, LIMITS.object_store_attempts_max), (False, 1)):
        handler, asked = answering(status(code))
        async with served(handler, Waits()) as (transport, url):
            assert (await transport.ask("DELETE", url, repeat=repeat)).status == code
            assert len(asked) == count
    handler, asked = answering(status(403))
    async with served(handler, Waits()) as (transport, url):
        assert (await transport.ask("GET", url)).status == 403
        assert len(asked) == 1


async def test_a_refusal_says_when_to_come_again() -> None:
    """Not sooner; and if that is too long, not at all. The same for what is long to read."""
    clock = Waits()
    handler, asked = answering(status(503, Retry_After="0"), status(503), status(200, b"content"))
    async with served(handler, clock) as (transport, url):
        assert (await transport.ask("GET", url)).body == b"content"
        assert len(asked) == 3
        assert len(clock.slept) == 2
        assert max(clock.slept) <= LIMITS.object_store_pause_seconds_max
    handler, asked = answering(status(503, Retry_After="7"))
    async with served(handler, clock) as (transport, url):
        assert (await transport.ask("GET", url)).status == 503
        assert (await transport.open(url, {}))[0].status == 503
        assert len(asked) == 2


async def test_credentials_that_are_too_old_are_renewed() -> None:
    """Whether or not a request may be repeated: it was refused."""
    for repeat in (True, False):
        handler, asked = answering(status(403, b"expired"), status(200))
        async with served(handler, Waits()) as (transport, url):
            assert (await transport.ask("POST", url, b"x", repeat=repeat)).is_success
            assert len(asked) == 2


async def test_a_long_answer_is_read_as_it_comes() -> None:
    """And what is little of it that nobody wants is read away, so that its connection is used again."""
    handler, asked = answering(status(200, CONTENT))
    async with served(handler) as (transport, url):
        for _ in range(3):
            answer, download = await transport.open(url, {})
            assert download is not None
            assert answer.body == b""
            read = b""
            while len(read) < len(CONTENT) - KIB:
                read += await download.read()
            await download.drain(2 * KIB)
            download.close()
            download.close()
            assert await download.read() == b""
            assert CONTENT.startswith(read)
        assert len({request.transport for request in asked}) == 1


async def test_a_payload_is_sent_once() -> None:
    """A connection that ends under it is an error, once something was taken from the source."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async with served(handler) as (transport, url):
        source = Source(cut(CONTENT, 1_000))
        with pytest.raises(Unavailable):
            await transport.send("PUT", url, outgoing(source, len(CONTENT)))


async def test_the_sources_error_comes_out_as_it_is() -> None:
    """Whatever becomes of the connection."""
    handler, _ = answering(status(200))
    async with served(handler) as (transport, url):
        for error in (Boom(), OSError("of the source"), TimeoutError()):
            with pytest.raises(type(error)) as raised:
                await transport.send("PUT", url, outgoing(Source([b"x"] * 9, fail_at=3, error=error), 9))
            assert raised.value is error


async def test_cancellation_before_and_after_the_end_was_sent() -> None:
    """Before, nothing takes effect; after, the answer is waited for, however often it is cancelled."""
    arrived, answer = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        with suppress(OSError):
            await request.read()
            arrived.set()
            await answer.wait()
        return web.Response()

    tasks = TaskOwner(8, structlog.get_logger().error)
    async with served(handler) as (transport, url):
        source = Source(cut(CONTENT, 1_000), pause_at=300)
        sent = outgoing(source, len(CONTENT))
        sending = asyncio.create_task(until_whole(tasks, "send", sent, transport.send("PUT", url, sent)))
        await source.reached.wait()
        sending.cancel()
        source.release.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not sent.is_whole
        assert not arrived.is_set()

        sent = outgoing(Source(cut(CONTENT, 1_000)), len(CONTENT))
        sending = asyncio.create_task(until_whole(tasks, "send", sent, transport.send("PUT", url, sent)))
        await arrived.wait()
        for _ in range(3):
            sending.cancel()
            await asyncio.sleep(0)
        answer.set()
        assert (await sending).is_success
    assert len(tasks) == 0
