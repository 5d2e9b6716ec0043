"""Fuzzer of credentials, while authentication is enforced: refused, and never written down."""

import re
from dataclasses import dataclass
from urllib.parse import quote

from hypothesis import strategies as st

from tests.fuzz.raw_client import QUIET_TURNS, RawClient
from tests.fuzz.serving import FuzzedServer
from tests.http.harness import head

_ROOT = "/v1/objects/testing/_"
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
MARK = "c0nf1dent1al"
"""Is in every credential; nobody else would write it."""
_TOKENS = st.one_of(
    st.builds(
        "{}{}.{}.{}".format,
        st.sampled_from(["eyJhbGciOiJFZERTQSIsImtpZCI6ImEifQ", "e30", "", "eyJhbGciOiJub25lIn0", "\xff"]),
        st.sampled_from(["", "=", "=="]),
        st.sampled_from(["", "eyJleHAiOjF9", "e30"]).map(lambda text: text + MARK),
        st.sampled_from(["", "c2ln", MARK, " ", "\t", "\xe9"]),
    ),
    st.builds(
        lambda text: f"{MARK}{text}{MARK}", st.text(st.characters(min_codepoint=0, max_codepoint=0xFF), max_size=10)
    ),
    st.sampled_from([1, 2_000, 40_000]).map(lambda times: MARK * times),
)
_SCHEMES = st.sampled_from(["Bearer ", "bearer ", "BEARER  ", "Basic ", "Digest username=", "", "Bearer", "Bearer\t"])


@dataclass(frozen=True)
class Credentials:
    """A request with credentials in some of the places where they may be."""

    method: str
    target: str
    x_os_auth: str | None
    authorization: str | None
    os_auth: str | None

    @property
    def raw(self) -> bytes:
        """Its bytes."""
        target = self.target + (f"?a=b&os_auth={quote(self.os_auth, safe='')}&os_sig={MARK}" if self.os_auth else "")
        lines = [
            (name, value)
            for name, value in (("x-os-auth", self.x_os_auth), ("authorization", self.authorization))
            if value
        ]
        body = b"payload" if self.method in {"PUT", "POST"} else None
        return head(self.method, target, lines, body) + (body or b"")


WITH_CREDENTIALS = st.builds(
    Credentials,
    st.sampled_from(["GET", "PUT", "HEAD", "DELETE"]),
    st.sampled_from([f"{_ROOT}/k", "/v1/objects/testing/org=1;p=2/a/b"]),
    st.none() | st.builds("{}{}".format, _SCHEMES, _TOKENS),
    st.none() | st.builds("{}{}".format, _SCHEMES, _TOKENS),
    st.none() | _TOKENS,
)


class NeverWrittenDown:
    """The law of credentials: they are refused while authentication is enforced, and never in a log or an answer."""

    def __init__(self, server: FuzzedServer) -> None:
        self._server = server

    def __call__(self, credentials: Credentials) -> None:
        server = self._server
        stores = server.deploy()
        try:
            received = server.run(self._exchange(credentials.raw))
            log = server.logs.text
            assert MARK not in log, log
            assert MARK.encode() not in received, received
            statuses = [int(status) for status in _STATUS.findall(received)]
            assert statuses, "there was no answer"
            plain = all(
                value is None or _is_plain(value) for value in (credentials.x_os_auth, credentials.authorization)
            )
            allowed = {400, 401, 403} if plain and len(credentials.raw) < 16_000 else {400, 401, 403, 414, 431}
            assert statuses[0] in allowed, received
            if statuses[0] == 401:
                assert b"\r\nwww-authenticate: Bearer\r\n" in received
            assert server.run(server.deployment.stores.high_volume.scan("", None, 1)) == []
            server.check_nothing_failed()
        finally:
            server.logs.clear()
            server.run(stores.aclose())

    async def _exchange(self, raw: bytes) -> bytes:
        client = RawClient(self._server)
        try:
            await client.send([raw])
            await client.take(QUIET_TURNS)
            await client.end()
            return client.received
        finally:
            client.close()


def _is_plain(value: str) -> bool:
    return value.isprintable() or value.replace("\t", "").isprintable()
