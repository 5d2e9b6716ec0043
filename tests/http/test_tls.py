"""Encrypted connections: what they need, and that their bounds are those of others."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog

from tests.http.certificates import HOST, Authority, trusting
from tests.http.harness import LIMITS, ROOT, Connection, Running, eventually, head, running
from tierstore.clock import SystemClock
from tierstore.config import Tls
from tierstore.errors import ConfigError
from tierstore.limits import KIB, MIB
from tierstore.process import tls as process_tls
from tierstore.process.tls import ServerTls, check_tls, reloadable
from tierstore.testing.clock import ManualClock


@dataclass
class Pki:
    """An authority and the files of a server."""

    directory: Path
    authority: Authority
    tls: Tls

    @property
    def trust(self) -> ssl.SSLContext:
        """A client's context."""
        return trusting(self.directory / "ca.crt")


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """Files of a server, and of the authority behind them."""
    authority = Authority()
    authority.write(tmp_path / "ca.crt")
    certificate, key = authority.issue(tmp_path, "server")
    return Pki(tmp_path, authority, Tls(certificate=str(certificate), key=str(key)))


@asynccontextmanager
async def connected(server: Running, context: ssl.SSLContext) -> AsyncIterator[Connection]:
    """A connection through TLS."""
    reader, writer = await asyncio.open_connection(HOST, server.port, ssl=context)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


def subject(connection: Connection) -> str:
    """The name in the certificate that the server has shown."""
    return str(dict(pair for part in connection.writer.get_extra_info("peercert")["subject"] for pair in part))


async def test_objects_of_every_size(pki: Pki) -> None:
    """Objects come and go through TLS as without it, on one connection."""
    async with running(tls=ServerTls(pki.tls)) as server, connected(server, pki.trust) as connection:
        for size in (0, 1, 16 * KIB, LIMITS.object_bytes_max):
            payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            assert (await connection.request("PUT", f"{ROOT}/{size}", (), payload)).status == 200
            assert (await connection.request("GET", f"{ROOT}/{size}")).body == payload
        assert connection.writer.get_extra_info("ssl_object").version() == "TLSv1.3"


@pytest.mark.parametrize(
    ("lowest", "highest", "minimum", "taken"),
    [
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, "TLSv1.2", False),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "TLSv1.2", True),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "TLSv1.3", False),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, "TLSv1.3", True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_versions(pki: Pki, lowest: ssl.TLSVersion, highest: ssl.TLSVersion, minimum: str, taken: bool) -> None:
    """TLS 1.1 and older are refused whatever the settings are; 1.2 if they say so."""
    context = pki.trust
    context.set_ciphers("ALL:@SECLEVEL=0")  # or this client would not even ask for what is old
    context.minimum_version, context.maximum_version = lowest, highest
    tls = ServerTls(replace_tls(pki.tls, minimum_version=minimum))
    async with running(tls=tls) as server:
        if taken:
            async with connected(server, context) as connection:
                assert (await connection.request("GET", "/health")).status == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(HOST, server.port, ssl=context)


def replace_tls(tls: Tls, **changed: str) -> Tls:
    """``tls`` with other settings."""
    values = {name: getattr(tls, name) for name in Tls.__struct_fields__}
    return Tls(**{**values, **changed})


@contextmanager
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is logged that is an error, and the event loop does not complain."""
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        yield
    finally:
        loop.set_exception_handler(None)
    assert complaints == []
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []


@pytest.mark.parametrize(
    "sent", [b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\x00\x05hello", b"\xff"]
)
async def test_what_is_no_tls_is_closed(pki: Pki, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Plain HTTP, and nonsense, on the port: the connection ends, at the latest when its time is up; nothing breaks."""
    limits = replace(LIMITS, request_head_seconds_max=0.5)
    with quiet(caplog):
        async with running(limits, tls=ServerTls(pki.tls)) as server:
            async with server.connect() as connection:
                await connection.send(sent)
                async with asyncio.timeout(5):
                    answer = await connection.reader.read()
                assert not answer.startswith(b"HTTP")
            async with connected(server, pki.trust) as connection:
                assert (await connection.request("GET", "/health")).status == 200


async def test_handshakes_that_stall_are_ended(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that says nothing, or half a greeting, is closed when the time for a head is up."""
    limits = replace(LIMITS, request_head_seconds_max=0.3)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = pki.trust.wrap_bio(incoming, outgoing, server_hostname=HOST)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    greeting = outgoing.read()
    with quiet(caplog):
        async with running(limits, tls=ServerTls(pki.tls)) as server:
            for sent in (b"", greeting[:1], greeting[:-1], greeting):
                async with server.connect() as connection:
                    await connection.send(sent)
                    began = asyncio.get_running_loop().time()
                    async with asyncio.timeout(5):
                        while await connection.reader.read(65536):
                            pass
                    assert 0.2 < asyncio.get_running_loop().time() - began < 3


async def test_a_client_that_does_not_read_is_cut_off(pki: Pki) -> None:
    """A download of which nothing is taken is ended in the time that is allowed for it, as without TLS."""
    limits = replace(LIMITS, client_stall_seconds_max=0.5)
    async with running(limits, tls=ServerTls(pki.tls)) as server:
        async with connected(server, pki.trust) as connection:
            payload = bytes(LIMITS.object_bytes_max)
            assert (await connection.request("PUT", f"{ROOT}/large", (), payload)).status == 200
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # because it is a transport of both ways
            await connection.send(head("GET", f"{ROOT}/large"))
            await eventually("it is sent", lambda: server.long_term.open_streams == 1)
            await eventually("it is cut off", lambda: not server.connections)
        assert server.long_term.open_streams == 0


async def test_a_client_that_does_not_say_goodbye_is_let_go(pki: Pki) -> None:
    """The end of a connection waits for the client's part of it for as long as for any bytes, and no longer."""
    limits = replace(LIMITS, client_stall_seconds_max=0.5)
    async with running(limits, tls=ServerTls(pki.tls)) as server, server.connect() as raw:
        await ask_without_goodbye(raw, pki.trust, ("connection", "close"))
        await eventually("the request came", lambda: len(server.connections) == 1)
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            while await raw.reader.read(65536):  # the answer, the server's goodbye, and then the end; never ours
                pass
        assert 0.3 < asyncio.get_running_loop().time() - began < 5


async def ask_without_goodbye(
    raw: Connection, context: ssl.SSLContext, *headers: tuple[str, str], then: bytes = b""
) -> None:
    """A handshake and a request by a client that never answers the server's wish to end the connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            await raw.send(outgoing.read())
            incoming.write(await raw.reader.read(65536))
    client.write(head("GET", "/health", headers) + then)
    await raw.send(outgoing.read())


@pytest.mark.parametrize("why", ["stop", "keep-alive"])
async def test_an_idle_client_does_not_hold_its_connection(pki: Pki, why: str) -> None:
    """Idle clients, which read nothing, neither delay a stop nor keep a connection whose time is up."""
    began = asyncio.get_running_loop().time()
    async with (
        running(tls=ServerTls(pki.tls), grace_seconds=10, keep_alive_seconds=1) as server,
        server.connect() as raw,
    ):
        await ask_without_goodbye(raw, pki.trust)
        await eventually("it is connected", lambda: len(server.connections) == 1)
        if why == "stop":
            server.stop()
        await eventually("it is let go", lambda: not server.connections)
    assert asyncio.get_running_loop().time() - began < 4


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nhost: x\r\na", head("PUT", f"{ROOT}/k", [("content-length", "9")])]
)
async def test_clients_that_give_way_are_let_go(pki: Pki, sent: bytes) -> None:
    """Connections that are ended to make room for others are soon gone, though their clients never agree to it."""
    limits = replace(LIMITS, connections_max=4, patience_seconds=0.1)
    async with running(limits, tls=ServerTls(pki.tls), keep_alive_seconds=60) as server, AsyncExitStack() as stack:
        for number in range(4):
            raw = await stack.enter_async_context(server.connect())
            await ask_without_goodbye(raw, pki.trust, then=sent)
            await eventually("it is connected", lambda wanted=number + 1: len(server.connections) == wanted)
        await asyncio.sleep(0.2)
        for _ in range(4):
            connection = await stack.enter_async_context(connected(server, pki.trust))
            assert (await connection.request("GET", "/health")).status == 200
        await eventually("there are no more than may be", lambda: len(server.connections) <= 4)


async def test_a_slow_client_gets_what_is_left_at_the_end(pki: Pki) -> None:
    """A client that takes the end of its last answer slowly, but not too slowly, gets all of it."""
    limits = replace(LIMITS, client_stall_seconds_max=4.0)
    payload = bytes(6 * MIB)
    async with running(limits, tls=ServerTls(pki.tls)) as server, connected(server, pki.trust) as connection:
        assert (await connection.request("PUT", f"{ROOT}/slow", (), payload)).status == 200
        await connection.send(head("GET", f"{ROOT}/slow", [("connection", "close")]))
        await connection.response_head()
        taken = 0
        while chunk := await connection.reader.read(64 * KIB):
            taken += len(chunk)
            await asyncio.sleep(0.03)
        assert taken == len(payload)


async def test_reload_is_for_new_connections(pki: Pki) -> None:
    """After a reload new connections get the new certificate, also from clients that name no server; others go on."""
    tls = ServerTls(pki.tls)
    async with running(tls=tls) as server, connected(server, pki.trust) as before:
        assert "server" in subject(before)
        certificate, key = pki.authority.issue(pki.directory, "renewed")
        tls.reload(replace_tls(pki.tls, certificate=str(certificate), key=str(key)))
        assert (await before.request("GET", "/health")).status == 200
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = pki.trust
            context.maximum_version = version
            async with connected(server, context) as after:
                assert "renewed" in subject(after)
                assert (await after.request("GET", "/health")).status == 200
        for broken in (
            replace_tls(pki.tls, key=str(key)),
            replace_tls(pki.tls, certificate="/nowhere"),
            replace_tls(pki.tls, client_ca=str(key)),
        ):
            with pytest.raises(ConfigError):
                tls.reload(broken)
            async with connected(server, pki.trust) as after:
                assert "renewed" in subject(after)


async def test_clients_with_certificates(pki: Pki) -> None:
    """With a client authority, who has no certificate of it gets nothing, also after it has been exchanged."""
    clients, others = Authority("clients"), Authority("others")
    first = clients.write(pki.directory / "clients.crt")
    second = others.write(pki.directory / "others.crt")
    client, other = clients.issue(pki.directory, "client"), others.issue(pki.directory, "other")
    ca = pki.directory / "ca.crt"
    tls = ServerTls(replace_tls(pki.tls, client_ca=str(first)))
    async with running(tls=tls) as server:
        old = trusting(ca, client)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        for context, served in (
            (trusting(ca, client), True),
            (trusting(ca), False),
            (trusting(ca, other), False),
            (old, False),
        ):
            assert await answers(server, context) is served
        tls.reload(replace_tls(pki.tls, client_ca=str(second)))
        assert await answers(server, trusting(ca, other))
        assert not await answers(server, trusting(ca, client))


async def test_a_clients_certificate_is_looked_at_each_time(pki: Pki) -> None:
    """With a client authority no session is resumed, which would pass the certificate over; without one, it is."""
    clients = Authority("clients")
    ca = clients.write(pki.directory / "clients.crt")
    for tls, resumes in ((pki.tls, True), (replace_tls(pki.tls, client_ca=str(ca)), False)):
        context = trusting(pki.directory / "ca.crt", clients.issue(pki.directory, "client"))
        async with running(tls=ServerTls(tls)) as server:
            session, _ = await asyncio.to_thread(ask, server.port, context, None)
            _, resumed = await asyncio.to_thread(ask, server.port, context, session)
            assert resumed is resumes


def ask(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
    """One request, in a session that is resumed if the server does; the session, and whether it was."""
    with (
        socket.create_connection((HOST, port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=HOST, session=session) as connection,
    ):
        connection.sendall(head("GET", "/health"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        return connection.session, bool(connection.session_reused)


async def answers(server: Running, context: ssl.SSLContext) -> bool:
    """Whether a request is answered; a client's certificate is judged after the client's own handshake (TLS 1.3)."""
    try:
        async with connected(server, context) as connection:
            return (await connection.request("GET", "/health")).status == 200
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return False


def test_files_that_are_wrong(pki: Pki) -> None:
    """What is wrong is said with the setting, the file and the reason, all at once, and with nothing of the file."""
    other_certificate, other_key = pki.authority.issue(pki.directory, "other")
    _, encrypted = pki.authority.issue(pki.directory, "encrypted", password=b"secret")
    nonsense = pki.directory / "nonsense"
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nMARKER\n-----END CERTIFICATE-----\n")
    large = pki.directory / "large"
    large.write_bytes(bytes(2**20 + 1))
    for changed, words in (
        ({"certificate": "/nowhere"}, ["tls.certificate: the file /nowhere cannot be read: No such file"]),
        ({"key": "/nowhere"}, ["tls.key: the file /nowhere cannot be read"]),
        ({"certificate": str(pki.directory)}, ["tls.certificate: ", "is no regular file"]),
        ({"certificate": str(nonsense)}, ["tls.certificate: ", "holds no certificate in PEM"]),
        ({"certificate": pki.tls.key}, ["holds no certificate in PEM"]),
        ({"key": pki.tls.certificate}, ["tls.key: ", "holds no private key in PEM"]),
        ({"key": str(nonsense)}, ["holds no private key in PEM"]),
        ({"key": str(encrypted)}, ["is encrypted"]),
        ({"key": str(other_key)}, ["is not that of the certificate"]),
        ({"certificate": str(other_certificate)}, ["is not that of the certificate"]),
        ({"client_ca": str(nonsense)}, ["tls.client_ca: ", "holds no certificate in PEM"]),
        ({"certificate": str(large)}, ["too large"]),
        (
            {"certificate": "/nowhere", "key": str(nonsense), "client_ca": "/none"},
            ["/nowhere", "no private key", "/none"],
        ),
    ):
        with pytest.raises(ConfigError) as error:
            ServerTls(replace_tls(pki.tls, **changed))
        assert [word for word in words if word not in str(error.value)] == []
        assert "MARKER" not in str(error.value)


@pytest.fixture
def capture() -> Iterator[list[structlog.typing.EventDict]]:
    """What is logged, whatever an earlier test has configured."""
    vars(process_tls.log).pop("bind", None)
    with structlog.testing.capture_logs() as lines:
        yield lines


def test_what_is_dangerous_is_said(pki: Pki, capture: list[structlog.typing.EventDict]) -> None:
    """A key that others can read, and a certificate that has expired, are warnings; neither is in the way."""
    clock = ManualClock()
    check_tls(pki.tls, SystemClock())
    assert capture == []
    Path(pki.tls.key).chmod(0o644)
    check_tls(pki.tls, SystemClock())
    assert [str(line["event"])[:35] for line in capture] == ["other users of this machine can read"[:35]]
    capture.clear()
    Path(pki.tls.key).chmod(0o640)
    check_tls(pki.tls, clock)  # whose time is another
    assert [str(line["event"])[:29] for line in capture] == ["the certificate is not valid "]


def test_what_can_be_reloaded(pki: Pki) -> None:
    """Other files can; whether there is TLS, whether clients need certificates, and the version cannot."""
    assert reloadable(pki.tls, replace_tls(pki.tls, certificate="a", key="b"))
    assert reloadable(Tls(), Tls())
    for other in (Tls(), replace_tls(pki.tls, client_ca="a"), replace_tls(pki.tls, minimum_version="TLSv1.3")):
        assert not reloadable(pki.tls, other)


async def stalled(server: Running, stack: AsyncExitStack, sent: bytes) -> asyncio.StreamReader:
    """A connection that has begun a handshake with these bytes, and sends nothing more."""
    connection = await stack.enter_async_context(server.connect())
    await connection.send(sent)
    return connection.reader


def client_hello(context: ssl.SSLContext) -> bytes:
    """How a client begins."""
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["silent", "half a hello", "a hello"])
async def test_handshakes_are_connections(pki: Pki, share: float) -> None:
    """Handshakes that stall count as connections, and give way to others when their clients have had their time."""
    hello = client_hello(pki.trust)
    limits = replace(LIMITS, connections_max=8, patience_seconds=0.1)
    async with running(limits, tls=ServerTls(pki.tls)) as server, AsyncExitStack() as stack:
        stalling = [
            await stalled(server, stack, hello[: int(len(hello) * share)]) for _ in range(limits.connections_max)
        ]
        await eventually("they are counted", lambda: len(server.crowd) == limits.connections_max)
        await asyncio.sleep(0.15)
        async with connected(server, pki.trust) as connection:
            assert (await connection.request("GET", "/health")).status == 200
            assert len(server.crowd) == limits.connections_max
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                await stalling[0].read()
        for reader in stalling[1:]:
            assert not reader.at_eof()
    assert len(server.crowd) == 0


async def test_a_handshake_has_its_time(pki: Pki) -> None:
    """While no handshake has had its time it is the new client that gets none, without a word."""
    limits = replace(LIMITS, connections_max=2, patience_seconds=60.0)
    async with running(limits, tls=ServerTls(pki.tls)) as server, AsyncExitStack() as stack:
        for _ in range(limits.connections_max):
            await stalled(server, stack, b"")
        await eventually("they are counted", lambda: len(server.crowd) == limits.connections_max)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(HOST, server.port, ssl=pki.trust)
    assert len(server.crowd) == 0


async def test_handshakes_do_not_keep_a_server_from_stopping(pki: Pki) -> None:
    """A server that stops waits for no handshake, and ends them all."""
    async with running(tls=ServerTls(pki.tls), grace_seconds=60) as server, AsyncExitStack() as stack:
        reader = await stalled(server, stack, client_hello(pki.trust)[:10])
        await eventually("it is counted", lambda: len(server.crowd) == 1)
        server.stop()
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                await reader.read()
    assert len(server.crowd) == 0
