"""What the state machine asks, in bytes: addresses, bodies, metadata and ranges; and the form that every answer has."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.model import Address, Given, Range, Upload
from tests.http.harness import Response, head
from tierstore.limits import Limits

LIMITS = replace(Limits.tiny(), object_bytes_max=2048, part_bytes_max=1024, part_bytes_min=8, linger_seconds_max=0.1)
"""So small that both tiers, and every edge of an upload, are met with a few bytes."""

EDGES = (0, 1, 15, 16, 17, 63, 64, 65, 66, 200, 2047, 2048)
PART_SIZES = (0, 7, 8, 9, 40, 64, 65, 66, 200, 500, 1024)
_TEXTS = st.sampled_from(["", "plain", " ends ", "größe ✓", '"quoted"', "a\r\nb", "50%", "..", "a/b\\c", "\x7f\x80"])
DURATIONS = (
    ("0s", 0), ("1s", 1), ("30 seconds", 30), ("15min", 900), ("1h 30m", 5_400), ("2days", 172_800), ("1week", 604_800),
)  # fmt: skip


def givens() -> SearchStrategy[tuple[Given, str | None]]:
    """Metadata, and how its duration is written."""

    def made(kind: Any, written: tuple[str, int], fields: dict[str, Any]) -> tuple[Given, str | None]:
        expiration = None if kind is None else (kind, written[1])
        return Given(expiration=expiration, **fields), None if kind is None else written[0]

    fields = st.fixed_dictionaries(
        {},
        optional={
            "content_type": st.sampled_from(
                ["Text/plain", 'text/x; charset="a b"', "application/octet-stream", "text/html"]
            ),
            "zstd": st.booleans(),
            "origin": _TEXTS,
            "filename": _TEXTS,
            "custom": st.dictionaries(st.sampled_from(["a", "b-c", "!#$"]), _TEXTS, max_size=2).map(
                lambda entries: tuple(sorted(entries.items()))
            ),
        },
    )
    return st.builds(made, st.sampled_from([None, None, "ttl", "tti"]), st.sampled_from(DURATIONS), fields)


def ranges() -> SearchStrategy[Range]:
    """Ranges of each kind, at the edges."""
    positions = st.sampled_from([0, 1, 15, 16, 63, 64, 65, 199, 2047, 2048, 10**30])
    pairs = st.tuples(positions, positions).map(sorted)
    several = ["bytes=0-1,3-4", "bytes=-1, 0-", "bytes=9999-,0-0"]
    malformed = ["bytes=", "bytes=5-2", "bytes=a-b", "bytes=-", "rows=0-1", "0-1", "bytes=1-2-3", "bytes=+1-2", "b"]
    return st.one_of(
        pairs.map(lambda ab: Range(f"bytes={ab[0]}-{ab[1]}", "first-last", *ab)),
        positions.map(lambda a: Range(f"Bytes={a}-,", "first", a)),
        positions.map(lambda a: Range(f"bytes=-{a}", "suffix", a)),
        st.sampled_from(several).map(lambda header: Range(header, "several")),
        st.sampled_from(malformed).map(lambda header: Range(header, "malformed")),
    )


def target(address: Address, kind: str = "", *, everything: bool = False) -> str:
    """The address as a client writes it; ``everything`` encodes each byte of the key."""
    key = (
        "".join(f"%{byte:02x}" for byte in address.key.encode()) if everything else quote(address.key, "/:@!$&'()*+,;=")
    )
    return f"/v1/objects{kind}/{address.namespace}/{key}"


def upload_target(upload: Upload, kind: str = "", **parameters: object) -> str:
    """An address of the upload."""
    query = "".join(f"&{name}={value}" for name, value in parameters.items() if value is not None)
    return f"{target(upload.address, f':multipart{kind}')}?upload_id={upload.upload_id}{query}"


def named_parts(upload: Upload, wrong: str, choice: int) -> list[tuple[int, str]]:
    """The parts that a client names to complete the upload; ``wrong`` in one way, at ``choice``."""
    named = [(number, part.etag) for number, part in sorted(upload.parts.items())]
    if not named:
        return [(1, "none")]
    at = choice % len(named)
    number, etag = named[at]
    before, after = named[:at], named[at + 1 :]
    mistakes = {
        "some": before + after,
        "order": named[::-1],
        "twice": [*before, named[at], named[at], *after],
        "etag": [*before, (number, etag[:-1] + ("0" if etag[-1] != "0" else "1")), *after],
        "missing": sorted({*named, (LIMITS.parts_max, etag)}),
        "other's": [*before, (number, named[at - 1][1]), *after],
    }
    return mistakes.get(wrong, named)


def document(named: Sequence[tuple[int, str]]) -> bytes:
    """The body that names parts."""
    return json.dumps({"parts": [{"part_number": number, "etag": etag} for number, etag in named]}).encode()


def sent_as(method: str, to: str, headers: list[tuple[str, str]], body: bytes | None, framing: str) -> bytes:
    """The bytes of a request."""
    if framing == "continue":
        headers = [*headers, ("expect", "100-continue")]
    if body is None or framing != "chunked":
        return head(method, to, headers, body) + (body or b"")
    pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return head(method, to, [*headers, ("transfer-encoding", "chunked")]) + chunks + b"0\r\n\r\n"


def check_form(method: str, answer: Response) -> None:
    """Fail unless it has what every answer has."""
    assert answer.headers["x-request-id"]
    assert answer.headers["date"]
    assert answer.status < 500 or answer.status == 501, answer
    if answer.status == 204:
        assert not answer.body
        assert "content-length" not in answer.headers
    elif method != "HEAD" and "content-length" in answer.headers:
        assert answer.whole
    if answer.status >= 400 and method != "HEAD":
        error = answer.json
        assert set(error) <= {"detail", "causes"}
        assert error["detail"]
        assert error.get("causes", ["some"]) != []
