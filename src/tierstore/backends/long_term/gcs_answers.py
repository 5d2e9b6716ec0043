"""Answers of Google Cloud Storage, and what they mean: resources in JSON, documents in XML, and errors in either.

Guarantees: an answer that cannot be read is `Unavailable`, never a guess; an error of the service that a client can
cause becomes that client's error, all others become `Unavailable` or `Busy`. No name that holds a user's key is in the
text of an error.
"""

import json
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

import structlog

from tierstore.errors import (
    Busy,
    ChecksumMismatch,
    EntityTooSmall,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    ObjectTooLarge,
    TierstoreError,
    Unavailable,
)
from tierstore.object_storage.transport import Answer

log = structlog.get_logger(__name__)

UNAUTHENTICATED, FORBIDDEN, NOT_FOUND, PRECONDITION_FAILED, TOO_MANY = 401, 403, 404, 412, 429
UNREADABLE = "the object store's answer cannot be read"
_NO_SUCH_OBJECT = b"No such object"
"""How the JSON API begins to say that an object is absent, and not its bucket."""
_CLIENTS_MISTAKES: Mapping[str, tuple[type[TierstoreError], str]] = {
    "NoSuchUpload": (NoSuchUpload, "the store has no such upload"),
    "InvalidPart": (InvalidPart, "a part that is named has not been uploaded, or has another ETag"),
    "InvalidPartOrder": (InvalidPartOrder, "parts go in ascending order"),
    "EntityTooSmall": (EntityTooSmall, "a part but the last is smaller than the store allows"),
    "EntityTooLarge": (ObjectTooLarge, "this is more than an object of the store may have"),
    "BadDigest": (ChecksumMismatch, "the part does not have the MD5 that was announced"),
}
"""Codes of the XML API that a client can cause (https://cloud.google.com/storage/docs/xml-api/reference-status)."""


def says_no_such_object(answer: Answer) -> bool:
    """Whether an object is absent, and it is sure that this is not said of its bucket."""
    return answer.status == NOT_FOUND and _NO_SUCH_OBJECT in answer.body


def code_of(answer: Answer) -> str:
    """What the service calls an error: the code of the XML API, or the reason of the JSON API; empty if neither."""
    try:
        if answer.body.lstrip().startswith(b"{"):
            return str(json.loads(answer.body)["error"]["errors"][0]["reason"])
        return Element(ET.fromstring(answer.body)).text("Code")  # noqa: S314  # because it comes from our store
    except (ValueError, KeyError, IndexError, TypeError, ET.ParseError):
        return ""


def resource_of(answer: Answer) -> dict[str, Any]:
    """The body of an answer of the JSON API. Raises `Unavailable` if it is none, and what the service has refused."""
    _require_success(answer)
    try:
        told = json.loads(answer.body)
    except ValueError:
        raise Unavailable(UNREADABLE) from None
    if not isinstance(told, dict):
        raise Unavailable(UNREADABLE)
    return told


def document_of(answer: Answer) -> "Element":
    """The body of an answer of the XML API. Raises `Unavailable` if it is none, and what the service has refused."""
    _require_success(answer)
    try:
        return Element(ET.fromstring(answer.body))  # noqa: S314  # because it comes from our store
    except ET.ParseError:
        raise Unavailable(UNREADABLE) from None


def _require_success(answer: Answer) -> None:
    if not answer.is_success:
        raise refusal_of(answer)


def refusal_of(answer: Answer) -> TierstoreError:
    """What an answer means that is no success; in the log, if the operator has to mend it."""
    code = code_of(answer)
    mistake, sentence = _CLIENTS_MISTAKES.get(code, (Unavailable, ""))
    if sentence:
        return mistake(sentence)
    if answer.status == TOO_MANY:
        return Busy("the object store takes no more requests now")
    if answer.status in {UNAUTHENTICATED, FORBIDDEN}:
        log.error("the object store refuses this server", status=answer.status, code=code)
        return Unavailable("the object store does not let this server do that")
    if answer.status == NOT_FOUND:
        log.error("the object store does not know its bucket", code=code)
        return Unavailable("the object store does not know its bucket")
    return Unavailable(f"the object store has answered {answer.status} {code}".rstrip())


class Element:
    """An element of a document, whatever its namespace: the service and its documentation do not agree on one."""

    def __init__(self, element: ET.Element) -> None:
        self._element = element

    @property
    def name(self) -> str:
        """What it is called."""
        return _bare(self._element.tag)

    def all(self, name: str) -> "list[Element]":
        """The children called ``name``."""
        return [Element(child) for child in self._element if _bare(child.tag) == name]

    def text(self, name: str, default: str = "") -> str:
        """The text of the first child called ``name``."""
        for child in self.all(name):
            return child._element.text or ""  # noqa: SLF001  # because it is one of its own kind
        return default

    def whole(self, name: str) -> int:
        """The number in the first child called ``name``. Raises `Unavailable` if there is none."""
        text = self.text(name)
        if not (text.isascii() and text.isdigit()):
            raise Unavailable(UNREADABLE)
        return int(text)

    @property
    def is_truncated(self) -> bool:
        """Whether a listing has more than this page of it."""
        return self.text("IsTruncated") == "true"


def _bare(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2]
