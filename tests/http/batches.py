"""Batches as a client sends them, and their answers as it reads them: by hand, byte for byte."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from tests.http.harness import ROOT, Connection, Response, Running, head

BATCH = ROOT.replace("objects", "objects:batch") + "/"
BOUNDARY = "a-boundary-of-the-tests"
CONTENT_TYPE = ("content-type", f"multipart/form-data; boundary={BOUNDARY}")
OPENING = f"--{BOUNDARY}\r\n".encode()
END = f"--{BOUNDARY}--\r\n".encode()

Headers = Iterable[tuple[str, str]]


def part(kind: str | None, key: str | None = None, headers: Headers = (), body: bytes = b"") -> bytes:
    """One part of a request, with its delimiter in front and its line end behind."""
    lines = [("content-disposition", 'form-data; name="part"')]
    if kind is not None:
        lines.append(("x-sn-batch-operation-kind", kind))
    if key is not None:
        lines.append(("x-sn-batch-operation-key", key))
    return raw_part([*lines, *headers], body)


def raw_part(headers: Headers, body: bytes = b"") -> bytes:
    """One part with these headers alone."""
    text = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return OPENING + f"{text}\r\n".encode("latin-1") + body + b"\r\n"


def batch(*parts: bytes) -> bytes:
    """The body of a request."""
    return b"".join(parts) + END


@dataclass
class Result:
    """One part of an answer."""

    index: int
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str | None:
        """The key, as it is on the wire."""
        return self.headers.get("x-sn-batch-operation-key")

    @property
    def kind(self) -> str | None:
        """The kind."""
        return self.headers.get("x-sn-batch-operation-kind")

    @property
    def detail(self) -> str:
        """What an error says."""
        assert self.headers["content-type"] == "application/json"
        return str(orjson.loads(self.body)["detail"])


@dataclass
class Answer:
    """A whole answer, or as much of it as came."""

    status: int
    results: dict[int, Result]
    order: list[int]
    whole: bool
    """Whether it came to its end: the last delimiter, and nothing behind it."""
    response: Response
    rest: bytes = field(default=b"")
    """What came of a part that is not whole."""

    @property
    def statuses(self) -> list[int]:
        """The statuses in the order of the request."""
        return [self.results[index].status for index in sorted(self.results)]


def read_answer(response: Response) -> Answer:
    """The parts of a response, which has status 200."""
    assert response.status == 200, (response.status, response.body)
    media_type, _, parameter = response.headers["content-type"].partition("; boundary=")
    assert media_type == "multipart/form-data"
    boundary = parameter.strip('"')
    assert boundary.startswith("os-boundary-")
    assert len(boundary) == len("os-boundary-") + 32
    assert int(boundary.removeprefix("os-boundary-"), 16) >= 0
    delimiter = b"\r\n--" + boundary.encode()
    pieces = (b"\r\n" + response.body).split(delimiter)
    assert pieces.pop(0) == b""
    whole = bool(pieces) and pieces[-1] == b"--\r\n"
    rest = b"" if whole or not pieces else pieces[-1]
    results = [_read_part(piece) for piece in pieces[:-1]]
    assert len({result.index for result in results}) == len(results), "an index was answered twice"
    return Answer(
        200,
        {result.index: result for result in results},
        [result.index for result in results],
        whole and response.complete,
        response,
        rest,
    )


def _read_part(piece: bytes) -> Result:
    head, _, body = piece.partition(b"\r\n\r\n")
    assert head.startswith(b"\r\n")
    lines = [line.split(": ", 1) for line in head[2:].decode("ascii").split("\r\n")]
    headers = dict(lines)
    assert len(headers) == len(lines), f"a header is repeated: {lines}"
    assert headers["content-disposition"] == "form-data; name=part"
    code, _, reason = headers["x-sn-batch-operation-status"].partition(" ")
    return Result(int(headers["x-sn-batch-operation-index"]), int(code), reason, headers, body)


async def send_batch(server: Running, *parts: bytes, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """Send a batch on a connection of its own, and read its answer."""
    return read_answer(await server.request("POST", BATCH, [CONTENT_TYPE, *headers], batch(*parts)))


async def send_body(server: Running, body: bytes, headers: Sequence[tuple[str, str]] = (CONTENT_TYPE,)) -> Response:
    """Send any body to the address of batches."""
    return await server.request("POST", BATCH, headers, body)


@dataclass
class Begun:
    """A batch that is being sent, and whose answer is being read at the same time."""

    connection: Connection
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    received: bytearray = field(default_factory=bytearray)
    opened: bool = False
    """Whether the delimiter of the next part has been sent."""

    async def send(self, piece: bytes) -> None:
        """Send some more of the body."""
        if self.opened:
            piece, self.opened = piece.removeprefix(OPENING), False
        await self.connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))

    async def end(self) -> None:
        """End the body."""
        await self.connection.send(b"0\r\n\r\n")

    async def results(self, count: int) -> None:
        """Read until ``count`` results are whole."""
        if not self.status:
            self.status, self.headers = await self.connection.response_head()
        while self.received.count(b"\r\n--os-boundary-") < count:
            chunk = await self.connection.chunk()
            assert chunk, "the answer has ended"
            self.received += chunk

    async def answered(self) -> Response:
        """Read the rest of the answer, to its end or to where it is cut off."""
        complete = True
        try:
            await self.results(0)
            while chunk := await self.connection.chunk():
                self.received += chunk
        except asyncio.IncompleteReadError as cut:
            self.received += cut.partial
            complete = False
        return self.answered_already(complete=complete)

    def answered_already(self, *, complete: bool = True) -> Response:
        """The answer as far as it has been read."""
        return Response(self.status, self.headers, bytes(self.received), [], complete)


async def begin(connection: Connection, *parts: bytes, headers: Headers = ()) -> Begun:
    """Begin to send a batch, and read the results of these parts."""
    await connection.send(head("POST", BATCH, [CONTENT_TYPE, ("transfer-encoding", "chunked"), *headers]))
    begun = Begun(connection)
    if parts:
        # The end of the last part is seen only with a delimiter behind it.
        await begun.send(b"".join(parts) + OPENING)
        await begun.results(len(parts))
        begun.opened = True
    return begun
