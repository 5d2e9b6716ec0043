"""Encrypted connections until they are: each is one of the crowd from the moment when the system has taken it.

A handshake costs its client nothing either, and its connection a file and memory like any other. So those that are
under way count as connections, and those that have waited for their clients for longest give way when others need the
room (`tierstore.http.crowd`). Guarantees: when a handshake is done, its connection has the place that it had; what
breaks off, is late or no TLS at all ends without a word. Does not: answer a client for which there is no room, which
would take a handshake.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tierstore.http.connection import BoundedConnection
from tierstore.http.crowd import Member
from tierstore.tasks import TaskOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """What each of them needs. ``tasks`` owns them; ``connection`` makes what serves a connection when it is done."""

    tasks: TaskOwner
    context: ssl.SSLContext
    connection: Callable[[], BoundedConnection]
    seconds_max: float
    shutdown_seconds_max: float
    """How long the end of a connection may take once it is encrypted."""

    def entrance(self) -> asyncio.Protocol:
        """What takes one new connection, as it is before its handshake."""
        return _Entrance(self)


class _Entrance(asyncio.Protocol):
    def __init__(self, handshakes: Handshakes) -> None:
        self._handshakes = handshakes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # because it is of a socket
        # Event loops read from a connection as soon as this returns, and what they read would be the handshake's. So
        # the connection is given to the loop once more, as an encrypted one.
        taken = transport.get_extra_info("socket")
        try:
            accepted = socket.fromfd(taken.fileno(), taken.family, taken.type)
        except OSError:  # no file can be opened
            return
        finally:
            transport.abort()
        accepted.setblocking(False)
        _Handshake(self._handshakes, accepted).begin()


class _Handshake(Member):
    def __init__(self, handshakes: Handshakes, accepted: socket.socket) -> None:
        self._handshakes = handshakes
        self._accepted = accepted
        self._connection = handshakes.connection()
        self._crowd = self._connection.crowd
        self._began = self._crowd.clock.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._begun = False

    def begin(self) -> None:
        if not self._crowd.join(self):
            self._accepted.close()
            return
        self._connection.follow(self)
        self._task = self._handshakes.tasks.run("TLS handshake", self._encrypt())
        self._handshakes.tasks.disown(self._task)
        self._task.add_done_callback(self._end)

    def waited_since(self, now: float) -> float | None:  # noqa: ARG002  # because it waits all the time
        return self._began

    def give_way(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, _task: asyncio.Task[None]) -> None:
        self._crowd.leave(self)
        if not self._begun:  # else it is the event loop's
            self._accepted.close()

    async def _encrypt(self) -> None:
        self._begun = True
        handshakes = self._handshakes
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._connection,
                self._accepted,
                ssl=handshakes.context,
                ssl_handshake_timeout=handshakes.seconds_max,
                ssl_shutdown_timeout=handshakes.shutdown_seconds_max,
            )
