"""The long-term store in a bucket of Google Cloud Storage: an object for each blob.

Guarantees, beyond the contract: what the service has stored of a put or a part is compared with what was sent, by its
CRC-32C, which the service keeps of every object, however it was made; so a blob needs no record of ours. One request
for each call but listings. Objects carry ``customTime``, the moment of their write, for lifecycle rules: unlike the age
of an object it survives a copy to another bucket.

**The end of a put's time.** The service knows no deadline for a request. So the clock is looked at before the last
bytes leave, and again when the answer comes: what was too late by then is deleted, and the put has given up. A blob can
appear late only if that answer is lost as well: by then at most twice the timeout has passed since the first look, and
what has not left this machine, or is held up in a network, may come for some minutes more. That is left to the
sweeper, which comes hours later. The beginning of an upload is the same.

Does not: encrypt, choose a storage class, or make the bucket. Answers "success" to a repeated `complete` and `abort`.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import UUID
from xml.etree import ElementTree as ET

import structlog
from yarl import URL

from tierstore.backends.long_term.contract import BlobInfo, BlobStream, LongTermBackend
from tierstore.backends.long_term.gcs_addresses import Addresses
from tierstore.backends.long_term.gcs_answers import (
    NOT_FOUND,
    PRECONDITION_FAILED,
    UNREADABLE,
    code_of,
    document_of,
    refusal_of,
    resource_of,
    says_no_such_object,
)
from tierstore.backends.long_term.gcs_checksum import Crc32c
from tierstore.backends.long_term.gcs_resources import (
    MediaHead,
    blob_of,
    checksum_of,
    crc32c_of,
    date_of,
    instant_of,
    kept_path,
    told_revision,
)
from tierstore.backends.long_term.gcs_stream import GcsBlobStream, corrupt
from tierstore.backends.long_term.gcs_tokens import GoogleTokens
from tierstore.backends.long_term.lateness import check_not_late
from tierstore.clock import Clock, UnixMicros
from tierstore.errors import (
    Broken,
    CorruptObject,
    EntityTooSmall,
    GivenUp,
    NoSuchUpload,
    ObjectTooLarge,
    StartupError,
    TierstoreError,
    Unavailable,
)
from tierstore.idsource import IdSource
from tierstore.invariants import invariant
from tierstore.limits import MIB, Limits
from tierstore.listing import readable
from tierstore.object_storage.names import Names
from tierstore.object_storage.payload import OutgoingPayload
from tierstore.object_storage.transport import Answer, Download, Transport, report_failure, trusting, until_whole
from tierstore.tasks import TaskOwner
from tierstore.types.ids import Revision
from tierstore.types.multipart import Part, PartName, PartsPage, UploadId, check_part_order
from tierstore.types.ranges import Span
from tierstore.types.timestamps import format_timestamp

log = structlog.get_logger(__name__)

_BYTES = "application/octet-stream"
_LISTED_MAX = 1000
"""Of one page of any listing of the service."""
_PART_BYTES_MIN = 5 * MIB
"""What the service takes ("Quotas and limits", XML API multipart uploads), and refuses less of by itself."""
_RESOURCE = "name,size,crc32c,timeCreated,generation,metadata"
_PERMISSIONS = (
    *(f"storage.objects.{verb}" for verb in ("create", "delete", "get", "list")),
    *(f"storage.multipartUploads.{verb}" for verb in ("create", "abort", "list", "listParts")),
)
"""What an account needs (https://cloud.google.com/storage/docs/access-control/iam-permissions)."""
_UNSATISFIABLE = 416
_OTHER_BYTES = "the object store has stored other bytes than it was sent"


class GcsLongTerm(LongTermBackend):
    """A long-term store in one bucket, or below a prefix of it, which any number of processes may have open."""

    def __init__(
        self,
        addresses: Addresses,
        names: Names,
        transport: Transport,
        tokens: GoogleTokens,
        tasks: TaskOwner,
        *,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self._addresses = addresses
        self._names = names
        self._transport = transport
        self._tokens = tokens
        self._tasks = tasks
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._streams: set[GcsBlobStream] = set()
        self._operations = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False

    @classmethod
    async def open(
        cls,
        *,
        bucket: str,
        endpoint: str = "",
        prefix: str = "tierstore",
        ca: str = "",
        connections_max: int = 256,
        timeout_seconds: float = 30.0,
        limits: Limits,
        clock: Clock,
        ids: IdSource,
    ) -> "GcsLongTerm":
        """Open the store in ``bucket``, with objects whose names begin with ``prefix``, as the account that is at hand.

        ``endpoint`` is where the service is, Google's if it is empty; ``ca`` a file of authorities to trust instead of
        the system's; ``timeout_seconds`` bounds every wait for the service. Raises `StartupError` with a sentence for
        the operator: no credentials, no such bucket, a permission that is missing, no way to the service.
        """
        names, tls = Names(prefix), trusting(ca)
        tasks = TaskOwner(limits.mutations_max, report_failure)
        tokens = await GoogleTokens.open(tasks=tasks, clock=clock, timeout_seconds=timeout_seconds)
        transport = Transport(
            tokens,
            tls=tls,
            connections_max=connections_max,
            timeout_seconds=timeout_seconds,
            limits=limits,
            clock=clock,
            ids=ids,
        )
        addresses = Addresses(endpoint, bucket)
        store = cls(addresses, names, transport, tokens, tasks, limits=limits, clock=clock, ids=ids)
        try:
            await store._check_permissions(bucket)
        except BaseException:
            await store.close()
            raise
        return store

    async def put(
        self,
        revision: Revision,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        not_after: UnixMicros | None = None,
    ) -> BlobInfo:
        with self._operation():
            head, tail, kind = self._related({
                "name": self._names.blob(revision),
                "customTime": format_timestamp(self._clock.now()),
                "metadata": kept_path(revision),
            })  # fmt: skip
            checksum = Crc32c()
            payload = OutgoingPayload(
                source,
                size,
                head=head,
                digests=(checksum,),
                tail_bytes=len(tail),
                tail=lambda: self._in_time(tail, not_after),
                stall_seconds=self._transport.timeout_seconds,
            )
            storing = self._put(revision, payload, checksum, kind, not_after)
            return await until_whole(self._tasks, "gcs_put", payload, storing)

    async def _put(
        self,
        revision: Revision,
        payload: OutgoingPayload,
        checksum: Crc32c,
        kind: str,
        not_after: UnixMicros | None,
    ) -> BlobInfo:
        url = self._addresses.new_objects(uploadType="multipart", fields=_RESOURCE)
        resource = resource_of(await self._transport.send("POST", url, payload, {"Content-Type": kind}))
        try:
            blob = blob_of(revision, resource)
            if crc32c_of(resource) != checksum.digest() or blob.size != payload.bytes_taken:
                raise Unavailable(_OTHER_BYTES)
            check_not_late(self._clock, not_after)
        except CorruptObject:
            await self._take_back(revision, resource)
            raise Unavailable(UNREADABLE) from None
        except Unavailable:
            await self._take_back(revision, resource)
            raise
        return blob

    def _in_time(self, tail: bytes, not_after: UnixMicros | None) -> bytes:
        """``tail``, with which a blob becomes whole, unless its time is over."""
        check_not_late(self._clock, not_after)
        return tail

    async def _take_back(self, revision: Revision, resource: dict[str, Any]) -> None:
        """Delete what a put has made that is not to be. Raises `Unavailable` if it is not sure that this was done."""
        url = self._addresses.resource(self._names.blob(revision), generation=str(resource.get("generation", "")))
        answer = await self._transport.ask("DELETE", url)
        if not answer.is_success and answer.status != NOT_FOUND:
            raise refusal_of(answer)

    async def get(self, revision: Revision, span: Span | None = None) -> BlobStream | None:
        with self._operation():
            invariant(span is None or 0 <= span.start < span.stop, "a span lies within the blob")
            headers = {} if span is None else {"Range": f"bytes={span.start}-{span.stop - 1}"}
            url = self._addresses.resource(self._names.blob(revision), alt="media")
            answer, download = await self._transport.open(url, headers)
            if download is None:
                invariant(answer.status != _UNSATISFIABLE, "a span lies within the blob")
                await self._require_absence(answer)
                return None
            try:
                stream = self._stream(revision, span, answer, download)
            except BaseException:
                download.close()
                raise
            self._streams.add(stream)
            return stream

    def _stream(self, revision: Revision, span: Span | None, answer: Answer, download: Download) -> GcsBlobStream:
        """What ``download`` is. Raises `CorruptObject` and `InvariantBroken`."""
        known = MediaHead.of(answer.headers)
        if known is None or known.crc32c is None:
            raise corrupt(revision, "what the store knows of it is damaged")
        if span is not None:
            invariant(span.stop <= known.size, "a span lies within the blob")
        if known.stored_size != known.size:
            raise corrupt(revision, "it is longer or shorter than it was stored")
        if span is not None and known.content_range != f"bytes {span.start}-{span.stop - 1}/{known.size}":
            raise Unavailable("the object store answers with other bytes than it was asked for")
        selected = Span(0, known.size) if span is None else span
        is_whole = len(selected) == known.size
        return GcsBlobStream(
            download,
            revision,
            selected,
            known.size,
            known.crc32c if is_whole else None,
            self._limits.stream_chunk_bytes,
            self._streams.discard,
        )

    async def head(self, revision: Revision) -> BlobInfo | None:
        with self._operation():
            answer = await self._transport.ask(
                "GET", self._addresses.resource(self._names.blob(revision), fields=_RESOURCE)
            )
            if not answer.is_success:
                await self._require_absence(answer)
                return None
            try:
                return blob_of(revision, resource_of(answer))
            except CorruptObject as error:
                raise corrupt(revision, "what the store knows of it is damaged") from error

    async def delete(self, revision: Revision) -> None:
        with self._operation():
            answer = await self._transport.ask("DELETE", self._addresses.resource(self._names.blob(revision)))
            if not answer.is_success:
                await self._require_absence(answer)

    async def list(self, prefix: str, after: Revision | None, limit: int) -> Sequence[BlobInfo]:
        """As the contract says, in the order of the objects' names. Damaged blobs are logged and passed over."""
        with self._operation():
            query: dict[str, str | int] = {
                "prefix": self._names.listing(prefix),
                "maxResults": min(limit + 1, _LISTED_MAX),
                "fields": f"nextPageToken,items({_RESOURCE})",
            }
            if after is not None:
                query["startOffset"] = self._names.blob(after)
            page: list[BlobInfo] = []
            while True:
                answer = await self._transport.ask("GET", self._addresses.objects(**query))
                listed = resource_of(answer)
                resources = [each for each in listed.get("items", ()) if each.get("name") != query.get("startOffset")]
                for blob in readable(resources, self._listed, len(resources)):
                    if len(page) < limit and blob.revision.storage_path.startswith(prefix):
                        page.append(blob)
                if len(page) == limit or not listed.get("nextPageToken"):
                    return page
                query["pageToken"] = listed["nextPageToken"]

    def _listed(self, resource: dict[str, Any]) -> BlobInfo:
        """What a listing says of one blob. Raises `CorruptObject` for what is none, or does not say which it is."""
        name = str(resource.get("name"))
        revision = self._names.revision(name) or told_revision(resource)
        if self._names.blob(revision) != name:
            raise CorruptObject(f"{name} says that it is another blob")
        return blob_of(revision, resource)

    async def initiate(self, revision: Revision, *, not_after: UnixMicros | None = None) -> str:
        with self._operation():
            name = self._names.blob(revision)
            headers = {f"x-goog-meta-{key}": value for key, value in kept_path(revision).items()}
            headers |= {"Content-Type": _BYTES, "x-goog-custom-time": format_timestamp(self._clock.now())}
            check_not_late(self._clock, not_after)
            # Not repeated: of two uploads that were begun one would be left over.
            answer = await self._transport.ask("POST", self._addresses.uploads(name), headers=headers, repeat=False)
            upload_id = document_of(answer).text("UploadId")
            if not upload_id or not upload_id.isascii():
                raise Unavailable(UNREADABLE)
            try:
                check_not_late(self._clock, not_after)
            except GivenUp:
                await self._end(name, upload_id)
                raise
            return upload_id

    async def upload_part(
        self, upload: UploadId, number: int, source: AsyncIterator[bytes], size: int | None, md5: bytes | None
    ) -> Part:
        invariant(1 <= number <= self._limits.parts_max, "a part has a number from 1 to parts_max")
        with self._operation():
            url = self._addresses.upload(self._names.blob(upload.revision), upload.store_id, partNumber=number)
            headers = {} if md5 is None else {"Content-MD5": base64.b64encode(md5).decode()}
            checksum = Crc32c()
            payload = OutgoingPayload(
                source,
                size,
                digests=(checksum,),
                tail_bytes=0,
                tail=bytes,
                stall_seconds=self._transport.timeout_seconds,
            )
            sending = self._upload_part(url, headers, payload, is_empty=size == 0)
            answer = await until_whole(self._tasks, "gcs_upload_part", payload, sending)
            if not answer.is_success:
                raise refusal_of(answer)
            if checksum_of(answer.headers) not in {None, checksum.digest()}:
                raise Unavailable(_OTHER_BYTES)
            etag = answer.headers.get("ETag", "").strip('"')
            if not etag:
                raise Unavailable(UNREADABLE)
            return Part(number, etag, payload.bytes_taken, date_of(answer.headers))

    async def _upload_part(
        self, url: URL, headers: dict[str, str], payload: OutgoingPayload, *, is_empty: bool
    ) -> Answer:
        """The answer to the request that sends ``payload``."""
        if not is_empty:
            return await self._transport.send("PUT", url, payload, headers)
        # The head of this request is all of it, so it waits for the source's end.
        await payload.drain()
        return await self._transport.ask("PUT", url, b"", headers=headers)

    async def list_parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        with self._operation():
            if not upload.store_id:
                in_progress = await self._upload_ids(self._names.blob(upload.revision))
                if not in_progress:
                    raise NoSuchUpload("the store has no such upload")
                upload = replace(upload, store_id=in_progress[0])
            parts: list[Part] = []
            while True:
                page = await self._parts(upload, parts[-1].number if parts else after, limit - len(parts))
                parts += page.parts
                if len(parts) >= limit or not page.truncated:
                    return PartsPage(parts, page.truncated, upload.store_id)

    async def _parts(self, upload: UploadId, after: int, limit: int) -> PartsPage:
        """One page of the service's listing."""
        name = self._names.blob(upload.revision)
        query = {"max_parts": min(limit, _LISTED_MAX), "part_number_marker": after}
        answer = await self._transport.ask("GET", self._addresses.upload(name, upload.store_id, **query))
        listed = document_of(answer)
        return PartsPage(
            [
                Part(
                    part.whole("PartNumber"),
                    part.text("ETag").strip('"'),
                    part.whole("Size"),
                    instant_of(part.text("LastModified")),
                )
                for part in listed.all("Part")
            ],
            listed.is_truncated,
        )

    async def complete(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        with self._operation():
            too_much = len(parts) * self._limits.part_bytes_max > self._limits.object_bytes_max
            if too_much or self._limits.part_bytes_min not in {0, _PART_BYTES_MIN}:
                check_part_order(parts)
                await self._check_sizes(upload, parts)
            name = self._names.blob(upload.revision)
            answer = await self._transport.ask(
                "POST",
                self._addresses.upload(name, upload.store_id),
                completion(parts),
                headers={"Content-Type": "application/xml"},
                seconds=self._limits.object_store_assembly_seconds_max,
            )
            if document_of(answer).name != "CompleteMultipartUploadResult":
                raise Unavailable(f"the object store has not completed the upload: {code_of(answer)}")

    async def _check_sizes(self, upload: UploadId, parts: Sequence[PartName]) -> None:
        """Raise `ObjectTooLarge` if the named parts are too much together, `EntityTooSmall` if one is too small.

        The service itself looks for what is too small by its own measure. Parts that are not there count nothing.
        """
        named = {(part.number, part.etag) for part in parts}
        last = max(part.number for part in parts)
        total, after, truncated, small = 0, min(part.number for part in parts) - 1, True, False
        while truncated and after < last:
            page = await self._parts(upload, after, _LISTED_MAX)
            there = [part for part in page.parts if (part.number, part.etag) in named]
            total += sum(part.size for part in there)
            small |= any(part.size < self._limits.part_bytes_min for part in there if part.number != last)
            after, truncated = page.parts[-1].number if page.parts else after, page.truncated
        if total > self._limits.object_bytes_max:
            raise ObjectTooLarge(f"an object has at most {self._limits.object_bytes_max} bytes")
        if small:
            raise EntityTooSmall(f"all parts but the last have at least {self._limits.part_bytes_min} bytes")

    async def abort(self, upload: UploadId | Revision) -> None:
        with self._operation():
            if isinstance(upload, UploadId):
                await self._end(self._names.blob(upload.revision), upload.store_id)
                return
            name = self._names.blob(upload)
            for upload_id in await self._upload_ids(name):
                with suppress(NoSuchUpload):
                    await self._end(name, upload_id)

    async def _end(self, name: str, upload_id: str) -> None:
        answer = await self._transport.ask("DELETE", self._addresses.upload(name, upload_id))
        if not answer.is_success:
            raise refusal_of(answer)

    async def _upload_ids(self, name: str) -> Sequence[str]:
        """The ids of all uploads of an object that are in progress."""
        found: list[str] = []
        query: dict[str, str | int] = {"prefix": name, "max_uploads": _LISTED_MAX}
        while True:
            answer = await self._transport.ask("GET", self._addresses.uploads("", **query))
            listed = document_of(answer)
            found += [each.text("UploadId") for each in listed.all("Upload") if each.text("Key") == name]
            if not listed.is_truncated:
                return found
            query["key_marker"] = listed.text("NextKeyMarker")
            query["upload_id_marker"] = listed.text("NextUploadIdMarker")

    async def remove_debris(self) -> int:
        # A write that was cut short leaves nothing in this store; an upload that nobody knows of is a lifecycle rule's.
        with self._operation():
            return 0

    async def identity(self) -> UUID | None:
        with self._operation():
            answer = await self._transport.ask("GET", self._addresses.resource(self._names.identity, alt="media"))
            if not answer.is_success:
                await self._require_absence(answer)
                return None
            try:
                return UUID(answer.body.decode())
            except ValueError:
                raise Broken("the identity that the store keeps is damaged") from None

    async def adopt(self, identity: UUID) -> UUID:
        with self._operation():
            head, tail, kind = self._related({"name": self._names.identity})
            url = self._addresses.new_objects(uploadType="multipart", ifGenerationMatch=0, fields="name")
            answer = await self._transport.ask(
                "POST", url, head + str(identity).encode() + tail, headers={"Content-Type": kind}
            )
            if not answer.is_success and answer.status != PRECONDITION_FAILED:
                raise refusal_of(answer)
            kept = await self.identity()
            if kept is None:
                raise Unavailable("the identity that the store had is gone")
            return kept

    async def check(self) -> None:
        with self._operation():
            answer = await self._transport.ask("GET", self._addresses.resource(self._names.identity, fields="name"))
            if not answer.is_success:
                await self._require_absence(answer)

    async def close(self) -> None:
        self._closing = True
        await self._idle.wait()
        for stream in list(self._streams):
            await stream.aclose()
        await self._tasks.drain(self._transport.timeout_seconds)
        self._tokens.close()
        await self._transport.close()

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """Keep `close` waiting for the operation within; refuse it once closing."""
        if self._closing:
            raise Unavailable("the blob store is closed")
        self._operations += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._operations -= 1
            if not self._operations:
                self._idle.set()

    def _related(self, resource: dict[str, Any]) -> tuple[bytes, bytes, str]:
        """What stands before and behind a payload that is sent with its metadata, and the type of the whole.

        https://cloud.google.com/storage/docs/uploading-objects: a ``multipart/related`` body of two parts.
        """
        boundary = f"tierstore-{self._ids.uuid().hex}"
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(resource | {'contentType': _BYTES})}\r\n--{boundary}\r\nContent-Type: {_BYTES}\r\n\r\n"
        )
        return head.encode(), f"\r\n--{boundary}--\r\n".encode(), f"multipart/related; boundary={boundary}"

    async def _require_absence(self, answer: Answer) -> None:
        """Return if ``answer`` says that an object is absent. Raise what else it says: without its bucket, none is.

        Lost objects would be served as absent ones, and their entries forgotten, if a bucket that is not there were
        taken for an empty one.
        """
        if says_no_such_object(answer):
            return
        if answer.status != NOT_FOUND:
            raise refusal_of(answer)
        bucket = await self._transport.ask("GET", self._addresses.objects(maxResults=1, fields="nextPageToken"))
        if not bucket.is_success:
            raise refusal_of(bucket)

    async def _check_permissions(self, bucket: str) -> None:
        """Raise `StartupError` unless the bucket is there and the account may do what this store does."""
        try:
            answer = await self._transport.ask("GET", self._addresses.objects(maxResults=1, fields="nextPageToken"))
            granted = await self._transport.ask("GET", self._addresses.permissions(_PERMISSIONS))
        except TierstoreError as error:
            raise StartupError(f"bucket {bucket} cannot be used: {error}") from error
        if answer.status == NOT_FOUND:
            raise StartupError(f"there is no bucket {bucket}: it must be made beforehand")
        # Only the service itself knows this call; stand-ins and gateways do not.
        missing = (
            set(_PERMISSIONS) - set(resource_of(granted).get("permissions", ())) if granted.is_success else set[str]()
        )
        if missing:
            raise StartupError(f"the account may not use bucket {bucket}: it lacks {', '.join(sorted(missing))}")
        if not answer.is_success:
            raise StartupError(f"bucket {bucket} cannot be used: {refusal_of(answer)}")


def completion(parts: Sequence[PartName]) -> bytes:
    """The document that completes an upload."""
    root = ET.Element("CompleteMultipartUpload")
    for part in parts:
        element = ET.SubElement(root, "Part")
        ET.SubElement(element, "PartNumber").text = str(part.number)
        ET.SubElement(element, "ETag").text = f'"{part.etag}"'
    return ET.tostring(root)
