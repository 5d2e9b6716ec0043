"""Answers of S3, and what they mean: documents in XML, and the codes of errors.

Guarantees: an answer that cannot be read is `Unavailable`, never a guess; an error of the store that a client can cause
becomes that client's error, all others become `Unavailable` or `StorageFull`. What an answer says in words, or of
names, is in no error's text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from xml.etree import ElementTree as ET

import structlog

from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import (
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    ObjectTooLarge,
    StorageFull,
    TierstoreError,
    Unavailable,
)
from tierstore.object_storage.transport import Answer

log = structlog.get_logger(__name__)

FROM_THE_FIRST = ("", "")
"""Where a listing of uploads begins."""
NOT_FOUND, CONFLICT, PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE = 404, 409, 412, 416
NO_SUCH_KEY = "NoSuchKey"
_UNREADABLE = "the object store's answer cannot be read"
_CLIENTS_MISTAKES: Mapping[str, tuple[type[TierstoreError], str]] = {
    "NoSuchUpload": (NoSuchUpload, "the store has no such upload"),
    "InvalidPart": (InvalidPart, "a part that is named has not been uploaded, or has another ETag"),
    "InvalidPartOrder": (InvalidPartOrder, "parts go in ascending order"),
    "EntityTooSmall": (EntityTooSmall, "a part but the last is smaller than the store allows"),
    "EntityTooLarge": (ObjectTooLarge, "this is more than an object of the store may have"),
}
"""Codes that a client can cause (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
_FULL = frozenset({
    "InsufficientStorage", "StorageFull", "XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded",
})  # fmt: skip
_INSUFFICIENT_STORAGE = 507
_REFUSED = frozenset({
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AllAccessDisabled",
    "AccountProblem", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed",
})  # fmt: skip
_MISPLACED = frozenset({
    "PermanentRedirect", "TemporaryRedirect", "MovedPermanently", "Redirect", "IllegalLocationConstraintException",
})  # fmt: skip


def error_of(answer: Answer) -> TierstoreError:
    """What an answer that is no success means; what the operator has to mend is logged."""
    code = code_of(answer)
    if code in _CLIENTS_MISTAKES:
        kind, text = _CLIENTS_MISTAKES[code]
        return kind(text)
    if code in _FULL or answer.status == _INSUFFICIENT_STORAGE:
        return StorageFull("the object store is full")
    text = sentence_of(answer)
    log.warning("the object store has refused a request", status=answer.status, code=code, meaning=text)
    return Unavailable(text)


def sentence_of(answer: Answer) -> str:
    """What an error means that no client can cause, for the operator."""
    code = code_of(answer)
    region = answer.headers.get("x-amz-bucket-region", "")
    if code == "NoSuchBucket" or (answer.status == NOT_FOUND and not code):
        return "the bucket does not exist"
    if code in _MISPLACED or 300 <= answer.status < 400:
        return f"the bucket is in another region{f' ({region})' if region else ''}"
    if code == "RequestTimeTooSkewed":
        return "the clocks of this machine and of the object store differ too much"
    if code == "AuthorizationHeaderMalformed":
        return f"the object store wants requests to be signed for another region{f' ({region})' if region else ''}"
    if code in _REFUSED or answer.status in {401, 403}:
        return f"the object store refuses the credentials, or what they are used for ({code or answer.status})"
    return f"the object store has answered {answer.status} {code}".rstrip()


def code_of(answer: Answer) -> str:
    """The code of an error; empty if there is none. In an answer of status 200 there may be one, too."""
    if not answer.body:
        return ""
    try:
        root = _root(answer)
    except ET.ParseError:
        return ""
    return _text(root, "Code") if _name(root) == "Error" else ""


def is_absent(answer: Answer) -> bool:
    """Whether it is sure that it is the object that is absent, and not its bucket."""
    return answer.status == NOT_FOUND and code_of(answer) == NO_SUCH_KEY


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part of an upload, as the store lists it."""

    number: int
    etag: str
    stored_bytes: int
    stored: UnixMicros


@dataclass(frozen=True, slots=True)
class ListedUpload:
    """An upload in progress."""

    name: str
    store_id: str
    begun: UnixMicros


@dataclass(frozen=True, slots=True)
class Page:
    """A document that lists: its entries, and where the next page goes on."""

    root: "ET.Element"

    @property
    def truncated(self) -> bool:
        """Whether there is more."""
        return _text(self.root, "IsTruncated").lower() == "true"

    def text(self, name: str) -> str:
        """What stands in an element of the document; empty if there is none."""
        return _text(self.root, name)

    def uploads_after(self) -> tuple[str, str]:
        """Where a listing of uploads goes on: behind a name and an id, of which stores give one or both."""
        if not self.truncated:
            return FROM_THE_FIRST
        return self.text("NextKeyMarker"), self.text("NextUploadIdMarker")

    def names(self) -> Sequence[str]:
        """The names of objects."""
        return [_text(each, "Key") for each in _all(self.root, "Contents")]

    def parts(self) -> Sequence[ListedPart]:
        """The parts of an upload."""
        return [
            ListedPart(
                _number(each, "PartNumber"), unquoted(_text(each, "ETag")), _number(each, "Size"),
                _instant(_text(each, "LastModified")),
            )
            for each in _all(self.root, "Part")
        ]  # fmt: skip

    def uploads(self) -> Sequence[ListedUpload]:
        """Uploads in progress."""
        return [
            ListedUpload(_text(each, "Key"), _text(each, "UploadId"), _instant(_text(each, "Initiated")))
            for each in _all(self.root, "Upload")
        ]


def document(answer: Answer, name: str) -> Page:
    """The document called ``name`` that a success is. Raises what another document, such as an error, means."""
    if not answer.is_success:
        raise error_of(answer)
    try:
        root = _root(answer)
    except ET.ParseError:
        raise Unavailable(_UNREADABLE) from None
    if _name(root) == "Error":
        raise error_of(answer)
    if _name(root) != name:
        raise Unavailable(_UNREADABLE)
    return Page(root)


def _root(answer: Answer) -> "ET.Element":
    """The document, without the blanks that a store sends before it to keep the connection. Raises `ET.ParseError`."""
    return ET.fromstring(answer.body.lstrip())  # noqa: S314  # because the store is trusted with more than this


def unquoted(etag: str) -> str:
    """An ETag without its quotes."""
    return etag.strip().strip('"')


def moment(headers: Mapping[str, str], name: str) -> UnixMicros:
    """The instant that a header tells. Raises `Unavailable`."""
    try:
        return int(parsedate_to_datetime(headers.get(name, "")).timestamp()) * MICROS_PER_SECOND
    except (ValueError, TypeError):
        raise Unavailable(_UNREADABLE) from None


def answered(answer: Answer, now: UnixMicros) -> UnixMicros:
    """When the store has answered, by its clock; ``now`` if it does not say."""
    return moment(answer.headers, "Date") if "Date" in answer.headers else now


def _instant(text: str) -> UnixMicros:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Unavailable(_UNREADABLE) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int(when.timestamp() * MICROS_PER_SECOND)


def _name(element: "ET.Element") -> str:
    """Without the namespace, which some stores leave out."""
    return element.tag.rpartition("}")[2]


def _all(root: "ET.Element", name: str) -> "Iterator[ET.Element]":
    return (child for child in root if _name(child) == name)


def _text(root: "ET.Element", name: str) -> str:
    return next(((child.text or "") for child in _all(root, name)), "")


def _number(root: "ET.Element", name: str) -> int:
    try:
        return int(_text(root, name))
    except ValueError:
        raise Unavailable(_UNREADABLE) from None
