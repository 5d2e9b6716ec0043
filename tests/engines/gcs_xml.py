"""A strict stand-in for Google Cloud Storage on loopback: multipart uploads of the XML API, before a fake-gcs-server.

fake-gcs-server has no XML multipart uploads and takes every request. This server answers those calls itself, as
Google's reference says, demands a bearer token of everything, and passes all else on to fake-gcs-server, where it also
puts the objects that it has assembled. Where fake-gcs-server says less than Google's service does (the texts of errors,
the length of an object beside its bytes), it says what that says.

Guarantees: repeating *complete* is answered 200 and repeating *abort* 204, and neither changes anything; of a complete
and an abort one takes effect; parts but the last have 5 MiB unless it is told otherwise. Faults can be planted: answers
that are lost, requests that are refused, payloads and records that are damaged.
"""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote

import aiohttp
import google_crc32c
from aiohttp import web
from yarl import URL

from tests.engines.gcs_documents import (
    NO_SUCH_BUCKET,
    Refused,
    document,
    instant,
    parse_complete,
    refusal_json,
    refusal_xml,
    row,
)
from tests.engines.gcs_tokens import Tokens
from tests.engines.gcs_uploads import PARTS_MAX, State, StoredPart, StoredUpload, Uploads
from tierstore.limits import MIB

_JSON_API = ("/storage/", "/upload/", "/download/")
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "host", "authorization", "date", "server"})
_NAME_BYTES_MAX = 1024
_WRONG_CRC32C = "AAAAAA=="


@dataclass
class Damage:
    """What is wrong with one object: with its bytes, or with the record of them."""

    generation: str
    payload: bytes | None = None
    loses_checksum: bool = False


class StrictGcs:
    """A server on a port of its own, before fake-gcs-server at ``upstream``, while its context lasts."""

    def __init__(self, upstream: str, *, part_bytes_min: int = 5 * MIB, tokens: Tokens | None = None) -> None:
        self.upstream = upstream
        self.tokens = tokens or Tokens()
        self.uploads = Uploads(part_bytes_min)
        self.refusals: list[int] = []
        """Statuses that the next requests are refused with, before anything is done."""
        self.forbidden = ""
        """A part of a request's method and path that is refused: the account lacks the permission."""
        self.permissions_missing: set[str] = set()
        """Permissions that the account says it lacks, when it is asked."""
        self.answers_lost = 0
        """Answers of the next requests that are lost, after all has been done."""
        self.checksums_wrong = 0
        """Answers to the next objects and parts that name another checksum than that of what was sent."""
        self.ignores_ranges = False
        """Whether all of an object is answered to who asks for some of it, as some gateways do."""
        self.trickles = False
        """Whether the bytes of damaged objects come a few at a time."""
        self.requests: list[str] = []
        """Method and path of every request but those for tokens."""
        self.buckets_lost: set[str] = set()
        """Buckets that are not there any more, although fake-gcs-server has them."""
        self._buckets: set[str] = set()
        """Those that were found to be there."""
        self._damages: dict[tuple[str, str], Damage] = {}
        self._stack = AsyncExitStack()
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_uri(self) -> str:
        """Its token endpoint."""
        return f"{self.address}/token"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            self._client = await stack.enter_async_context(
                aiohttp.ClientSession(auto_decompress=False, connector=connector)
            )
            runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            self.port = runner.addresses[0][1]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def make_bucket(self, name: str) -> None:
        """Make a bucket, as an operator would beforehand."""
        async with self._client.post(f"{self.upstream}/storage/v1/b?project=tests", json={"name": name}) as answer:
            answer.raise_for_status()

    # Damage

    async def damage(self, bucket: str, name: str, *, payload: bytes | None = None, checksum: bool = False) -> None:
        """Damage the bytes of an object, or lose its checksum, and leave the rest alone."""
        url = URL(f"{self.upstream}/storage/v1/b/{bucket}/o/{quote(name, safe='')}", encoded=True)
        async with self._client.get(url) as answer:
            answer.raise_for_status()
            generation = (await answer.json())["generation"]
        self._damages[bucket, name] = Damage(generation, payload, checksum)

    def _damage(self, bucket: str, name: str, generation: str | None) -> Damage | None:
        damage = self._damages.get((bucket, name))
        return damage if damage is not None and damage.generation == generation else None

    # Requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if path == "/token":
            return await self.tokens.grant(request)
        self.requests.append(f"{request.method} {path}")
        speaks_json = path.startswith(_JSON_API)
        refused = self._refused(request, path)
        if refused is not None:
            return refusal_json(*_in_json(refused)) if speaks_json else refusal_xml(refused)
        try:
            answer = await (self._json(request, path, query) if speaks_json else self._xml(request, path, query))
        except Refused as refusal:
            answer = refusal_xml(refusal)
        except (aiohttp.ClientError, ConnectionError, web.RequestPayloadError):
            # The client has gone, or fake-gcs-server has; nobody is answered, and nothing was done.
            if request.transport is not None:
                request.transport.abort()
            answer = web.Response(status=503)
        if self.answers_lost > 0 and request.transport is not None:
            self.answers_lost -= 1
            request.transport.abort()
        return answer

    def _refused(self, request: web.BaseRequest, path: str) -> Refused | None:
        """Why this request is not even looked at."""
        if not self.tokens.is_good(request.headers):
            return Refused(401, "AuthenticationRequired", "Authentication required.")
        if self.forbidden and self.forbidden in f"{request.method} {path}":
            return Refused(403, "AccessDenied", "Access denied. The account does not have the permission.")
        if self.refusals:
            status = self.refusals.pop(0)
            code = {429: "SlowDown", 503: "ServiceUnavailable", 500: "InternalError"}[status]
            return Refused(status, code, "Planted by a test.")
        return None

    # The JSON API, which fake-gcs-server serves

    async def _json(self, request: web.BaseRequest, path: str, query: str) -> web.StreamResponse:
        segments = path.split("/")
        bucket = unquote(segments[segments.index("b") + 1]) if "b" in segments[:-1] else ""
        name = unquote("/".join(segments[segments.index("o") + 1 :])) if "o" in segments else ""
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP}
        if self.ignores_ranges:
            headers.pop("Range", None)
        body = _chunks(request) if request.body_exists else None
        url = URL(f"{self.upstream}{request.raw_path}", encoded=True)
        if path.endswith("/iam/testPermissions"):
            return web.json_response({"permissions": [
                each for each in parse_qs(query).get("permissions", ()) if each not in self.permissions_missing
            ]})  # fmt: skip
        if bucket in self.buckets_lost:
            return await self._not_found(bucket, name, "alt=media" in query)
        async with self._client.request(request.method, url, headers=headers, data=body) as answer:
            if answer.status == 404:
                return await self._not_found(bucket, name, "alt=media" in query)
            if request.method == "GET" and "alt=media" in query:
                return await self._media(request, answer, bucket, name)
            return await self._resource(answer, bucket)

    async def _not_found(self, bucket: str, name: str, media: bool) -> web.Response:
        """What Google says of what is not there; fake-gcs-server does not say what it is."""
        async with self._client.get(f"{self.upstream}/storage/v1/b/{bucket}") as answer:
            there = answer.status == 200 and bucket not in self.buckets_lost
        message = f"No such object: {bucket}/{name}" if there else NO_SUCH_BUCKET.message
        if media:
            return web.Response(status=404, text=message, content_type="text/html")
        return refusal_json(404, "notFound", message)

    async def _media(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, bucket: str, name: str
    ) -> web.StreamResponse:
        """The bytes of an object, damaged or not, with what the service has on record."""
        headers = [(key, value) for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP]
        damage = self._damage(bucket, name, answer.headers.get("X-Goog-Generation"))
        hashes = "" if damage and damage.loses_checksum else answer.headers.get("X-Goog-Hash", "")
        headers = [(key, value) for key, value in headers if key.lower() not in {"x-goog-hash", "content-length"}]
        headers += [("X-Goog-Hash", each) for each in hashes.split(",") if each]
        whole = _whole_length(answer)
        if whole is not None:
            headers.append(("X-Goog-Stored-Content-Length", str(whole)))
        length = answer.headers.get("Content-Length", "0")
        payload = None
        if damage is not None and damage.payload is not None and answer.status in {200, 206}:
            start, stop = _selected(answer)
            payload = damage.payload[start:stop] if answer.status == 206 else damage.payload
            length = str(len(payload))
        response = web.StreamResponse(status=answer.status, headers=[*headers, ("Content-Length", length)])
        await response.prepare(request)
        if payload is not None:
            step = 5 if self.trickles else max(1, len(payload))
            for start in range(0, len(payload), step):
                await response.write(payload[start : start + step])
                await asyncio.sleep(0.002 if self.trickles else 0)
        else:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        await response.write_eof()
        return response

    async def _resource(self, answer: aiohttp.ClientResponse, bucket: str) -> web.Response:
        """An answer in JSON, with the records as they are damaged."""
        body = await answer.read()
        told = json.loads(body) if answer.status == 200 and body else None
        if isinstance(told, dict):
            for resource in told.get("items") or [told]:
                damage = self._damage(bucket, resource.get("name", ""), resource.get("generation"))
                if damage and damage.loses_checksum:
                    resource.pop("crc32c", None)
            if self._names_a_wrong_checksum(told):
                told["crc32c"] = _WRONG_CRC32C
            body = json.dumps(told).encode()
        kind = answer.headers.get("Content-Type", "application/json")
        return web.Response(status=answer.status, body=body, headers={"Content-Type": kind})

    # The XML API

    async def _xml(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        bucket, _, raw_name = path.removeprefix("/").partition("/")
        name = unquote(raw_name)
        asked = {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()}
        await self._check_bucket(bucket)
        if len(name.encode()) > _NAME_BYTES_MAX or "\n" in name or "\r" in name:
            raise Refused(400, "InvalidObjectName", "The specified object name is not valid.")
        match request.method, bool(name), "uploads" in asked, "uploadId" in asked:
            case "POST", True, True, False:
                return self._initiate(request, bucket, name)
            case "PUT", True, False, True:
                return await self._upload_part(request, self._asked_for(bucket, name, asked), asked)
            case "GET", True, False, True:
                return _listed_parts(self._asked_for(bucket, name, asked), asked)
            case "POST", True, False, True:
                return await self._complete(request, self.uploads.known(bucket, name, asked["uploadId"]))
            case "DELETE", True, False, True:
                return await self._abort(self.uploads.known(bucket, name, asked["uploadId"]))
            case "GET", False, True, False:
                return self._listed_uploads(bucket, asked)
            case _:
                raise Refused(400, "InvalidArgument", "This is none of the calls that this server knows.")

    async def _check_bucket(self, bucket: str) -> None:
        if bucket in self.buckets_lost:
            raise NO_SUCH_BUCKET
        if bucket in self._buckets:
            return
        async with self._client.get(f"{self.upstream}/storage/v1/b/{quote(bucket, safe='')}") as answer:
            if answer.status != 200:
                raise NO_SUCH_BUCKET
        self._buckets.add(bucket)

    def _asked_for(self, bucket: str, name: str, asked: dict[str, str]) -> StoredUpload:
        return self.uploads.in_progress(bucket, name, asked["uploadId"])

    def _initiate(self, request: web.BaseRequest, bucket: str, name: str) -> web.Response:
        if request.headers.get("Content-Length") != "0":
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        metadata: dict[str, Any] = {"name": name, "contentType": request.headers.get("Content-Type")}
        if "x-goog-custom-time" in request.headers:
            metadata["customTime"] = request.headers["x-goog-custom-time"]
        custom = {
            key.lower(): value for key, value in request.headers.items() if key.lower().startswith("x-goog-meta-")
        }
        metadata["metadata"] = {key.removeprefix("x-goog-meta-"): value for key, value in custom.items()}
        upload = self.uploads.begin(bucket, name, metadata)
        return document(
            "InitiateMultipartUploadResult", [("Bucket", bucket), ("Key", name), ("UploadId", upload.upload_id)]
        )

    async def _upload_part(self, request: web.BaseRequest, upload: StoredUpload, asked: dict[str, str]) -> web.Response:
        number = asked.get("partNumber", "")
        if not number.isdigit() or not 1 <= int(number) <= PARTS_MAX:
            raise Refused(400, "InvalidArgument", "Part number must be an integer between 1 and 10000.")
        if "Content-Length" not in request.headers and request.headers.get("Transfer-Encoding") != "chunked":
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        content = await _body(request)
        _check_digests(request, content)
        self.uploads.in_progress(upload.bucket, upload.name, upload.upload_id)  # it may have ended meanwhile
        part = StoredPart(int(number), content)
        upload.parts[part.number] = part
        answer = web.Response(headers={"ETag": f'"{part.etag}"'})
        for name, digest in _digests(content).items():
            wrong = name == "crc32c" and self._names_a_wrong_checksum({"generation": ""})
            answer.headers.add("x-goog-hash", f"{name}={_WRONG_CRC32C if wrong else digest}")
        return answer

    def _names_a_wrong_checksum(self, resource: dict[str, Any]) -> bool:
        """Whether this is the answer to a write for which that was planted."""
        if self.checksums_wrong == 0 or "generation" not in resource:
            return False
        self.checksums_wrong -= 1
        return True

    async def _complete(self, request: web.BaseRequest, upload: StoredUpload) -> web.Response:
        named = parse_complete(await _body(request))
        while upload.state is State.COMPLETING:
            await asyncio.sleep(0.001)
        if upload.state is State.ABORTED:
            raise Refused(404, "NoSuchUpload", "The requested upload was not found.")
        if upload.state is State.IN_PROGRESS:
            content = b"".join(part.content for part in self.uploads.chosen(upload, named))
            upload.state = State.COMPLETING
            try:
                await self._store(upload, content)
                upload.state = State.COMPLETED
                upload.parts.clear()
            finally:
                if upload.state is State.COMPLETING:
                    upload.state = State.IN_PROGRESS
        fields = [("Location", f"{self.address}/{upload.bucket}/{upload.name}"), ("Bucket", upload.bucket)]
        return document("CompleteMultipartUploadResult", [*fields, ("Key", upload.name), ("ETag", '"-composed"')])

    async def _store(self, upload: StoredUpload, content: bytes) -> None:
        """Put an assembled object where the JSON API finds it."""
        boundary = "strict-gcs"
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(upload.metadata)}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        async with self._client.post(
            f"{self.upstream}/upload/storage/v1/b/{upload.bucket}/o?uploadType=multipart",
            data=io.BytesIO(head + content + f"\r\n--{boundary}--\r\n".encode()),
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
        ) as answer:
            answer.raise_for_status()

    async def _abort(self, upload: StoredUpload) -> web.Response:
        while upload.state is State.COMPLETING:
            await asyncio.sleep(0.001)
        if upload.state is State.IN_PROGRESS:
            upload.state = State.ABORTED
            upload.parts.clear()
        return web.Response(status=204)

    def _listed_uploads(self, bucket: str, asked: dict[str, str]) -> web.Response:
        limit = min(int(asked.get("max-uploads", 1000)), 1000)
        after = (asked.get("key-marker", ""), asked.get("upload-id-marker", ""))
        found = [
            upload
            for upload in self.uploads.all_in_progress(bucket, asked.get("prefix", ""))
            if (upload.name, upload.upload_id) > after and (after[1] or upload.name != after[0])
        ]
        page = found[:limit]
        fields = [("Bucket", bucket), ("Prefix", asked.get("prefix", "")), ("MaxUploads", str(limit))]
        if len(found) > limit:
            fields += [("NextKeyMarker", page[-1].name), ("NextUploadIdMarker", page[-1].upload_id)]
        fields.append(("IsTruncated", "true" if len(found) > limit else "false"))
        rows = [
            row("Upload", [
                ("Key", each.name), ("UploadId", each.upload_id), ("StorageClass", "STANDARD"),
                ("Initiated", instant(each.begun)),
            ])
            for each in page
        ]  # fmt: skip
        return document("ListMultipartUploadsResult", fields, rows)


def _listed_parts(upload: StoredUpload, asked: dict[str, str]) -> web.Response:
    after, limit = int(asked.get("part-number-marker", 0)), min(int(asked.get("max-parts", 1000)), 1000)
    found = [part for number, part in sorted(upload.parts.items()) if number > after]
    page = found[:limit]
    fields = [("Bucket", upload.bucket), ("Key", upload.name), ("UploadId", upload.upload_id)]
    fields += [("StorageClass", "STANDARD"), ("PartNumberMarker", str(after))]
    if page:
        fields.append(("NextPartNumberMarker", str(page[-1].number)))
    fields += [("MaxParts", str(limit)), ("IsTruncated", "true" if len(found) > limit else "false")]
    rows = [
        row("Part", [
            ("PartNumber", str(part.number)), ("LastModified", instant(part.stored)), ("ETag", f'"{part.etag}"'),
            ("Size", str(len(part.content))),
        ])
        for part in page
    ]  # fmt: skip
    return document("ListPartsResult", fields, rows)


async def _body(request: web.BaseRequest) -> bytes:
    """All of a request's body, however long it is."""
    return b"".join([chunk async for chunk in _chunks(request)])


async def _chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """A request's body as it comes. Fails when the client goes away, so that what it is passed on to fails as well."""
    async for chunk in request.content.iter_any():
        yield chunk


def _digests(content: bytes) -> dict[str, str]:
    """The two checksums of the service, as ``x-goog-hash`` writes them."""
    md5 = hashlib.md5(content, usedforsecurity=False).digest()
    crc32c = google_crc32c.value(content).to_bytes(4)
    return {"crc32c": base64.b64encode(crc32c).decode(), "md5": base64.b64encode(md5).decode()}


def _check_digests(request: web.BaseRequest, content: bytes) -> None:
    """Raise `Refused` if a request's body is not what its headers say."""
    digests = _digests(content)
    announced = [("md5", request.headers.get("Content-MD5", digests["md5"]))]
    for line in request.headers.getall("x-goog-hash", []):
        announced += [(name.strip(), value) for name, _, value in (each.partition("=") for each in line.split(","))]
    for name, value in announced:
        if digests.get(name) != value:
            raise Refused(400, "BadDigest", f"The {name} you specified did not match what we received.")


def _whole_length(answer: aiohttp.ClientResponse) -> int | None:
    """The length of the whole object that an answer has bytes of."""
    content_range = answer.headers.get("Content-Range")
    if content_range is not None:
        return int(content_range.rpartition("/")[2])
    return answer.content_length if answer.status == 200 else None


def _selected(answer: aiohttp.ClientResponse) -> tuple[int, int]:
    """The bytes of the object that an answer has: from, and up to."""
    content_range = answer.headers.get("Content-Range")
    if content_range is None:
        return 0, answer.content_length or 0
    first, _, last = content_range.removeprefix("bytes ").partition("/")[0].partition("-")
    return int(first), int(last) + 1


def _in_json(refused: Refused) -> tuple[int, str, str]:
    """A refusal as the JSON API says it: status, reason, message."""
    reasons = {401: "authError", 403: "forbidden", 429: "rateLimitExceeded"}
    return refused.status, reasons.get(refused.status, "backendError"), refused.message
