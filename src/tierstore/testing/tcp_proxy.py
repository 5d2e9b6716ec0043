"""A TCP proxy on loopback that cuts, holds, delays and loses what passes: faults of a network before a real engine.

Guarantees: bytes that pass are the same ones in the same order; what is held waits, and passes when `TcpProxy.resume`
is called; when the context ends, every connection is gone. Its bounds are those of its test: it buffers one chunk for
each direction of a connection.

Does not: understand what passes. A fault hits whatever is on its way at that moment.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024
_HOST = "127.0.0.1"
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """A proxy before ``host`` and ``port``, listening on a port of its own while its context lasts."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        """Where new connections lead; may be changed, for an engine that comes back elsewhere."""
        self.port = 0
        self.delay_seconds = 0.0
        """How long each chunk is on its way, in either direction."""
        self.accepted = 0
        """Connections that were ever accepted."""
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._open_to_requests = asyncio.Event()
        self._open_to_answers = asyncio.Event()
        self._refuses = False
        self._loses_answers = False
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self.resume()
        self._server = await asyncio.start_server(self._accept, _HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def cut(self) -> None:
        """Reset every open connection. New ones are served."""
        for link, task in self._links.items():
            link.reset()
            task.cancel()

    def refuse(self) -> None:
        """Reset every open connection, and every new one right after it was accepted, until `resume`."""
        self._refuses = True
        self.cut()

    def hold(self) -> None:
        """Let nothing pass until `resume`: connections are accepted and stay open, and nobody gets an answer."""
        self._open_to_requests.clear()
        self._open_to_answers.clear()

    def hold_answers(self) -> None:
        """Let requests pass, and hold what is answered until `resume`."""
        self._open_to_answers.clear()

    def lose_answers(self) -> None:
        """Let requests pass, and reset a connection in place of the first byte that is answered, until `resume`."""
        self._loses_answers = True

    def resume(self) -> None:
        """Let everything pass, what was held first."""
        self._refuses = self._loses_answers = False
        self._open_to_requests.set()
        self._open_to_answers.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(writer)
        if self._refuses:
            link.reset()
            return
        task = asyncio.create_task(self._serve(link, reader, writer))
        self._links[link] = task
        task.add_done_callback(lambda _: self._links.pop(link))

    async def _serve(self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                target_reader, target_writer = await asyncio.open_connection(*self.target)
                link.add(target_writer)
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(link, reader, target_writer, self._open_to_requests, answers=False))
                    both.create_task(self._pump(link, target_reader, writer, self._open_to_answers, answers=True))
        finally:
            link.close()

    async def _pump(
        self,
        link: "_Link",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passage: asyncio.Event,
        *,
        answers: bool,
    ) -> None:
        """Pass what is read on, until its end, which is passed on as well; and so is a reset."""
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                if answers and self._loses_answers:
                    link.reset()
                    return
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await passage.wait()
                writer.write(chunk)
                await writer.drain()
            await passage.wait()
            writer.write_eof()
        except OSError:
            link.reset()


class _Link:
    """The two connections that one accepted connection is made of."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writers = [writer]

    def add(self, writer: asyncio.StreamWriter) -> None:
        """Take the second one in."""
        self._writers.append(writer)

    def close(self) -> None:
        """End both; what was written to them still arrives."""
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        """End both at once, with a reset; nothing more arrives."""
        for writer in self._writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            writer.transport.abort()
