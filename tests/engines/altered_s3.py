"""A proxy before a real S3 that changes what is asked or answered: what other stores do that SeaweedFS does not.

Guarantees: what no rule changes passes as it is. A rule sees whole requests and answers, so it is for small ones.
"""

import io
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from tests.engines.engine import HOST
from tests.engines.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY, SeaweedFs

_BODY_BYTES_MAX = 64 << 20
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


@dataclass(slots=True)
class Asked:
    """A request, which a rule may change."""

    method: str
    name: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Answered:
    """An answer, which a rule may change."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Before = Callable[[Asked], Answered | None]
After = Callable[[Asked, Answered], Answered]


def error(status: int, code: str, **headers: str) -> Answered:
    """An error as S3 writes it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said so</Message></Error>"
    return Answered(status, body.encode(), {name.replace("_", "-"): text for name, text in headers.items()})


class AlteredS3:
    """The proxy, serving while its context lasts. ``before`` may answer for the store, ``after`` change answers."""

    def __init__(self, engine: SeaweedFs) -> None:
        self._engine = engine
        self.before: Before = lambda _: None
        self.after: After = lambda _, answered: answered
        self.asked: list[Asked] = []
        """All requests so far."""
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{HOST}:{self.port}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        app.router.add_route("*", "/{name:.*}", self._serve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        headers = {name: text for name, text in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        name = request.path.removeprefix(f"/{self._engine.bucket}").removeprefix("/")
        asked = Asked(request.method, name, dict(request.query), headers, await request.read())
        self.asked.append(asked)
        answered = self.before(asked)
        if answered is None:
            answered = self.after(asked, await self._forwarded(request, asked))
        return web.Response(status=answered.status, body=answered.body, headers=answered.headers)

    async def _forwarded(self, request: web.Request, asked: Asked) -> Answered:
        if self._session is None:
            return error(500, "NotServing")
        url = URL(f"{self._engine.url}{request.raw_path}", encoded=True)
        if asked.query != dict(request.query):  # which is signed
            url, asked.headers = self._signed(asked)
        answering: Awaitable[aiohttp.ClientResponse] = self._session.request(
            asked.method,
            url,
            headers=asked.headers,
            data=io.BytesIO(asked.body) if asked.body else None,
            allow_redirects=False,
        )
        answer = await answering
        body = await answer.read()
        headers = {name: text for name, text in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
        return Answered(answer.status, body, headers)

    def _signed(self, asked: Asked) -> tuple[URL, dict[str, str]]:
        query = urlencode(sorted(asked.query.items()), quote_via=quote, safe="")
        url = f"{self._engine.url}/{self._engine.bucket}/{asked.name}?{query}"
        signed = AWSRequest(asked.method, url, data=asked.body)
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", REGION).add_auth(signed)
        return URL(url, encoded=True), {name: str(text) for name, text in signed.headers.items()}


class OpaqueTags:
    """Rules of a store whose ETags are not made of MD5s, as with keys of one's own (SSE-KMS) at AWS."""

    @staticmethod
    def disguised(etag: str) -> str:
        """Another ETag in the place of each, and back."""
        return etag[::-1]

    def after(self, asked: Asked, answered: Answered) -> Answered:
        """For `AlteredS3.after`."""
        for name in [name for name in answered.headers if name.lower() == "etag"]:
            answered.headers[name] = f'"{self.disguised(answered.headers[name].strip(chr(34)))}"'
        if answered.body.startswith(b"<?xml"):
            answered.body = re.sub(rb"(<ETag>(?:&#34;)?)([^<&]+)((?:&#34;)?</ETag>)", self._turned, answered.body)
        return answered

    def before(self, asked: Asked) -> None:
        """For `AlteredS3.before`."""
        if asked.method == "POST" and "uploadId" in asked.query:
            asked.body = re.sub(rb'(<ETag>")([^"<]+)("</ETag>)', self._turned, asked.body)

    @staticmethod
    def _turned(found: "re.Match[bytes]") -> bytes:
        return found[1] + found[2][::-1] + found[3]
