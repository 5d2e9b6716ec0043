"""Requests that two readers could understand in two ways: none of what they carry is ever taken for a request.

A proxy in front of the server decides where a request ends, and so does the server. Where they differ, what one takes
for a body is a request to the other: a client's own, past whatever the proxy checks. Each case here carries a request
within what may be taken for its body (`SMUGGLED`), and is followed on its connection by another, honest one (`PROBE`).
"""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from tests.http.harness import LIMITS, ROOT, Connection, Running, eventually, head, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMUGGLED = head("PUT", f"{ROOT}/smuggled", (), b"z") + b"z"
UPGRADE = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
PROBE = head("GET", f"{ROOT}/probed", [("x-request-id", "probe"), ("connection", "close")])
SIZE = len(SMUGGLED)
CHUNK = b"%x\r\n%s\r\n" % (SIZE, SMUGGLED)
END = b"0\r\n\r\n"
PUT = f"PUT {ROOT}/carrier HTTP/1.1\r\nhost: x\r\n".encode()
CHUNKED = PUT + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """What is sent, and the statuses of all answers to it; the probe's follows if the connection goes on."""

    name: str
    raw: bytes
    statuses: tuple[int, ...]
    goes_on: bool = False
    may_be_cut_short: bool = False
    """What is no request may end the connection before the answer to an earlier one is there."""


def _refused(name: str, raw: bytes, status: int = 400) -> Case:
    return Case(name, raw, (status,))


def _served(name: str, raw: bytes, *statuses: int) -> Case:
    return Case(name, raw, statuses or (200,), goes_on=True)


def _lengths() -> list[Case]:
    """Content-Length alone (RFC 9112, section 6.3)."""
    values = {
        "a list": b"%d, %d", "a list of two": b"0, %d", "a sign": b"+%d", "negative": b"-%d", "hexadecimal": b"0x%x",
        "a fraction": b"%d.0", "an exponent": b"%de0", "a separator": b"1_%d", "a space within": b"%d 0",
        "a tab within": b"%d\t0", "quoted": b'"%d"', "a vertical tab behind": b"%d\x0b", "a NUL behind": b"%d\0",
        "a NUL before": b"\0%d", "another digit": b"%d\xb2", "empty": b"",
    }  # fmt: skip
    filled = {name: value % ((SIZE,) * value.count(b"%")) for name, value in values.items()}
    cases = [
        _refused(f"length: {name}", PUT + b"content-length: %s\r\n\r\n" % value + SMUGGLED)
        for name, value in filled.items()
    ]
    for first, second in ((SIZE, SIZE), (0, SIZE), (SIZE, 0), (1, 2)):
        twice = b"content-length: %d\r\ncontent-length: %d\r\n\r\n" % (first, second)
        cases.append(_refused(f"length: twice, {first} and {second}", PUT + twice + SMUGGLED))
    cases += [
        _refused("length: overflow", PUT + b"content-length: 18446744073709551616\r\n\r\n" + SMUGGLED),
        _refused("length: more than an object", PUT + b"content-length: 9223372036854775807\r\n\r\n" + SMUGGLED, 413),
        _refused("length: spaces behind", PUT + b"content-length: %d  \r\n\r\n" % SIZE + SMUGGLED),
        _refused("length: space before the colon", PUT + b"content-length : %d\r\n\r\n" % SIZE + SMUGGLED),
        _refused("length: on a line of its own", PUT + b"content-length:\r\n %d\r\n\r\n" % SIZE + SMUGGLED),
        _refused("length: a zero behind a folded line", PUT + b"content-length: 0\r\n\t%d\r\n\r\n" % SIZE + SMUGGLED),
        _served("length: zeros in front", PUT + b"content-length: 000%d\r\n\r\n" % SIZE + SMUGGLED),
        _served("length: spaces in front", PUT + b"content-length:   %d\r\n\r\n" % SIZE + SMUGGLED),
        _served("length: letter case", PUT + b"CoNtEnT-LeNgTh: %d\r\n\r\n" % SIZE + SMUGGLED),
        _served("length: another header's", PUT + b"content_length: 5\r\ncontent-length: %d\r\n\r\n" % SIZE + SMUGGLED),
    ]
    return cases


def _both() -> list[Case]:
    """Content-Length and Transfer-Encoding together: refused in either order, as the section allows."""
    length, coding = b"content-length: %d\r\n", b"transfer-encoding: chunked\r\n"
    body = END + SMUGGLED
    cases = []
    for name, size in (("of the chunks", len(END)), ("of all", len(body)), ("none", 0)):
        cases.append(_refused(f"both: length {name} first", PUT + length % size + coding + b"\r\n" + body))
        cases.append(_refused(f"both: length {name} last", PUT + coding + length % size + b"\r\n" + body))
    cases += [
        _refused("both: identity", PUT + b"transfer-encoding: identity\r\n" + length % SIZE + b"\r\n" + SMUGGLED),
        _refused("both: empty coding", PUT + b"transfer-encoding:\r\n" + length % SIZE + b"\r\n" + SMUGGLED),
        _refused("both: HTTP/1.0", PUT.replace(b"1.1", b"1.0") + length % SIZE + coding + b"\r\n" + body),
    ]
    return cases


def _codings() -> list[Case]:
    """Transfer-Encoding: chunked and nothing else, whatever the method."""
    refused = {
        "identity": 501, "xchunked": 501, "chunkedx": 501, "gzip": 501, "gzip, chunked": 501, "identity, chunked": 501,
        ", chunked": 501, '"chunked"': 501, "chunked;q=1": 501, "chunked-": 501,
        "chunked, identity": 400, "chunked,": 400, "chunked, chunked": 400, "chunked, ": 400, "": 400,
    }  # fmt: skip
    cases = []
    for value, status in refused.items():
        for method in ("PUT", "GET", "DELETE"):
            start = f"{method} {ROOT}/carrier HTTP/1.1\r\nhost: x\r\ntransfer-encoding: {value}\r\n\r\n".encode()
            cases.append(_refused(f"coding: {value!r} of {method}", start + END + SMUGGLED, status))
    twice = b"transfer-encoding: %s\r\ntransfer-encoding: %s\r\n\r\n"
    cases += [
        _refused("coding: vertical tab behind", PUT + b"transfer-encoding: chunked\x0b\r\n\r\n" + END + SMUGGLED),
        _refused("coding: vertical tab before", PUT + b"transfer-encoding: \x0bchunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: NUL behind", PUT + b"transfer-encoding: chunked\0\r\n\r\n" + END + SMUGGLED),
        _refused("coding: space before the colon", PUT + b"transfer-encoding : chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: tab before the colon", PUT + b"transfer-encoding\t: chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: space before the name", PUT + b" transfer-encoding: chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: on a line of its own", PUT + b"transfer-encoding:\r\n chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: folded", PUT + b"x: y\r\n transfer-encoding: chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: behind a bare LF", PUT + b"x: y\ntransfer-encoding: chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: behind a bare CR", PUT + b"x: y\rtransfer-encoding: chunked\r\n\r\n" + END + SMUGGLED),
        _refused("coding: twice chunked", PUT + twice % (b"chunked", b"chunked") + END + SMUGGLED),
        _refused("coding: chunked, then identity", PUT + twice % (b"chunked", b"identity") + END + SMUGGLED),
        _refused("coding: identity, then chunked", PUT + twice % (b"identity", b"chunked") + END + SMUGGLED, 501),
        _refused("coding: HTTP/1.0", CHUNKED.replace(b"1.1", b"1.0") + END + SMUGGLED),
        _refused(
            "coding: HTTP/1.0, kept alive",
            PUT.replace(b"1.1", b"1.0")
            + b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n"
            + END
            + SMUGGLED,
        ),
        _served("coding: spaces in front", PUT + b"transfer-encoding:   chunked\r\n\r\n" + CHUNK + END),
        _served("coding: letter case", PUT + b"Transfer-Encoding: ChUnKeD\r\n\r\n" + CHUNK + END),
        Case(
            "coding: another header's",
            PUT + b"transfer_encoding: chunked\r\n\r\n" + CHUNK + END,
            (200, 400),
            may_be_cut_short=True,
        ),
    ]
    return cases


def _chunks() -> list[Case]:
    """Chunks, their extensions, and trailers (RFC 9112, section 7.1)."""
    data = SMUGGLED + b"\r\n" + END
    size = b"%x" % SIZE
    refused = {
        "17 digits": b"1%016x\r\n" % SIZE, "overflow": b"F" * 17 + b"\r\n", "negative": b"-" + size + b"\r\n",
        "a sign": b"+" + size + b"\r\n", "0x": b"0x" + size + b"\r\n", "a space behind": size + b" \r\n",
        "a tab behind": size + b"\t\r\n", "a space before": b" " + size + b"\r\n", "no size": b"\r\n",
        "ended by LF": size + b"\n", "ended by CR": size + b"\r", "a fraction": size + b".0\r\n",
        "an underscore": b"0_" + size + b"\r\n", "a NUL": size + b"\0\r\n", "a letter": b"g\r\n",
        "extension ended by LF": size + b";a=b\n", "extension with LF": size + b";a\nb\r\n",
        "extension with CR": size + b";a\rb\r\n", "extension with NUL": size + b";a\0\r\n",
        "extension with CRLF in quotes": size + b';a="b\r\nc"\r\n',
        "extension with LF in quotes": size + b';a="b\nc"\r\n',
        "extension behind a space": size + b" ;a=b\r\n",
    }  # fmt: skip
    cases = [_refused(f"chunk: {name}", CHUNKED + begin + data) for name, begin in refused.items()]
    cases += [
        _refused("chunk: ended by LF only", CHUNKED + b"1\r\nz\n" + END + SMUGGLED),
        _refused("chunk: longer than it says", CHUNKED + b"1\r\nzz\r\n" + END + SMUGGLED),
        _refused("chunk: without an end", CHUNKED + b"1\r\nz" + END + SMUGGLED),
        _refused("chunk: last one ended by LFs", CHUNKED + b"0\n\n" + SMUGGLED),
        _refused("chunk: last one ended by a LF", CHUNKED + b"0\r\n\n" + SMUGGLED),
        _served("chunk: long extension", CHUNKED + size + b";" + b"a" * 10_000 + b"\r\n" + data),
        _refused("trailer: content-length", CHUNKED + b"0\r\ncontent-length: %d\r\n\r\n" % SIZE + SMUGGLED),
        _refused("trailer: transfer-encoding", CHUNKED + b"0\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNK),
        _refused("trailer: ended by LF", CHUNKED + b"0\r\na: b\n\r\n" + SMUGGLED),
        _refused("trailer: folded", CHUNKED + b"0\r\na: b\r\n c\r\n\r\n" + SMUGGLED),
        _served("trailer: host", CHUNKED + CHUNK + b"0\r\nhost: elsewhere\r\n\r\n"),
        Case("trailer: connection", CHUNKED + CHUNK + b"0\r\nconnection: close\r\n\r\n" + SMUGGLED, (200,)),
        _served("chunk: zeros in front", CHUNKED + b"00000000000000" + CHUNK + END),
        _served("chunk: capitals", CHUNKED + b"A\r\n0123456789\r\n" + CHUNK + END),
        _served("chunk: extension", CHUNKED + size + b";a=b;c\r\n" + data),
        _served("chunk: extension in quotes", CHUNKED + size + b';a="b;c\\""\r\n' + data),
    ]
    return cases


def _lines() -> list[Case]:
    """The request line, line ends, names (RFC 9112, sections 2.2, 3 and 5)."""
    target = f"{ROOT}/carrier".encode()
    length = b"content-length: %d\r\n\r\n" % SIZE
    refused = {
        "bare LF behind the request line": b"PUT " + target + b" HTTP/1.1\nhost: x\r\n" + length,
        "bare CR behind the request line": b"PUT " + target + b" HTTP/1.1\rhost: x\r\n" + length,
        "bare LF behind a header": PUT + b"a: b\n" + length,
        "bare CR behind a header": PUT + b"a: b\r" + length,
        "bare LFs at the end": PUT + b"content-length: %d\n\n" % SIZE,
        "bare CRs at the end": PUT + b"content-length: %d\r\r" % SIZE,
        "CR CR LF": PUT + b"a: b\r\r\n" + length,
        "folded": PUT + b"a: b\r\n c\r\n" + length,
        "folded with a tab": PUT + b"a: b\r\n\tc\r\n" + length,
        "space before the first header": b"PUT " + target + b" HTTP/1.1\r\n host: x\r\n" + length,
        "space before a colon": PUT + b"a : b\r\n" + length,
        "no colon": PUT + b"a\r\n" + length,
        "no name": PUT + b": b\r\n" + length,
        "NUL in a name": PUT + b"a\0: b\r\n" + length,
        "NUL in a value": PUT + b"a: b\0\r\n" + length,
        "space in a name": PUT + b"a b: c\r\n" + length,
        "letter beyond ASCII in a name": PUT + b"\xe4: c\r\n" + length,
        "space behind the version": b"PUT " + target + b" HTTP/1.1 \r\nhost: x\r\n" + length,
        "tab for a space": b"PUT\t" + target + b"\tHTTP/1.1\r\nhost: x\r\n" + length,
        "space in the target": b"PUT " + target + b" b HTTP/1.1\r\nhost: x\r\n" + length,
        "LF in the target": b"PUT " + target + b"\nb HTTP/1.1\r\nhost: x\r\n" + length,
        "NUL in the target": b"PUT " + target + b"\0 HTTP/1.1\r\nhost: x\r\n" + length,
        "bytes beyond ASCII in the target": b"PUT " + target + b"\xc3\xa4 HTTP/1.1\r\nhost: x\r\n" + length,
        "HTTP/0.9": b"GET " + target + b"\r\n\r\n",
        "HTTP/0.9 by name": b"GET " + target + b" HTTP/0.9\r\nhost: x\r\n\r\n",
        "HTTP/1.2": PUT.replace(b"1.1", b"1.2") + length,
        "HTTP/2.0": PUT.replace(b"1.1", b"2.0") + length,
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "nonsense": b"nonsense\r\n\r\n",
        "method in small letters": b"put " + target + b" HTTP/1.1\r\nhost: x\r\n" + length,
    }  # fmt: skip
    cases = [_refused(f"line: {name}", raw + SMUGGLED) for name, raw in refused.items()]
    return [
        *cases,
        Case("line: HTTP/1.0 is closed behind", PUT.replace(b"1.1", b"1.0") + length + SMUGGLED * 2, (200,)),
        Case("line: HTTP/1.0 without a length", PUT.replace(b"1.1", b"1.0") + b"\r\n" + SMUGGLED, (411,)),
        Case("line: closed by the client", PUT + b"connection: close\r\n" + length + SMUGGLED * 2, (200,)),
        _served("line: empty ones in front", b"\r\n\r\n" + PUT + length + SMUGGLED),
        _served("line: two spaces", PUT.replace(b" ", b"  ", 1) + length + SMUGGLED),
    ]


def _targets() -> list[Case]:
    """Whom a request is for (RFC 9112, sections 3.2 and 3.3): nothing here depends on a host's name."""
    length = b"content-length: %d\r\n\r\n" % SIZE
    put = b"PUT %s HTTP/1.1\r\n%s" + length + SMUGGLED
    own = f"{ROOT}/carrier".encode()
    return [
        _served("target: absolute", put % (b"http://elsewhere" + own, b"host: elsewhere\r\n")),
        _served("target: absolute, another host", put % (b"http://elsewhere" + own, b"host: x\r\n")),
        _refused("target: absolute, no path", put % (b"http://elsewhere", b"host: x\r\n")),
        _refused("target: authority", put % (b"elsewhere:80", b"host: x\r\n")),
        _refused("target: of a proxy", b"CONNECT elsewhere:80 HTTP/1.1\r\nhost: x\r\n" + length + SMUGGLED, 501),
        _served("target: asterisk", put.replace(b"PUT", b"OPTIONS", 1) % (b"*", b"host: x\r\n"), 404),
        _served("host: twice", put % (own, b"host: x\r\nhost: y\r\n"), 400),
        _served("host: twice the same", put % (own, b"host: x\r\nhost: x\r\n"), 400),
        _served("host: none", put % (own, b""), 400),
    ]


def _bodies() -> list[Case]:
    """Bodies of requests whose methods give them no meaning (RFC 9110, section 9.3.1): they are bodies all the same."""
    cases = []
    for method, target, status in (
        ("GET", f"{ROOT}/absent", 404), ("HEAD", f"{ROOT}/absent", 404), ("DELETE", f"{ROOT}/absent", 204),
        ("GET", "/health", 200), ("POST", "/health", 405), ("PATCH", f"{ROOT}/absent", 400),
        ("OPTIONS", f"{ROOT}/k", 405),
        ("PUT", "/v1/objects/ab/_/k", 400), ("POST", "/nowhere", 404), ("TRACE", f"{ROOT}/k", 405),
    ):  # fmt: skip
        start = f"{method} {target} HTTP/1.1\r\nhost: x\r\n".encode()
        cases.append(
            _served(f"body: {method} {target}", start + b"content-length: %d\r\n\r\n" % SIZE + SMUGGLED, status)
        )
        # Of a body without a known length, that was not read, the end is not waited for. PATCH reads it.
        chunked = start + b"transfer-encoding: chunked\r\n\r\n" + CHUNK + END
        cases.append(Case(f"body: chunked {method} {target}", chunked, (status,), goes_on=method == "PATCH"))
    return cases


CASES = [*_lengths(), *_both(), *_codings(), *_chunks(), *_lines(), *_targets(), *_bodies()]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[Running]:
    """A server that does not wait long for what clients still send when they have been refused."""
    async with running(replace(LIMITS, linger_seconds_max=0.02)) as up:
        yield up
        assert up.failures == []


async def _exchanged(connection: Connection, sent: bytes, *, bytewise: bool) -> bytes:
    """All that comes until the connection ends, which the server sees to."""

    async def send() -> None:
        try:
            for start in range(len(sent)) if bytewise else (0,):
                await connection.send(sent[start : start + 1] if bytewise else sent)
                await asyncio.sleep(0)
        except ConnectionError:
            pass  # refused before all was sent

    sending = asyncio.create_task(send())
    received = await connection.rest()
    await sending
    return received


SENT_BYTE_BY_BYTE_MAX = 10_000
"""What is longer would take long, and show no more."""


@pytest.mark.parametrize(
    ("case", "bytewise"),
    [pytest.param(case, False, id=f"{case.name}, at once") for case in CASES]
    + [
        pytest.param(case, True, id=f"{case.name}, byte by byte")
        for case in CASES
        if len(case.raw) <= SENT_BYTE_BY_BYTE_MAX
    ],
)
async def test_nothing_is_smuggled(server: Running, case: Case, bytewise: bool) -> None:
    """A request gets its one answer; then its connection ends, or the next request is taken for what it is.

    What it carries in its body, or in what is none, is not executed.
    """
    async with server.connect() as connection:
        received = await _exchanged(connection, case.raw + PROBE, bytewise=bytewise)
    statuses = tuple(int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", received))
    expected = (*case.statuses, *([404] if case.goes_on else []))
    if case.may_be_cut_short:
        expected = expected[: len(statuses)]
    assert statuses == expected
    assert received.count(b"\r\nx-request-id: ") == len(statuses)
    assert (b"\r\nx-request-id: probe\r\n" in received) == case.goes_on
    await eventually("what was begun has ended", lambda: len(server.mutations) == 0)
    assert (await server.request("GET", f"{ROOT}/smuggled")).status == 404


@pytest.mark.parametrize("pause", [0, 0.05])
@pytest.mark.parametrize(
    "start",
    [
        f"GET {ROOT}/big HTTP/1.1\r\nhost: x\r\n{UPGRADE}content-length: {len(SMUGGLED)}\r\n\r\n",
        f"GET {ROOT}/absent HTTP/1.1\r\nhost: x\r\n{UPGRADE}content-length: {len(SMUGGLED)}\r\n\r\n",
        f"GET {ROOT}/big HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n",
        f"PUT {ROOT}/other HTTP/1.1\r\nhost: x\r\n{UPGRADE}content-length: 0\r\n\r\n",
        f"GET /health HTTP/1.1\r\nhost: x\r\n{UPGRADE}content-length: {len(SMUGGLED)}\r\n\r\n",
        f"CONNECT {ROOT}/absent HTTP/1.1\r\nhost: x\r\ncontent-length: {len(SMUGGLED)}\r\n\r\n",
        "CONNECT elsewhere:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_nothing_is_smuggled_behind_an_upgrade(start: str, pause: float) -> None:
    """What follows an offered upgrade, or CONNECT, is never taken for a request, and the connection is closed."""
    async with running() as server:
        await server.request("PUT", f"{ROOT}/big", (), b"x" * 300_000)
        async with server.connect() as connection:
            await connection.send(start.encode())
            await asyncio.sleep(pause)
            await connection.send(SMUGGLED)
            received = await connection.rest()
            assert received.count(b"HTTP/1.1 ") == 1
            assert (b"HTTP/1.1 501" in received) == start.startswith("CONNECT")
        assert (await server.request("GET", f"{ROOT}/smuggled")).status == 404
