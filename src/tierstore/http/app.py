"""The ASGI application: bounds every request, serves it, answers for what goes wrong, and keeps a record.

Guarantees: every request gets an answer in the one form (`tierstore.http.responses`) and one line in the log; at most
``max_requests`` for objects are at work, more are refused at once. Internal routes and the lifespan are Starlette's;
object routes are matched here, on the path as it is on the wire, because Starlette matches a decoded path, in which
``%2F`` and invalid UTF-8 are lost.

Does not: compress, redirect, or bound what the HTTP parser holds before it calls (the server's own business).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tierstore import telemetry
from tierstore.errors import (
    ClientDisconnected,
    HeadersTooLarge,
    InvariantBroken,
    StartupError,
    TargetTooLong,
    Unavailable,
)
from tierstore.http.exchange import Exchange
from tierstore.http.internal import InternalRoutes
from tierstore.http.places import RequestPlaces
from tierstore.http.request_log import record
from tierstore.http.responses import (
    HEADER_OVERHEAD_BYTES,
    STATUS_DISCONNECTED,
    error_response,
    json_response,
    status_of,
)
from tierstore.http.routes import ObjectRoutes
from tierstore.http.settings import HttpSettings, Served
from tierstore.service.departures import tell_of_mutation
from tierstore.tasks import TaskOwner

__all__ = ["HttpSettings", "Served", "create_app"]

_log = structlog.get_logger(__name__)

_INTERNAL_PATHS = frozenset({b"/health", b"/ready", b"/metrics", b"/keda"})
_OBJECTS = b"/v1/objects"
_WATCHERS_OF_A_REQUEST_MAX = 2


def create_app(open_served: Callable[[], AbstractAsyncContextManager[Served]], settings: HttpSettings) -> ASGIApp:
    """The application. ``open_served`` is entered when its lifespan starts, in the server's event loop."""
    return _Application(open_served, settings)


class _Application:
    def __init__(self, open_served: Callable[[], AbstractAsyncContextManager[Served]], settings: HttpSettings) -> None:
        self._open_served = open_served
        self._settings = settings
        self._served: Served | None = None
        self._not_started: StartupError | None = None
        self._places = RequestPlaces(settings.max_requests)
        self._watchers = TaskOwner(_WATCHERS_OF_A_REQUEST_MAX * settings.max_requests, _report_watcher)
        self._objects = ObjectRoutes(settings.limits, self._watchers, settings.ids)
        self._starlette = Starlette(
            routes=InternalRoutes(settings, lambda: self._served).routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_exception},
        )
        self._starlette.router.redirect_slashes = False

    def _plainly(self, send: Send) -> Send:
        """``send``, with one sentence in place of a traceback for what keeps the stores from being opened."""

        async def send_plainly(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self._not_started is not None:
                message = {**message, "message": str(self._not_started)}
            await send(message)

        return send_plainly

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        telemetry.requests_max.set(self._settings.max_requests)
        telemetry.operations_max.set(self._settings.limits.operations_max)
        telemetry.operations_queue_max.set(self._settings.limits.operations_queue_max)
        try:
            async with self._open_served() as served:
                self._served = served
                try:
                    yield
                finally:
                    self._served = None
                    await self._watchers.drain(0)
        except StartupError as error:
            self._not_started = error
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._starlette(scope, receive, self._plainly(send))
            return
        clock, limits = self._settings.clock, self._settings.limits
        exchange = Exchange(scope, receive, send, limits=limits, ids=self._settings.ids, clock=clock)
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        try:
            await self._serve(exchange, scope, receive)
        except Exception as error:  # noqa: BLE001  # because every failure is answered and logged in one place
            await _answer(error, exchange)
        except asyncio.CancelledError:
            # Nobody but the server cancels, when its time to stop is up. It does not wait: nothing is to be raised.
            await _answer(Unavailable("the server is stopping, and this request took too long"), exchange)
        finally:
            record(exchange, clock.monotonic() - exchange.started, audited=self._settings.audit)
        await exchange.finish()

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        if exchange.refusal is not None:
            raise exchange.refusal
        exchange.check_form()
        if exchange.raw_path in _INTERNAL_PATHS:
            exchange.operation, exchange.internal = "internal", True
            await self._starlette(scope, receive, exchange.relay)
            return
        _check_bounds(exchange)
        if not (exchange.raw_path.startswith(_OBJECTS) and await self._serve_objects(exchange)):
            await exchange.respond(404, *json_response({"detail": "nothing is served at this address"}))

    async def _serve_objects(self, exchange: Exchange) -> bool:
        served = self._served
        if served is None:
            raise Unavailable("the server is starting or stopping")
        exchange.place = self._places.take()
        exchange.audited = self._settings.audit
        if exchange.audited:
            tell_of_mutation(exchange.note_mutation)
        try:
            return await self._objects.serve(exchange, served)
        finally:
            exchange.place.end()


def _check_bounds(exchange: Exchange) -> None:
    limits = exchange.limits
    if len(exchange.raw_path) + len(exchange.query) > limits.target_bytes_max:
        raise TargetTooLong(f"a request target has at most {limits.target_bytes_max} bytes")
    if len(exchange.headers) > limits.headers_max:
        raise HeadersTooLarge(f"a request has at most {limits.headers_max} headers")
    size = 0
    for name, value in exchange.headers:
        size += len(name) + len(value) + HEADER_OVERHEAD_BYTES
    if size > limits.header_bytes_max:
        raise HeadersTooLarge(f"the headers of a request have at most {limits.header_bytes_max} bytes")


async def _answer(error: Exception, exchange: Exchange) -> None:
    """Answer for a request that failed, if there is still somebody to answer.

    When the response has begun, nothing can be said any more: it is left incomplete, and the connection is closed, so
    that the client sees fewer bytes than were announced.
    """
    exchange.error = error
    body = exchange.body
    if isinstance(error, ClientDisconnected) or (body is not None and body.disconnected):
        exchange.status = STATUS_DISCONNECTED
        return
    if status_of(error) == 500:
        _log.error("request failed", exc_info=error)
    elif exchange.responding:
        _log.warning("response cut off", exc_info=error)
    elif isinstance(error, Unavailable) and error.__cause__ is not None:  # what the client is not told
        _log.warning("store failed", error=str(error), cause=repr(error.__cause__))
    if exchange.responding:
        exchange.cut_off()
        return
    try:
        try:
            await exchange.respond(*error_response(error, exchange.request_id))
        except InvariantBroken as broken:  # a header of it cannot be sent
            _log.error("answer not sent", exc_info=broken)
            await exchange.respond(*error_response(broken, exchange.request_id))
    except ClientDisconnected:
        exchange.status = STATUS_DISCONNECTED


async def _http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (another method) in the form of ours."""
    if not isinstance(error, HTTPException):
        raise error
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


def _report_watcher(name: str, error: BaseException) -> None:
    telemetry.background_failures.labels(name).inc()
    _log.error("background work failed", work=name, exc_info=error)
