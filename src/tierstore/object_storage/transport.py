"""Requests over HTTP to a store of objects: connections, bounds, repetitions.

Guarantees: every wait has a bound; a request is repeated a bounded number of times, and only where that is safe, and
not sooner than the store asks for; what goes wrong on the way is `Unavailable`, or `Busy` where no connection was to be
had. A quarter of the connections is not for downloads, so that readers that are slow do not keep writers from theirs.
Once the last bytes of a payload may be on their way, its request is not cancelled: only the answer says what has
happened.

Does not: know what an answer means, but for the statuses that pass by themselves.
"""

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

import aiohttp
import structlog
from multidict import CIMultiDictProxy
from yarl import URL

from tierstore import telemetry
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import Busy, StartupError, TierstoreError, Unavailable, private
from tierstore.idsource import IdSource
from tierstore.limits import Limits
from tierstore.object_storage.payload import PIECE_BYTES, OutgoingPayload
from tierstore.tasks import TaskOwner

log = structlog.get_logger(__name__)

T = TypeVar("T")

_connections = telemetry.engine_connections.labels("long_term")
_connection_waits = telemetry.engine_connection_wait_seconds.labels("long_term")

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_SECONDS_DIGITS_MAX = 9
_ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""More than any page of a listing: 1,000 names of 1 KiB, with all that is said of each."""
_KEPT_FROM_DOWNLOADS = 4
"""The share of the connections that is for other things, as a divisor."""
_READ_BUFFER_BYTES = 256 * 1024
"""What is read ahead of a stream's reader."""


def trusting(ca: str) -> ssl.SSLContext | None:
    """What to verify a store with: the authorities in file ``ca``, or those of the system. Raises `StartupError`."""
    if not ca:
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise StartupError(f"the certificates in {ca} cannot be read: {error}") from error


def report_failure(name: str, error: BaseException) -> None:
    """What becomes of work that nobody waits for, and that has failed."""
    log.error("background work of the long-term store failed", work=name, exc_info=error)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store has answered. ``body`` is empty where it is read as a `Download`."""

    status: int
    headers: "CIMultiDictProxy[str]"
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether it did what it was asked for."""
        return 200 <= self.status < 300


class Commitment(Protocol):
    """What is on its way to the store, and takes effect when its last bytes have come."""

    def cancel(self) -> bool:
        """Keep it from taking effect; False if it is too late for that."""
        ...


class Authorization(Protocol):
    """How requests show whose they are."""

    async def headers(self, method: str, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """All headers of a request that has ``headers``. Raises `Unavailable` if there are no credentials."""
        ...

    def renew(self, answer: Answer) -> bool:
        """Whether ``answer`` says that the credentials are too old; then they are not used again."""
        ...


class Transport:
    """Connections to one store. Used from one event loop; ended by `close`."""

    def __init__(
        self,
        authorization: Authorization,
        *,
        tls: ssl.SSLContext | None,
        connections_max: int,
        timeout_seconds: float,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._authorization = authorization
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._connections_max = connections_max
        self._in_use = 0
        self._downloads = asyncio.Semaphore(connections_max - connections_max // _KEPT_FROM_DOWNLOADS)
        self._timeout = self._timeout_of(timeout_seconds)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max, ssl=tls or True),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            headers={"User-Agent": "tierstore", "Accept-Encoding": "identity"},
            read_bufsize=_READ_BUFFER_BYTES,
            trace_configs=[self._waits()],
        )

    def _waits(self) -> aiohttp.TraceConfig:
        """Measures how long requests wait for a connection, those that have to."""

        async def begin(
            _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionQueuedStartParams
        ) -> None:
            context.since = self._clock.monotonic()

        async def end(
            _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionQueuedEndParams
        ) -> None:
            _connection_waits.observe(self._clock.monotonic() - context.since)

        trace = aiohttp.TraceConfig()
        trace.on_connection_queued_start.append(begin)
        trace.on_connection_queued_end.append(end)
        return trace

    async def ask(
        self,
        method: str,
        url: URL,
        body: bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
        repeat_until: UnixMicros | None = None,
        seconds: float | None = None,
    ) -> Answer:
        """Make a small request; its answer, whatever it is. ``repeat`` says whether it may take effect twice, and
        ``repeat_until`` when it must not be made again.

        ``seconds`` is how long the answer may take, where that is not the usual. Raises `Unavailable` and `Busy`.
        """
        bounds = self._timeout if seconds is None else self._timeout_of(seconds)
        for attempt in range(1, self._limits.object_store_attempts_max + 1):
            last = attempt == self._limits.object_store_attempts_max
            try:
                async with self._exchange(method, url, body, headers, bounds) as response:
                    answer = await self._read(response)
            except Unavailable as error:
                if last or not repeat or isinstance(error, Busy):
                    raise
                pause = self._pause(attempt)
            else:
                if last or not (self._authorization.renew(answer) or (answer.status in _PASSING and repeat)):
                    return answer
                wait = self._wait_for(answer, attempt)
                if wait is None:
                    return answer
                pause = wait
            await self._clock.sleep(pause)
            if repeat_until is not None and self._clock.now() > repeat_until:
                raise Unavailable("the object store has not done in time what it was asked for")
        raise Unavailable("the object store is not to be asked at all")

    async def send(
        self, method: str, url: URL, payload: OutgoingPayload, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send ``payload``, once; the answer, whatever it is. Raises what the payload's source raises.

        What does not even reach the store is tried again, as long as nothing was taken from the source.
        """
        for attempt in range(1, self._limits.object_store_attempts_max + 1):
            try:
                async with self._exchange(method, url, payload, headers, self._timeout) as response:
                    answer = await self._read(response)
            except Unavailable as error:
                if payload.error is not None:
                    raise payload.error from None
                last = attempt == self._limits.object_store_attempts_max
                if last or payload.is_begun or isinstance(error, Busy):
                    raise
                await self._clock.sleep(self._pause(attempt))
            else:
                if payload.error is not None:
                    raise payload.error
                if answer.is_success and not payload.is_whole:
                    raise Unavailable("the object store has answered a request before it had all of it")
                return answer
        raise Unavailable("the object store is not to be asked at all")

    async def open(self, url: URL, headers: Mapping[str, str]) -> "tuple[Answer, Download | None]":
        """Begin to read something long: its answer without the body, and where that is; None if it is no success."""
        await self._turn()
        download = None
        try:
            answer, response = await self._opened(url, headers)
            download = None if response is None else Download(self, response)
        finally:
            if download is None:
                self._downloads.release()
        return answer, download

    async def _turn(self) -> None:
        """Wait until there is a connection for one more download. Raises `Busy`."""
        if not self._downloads.locked():
            await self._downloads.acquire()
            return
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self.timeout_seconds + self._limits.operation_wait_seconds_max):
                await self._downloads.acquire()
        except TimeoutError:
            raise Busy("all connections to the object store that may be are in use by readers") from None
        finally:
            _connection_waits.observe(self._clock.monotonic() - began)

    def end_download(self, response: aiohttp.ClientResponse) -> None:
        """Let another one have its turn. To be called once."""
        self.let_go(response)
        self._downloads.release()

    async def _opened(self, url: URL, headers: Mapping[str, str]) -> "tuple[Answer, aiohttp.ClientResponse | None]":
        """The answer without the body, and the response if that is still to be read, which it is of a success."""
        for attempt in range(1, self._limits.object_store_attempts_max + 1):
            last = attempt == self._limits.object_store_attempts_max
            try:
                response = await self._begun("GET", url, None, headers, self._timeout)
                if response.status < 300:
                    return Answer(response.status, response.headers, b""), response
                try:
                    answer = await self._read(response)
                finally:
                    self.let_go(response)
            except Unavailable as error:
                if last or isinstance(error, Busy):
                    raise
                pause = self._pause(attempt)
            else:
                wait = self._wait_for(answer, attempt)
                if last or wait is None or not (self._authorization.renew(answer) or answer.status in _PASSING):
                    return answer, None
                pause = wait
            await self._clock.sleep(pause)
        raise Unavailable("the object store is not to be asked at all")

    async def close(self) -> None:
        """End all connections. Safe to repeat."""
        await self._session.close()

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        url: URL,
        body: bytes | OutgoingPayload | None,
        headers: Mapping[str, str] | None,
        bounds: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Within, the response is read; afterwards its connection is free, or closed if it was not read to the end."""
        response = await self._begun(method, url, body, headers, bounds)
        try:
            yield response
        finally:
            if isinstance(body, OutgoingPayload) and not body.is_whole:
                response.close()  # the store has answered before it had all: nothing more is taken from the source
            self.let_go(response)

    async def _begun(
        self,
        method: str,
        url: URL,
        body: bytes | OutgoingPayload | None,
        headers: Mapping[str, str] | None,
        bounds: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The response, whose head has come."""
        authorized = await self._authorization.headers(method, url, headers or {})
        self._in_use += 1
        _connections.inc()
        # aiohttp sends what is long in pieces only if it is a file.
        sent = io.BytesIO(body) if isinstance(body, bytes) and len(body) > PIECE_BYTES else body
        try:
            with self.translated():
                return await self._session.request(
                    method, url, data=sent, headers=authorized, timeout=bounds, allow_redirects=False
                )
        except BaseException:
            self._in_use -= 1
            _connections.dec()
            raise

    def let_go(self, response: aiohttp.ClientResponse) -> None:
        """Give a connection back, if all of it has been read, and else close it. To be called once."""
        self._in_use -= 1
        _connections.dec()
        if response.content.at_eof():
            response.release()
        else:
            response.close()

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        """All of an answer."""
        body = bytearray()
        with self.translated():
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _ANSWER_BYTES_MAX:
                    raise Unavailable("the object store's answer is too long")
        return Answer(response.status, response.headers, bytes(body))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What goes wrong between us and the store, in our words."""
        try:
            yield
        except TierstoreError:
            raise
        except aiohttp.ConnectionTimeoutError as error:
            if self._in_use > self._connections_max:
                raise Busy("all connections to the object store are in use") from error
            raise Unavailable("the object store cannot be reached: it does not accept connections") from error
        except TimeoutError as error:
            raise Unavailable("the object store does not answer") from error
        except (aiohttp.ClientError, OSError) as error:
            told = "the object store cannot be reached"
            raise private(Unavailable(f"{told}: {str(error) or type(error).__name__}"), told) from error

    def _timeout_of(self, seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None,
            connect=self.timeout_seconds + self._limits.operation_wait_seconds_max,
            sock_connect=self.timeout_seconds,
            sock_read=seconds,
        )

    def _pause(self, attempt: int) -> float:
        """How long to wait after an attempt that failed: longer each time, and not as long as others do."""
        longest = self._limits.object_store_pause_seconds_max
        return longest * 2.0 ** min(0, attempt - self._limits.object_store_attempts_max + 1) * self._ids.jitter()

    def _wait_for(self, answer: Answer, attempt: int) -> float | None:
        """How long to wait before a request is made again that was answered so; None if that would be too long."""
        asked_for = _retry_after(answer.headers)
        if asked_for > self._limits.object_store_pause_seconds_max:
            return None
        return max(asked_for, self._pause(attempt))


class Download:
    """An answer whose body is being read."""

    def __init__(self, transport: Transport, response: aiohttp.ClientResponse) -> None:
        self._transport = transport
        self._response: aiohttp.ClientResponse | None = response

    async def read(self) -> bytes:
        """The next bytes, none at the end. Raises `Unavailable` if the connection ends before that."""
        if self._response is None:
            return b""
        with self._transport.translated():
            return await self._response.content.readany()

    async def drain(self, bytes_max: int) -> None:
        """Read what nobody wants, if it is little, so that the connection can be used again. Raises nothing."""
        while bytes_max > 0:
            try:
                if not (piece := await self.read()):
                    return
            except Unavailable:
                return
            bytes_max -= len(piece)

    def close(self) -> None:
        """Let go of the connection. Safe to repeat."""
        if self._response is not None:
            self._transport.end_download(self._response)
            self._response = None


def _retry_after(headers: "CIMultiDictProxy[str]") -> float:
    """How long the store asks to be left alone, in seconds (RFC 9110, section 10.2.3); 0 if it does not say."""
    value: str = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdecimal() and len(value) <= _SECONDS_DIGITS_MAX else 0.0


async def until_whole(tasks: TaskOwner, name: str, payload: Commitment, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, which sends ``payload``. Cancellation ends it while the payload is not whole.

    After that it is waited for, however often it is cancelled; then what it has come to is returned or raised as if it
    had not been cancelled. It ends by itself, because all its waits have bounds.
    """
    working = tasks.run(name, work)
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as error:
            if cancelled is None and payload.cancel():  # once: what it does about it is not cancelled again
                cancelled = error
                working.cancel()
    if cancelled is None:
        return working.result()
    if not working.cancelled():
        working.exception()  # looked at, so that nobody calls it lost
    raise cancelled
