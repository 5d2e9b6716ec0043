"""The service as raw aiohttp requests. Each write has a connection of its own: aiohttp must not send it twice."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import aiohttp
import zstandard

from tests.end_to_end.helpers import send_once
from tests.kill.answers import Answer, Found, Verdict
from tests.kill.history import Write
from tests.kill.sessions import MISMATCH

USECASE, SCOPES = "killed", "org=1"
_OBJECTS, _UPLOADS = f"/v1/objects/{USECASE}/{SCOPES}", f"/v1/objects:multipart/{USECASE}/{SCOPES}"
_PARTS, _COMPLETE = (
    f"/v1/objects:multipart:parts/{USECASE}/{SCOPES}",
    f"/v1/objects:multipart:complete/{USECASE}/{SCOPES}",
)
_CHUNK_BYTES = 48 * 1024
_CHUNK_PAUSE_SECONDS = 0.01

_VERDICTS = {404: Verdict.ABSENT, 429: Verdict.REFUSED, 503: Verdict.UNKNOWN, 507: Verdict.REFUSED}
_ADVISED = {429, 503, 507}
"""Statuses that come with advice when to try again."""


def verdict_of(status: int) -> Verdict:
    """What a status says, of requests in which there is nothing to mistake."""
    return Verdict.DONE if 200 <= status < 300 else _VERDICTS.get(status, Verdict.WRONG)


def completion_of(start: float, body: bytes) -> Answer:
    """What the whole body of the answer to a completion says."""
    end = time.monotonic()
    try:
        outcome = json.loads(body)
        code, key = outcome.get("error", {}).get("code", ""), outcome.get("key")
    except (ValueError, AttributeError):
        return Answer(start, end, Verdict.WRONG, f"200 with the body {body[:200]!r}")
    if bool(code) == bool(key):
        return Answer(start, end, Verdict.WRONG, f"200 with the body {body[:200]!r}")
    return Answer(start, end, Verdict.DONE, f"200 {code or 'completed'}", code=code)


class RawWire:
    """One client of the server at ``url``. ``seconds`` is its patience with any request."""

    name = "raw"

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._readers: aiohttp.ClientSession
        self._writers: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._readers = self._session(force_close=False)
        self._writers = self._session(force_close=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._readers.close()
        await self._writers.close()

    def _session(self, *, force_close: bool) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            self._url,
            connector=aiohttp.TCPConnector(limit=0, force_close=force_close),
            timeout=aiohttp.ClientTimeout(total=self._seconds),
            auto_decompress=False,
        )
        send_once(session)
        return session

    async def put(self, write: Write, payload: bytes, *, slowly: bool, seconds: float | None) -> Answer:
        """Put ``payload``; ``slowly``: in pieces, without saying how many; leave after ``seconds``."""
        body = _in_pieces(payload) if slowly else io.BytesIO(payload)
        path = f"{_OBJECTS}/{write.key}"
        return await self._request(self._writers, "PUT", path, data=body, headers=_headers(write), seconds=seconds)

    async def delete(self, key: str, *, seconds: float | None) -> Answer:
        """Delete the object."""
        return await self._request(self._writers, "DELETE", f"{_OBJECTS}/{key}", seconds=seconds)

    async def get(self, key: str, byte_range: tuple[int, int] | None = None) -> Answer:
        """Get the object, or some bytes of it."""
        headers = {} if byte_range is None else {"range": f"bytes={byte_range[0]}-{byte_range[1]}"}
        return await self._request(self._readers, "GET", f"{_OBJECTS}/{key}", headers=headers)

    async def head(self, key: str) -> Answer:
        """Get the object's metadata."""
        return await self._request(self._readers, "HEAD", f"{_OBJECTS}/{key}")

    async def initiate(self, write: Write) -> Answer:
        """Begin an upload."""
        return await self._request(self._writers, "PUT", f"{_UPLOADS}/{write.key}", headers=_headers(write))

    async def part(self, key: str, upload_id: str, number: int, payload: bytes) -> Answer:
        """Store one part."""
        parameters = {"upload_id": upload_id, "part_number": str(number)}
        return await self._request(self._writers, "PUT", f"{_PARTS}/{key}", data=io.BytesIO(payload), params=parameters)

    async def parts(self, key: str, upload_id: str) -> Answer:
        """List the parts."""
        return await self._request(self._readers, "GET", f"{_PARTS}/{key}", params={"upload_id": upload_id})

    async def complete(self, key: str, upload_id: str, names: Mapping[int, str], *, seconds: float | None) -> Answer:
        """Complete an upload."""
        named = [{"part_number": number, "etag": etag} for number, etag in names.items()]
        return await self._request(
            self._writers,
            "POST",
            f"{_COMPLETE}/{key}",
            data=json.dumps({"parts": named}).encode(),
            params={"upload_id": upload_id},
            seconds=seconds,
        )

    async def abort(self, key: str, upload_id: str) -> Answer:
        """Abort an upload."""
        return await self._request(self._writers, "DELETE", f"{_UPLOADS}/{key}", params={"upload_id": upload_id})

    async def begin(self, write: Write, size: int) -> Answer:
        """Begin a resumable upload of ``size`` bytes."""
        headers = _headers(write) | {"upload-length": str(size)}
        parameters = {"upload_type": "resumable"}
        return await self._request(self._writers, "PUT", f"{_OBJECTS}/{write.key}", headers=headers, params=parameters)

    async def append(
        self, key: str, token: str, offset: int, piece: bytes, *, slowly: bool, seconds: float | None
    ) -> Answer:
        """Send a piece of a resumable upload; ``slowly``: with pauses; leave after ``seconds``."""
        headers = {"upload-offset": str(offset), "content-length": str(len(piece))}
        body = _in_pieces(piece) if slowly else io.BytesIO(piece)
        return await self._request(
            self._writers,
            "PUT",
            f"{_OBJECTS}/{key}",
            data=body,
            headers=headers,
            params={"session": token},
            seconds=seconds,
        )

    async def progress(self, key: str, token: str) -> Answer:
        """Ask how far a resumable upload has come."""
        return await self._request(
            self._writers, "PUT", f"{_OBJECTS}/{key}", headers={"upload-offset": "*"}, params={"session": token}
        )

    async def cancel(self, key: str, token: str) -> Answer:
        """Cancel a resumable upload."""
        return await self._request(self._writers, "DELETE", f"{_OBJECTS}/{key}", params={"session": token})

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        data: bytes | io.BytesIO | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Answer:
        timeout = aiohttp.ClientTimeout(total=seconds or self._seconds)
        start = time.monotonic()
        try:
            async with session.request(
                method, path, data=data, headers=headers, params=params, timeout=timeout
            ) as response:
                body = await response.read()
                if "session" in (params or {}):
                    return _session_answer(start, response, body)
                return _answer(start, method, path, response, body)
        except aiohttp.ClientConnectorError as error:
            return Answer(start, time.monotonic(), Verdict.UNSENT, type(error).__name__)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Answer(start, time.monotonic(), Verdict.UNKNOWN, type(error).__name__)
        except zstandard.ZstdError as error:
            return Answer(start, time.monotonic(), Verdict.WRONG, f"a payload that cannot be decompressed: {error}")


def _judged(response: aiohttp.ClientResponse, body: bytes) -> tuple[Verdict, str]:
    """What a status says, which has to come with advice if trying again may help; and in words."""
    status = response.status
    verdict = verdict_of(status)
    if status in _ADVISED and not response.headers.get("retry-after", "").isdigit():
        return Verdict.WRONG, f"{status} without advice when to try again: {body[:300]!r}"
    return verdict, str(status) if verdict is not Verdict.WRONG else f"{status} {body[:300]!r}"


def _session_answer(start: float, response: aiohttp.ClientResponse, body: bytes) -> Answer:
    """What an answer says of a resumable upload."""
    end, status = time.monotonic(), response.status
    offset = response.headers.get("upload-offset", "")
    if response.method == "DELETE" or status not in {201, 204, 409}:
        verdict, text = _judged(response, body)
        return Answer(start, end, verdict, text)
    if status == 201:
        return Answer(start, end, Verdict.DONE, "201 complete")
    if not offset.isdigit():
        return Answer(start, end, Verdict.WRONG, f"{status} without an offset: {body[:300]!r}")
    code = MISMATCH if status == 409 else ""
    return Answer(start, end, Verdict.DONE, f"{status} at {offset}", code=code, offset=int(offset))


def _answer(start: float, method: str, path: str, response: aiohttp.ClientResponse, body: bytes) -> Answer:
    end, status = time.monotonic(), response.status
    verdict, text = _judged(response, body)
    if verdict is not Verdict.DONE:
        if method == "GET" and status == 416:
            return Answer(start, end, Verdict.UNKNOWN, text)
        return Answer(start, end, verdict, text)
    if path.startswith(_COMPLETE):
        return completion_of(start, body)
    if path.startswith(_OBJECTS) and "upload_type" not in response.url.query:
        found = _found(method, response, body) if method in {"GET", "HEAD"} else None
        return Answer(start, end, verdict, f"{status}, a {method.lower()}" if found else text, found)
    document = json.loads(body) if body else {}
    token = document.get("upload_id") or document.get("session") or document.get("etag") or ""
    granularity = document.get("granularity", 0)
    parts = listed_parts(document.get("parts", ()))
    return Answer(start, end, verdict, text, token=token, parts=parts, granularity=granularity)


def listed_parts(parts: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, int]]:
    """The parts of a listing."""
    return {part["part_number"]: (part["etag"], part["size"]) for part in parts}


def _found(method: str, response: aiohttp.ClientResponse, body: bytes) -> Found:
    headers = response.headers
    compressed = headers.get("content-encoding") == "zstd"
    payload = None if method == "HEAD" else body
    first = None
    if response.status == 206:
        first = int(headers["content-range"].removeprefix("bytes ").partition("-")[0])
        payload = None if compressed else body  # a part of what is compressed cannot be compared
    elif compressed and payload is not None:
        payload = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    return Found(
        headers.get("x-snme-write", ""),
        payload,
        first,
        None if compressed else int(headers["x-sn-size"]),
        _unix_seconds(headers.get("x-sn-time-created")),
        _unix_seconds(headers.get("x-sn-time-expires")),
    )


def _unix_seconds(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()


def _headers(write: Write) -> dict[str, str]:
    headers = {"x-snme-write": write.identity}
    if write.ttl_seconds is not None:
        headers["x-sn-expiration"] = f"ttl:{write.ttl_seconds:g}s"
    return headers


async def _in_pieces(payload: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(payload), _CHUNK_BYTES):
        yield payload[at : at + _CHUNK_BYTES]
        await asyncio.sleep(_CHUNK_PAUSE_SECONDS)
