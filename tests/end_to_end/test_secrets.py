"""No token, signature, key or payload is written down: not in a log at any level, an error, or what commands print.

A real server, two workers, at level debug; then everything that it has written and answered is searched for everything
that was secret, as it was sent and in other spellings.
"""

import base64
import http.client
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.end_to_end.helpers import flip_bit
from tests.http.certificates import HOST, Authority, trusting
from tests.http.credentials import ALL, Signer
from tests.http.hostile_credentials import PATH, Keys, corpus
from tierstore.limits import MIB
from tierstore.testing.server import ServerFailed, ServerProcess

KEYS = Keys(Signer("known"), Signer("reader"), Signer("writer"), Signer("stranger"))
SECRET_CHARACTERS_MIN = 24
"""Shorter parts of what is sent are words of the protocol, or ids of keys, which the log is to have."""
CASES_MIN = 300
MARKER = "MARKER" + "9f8e7d6c5b4a39281706f5e4d3c2b1a0"


class Exchanges:
    """Sends requests over TLS, and keeps all that was answered, and all that was secret."""

    def __init__(self, server: ServerProcess, trust: ssl.SSLContext) -> None:
        self._server = server
        self._trust = trust
        self.answers: list[bytes] = []
        self.secrets: set[str] = set()

    def send(self, raw: bytes) -> int:
        """One request, as it is, on a connection of its own; return its status, 0 if it has no answer."""
        with (
            socket.create_connection((HOST, self._server.port), timeout=20) as plain,
            self._trust.wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            connection.sendall(raw)
            response = http.client.HTTPResponse(connection, method=raw.partition(b" ")[0].decode("latin-1"))
            try:
                response.begin()
                self.answers.append(bytes(response.headers) + response.read())
            except (OSError, http.client.HTTPException):
                return 0
        return response.status

    def ask(self, method: str, target: str, headers: tuple[tuple[str, str], ...] = (), body: bytes = b"") -> int:
        """One request; return its status."""
        lines = [("host", "x"), ("connection", "close"), *headers, ("content-length", str(len(body)))]
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return self.send(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)

    def keep_secret(self, *texts: str) -> None:
        """These, and each part of them that is long enough to be one of a token."""
        for text in texts:
            parts = text.translate(dict.fromkeys(map(ord, "=&. ,;?#%"), "\n")).split("\n")
            self.secrets.update(part for part in parts if len(part) >= SECRET_CHARACTERS_MIN)


def spellings(secret: str) -> Iterator[str]:
    """A secret as it is, and as it could be written by what encodes it."""
    raw = secret.encode("latin-1", "replace")
    yield secret
    yield quote(secret, safe="")
    yield "".join(f"%{byte:02X}" for byte in raw)
    yield raw.hex()
    for shift in range(3):  # base64 within a longer text: what does not depend on the neighbours
        yield base64.b64encode(b"x" * shift + raw).decode()[4:-4]
    padding = "=" * (-len(secret) % 4)
    try:
        yield base64.urlsafe_b64decode(secret + padding).hex()
    except ValueError:
        return


def leaked(secrets: set[str], text: str) -> list[str]:
    """The secrets that are in ``text``, in any spelling."""
    return [secret for secret in secrets if any(spelled in text for spelled in spellings(secret) if len(spelled) > 16)]


def config_with(keys: Path, tls: tuple[Path, Path]) -> str:
    """Settings with the public halves of `KEYS`, and a certificate."""
    known = []
    for signer in (KEYS.known, KEYS.reader, KEYS.writer):
        file = keys / f"{signer.kid}.pem"
        file.write_text(signer.public_pem)
        permissions = ALL if signer is KEYS.known else [f"object.{'read' if signer is KEYS.reader else 'write'}"]
        known.append(f"    {signer.kid}: {{files: [{file}], max_permissions: [{', '.join(permissions)}]}}\n")
    certificate, key = tls
    return f"tls: {{certificate: {certificate}, key: {key}}}\nauth:\n  keys:\n{''.join(known)}"


def private_lines(pem: str) -> list[str]:
    """What is secret of a private key's text."""
    return [line for line in pem.splitlines() if "-----" not in line]


def private_pem(private: Ed25519PrivateKey) -> str:
    """A private key as its owner has it."""
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_nothing_secret_is_written_down(tmp_path: Path) -> None:
    """After hostile and honest requests of every kind, faults included, no secret is in any log line or answer."""
    authority = Authority()
    ca = authority.write(tmp_path / "ca.crt")
    certificate, key = authority.issue(tmp_path, "server")
    config = tmp_path / "tierstore.yaml"
    config.write_text(config_with(tmp_path, (certificate, key)))
    arguments = ["--config", str(config), "--log-level", "debug"]
    data = tmp_path / "data"
    with ServerProcess(data, workers=2, auth=True, arguments=arguments, tls=trusting(ca)) as server:
        exchanges = Exchanges(server, trusting(ca))
        exchanges.keep_secret(*private_lines(key.read_text()))
        _hostile_requests(exchanges)
        _honest_requests(exchanges)
        _requests_that_are_none(exchanges)
        _broken_store(exchanges, data)
        log = server.log_text
        statuses = {line["status"] for line in server.logs("request")}
        assert statuses >= {200, 204, 206, 400, 401, 403, 404, 500, 501}
        assert len(server.logs("request")) > CASES_MIN
        assert len({line["pid"] for line in server.logs("request")}) == 2
        faults = server.logs("request failed")
        assert len(faults) == 2
        assert all(fault["exception"][0]["frames"] for fault in faults)
    assert len(exchanges.secrets) > CASES_MIN
    assert leaked(exchanges.secrets, log) == []
    # An answer to an honest read holds the payload, and what was stored with it; its headers and errors hold no token.
    answered = b"\n".join(exchanges.answers).decode("latin-1")
    assert leaked({secret for secret in exchanges.secrets if MARKER not in secret}, answered) == []


def _hostile_requests(exchanges: Exchanges) -> None:
    good = (("x-os-auth", KEYS.known.token()),)
    assert exchanges.ask("PUT", PATH, good, b"x") == 200
    for case in corpus(KEYS):
        exchanges.ask(case.method, case.target, case.headers)
        kids = {"k" * 128, "k" * 129}
        given = [value for name, value in case.headers if name != "host"] + [case.target.partition("?")[2]]
        exchanges.keep_secret(*given)
        exchanges.secrets -= kids  # ids of keys, which the log is to have


def _honest_requests(exchanges: Exchanges) -> None:
    """Every kind of request, with markers wherever a client puts something of its own."""
    token = KEYS.known.token(permissions=list(ALL))
    exchanges.keep_secret(token, MARKER)
    payload = MARKER.encode()
    stored = (("x-snme-marker", MARKER), ("x-sn-origin", MARKER), ("x-sn-filename", MARKER), ("cookie", MARKER))
    bearers = (
        ("", (("x-os-auth", token),)),
        ("", (("x-os-auth", f"Bearer {token}"),)),
        ("", (("authorization", f"Bearer {token}"),)),
        (f"?os_auth={token}", ()),
        (f"?os_auth={token.replace('.', '%2E')}", ()),
    )
    for query, headers in bearers:
        assert exchanges.ask("PUT", f"{PATH}{query}", (*headers, *stored), payload) == 200
        assert exchanges.ask("GET", f"{PATH}{query}", headers) == 200
        assert exchanges.ask("GET", f"{PATH}{query}", (*headers, ("range", "bytes=0-3"))) == 206
        assert exchanges.ask("HEAD", f"{PATH}{query}", headers) == 204
        assert exchanges.ask("GET", f"{PATH}-absent{query}", headers) == 404
        assert exchanges.ask("PATCH", f"{PATH}{query}", headers, payload) == 400
        assert exchanges.ask("DELETE", f"{PATH}{query}", (*headers, ("if-match", MARKER))) == 501
    bearer = bearers[0][1]
    for name in ("content-type", "content-encoding", "x-sn-expiration", "content-md5", "x-snme-bad\x00", "expect"):
        exchanges.ask("PUT", PATH, (*bearer, (name, f"{MARKER} \xe9")), payload)
    exchanges.ask("GET", PATH, (*bearer, ("range", MARKER)))
    parts = PATH.replace("objects", "objects:multipart:parts")
    complete = PATH.replace("objects", "objects:multipart:complete")
    for method, target in (
        ("PUT", f"{parts}?upload_id={MARKER}&part_number={MARKER}"),
        ("GET", f"{parts}?upload_id={MARKER}&max_parts={MARKER}"),
        ("POST", f"{complete}?upload_id={MARKER}"),
        ("PUT", f"{PATH}?upload_type={MARKER}"),
        ("POST", f"/v1/objects:batch/testing/org=1/?a={MARKER}"),
    ):
        exchanges.ask(method, target, bearer, payload)
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    presigned = KEYS.known.presigned(PATH, timestamp=now)
    exchanges.keep_secret(presigned.partition("os_sig=")[2])
    assert exchanges.ask("GET", presigned) == 200
    for wrong in (presigned[:-4], f"{presigned}AAAA", presigned.replace("org=1", "org=2"), f"{presigned}&x={token}"):
        assert exchanges.ask("GET", wrong) in {400, 401}
    assert exchanges.ask("DELETE", presigned) == 403


def _requests_that_are_none(exchanges: Exchanges) -> None:
    """What the parser refuses, with a token in every place that it may quote."""
    token = KEYS.known.token(exp=4_000_000_000)
    exchanges.keep_secret(token)
    end = b"\r\nhost: x\r\nconnection: close\r\n\r\n"
    for raw in (
        f"GET {PATH}?os_auth={token} HTTP/9.9".encode() + end,
        f"GET {PATH}?os_auth={token} HTTP/1.1\r\nbad name: {token}".encode() + end,
        f"GET {PATH}?os_auth={token} HTTP/1.1\r\nx-os-auth : {token}".encode() + end,
        f"GET {PATH}?os_auth={token} HTTP/1.1\r\nx-os-auth: {token}\x01".encode() + end,
        f"GET {PATH}?os_auth={token} HTTP/1.1\r\nx-os-auth: {token}\r\n folded".encode() + end,
        f"GET {PATH}?os_auth={token} HTTP/1.1\r\nx-os-auth: {token}\r\nx-os-auth: {token}".encode() + end,
        f"GET http://user:{token}@x{PATH}?os_auth={token} HTTP/1.1".encode() + end,
        f"GET {PATH}\x7f?os_auth={token} HTTP/1.1".encode() + end,
        f"GET {PATH}?os_auth={token}\xff HTTP/1.1".encode("latin-1") + end,
        f"{token} {PATH} HTTP/1.1".encode() + end,
        f"x-os-auth: {token}\r\n\r\n".encode(),
        f"PUT {PATH}?os_auth={token} HTTP/1.1\r\ncontent-length: {token}".encode() + end,
        f"PUT {PATH}?os_auth={token} HTTP/1.1\r\ntransfer-encoding: {token}".encode() + end,
        f"PUT {PATH}?os_auth={token} HTTP/1.1\r\ntransfer-encoding: chunked".encode() + end + token.encode(),
        f"GET {PATH}?os_auth={token * 300} HTTP/1.1".encode() + end,
        f"GET {PATH} HTTP/1.1\r\nx-os-auth: {token * 600}".encode() + end,
        f"CONNECT {token} HTTP/1.1".encode() + end,
        f"GET {PATH}%3Fos_auth%3D{token} HTTP/1.1".encode() + end,
        f"GET {PATH}%3FOS_SIG={token.rpartition('.')[2]} HTTP/1.1".encode() + end,
        f"DELETE {PATH}#os_auth={token} HTTP/1.1".encode() + end,
        f"DELETE {PATH}/{token}/x HTTP/1.1\r\nx-os-auth: {token}".encode() + end,
        f"OPTIONS * HTTP/1.1\r\nx-os-auth: {token}".encode() + end,
        f"POST /metrics?os_auth={token} HTTP/1.1".encode() + end,
        f"GET /nowhere?os_auth={token} HTTP/1.1".encode() + end,
    ):
        exchanges.send(raw)


def _broken_store(exchanges: Exchanges, data: Path) -> None:
    """Reads of damaged objects: a 500 and a response cut off, with tracebacks through what had token and payload."""
    token = KEYS.known.token(exp=3_999_999_999)
    exchanges.keep_secret(token)
    headers = (("x-os-auth", token), ("cookie", MARKER))
    for name, size, status in (("small", 20_000, 500), ("large", 2 * MIB, 0)):
        payload = MARKER.encode() + os.urandom(size)
        target = f"{PATH}-damaged-{name}?os_auth={token}"
        assert exchanges.ask("PUT", target, headers, payload) == 200
        assert flip_bit(data, payload, 1000) >= 1
        assert exchanges.ask("GET", target, headers) == status


def test_a_private_key_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    """A key that is given where another is wanted is refused, by each command, without a word of it."""
    authority = Authority()
    certificate, tls_key = authority.issue(tmp_path, "server")
    pem = private_pem(KEYS.known.private)
    key_file = tmp_path / "private.pem"
    key_file.write_text(pem)
    lines = [line for text in (pem, tls_key.read_text()) for line in private_lines(text)]
    secrets = {*lines, *(line[24:48] for line in lines if len(line) >= 48)}  # behind what all keys begin with
    inline = pem.replace("\n", "\\n")
    for number, text in enumerate(
        (
            f'auth: {{keys: {{k: {{public_keys: ["{inline}"], max_permissions: [object.read]}}}}}}',
            f"auth: {{keys: {{k: {{files: [{key_file}], max_permissions: [object.read]}}}}}}",
            f'auth: {{keys: {{k: "{inline}"}}}}',
            f'auth: {{keys: ["{inline}"]}}',
            f'tls: {{certificate: "{inline}", key: {tls_key}}}',
            f"tls: {{certificate: {certificate}, key: {certificate}}}",
            f"tls: {{certificate: {tls_key}, key: {tls_key}}}",
            f"tls: {{certificate: {certificate}, key: {tls_key}, client_ca: {tls_key}}}",
        )
    ):
        config = tmp_path / f"{number}.yaml"
        config.write_text(text)
        with (
            pytest.raises(ServerFailed) as failed,
            ServerProcess(tmp_path / "data", auth=True, arguments=["--config", str(config)]),
        ):
            raise AssertionError("it started")
        shown = str(failed.value) + "".join(
            _shown("config", name, "--config", str(config)) for name in ("show", "check")
        )
        assert leaked(secrets, shown) == [], text
    assert leaked(secrets, _shown("serve", "--help") + _shown("--help")) == []


def _shown(*arguments: str) -> str:
    """What a command prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIERSTORE__")}
    command = [sys.executable, "-m", "tierstore", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    return ended.stdout + ended.stderr


def test_the_search_finds_what_it_looks_for() -> None:
    """Every spelling of a secret, in the middle of something, is found; its neighbours are not."""
    secret = Signer("x").token().rpartition(".")[2]
    for spelled in spellings(secret):
        assert leaked({secret}, f"before{spelled}after") == [secret]
    assert leaked({secret}, secret[::-1]) == []
