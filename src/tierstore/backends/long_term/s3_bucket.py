"""One bucket of S3, as requests (https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html).

Guarantees: an absent object is told from an absent bucket; what may be repeated is repeated, as
`tierstore.object_storage.transport` does it; the rest of what goes wrong is translated by
`tierstore.backends.long_term.s3_answers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape

from yarl import URL

from tierstore.backends.long_term.s3_answers import (
    CONFLICT,
    NOT_FOUND,
    PRECONDITION_FAILED,
    RANGE_NOT_SATISFIABLE,
    Page,
    document,
    error_of,
    is_absent,
    moment,
    unquoted,
)
from tierstore.clock import UnixMicros
from tierstore.errors import NoSuchUpload, Unavailable
from tierstore.object_storage.payload import OutgoingPayload
from tierstore.object_storage.transport import Answer, Download, Transport
from tierstore.types.multipart import PartName
from tierstore.types.ranges import Span

LISTED_MAX = 1_000
"""Entries of one page of any listing."""
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_UNREADABLE = "the object store's answer cannot be read"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the head of an answer says of an object."""

    stored_bytes: int
    """Of the whole object, whatever was asked for."""
    etag: str
    stored: UnixMicros


def bucket_address(endpoint: str, region: str, bucket: str, *, path_style: bool) -> str:
    """Where the bucket is; at AWS unless ``endpoint`` says otherwise."""
    if not endpoint:
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        endpoint = f"https://s3.{region}.{domain}"
    parts = urlsplit(endpoint.rstrip("/"))
    host = parts.netloc if path_style else f"{bucket}.{parts.netloc}"
    return f"{parts.scheme}://{host}{parts.path}{f'/{bucket}' if path_style else ''}"


class S3Bucket:
    """One bucket."""

    def __init__(self, transport: Transport, address: str) -> None:
        self._transport = transport
        self._address = address

    def url(self, name: str = "", /, **query: str | int) -> URL:
        """The address of an object, or of the bucket. ``max_keys`` is written ``max-keys``."""
        pairs = ((key.replace("_", "-"), quote(str(value), safe="")) for key, value in sorted(query.items()))
        asked = "&".join(f"{key}={value}" for key, value in pairs)
        return URL(f"{self._address}/{quote(name)}{'?' if asked else ''}{asked}", encoded=True)

    # Objects

    async def read(self, name: str, span: Span | None) -> "tuple[Stored, Download | None] | None":
        """Begin to read an object, or bytes of it; None if it is absent.

        Without a download there is nothing at that place: the object is shorter.
        """
        headers = {} if span is None else {"Range": f"bytes={span.start}-{span.stop - 1}"}
        answer, download = await self._transport.open(self.url(name), headers)
        if download is not None:
            try:
                _check_place(answer, 0 if span is None else span.start)
                return stored_of(answer), download
            except BaseException:
                download.close()
                raise
        if is_absent(answer):
            return None
        if answer.status == RANGE_NOT_SATISFIABLE:
            return stored_of(answer), None
        raise error_of(answer)

    async def end(self, name: str, size: int) -> tuple[Stored, bytes] | None:
        """The last ``size`` bytes of an object, or all that it has if that is less; None if it is absent."""
        found = await self._some(name, f"bytes=-{size}")
        return None if found is None else (stored_of(found), found.body[-size:])

    async def part(self, name: str, span: Span) -> tuple[Stored, bytes] | None:
        """A few bytes of an object, as many as it has there; None if it is absent."""
        found = await self._some(name, f"bytes={span.start}-{span.stop - 1}")
        if found is None:
            return None
        if found.body:
            _check_place(found, span.start)
        return stored_of(found), found.body[: len(span)]

    async def content(self, name: str) -> bytes | None:
        """All of a small object; None if it is absent."""
        answer = await self._transport.ask("GET", self.url(name))
        if is_absent(answer):
            return None
        if not answer.is_success:
            raise error_of(answer)
        return answer.body

    async def _some(self, name: str, span: str) -> Answer | None:
        """The answer, without a body if there is nothing at that place; None if the object is absent."""
        answer = await self._transport.ask("GET", self.url(name), headers={"Range": span})
        if is_absent(answer):
            return None
        if answer.status == RANGE_NOT_SATISFIABLE:
            return replace(answer, body=b"")
        if not answer.is_success:
            raise error_of(answer)
        return answer

    async def send(self, url: URL, payload: OutgoingPayload) -> Answer:
        """Store a payload at ``url``: the object, or the part. Raises what the payload's source raises."""
        answer = await self._transport.send("PUT", url, payload)
        if not answer.is_success:
            raise error_of(answer)
        return answer

    async def put(self, url: URL, content: bytes) -> Answer:
        """Store a few bytes at ``url``, in the place of what is there: the object, or the part."""
        answer = await self._transport.ask("PUT", url, content)
        if not answer.is_success:
            raise error_of(answer)
        return answer

    async def create(self, name: str, content: bytes) -> bool:
        """Store a small object if there is none; whether there was none. Atomic, in stores that heed the condition.

        If an answer was lost, the object that is found at the repetition may be this one.
        """
        answer = await self._transport.ask("PUT", self.url(name), content, headers={"If-None-Match": "*"})
        if answer.status in {PRECONDITION_FAILED, CONFLICT}:
            return False
        if not answer.is_success:
            raise error_of(answer)
        return True

    async def delete(self, name: str) -> None:
        """Remove an object; absent is fine."""
        answer = await self._transport.ask("DELETE", self.url(name))
        if not answer.is_success and not is_absent(answer):
            raise error_of(answer)

    async def names(self, prefix: str, after: str, limit: int) -> tuple[Sequence[str], bool]:
        """Names of objects that begin with ``prefix``, behind ``after``, and whether there are more."""
        query: dict[str, str | int] = {"list_type": 2, "prefix": prefix, "max_keys": min(limit, LISTED_MAX)}
        if after:
            query["start_after"] = after
        page = document(await self._transport.ask("GET", self.url(**query)), "ListBucketResult")
        return page.names(), page.truncated

    async def look(self) -> Answer:
        """Whatever the bucket answers to a listing of one name."""
        return await self._transport.ask("GET", self.url(list_type=2, max_keys=1))

    async def check(self) -> None:
        """Raise `Unavailable` unless the bucket answers."""
        answer = await self._transport.ask("HEAD", self.url())
        if not answer.is_success:
            raise error_of(answer)

    # Uploads

    async def begin_upload(self, name: str) -> str:
        """Begin an upload; the store's id of it. Not repeated: there would be two."""
        answer = await self._transport.ask("POST", self.url(name, uploads=""), repeat=False)
        store_id = document(answer, "InitiateMultipartUploadResult").text("UploadId")
        if not store_id or not store_id.isascii() or not store_id.isprintable():
            raise Unavailable(_UNREADABLE)
        return store_id

    def part_url(self, name: str, store_id: str, number: int) -> URL:
        """Where a part is sent to."""
        return self.url(name, partNumber=number, uploadId=store_id)

    async def parts(self, name: str, store_id: str, after: int, limit: int) -> Page:
        """Parts whose numbers are above ``after``. Raises `NoSuchUpload`."""
        query: dict[str, str | int] = {"uploadId": store_id, "max_parts": min(limit, LISTED_MAX)}
        if after:
            query["part_number_marker"] = after
        return document(await self._transport.ask("GET", self.url(name, **query)), "ListPartsResult")

    async def complete(
        self, name: str, store_id: str, parts: Sequence[PartName], seconds: float, *, until: UnixMicros | None = None
    ) -> tuple[str, Answer]:
        """Make an object of parts; its ETag, and the answer. Not asked for again after ``until``.

        Raises what a client may have caused; `Unavailable`.
        """
        listed = "".join(
            f'<Part><PartNumber>{part.number}</PartNumber><ETag>"{escape(part.etag)}"</ETag></Part>' for part in parts
        )
        wanted = f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{listed}</CompleteMultipartUpload>'
        url = self.url(name, uploadId=store_id)
        answer = await self._transport.ask("POST", url, wanted.encode(), repeat_until=until, seconds=seconds)
        made = document(answer, "CompleteMultipartUploadResult")
        return unquoted(made.text("ETag")), answer

    async def abort(self, name: str, store_id: str) -> None:
        """End an upload and remove its parts. Raises `NoSuchUpload`, if the store says so."""
        answer = await self._transport.ask("DELETE", self.url(name, uploadId=store_id))
        if answer.is_success:
            return
        error = error_of(answer)
        raise NoSuchUpload("the store has no such upload") if answer.status == NOT_FOUND else error

    async def uploads(self, prefix: str, after: tuple[str, str]) -> Page:
        """Uploads in progress of names that begin with ``prefix``, behind the name and the id in ``after``."""
        query: dict[str, str | int] = {"uploads": "", "prefix": prefix, "max_uploads": LISTED_MAX}
        query |= {key: text for key, text in zip(("key_marker", "upload_id_marker"), after, strict=True) if text}
        return document(await self._transport.ask("GET", self.url(**query)), "ListMultipartUploadsResult")


def stored_of(answer: Answer) -> Stored:
    """What the head of an answer says of the object. Raises `Unavailable` if that cannot be read."""
    headers = answer.headers
    stored = moment(headers, "Last-Modified") if "Last-Modified" in headers else 0
    return Stored(_stored_bytes(answer.status, headers), unquoted(headers.get("ETag", "")), stored)


def _check_place(answer: Answer, start: int) -> None:
    """Raise `Unavailable` if the bytes of an answer are not those from ``start`` on, but all, or others.

    RFC 9110, section 14.2, lets whoever answers ignore what part was asked for.
    """
    first = "0"
    if answer.status != 200:
        first = answer.headers.get("Content-Range", "").partition("-")[0].removeprefix("bytes").strip()
    if first != str(start):
        raise Unavailable("the object store gives other bytes than those that were asked for")


def _stored_bytes(status: int, headers: Mapping[str, str]) -> int:
    """The length of the whole object."""
    whole = headers.get("Content-Range", "").rpartition("/")[2] if status != 200 else headers.get("Content-Length", "")
    if not whole.isascii() or not whole.isdecimal():
        raise Unavailable(_UNREADABLE)
    return int(whole)
