"""A client that sends exactly the bytes it is told, in pieces that the server sees one by one."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.serving import FuzzedServer
from tests.http.harness import CLIENT_SECONDS_MAX

_TURNS = 4
"""Turns of the event loop after which the server has seen what was sent."""
QUIET_TURNS = 40
_READ_BYTES = 1 << 16


class RawClient:
    """A socket that sends exactly the pieces it is told, each of which the server sees by itself."""

    def __init__(self, server: FuzzedServer) -> None:
        self._server = server
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self.received = b""
        self.closed = False

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Connect, and send the pieces, one after the other."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            try:
                await loop.sock_sendall(self._socket, piece)
            except ConnectionError:
                break
            await self.take(_TURNS)

    async def take(self, turns: int) -> None:
        """Take in what has come, until nothing has for some turns."""
        quiet = 0
        while quiet < turns and not self.closed:
            await asyncio.sleep(0)
            try:
                some = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                quiet += 1
                continue
            except ConnectionError:
                some = b""
            quiet = 0
            self.closed = not some
            self.received += some

    async def end(self) -> None:
        """Say that nothing follows, and take in the rest; the server closes the connection."""
        loop = asyncio.get_running_loop()
        try:
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(CLIENT_SECONDS_MAX):
                while not self.closed:
                    some = await loop.sock_recv(self._socket, _READ_BYTES)
                    self.closed = not some
                    self.received += some
        except OSError:  # it was reset, or is closed already
            self.closed = True

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


@dataclass(frozen=True)
class Cut:
    """Bytes, and where they are cut."""

    raw: bytes
    cuts: tuple[float, ...]
    one_by_one: bool

    @property
    def pieces(self) -> list[bytes]:
        """The bytes in pieces."""
        if self.one_by_one:
            return [self.raw[at : at + 1] for at in range(len(self.raw))]
        places = sorted({0, len(self.raw), *(int(cut * len(self.raw)) for cut in self.cuts)})
        return [self.raw[start:end] for start, end in pairwise(places)]


def cut(raw: SearchStrategy[bytes], *, every_byte: bool = True) -> SearchStrategy[Cut]:
    """Bytes with some cuts, or, if they are few enough, with all."""
    one_by_one = st.sampled_from([False, False, False, every_byte])
    return st.builds(Cut, raw, st.lists(st.floats(0, 1), max_size=4).map(tuple), one_by_one)
