"""Requests that cannot be served, each with the statuses that may answer it. None of them changes anything."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.fuzz.model import Address, Upload


@dataclass(frozen=True)
class Request:
    """What is sent."""

    method: str
    target: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | None = None
    framing: str = "length"


@dataclass(frozen=True)
class Nonsense:
    """A kind of request that is refused."""

    name: str
    statuses: frozenset[int]
    of: Callable[[Address, Upload | None], Request]

    def request(self, address: Address, upload: Upload | None) -> Request:
        """Such a request, of the object or of the upload."""
        return self.of(address, upload)

    def __repr__(self) -> str:
        return self.name


def _target(address: Address, query: str = "", kind: str = "") -> str:
    return f"/v1/objects{kind}/{address.namespace}/{quote(address.key, '/')}{query}"


def _of_object(
    name: str,
    *statuses: int,
    method: str = "PUT",
    query: str = "",
    kind: str = "",
    headers: tuple[tuple[str, str], ...] = (),
    body: bytes | None = b"payload",
    framing: str = "length",
) -> Nonsense:
    def of(address: Address, _: Upload | None) -> Request:
        return Request(method, _target(address, query, kind), list(headers), body, framing)

    return Nonsense(name, frozenset(statuses), of)


def _at(name: str, target: str, *statuses: int, method: str = "PUT") -> Nonsense:
    """At an address that is none."""
    return Nonsense(name, frozenset(statuses), lambda *_: Request(method, target, [], b"payload"))


_METADATA = (
    ("content-type", "nonsense"), ("content-type", "text/"), ("content-type", "a/b; =c"), ("content-encoding", "gzip"),
    ("content-encoding", "zstd, zstd"), ("content-encoding", ""), ("x-sn-expiration", "sometimes"),
    ("x-sn-expiration", "ttl:"), ("x-sn-expiration", "ttl:5"), ("x-sn-expiration", "tti:1 parsec"),
    ("x-sn-expiration", "ttl:-5s"), ("x-sn-expiration", "ttl:1000y"), ("x-sn-expiration", "TTL:5s"),
    ("x-sn-filename", "%zz"), ("x-sn-filename", "%"), ("x-sn-origin", "%ff"), ("x-snme-a", "%C3%28"),
    ("x-snme-", "no name"), ("content-range", "bytes 0-1/2"),
)  # fmt: skip

_EXTENSIONS = (
    b"", b"{}", b"null", b"[[", b"\xff", b'{"extend_expiry": {}}', b'{"extend_expiry": {"after": "1h"}}',
    b'{"extend_expiry": {"after": "1h", "from": "then"}}', b'{"extend_expiry": {"after": "1.5h", "from": "now"}}',
    b'{"extend_expiry": {"after": "1h", "from": "now", "at": "2030-01-01T00:00:00Z"}}',
    b'{"extend_expiry": {"at": "2030-01-01"}}', b'{"extend_expiry": {"at": 1}}',
    b'{"extend_expiry": {"after": "1h", "from": "now"}, "x": 1}',
)  # fmt: skip

OF_OBJECTS = (
    *(_of_object(f"{name}: {value}", 400, headers=((name, value),)) for name, value in _METADATA),
    *(
        _of_object(f"{name} twice", 400, headers=((name, "text/plain"), (name, "text/plain")))
        for name in ("content-type", "x-sn-filename", "x-snme-a", "x-sn-origin")
    ),
    _of_object("too much metadata", 431, headers=(("x-snme-a", "x" * 3000),)),
    _of_object("too many entries", 431, headers=tuple((f"x-snme-{number}", "") for number in range(9))),
    _of_object("too large", 413, body=b"x" * 2049),
    _of_object("too large, in chunks", 413, body=b"x" * 2049, framing="chunked"),
    _of_object("another transfer coding", 400, 501, headers=(("transfer-encoding", "gzip, chunked"),), body=None),
    _of_object("two lengths", 400, headers=(("content-length", "1"),)),
    _of_object("if-none-match", 501, headers=(("if-none-match", "*"),)),
    _of_object("delete if-match", 501, method="DELETE", headers=(("if-match", '"x"'),), body=None),
    _of_object("a resumable upload of no length", 400, query="?upload_type=resumable", body=b""),
    *(
        _of_object(
            f"a resumable upload of {length!r}",
            400,
            query="?upload_type=resumable",
            body=b"",
            headers=(("upload-length", length),),
        )
        for length in ("-1", "+1", "1.0", "x", "*", "9" * 30, "1, 1")
    ),
    _of_object(
        "a resumable upload with a body", 400, query="?upload_type=resumable", headers=(("upload-length", "8"),)
    ),
    _of_object(
        "too much for a resumable upload",
        413,
        query="?upload_type=resumable",
        body=b"",
        headers=(("upload-length", str(1 << 50)),),
    ),
    _of_object("no session, from an offset", 404, query="?session=token", headers=(("upload-offset", "0"),)),
    _of_object("no session, asked", 404, query="?session=token", headers=(("upload-offset", "*"),), body=b""),
    _of_object("another upload type", 400, query="?upload_type=other"),
    _of_object("session", 404, query="?session=token"),
    _of_object("two sessions", 400, query="?session=a&session=b"),
    _of_object("a session and another", 400, query="?session=a&upload_type=resumable"),
    _of_object("cancel a session", 404, method="DELETE", query="?session=token", body=None),
    *(_of_object(f"extend by {body!r}", 400, method="PATCH", body=body) for body in _EXTENSIONS),
    _of_object("extend by too much", 413, method="PATCH", body=b" " * 5_000),
    _of_object("extend if-match", 501, method="PATCH", headers=(("if-match", '"x"'),), body=b"{}"),
    _of_object("post to a key", 405, method="POST"),
    _of_object("an unknown method", 405, 501, method="FROBNICATE", body=None),
    _of_object("a lower-case method", 400, 405, 501, method="put"),
    _of_object("trace", 405, method="TRACE", body=None),
    _of_object("options", 405, method="OPTIONS", body=None),
    _of_object("initiate with another method", 405, method="PATCH", kind=":multipart", body=None),
    _of_object("initiate badly", 400, kind=":multipart", headers=(("content-type", "nonsense"),), body=b""),
    _of_object("initiate under a condition", 501, kind=":multipart", headers=(("if-match", "*"),), body=b""),
    _of_object("a part without an upload", 400, kind=":multipart:parts", query="?part_number=1"),
    _of_object("a list without an upload", 400, method="GET", kind=":multipart:parts", body=None),
    _of_object("an abort without an upload", 400, method="DELETE", kind=":multipart", body=None),
    _of_object("a complete without an upload", 400, method="POST", kind=":multipart:complete", body=b'{"parts": []}'),
    _of_object(
        "an unknown upload", 400, 404, method="GET", kind=":multipart:parts", query="?upload_id=AAAA", body=None
    ),
    _at("a batch", "/v1/objects:batch/testing/_/", 400, method="POST"),
    _at("a short usecase", "/v1/objects/ab/_/a", 400),
    _at("a usecase with a dot", "/v1/objects/a.b/_/a", 400),
    _at("a scope without a value", "/v1/objects/testing/org=/a", 400),
    _at("a scope without a name", "/v1/objects/testing/=1/a", 400),
    _at("a scope that is none", "/v1/objects/testing/org/a", 400),
    _at("a malformed escape", "/v1/objects/testing/_/a%zz", 400),
    _at("no UTF-8", "/v1/objects/testing/_/%ff", 400),
    _at("a long key", f"/v1/objects/testing/_/{'a' * 5000}", 400),
    _at("no such address", "/v1/object/testing/_/a", 404),
    _at("a namespace", "/v1/objects/testing/_", 405),
    _at("a namespace, deleted", "/v1/objects/testing/_/", 405, method="DELETE"),
)


def _of_upload(
    name: str,
    *statuses: int,
    method: str = "PUT",
    kind: str = ":parts",
    query: str = "&part_number=1",
    headers: tuple[tuple[str, str], ...] = (),
    body: bytes | None = b"payload!",
    framing: str = "length",
    upload_id: Callable[[str], str] = str,
) -> Nonsense:
    def of(address: Address, upload: Upload | None) -> Request:
        assert upload is not None
        full = f"?upload_id={upload_id(upload.upload_id)}{query}"
        return Request(method, _target(address, full, f":multipart{kind}"), list(headers), body, framing)

    return Nonsense(name, frozenset(statuses), of)


def _complete(name: str, body: bytes, *statuses: int) -> Nonsense:
    return _of_upload(f"complete with {name}", *statuses, method="POST", kind=":complete", query="", body=body)


def _flipped(upload_id: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(upload_id + "=" * (-len(upload_id) % 4)))
    raw[5] ^= 1
    return base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()


OF_UPLOADS = (
    *(_of_upload(f"part {number}", 400, query=f"&part_number={number}") for number in ("0", "9", "-1", "x", "", "1.0")),
    _of_upload("a part without a number", 400, query=""),
    _of_upload("a part in chunks", 400, framing="chunked"),
    _of_upload("a part without a length", 400, body=None),
    _of_upload("a part with a range", 400, headers=(("content-range", "bytes 0-7/9"),)),
    _of_upload("a malformed digest", 400, headers=(("content-md5", "AAAA"),)),
    _of_upload("no digest", 400, headers=(("content-md5", "!"),)),
    _of_upload("a large part", 413, 404, body=b"x" * 1025),
    _of_upload("an upload id cut short", 400, 404, upload_id=lambda text: text[:-1]),
    _of_upload("an upload id with a flipped bit", 400, 404, upload_id=_flipped),
    _of_upload("an upload id that goes on", 400, 404, upload_id=lambda text: text + "A"),
    _of_upload("an upload id in other case", 400, 404, upload_id=str.swapcase),
    _of_upload("two upload ids", 400, query="&part_number=1&upload_id=x"),
    _of_upload(
        "abort another", 400, 404, method="DELETE", kind="", query="", body=None, upload_id=lambda text: text[1:]
    ),
    _of_upload(
        "abort under a condition", 501, method="DELETE", kind="", query="", body=None, headers=(("if-match", "*"),)
    ),
    _of_upload("a list of none", 400, method="GET", query="&max_parts=0", body=None),
    _of_upload("a list of x", 400, method="GET", query="&max_parts=x", body=None),
    _of_upload("a list after x", 400, method="GET", query="&part_number_marker=x", body=None),
    _of_upload("get to complete", 405, method="GET", kind=":complete", body=None),
    _complete("nothing", b"", 400, 422),
    _complete("no JSON", b"{", 400),
    _complete("no object", b"[]", 400, 422),
    _complete("no parts", b"{}", 400, 422),
    _complete("an empty list", b'{"parts": []}', 400, 422),
    _complete("part 0", b'{"parts": [{"part_number": 0, "etag": "x"}]}', 422),
    _complete("part 9", b'{"parts": [{"part_number": 9, "etag": "x"}]}', 400, 422),
    _complete("no etag", b'{"parts": [{"part_number": 1}]}', 400, 422),
    _complete("a number for an etag", b'{"parts": [{"part_number": 1, "etag": 1}]}', 400, 422),
    _complete("text for a number", b'{"parts": [{"part_number": "1", "etag": "x"}]}', 400, 422),
    _complete("a fraction", b'{"parts": [{"part_number": 1.5, "etag": "x"}]}', 400, 422),
    _complete("no UTF-8", b'{"parts": [{"part_number": 1, "etag": "\xff"}]}', 400),
    _complete("something behind", b'{"parts": [{"part_number": 1, "etag": "x"}]} x', 400),
    _complete("deep nesting", b'{"parts": ' + b"[" * 5000, 400, 422),
)
