"""One process that serves: uvicorn with our settings, a pause before the port closes, and our exit codes.

Stop, on SIGTERM or SIGINT: ``draining`` turns true (``/ready`` answers 503) and everything is served as before for
``http.shutdown_delay``; then the port closes and requests in flight get ``http.shutdown_grace`` to end; then the
application closes its stores. A second SIGINT ends the process at once, with exit code 130.

SIGHUP makes the process take over settings that have changed (`tierstore.process.reload`). The same signal when the
terminal of the server has gone is a request to stop.
"""

import asyncio
import contextlib
import dataclasses
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from tierstore.clock import Clock, SystemClock
from tierstore.config import Config, limits_from
from tierstore.errors import ConfigError, StartupError
from tierstore.limits import MIB, Limits
from tierstore.process.open_files import connections_that_fit
from tierstore.process.reload import Reloads, handed_over
from tierstore.process.tls import ServerTls
from tierstore.tasks import TaskOwner

if TYPE_CHECKING:
    from tierstore.build import OpenStores
    from tierstore.http.connection import BoundedConnection

EXIT_FORCED: Final = 128 + signal.SIGINT
"""The exit code after a second SIGINT."""

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
HANDLED_SIGNALS: Final = (*STOP_SIGNALS, signal.SIGHUP)

_STANDARD_ERROR = 2
_LEFT_BYTES_MAX: Final = MIB
"""More than the event loop keeps of what a client with TLS has yet to take."""

log = structlog.get_logger(__name__)


def run_worker(
    config: Config,
    listener: socket.socket,
    started: Callable[[], None],
    parent: int | None = None,
    open_stores_of: "OpenStores | None" = None,
    reread: Callable[[Config], Config | None] = handed_over,
) -> None:
    """Serve in this process until told to stop. Calls ``started`` once it is ready, and closes ``listener``.

    ``parent`` is a file descriptor that becomes readable when the process that supervises this one has ended, which
    is another reason to stop. With it, SIGINT is the supervisor's business. ``open_stores_of`` as for
    `tierstore.build.create_application`. ``reread`` is called on SIGHUP with the settings that are in force, and
    returns those that are to be; None if they stay. Raises `StartupError`.
    """
    from tierstore.build import create_application  # noqa: PLC0415  # because it imports the metrics
    from tierstore.http.connection import bounded  # noqa: PLC0415  # because it imports the metrics, too

    limits = limits_from(config)
    limits = dataclasses.replace(limits, connections_max=connections_that_fit(limits.connections_max))
    tls = ServerTls(config.tls) if config.tls.certificate else None
    reloads = Reloads()
    uvicorn_config = uvicorn.Config(
        lambda: create_application(config, lambda: server.draining, open_stores_of, reloads),
        factory=True,
        interface="asgi3",
        loop="uvloop",
        http=bounded(limits, SystemClock()),
        ws="none",
        lifespan="on",
        workers=1,
        backlog=config.http.backlog,
        timeout_keep_alive=math.ceil(config.http.keep_alive),
        timeout_graceful_shutdown=math.ceil(config.http.shutdown_grace),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        reset_contextvars=True,  # a request's log context must not pass to the next one on its connection
    )
    server = DrainingServer(
        uvicorn_config,
        clock=SystemClock(),
        delay_seconds=config.http.shutdown_delay,
        started=started,
        parent=parent,
        reload=reloading(config, reread, reloads, tls),
        tls=tls,
        limits=limits,
    )
    try:
        server.run([listener])
    except SystemExit as failed:
        if failed.code == STARTUP_FAILURE:
            raise StartupError("the application could not start; the log lines above say why") from None
        raise


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with a time between the request to stop and the closed port, and with our exit codes."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        clock: Clock,
        delay_seconds: float,
        started: Callable[[], None],
        parent: int | None,
        reload: Callable[[], None],
        tls: ServerTls | None,
        limits: Limits,
    ) -> None:
        super().__init__(config)
        self._clock = clock
        self._delay_seconds = delay_seconds
        self._report_started = started
        self._parent = parent
        self._reload = reload
        self._tls = tls
        self._limits = limits
        self._handshakes = TaskOwner(limits.connections_max, _report_handshake)
        self._in_terminal = has_terminal()
        self._close_at: float | None = None
        self._drain_logged = False

    @property
    def draining(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._close_at is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._tls is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            await self._listen(sockets or [], self._tls)
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._parent_ended, self._parent)
        self._report_started()

    async def _listen(self, listeners: Sequence[socket.socket], tls: ServerTls) -> None:
        """As uvicorn does, but with bounds on handshakes, and none of the event loop's on the end of a connection.

        Handshakes are the business of `tierstore.http.handshakes`. At the end, a connection has its own bound, on
        clients that take too little (`tierstore.http.connection`); the event loop's would cut off those that are merely
        slow.
        """
        from tierstore.http.handshakes import Handshakes  # noqa: PLC0415  # because it imports the metrics

        limits = self._limits
        handshakes = Handshakes(
            tasks=self._handshakes,
            context=tls.context,
            connection=self._new_connection,
            seconds_max=limits.request_head_seconds_max,
            shutdown_seconds_max=(
                _LEFT_BYTES_MAX / limits.body_bytes_per_second_min + 2 * limits.client_stall_seconds_max
            ),
        )
        for listener in listeners:
            server = await asyncio.get_running_loop().create_server(
                handshakes.entrance, sock=listener, backlog=self.config.backlog
            )
            self.servers.append(server)

    def _new_connection(self) -> "BoundedConnection":
        kind: Any = self.config.http_protocol_class
        connection: BoundedConnection = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return connection

    async def on_tick(self, counter: int) -> bool:
        if self._close_at is not None:
            if not self._drain_logged:
                # Not in the signal handler, which may have interrupted a log line.
                self._drain_logged = True
                log.info("draining", seconds_until_closed=max(0.0, self._close_at - self._clock.monotonic()))
            self.should_exit = self.should_exit or self._clock.monotonic() >= self._close_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._handshakes.drain(0)  # nobody has asked for anything yet
        await super().shutdown(sockets)
        log.info("stopped")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals that ask to stop. Unlike uvicorn's, does not raise them again: a clean stop is exit 0."""
        handled = STOP_SIGNALS if self._parent is None else (signal.SIGTERM,)
        previous = {handled_one: signal.signal(handled_one, self.handle_exit) for handled_one in handled}
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._handle_hangup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
        try:
            yield
        finally:
            for handled_one, handler in previous.items():
                signal.signal(handled_one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # because it is a signal handler
        if not self.draining:
            self._close_at = self._clock.monotonic() + self._delay_seconds
        elif sig == signal.SIGINT:
            _exit_at_once()

    def _handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        if self._in_terminal and not has_terminal():
            self.handle_exit(sig, frame)
        else:
            # Not here: a signal handler may have interrupted anything.
            asyncio.get_running_loop().call_soon_threadsafe(self._reload)

    def _parent_ended(self, parent: int) -> None:
        asyncio.get_running_loop().remove_reader(parent)
        log.error("the supervising process has ended; this worker stops")
        self._close_at = self._clock.monotonic()  # at once: whoever starts anew needs the port


def reloading(
    config: Config, reread: Callable[[Config], Config | None], reloads: Reloads, tls: ServerTls | None = None
) -> Callable[[], None]:
    """What reads settings again and puts them in force, with ``config`` in force to begin with."""
    running = config

    def reload() -> None:
        nonlocal running
        changed = reread(running)
        if changed is None:
            return
        if tls is not None:
            try:
                tls.reload(changed.tls)
            except ConfigError as error:  # the files have changed since they were checked
                log.error("reload failed in this worker; the settings before stay in force", reason=str(error))  # noqa: TRY400  # because the reason is all
                return
        running = changed
        reloads.publish(changed)

    return reload


def _report_handshake(name: str, error: BaseException) -> None:
    log.error("background work failed", work=name, exc_info=error)


def has_terminal() -> bool:
    """Whether standard error is a terminal that is still there."""
    try:
        return os.isatty(_STANDARD_ERROR)
    except OSError:
        return False


def _exit_at_once() -> NoReturn:
    """End without waiting for anything, be it a thread that hangs; the stores are as safe as after a crash."""
    os._exit(EXIT_FORCED)
