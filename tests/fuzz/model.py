"""The service as a dictionary: what the wire protocol says that a client sees, request after request.

Written from the protocol's text, not from the code: it shares no function with the service, but for the bounds. Time is
a number that the test moves. Where the protocol leaves an answer open, the model allows each that fits its text.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import unquote_to_bytes

from tierstore.limits import Limits

MICROS = 1_000_000
DEBOUNCE_MICROS_MAX = 24 * 3600 * MICROS

_ENCODED = re.compile(r"(?:[ -$&-~]|%[0-9A-F]{2})*")
_CONNECTION_HEADERS = frozenset({"date", "x-request-id", "connection", "content-length"})
_OPENED_BY_BROWSERS = frozenset({"text/plain"})
"""Of the types that are used here."""
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


@dataclass(frozen=True)
class Address:
    """An object's name: its namespace as addresses write it, and its key."""

    namespace: str
    key: str


@dataclass(frozen=True)
class Given:
    """What a client says of an object."""

    content_type: str | None = None
    zstd: bool = False
    expiration: tuple[Literal["ttl", "tti"], int] | None = None
    origin: str | None = None
    filename: str | None = None
    custom: tuple[tuple[str, str], ...] = ()


@dataclass
class StoredObject:
    """An object."""

    given: Given
    payload: bytes
    created: int
    deadline: int | None


@dataclass(frozen=True)
class StoredPart:
    """A part of an upload."""

    etag: str
    payload: bytes
    stored: int


@dataclass
class Upload:
    """A multipart upload."""

    address: Address
    upload_id: str
    given: Given
    due: int
    """When it may be aborted because nobody has completed it."""
    state: Literal["open", "aborted", "completed"] = "open"
    parts: dict[int, StoredPart] = field(default_factory=dict)
    remembered_until: int = 0
    """Once completed: how long that is remembered."""
    may_be_forgotten: bool = False
    """Whether a sweep has come after that."""


@dataclass(frozen=True)
class Selection:
    """What a GET with a Range header is answered with: a status, and the bytes that were asked for."""

    status: int
    payload: bytes = b""
    content_range: str | None = None


class Model:
    """Everything that the service holds."""

    def __init__(self, limits: Limits, now: int) -> None:
        self.limits = limits
        self.now = now
        self.objects: dict[Address, StoredObject] = {}
        self.uploads: dict[str, Upload] = {}

    def visible(self, address: Address) -> StoredObject | None:
        """The object, if there is one now: at its deadline it is gone."""
        found = self.objects.get(address)
        return None if found is None or (found.deadline is not None and found.deadline <= self.now) else found

    def put(self, address: Address, given: Given, payload: bytes) -> None:
        """Insert or replace."""
        expires = None if given.expiration is None else self.now + given.expiration[1] * MICROS
        self.objects[address] = StoredObject(given, payload, self.now, expires)

    def delete(self, address: Address) -> None:
        """Delete, if it is there."""
        self.objects.pop(address, None)

    def extend(self, address: Address, start: Literal["creation", "now", "1970"], micros: int) -> int:
        """Let the object live until ``micros`` after that start; return the status of the answer."""
        found = self.visible(address)
        if found is None:
            return 404
        if found.deadline is None or found.given.expiration is None:
            return 409
        deadline = {"creation": found.created, "now": self.now, "1970": 0}[start] + micros
        if deadline > found.deadline:
            counted_from = found.created if found.given.expiration[0] == "ttl" else self.now
            if deadline - counted_from > self.limits.duration_seconds_max * MICROS:
                return 400
            found.deadline = deadline
        return 204

    def accessed(self, address: Address) -> None:
        """A GET or HEAD was answered with the object: a ``tti`` deadline that has become stale enough moves."""
        found = self.visible(address)
        if found is None or found.deadline is None or found.given.expiration is None:
            return
        kind, seconds = found.given.expiration
        fresh = self.now + seconds * MICROS
        if kind == "tti" and fresh - found.deadline > min(seconds * MICROS / 4, DEBOUNCE_MICROS_MAX):
            found.deadline = fresh

    # Uploads

    def initiate(self, address: Address, given: Given, upload_id: str) -> None:
        """Begin an upload, which the server has named."""
        assert upload_id not in self.uploads
        due = self.now + int(self.limits.upload_retention_seconds) * MICROS
        self.uploads[upload_id] = Upload(address, upload_id, given, due)

    def complete(self, upload: Upload, named: list[tuple[int, str]]) -> frozenset[str]:
        """Complete; return the codes of which one has to be the answer, or none if it has to succeed.

        Like a success, which code comes first is not said where several apply.
        """
        if upload.state == "aborted":
            return frozenset({"NoSuchUpload"})
        if upload.state == "completed":
            return frozenset({"", "NoSuchUpload"}) if upload.may_be_forgotten else frozenset()
        upload.due = max(upload.due, self.now + int(self.limits.entry_grace_seconds) * MICROS)
        mistakes = self._mistakes(upload, named)
        if not mistakes:
            upload.state = "completed"
            upload.remembered_until = self.now + int(self.limits.outcome_retention_seconds) * MICROS
            self.put(upload.address, upload.given, b"".join(upload.parts[number].payload for number, _ in named))
        return mistakes

    def _mistakes(self, upload: Upload, named: list[tuple[int, str]]) -> frozenset[str]:
        codes = set()
        numbers = [number for number, _ in named]
        if numbers != sorted(set(numbers)):
            codes.add("InvalidPartOrder")
        sizes = []
        for number, etag in named:
            part = upload.parts.get(number)
            if part is None or part.etag != etag:
                codes.add("InvalidPart")
            sizes.append(0 if part is None else len(part.payload))
        if any(size < self.limits.part_bytes_min for size in sizes[:-1]):
            codes.add("EntityTooSmall")
        if sum(sizes) > self.limits.object_bytes_max:
            codes.add("EntityTooLarge")
        return frozenset(codes)

    def swept(self) -> None:
        """The sweeper came: what nobody completed in time is aborted, old outcomes may be forgotten."""
        for upload in self.uploads.values():
            if upload.state == "open" and upload.due <= self.now:
                upload.state = "aborted"
            if upload.state == "completed" and upload.remembered_until <= self.now:
                upload.may_be_forgotten = True


# What is asked for


@dataclass(frozen=True)
class Range:
    """A Range header, and what it means."""

    header: str
    kind: Literal["first-last", "first", "suffix", "several", "malformed"]
    a: int = 0
    b: int = 0

    def of(self, payload: bytes) -> Selection:
        """What a GET of ``payload`` is answered with."""
        size = len(payload)
        if self.kind == "malformed":
            return Selection(400)
        if self.kind == "several":
            return Selection(200, payload)
        start, stop = {
            "first-last": (self.a, min(self.b + 1, size)),
            "first": (self.a, size),
            "suffix": (max(size - self.a, 0), size),
        }[self.kind]
        if start >= stop:
            return Selection(416, content_range=f"bytes */{size}")
        return Selection(206, payload[start:stop], f"bytes {start}-{stop - 1}/{size}")


# What is answered


def _expiry_shown(found: StoredObject) -> dict[str, str]:
    """What tells of the expiry: of a ``ttl`` the lifetime as it is by now, extensions included."""
    if found.given.expiration is None or found.deadline is None:
        return {}
    kind, seconds = found.given.expiration
    if kind == "ttl":
        seconds = (found.deadline - found.created) // MICROS
    return {"x-sn-expiration": f"{kind}:{duration(seconds)}", "x-sn-time-expires": timestamp(found.deadline)}


def check_object_headers(
    found: StoredObject, headers: Mapping[str, str], *, content_range: str | None = None, in_batch: bool = False
) -> None:
    """Fail unless these are the headers that carry the object, each as it has to be, and no others.

    ``in_batch``: those of a part of a batch's answer, which has a disposition of its own.
    """
    given = found.given
    expected = {
        "content-type": given.content_type or "application/octet-stream",
        "x-sn-time-created": timestamp(found.created),
        "x-sn-size": str(len(found.payload)),
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    }
    if given.zstd:
        expected["content-encoding"] = "zstd"
    expected |= _expiry_shown(found)
    if given.origin is not None:
        expected["x-sn-origin"] = given.origin
    if given.filename is not None:
        expected["x-sn-filename"] = given.filename
    if content_range is not None:
        expected["content-range"] = content_range
    expected |= {f"x-snme-{name}": value for name, value in given.custom}
    got = {name: _decoded(name, value) for name, value in headers.items() if name not in _CONNECTION_HEADERS}
    disposition = got.pop("content-disposition", None)
    if in_batch:
        for name in ("accept-ranges", "x-content-type-options", "content-security-policy"):
            del expected[name]
        assert {name: value for name, value in got.items() if not name.startswith("x-sn-batch-operation-")} == expected
        return
    assert got == expected
    if given.filename is not None:
        _check_disposition(disposition or "", given.filename)
    elif given.content_type is None or given.content_type.split(";")[0].strip().lower() not in _OPENED_BY_BROWSERS:
        assert disposition == "attachment"
    else:
        assert disposition is None


def _decoded(name: str, value: str) -> str:
    if name not in {"x-sn-origin", "x-sn-filename"} and not name.startswith("x-snme-"):
        return value
    assert _ENCODED.fullmatch(value), f"{name} is not encoded: {value!r}"
    return unquote_to_bytes(value).decode()


def _check_disposition(disposition: str, filename: str) -> None:
    """A download never gets a name that leads elsewhere (RFC 6266)."""
    name = "".join("-" if each in "/\\" or unicodedata.category(each) == "Cc" else each for each in filename)
    if set(name) <= {"."}:
        name = "-" * len(name)
    match = re.fullmatch(r"""attachment; filename="((?:[^"\\]|\\")*)"(?:; filename\*=UTF-8''(\S+))?""", disposition)
    assert match is not None, disposition
    plain, extended = match.groups()
    assert disposition.isascii()
    assert disposition.isprintable()
    assert (extended is None) == name.isascii()
    whole = plain.replace('\\"', '"') if extended is None else unquote_to_bytes(extended).decode()
    assert whole == name


def timestamp(micros: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f").zfill(26) + "Z"


def duration(seconds: int) -> str:
    """With ``d h m s`` in that order, zero units left out."""
    terms = []
    for unit, name in _UNITS:
        count, seconds = divmod(seconds, unit)
        if count:
            terms.append(f"{count}{name}")
    return " ".join(terms) or "0s"


def percent_encoded(text: str, *, everything: bool) -> str:
    """Free text as a header holds it; ``everything`` encodes more than it has to."""
    encoded = [
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 and not everything else f"%{byte:02X}"
        for byte in text.encode()
    ]
    for end in (0, -1):
        if encoded and encoded[end] == " ":  # HTTP strips it
            encoded[end] = "%20"
    return "".join(encoded)


def request_headers(given: Given, *, everything: bool, written: str | None) -> list[tuple[str, str]]:
    """What a client sends to say ``given``; ``written`` is another way to write the duration."""
    headers = []
    if given.content_type is not None:
        headers.append(("Content-Type" if everything else "content-type", given.content_type))
    if given.zstd:
        headers.append(("content-encoding", "ZSTD" if everything else "zstd"))
    if given.expiration is not None:
        kind, seconds = given.expiration
        headers.append(("x-sn-expiration", f"{kind}:{written or duration(seconds)}"))
    elif everything:
        headers.append(("X-Sn-Expiration", "manual"))
    for name, text in (("x-sn-origin", given.origin), ("x-sn-filename", given.filename)):
        if text is not None:
            headers.append((name, percent_encoded(text, everything=everything)))
    headers += [
        (f"{'X-SNME' if everything else 'x-snme'}-{name}", percent_encoded(text, everything=everything))
        for name, text in given.custom
    ]
    if everything:  # made by the server, ignored on requests
        headers += [("x-sn-time-created", "2001-01-01T00:00:00Z"), ("x-sn-time-expires", "x"), ("x-sn-size", "1")]
    return headers


def after_part(upload: Upload, number: int, part: StoredPart) -> None:
    """A part was stored, in the place of an earlier one with the number. Fails if an ETag is used again."""
    before = upload.parts.get(number)
    if before is not None and before.payload != part.payload:
        assert part.etag != before.etag, "another content has the same ETag"
    upload.parts[number] = part
