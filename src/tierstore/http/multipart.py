"""Bodies of parts (``multipart/form-data``, RFC 7578 and RFC 2046, section 5.1) as a stream of events.

The parser is `python_multipart`'s, which holds nothing but a position. This adds what it leaves open: a body ends with
its last delimiter or is malformed; nothing stands in front of the first one but one line end; a header is one line
without control characters; and a delimiter right behind the headers, where the line end of the part's empty body is
missing, is malformed, and not the beginning of a body that has the following parts in it.

Guarantees: however a body is cut into chunks, the events say the same (but for how they cut what is in a part); those
of what came before a malformed byte come before the error; memory is bounded by one chunk and one part's headers, of
which those beyond ``header_bytes_max`` are not kept. Does not: know what parts mean, bound their number or their size,
or decode a ``content-transfer-encoding``.
"""

import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from tierstore.errors import InvalidRequest
from tierstore.http.responses import HEADER_OVERHEAD_BYTES, UNSAFE_IN_HEADERS, Headers
from tierstore.limits import KIB, Limits

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MEDIA_TYPE: Final = b"multipart/form-data"
_BOUNDARY: Final = re.compile(rb"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")
"""RFC 2046, section 5.1.1: at most 70 of these characters, the last of them no space."""
_PIECE_BYTES: Final = 64 * KIB
"""What is parsed at once, so that the events of a chunk are few, whatever it holds."""
_LINE_END: Final = b"\r\n"

logging.getLogger("python_multipart.multipart").disabled = True  # it quotes what clients send; we answer and log that


@dataclass(frozen=True, slots=True)
class PartHead:
    """A part has begun, with these headers, their names in lower case; or with more than are kept, and then none."""

    headers: Headers
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is whole."""


PartEvent = PartHead | bytes | PartEnd
"""Bytes are some of what is in the part, never empty."""


def boundary_of(content_type: bytes) -> bytes:
    """The boundary that a ``content-type`` announces. Raises `InvalidRequest` if it is not that of parts."""
    media_type, parameters = parse_options_header(content_type)
    if media_type.strip(b" \t") != _MEDIA_TYPE:
        raise InvalidRequest("the content-type of a batch is multipart/form-data, with a boundary")
    boundary = parameters.get(b"boundary", b"")
    if content_type.lower().count(b"boundary=") != 1 or _BOUNDARY.fullmatch(boundary) is None:
        raise InvalidRequest("the boundary in the content-type is 1 to 70 of the characters that RFC 2046 allows, once")
    return boundary


class PartsParser:
    """Parses one body of parts, fed in chunks."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        self._header_bytes_max = limits.header_bytes_max
        self._events: list[PartEvent] = []
        self._prefix: bytes | None = b""
        """What came so far, until it is known how the body begins; then None."""
        self._ended = False
        self._headers: Headers = []
        self._header_bytes = 0
        self._name, self._value = bytearray(), bytearray()
        self._flaw: str | None = None
        self._dashed_boundary = b"--" + boundary
        self._resembled: int | None = None
        """How many bytes of a delimiter the body of the part begins with, and consists of so far."""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._name_comes,
            "on_header_value": self._value_comes,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._head_ends,
            "on_part_data": self._bytes_come,
            "on_part_end": self._part_ends,
            "on_end": self._body_ends,
        }
        # What it would count is counted here, where it fails one part and not all.
        self._parser = MultipartParser(boundary, callbacks, max_header_count=sys.maxsize, max_header_size=sys.maxsize)

    def feed(self, chunk: bytes) -> Iterator[PartEvent]:
        """The events of the next chunk of the body. To be consumed before the next one comes.

        Raises `InvalidRequest` for a malformed body, behind the events of what came before. What follows the last
        delimiter is passed over.
        """
        view = self._begun(chunk)
        for start in range(0, len(view), _PIECE_BYTES):
            if self._ended:
                return
            flaw: str | None = None
            try:
                self._parser.write(view[start : start + _PIECE_BYTES])
            except MultipartParseError:
                flaw = "it is not made of parts between delimiters, each with headers, an empty line and a body"
            events, self._events = self._events, []
            yield from events
            if flaw := self._flaw or flaw:
                raise InvalidRequest(f"the body is malformed: {flaw}")

    def finish(self) -> None:
        """The body has come to its end. Raises `InvalidRequest` if that is not the end of its parts."""
        if not self._ended:
            raise InvalidRequest("the body is malformed: it ends before the last delimiter")

    def _begun(self, chunk: bytes) -> bytes:
        """What there is to parse now. One line end may stand in front of the first delimiter, and nothing else."""
        if self._prefix is None:
            return chunk
        began = self._prefix + chunk
        if _LINE_END.startswith(began):
            self._prefix = began
            return b""
        self._prefix = None
        began = began.removeprefix(_LINE_END)
        if not began.startswith(b"-"):
            raise InvalidRequest("the body is malformed: it does not begin with the delimiter of its boundary")
        return began

    # The parser's callbacks

    def _part_begins(self) -> None:
        self._headers, self._header_bytes = [], 0

    def _name_comes(self, received: bytes, start: int, end: int) -> None:
        self._keep(self._name, received, start, end)

    def _value_comes(self, received: bytes, start: int, end: int) -> None:
        self._keep(self._value, received, start, end)

    def _keep(self, kept: bytearray, received: bytes, start: int, end: int) -> None:
        self._header_bytes += end - start
        if self._header_bytes <= self._header_bytes_max:
            kept += received[start:end]

    def _header_ends(self) -> None:
        self._header_bytes += HEADER_OVERHEAD_BYTES
        if self._header_bytes <= self._header_bytes_max:
            if UNSAFE_IN_HEADERS.search(self._value) is not None:
                self._flaw = self._flaw or "a header has a control character, or is not ended by CR and LF"
            self._headers.append((bytes(self._name).lower(), bytes(self._value).strip(b" \t")))
        self._name, self._value = bytearray(), bytearray()

    def _head_ends(self) -> None:
        too_large = self._header_bytes > self._header_bytes_max
        self._add(PartHead([] if too_large else self._headers, too_large))
        self._headers = []
        self._resembled = 0

    def _bytes_come(self, received: bytes, start: int, end: int) -> None:
        if end > start:
            if self._resembled is not None:
                self._compare(received[start : min(end, start + len(self._dashed_boundary))], self._resembled)
            self._add(received[start:end])

    def _compare(self, piece: bytes, resembled: int) -> None:
        """Find the flaw of a body that begins with a delimiter."""
        expected = self._dashed_boundary[resembled : resembled + len(piece)]
        if not piece.startswith(expected):
            self._resembled = None
            return
        self._resembled = resembled + len(expected)
        if self._resembled == len(self._dashed_boundary):
            self._flaw = (
                self._flaw or "a delimiter stands right behind the headers of a part, without the line end before it"
            )

    def _part_ends(self) -> None:
        self._add(PartEnd())

    def _body_ends(self) -> None:
        self._ended = True

    def _add(self, event: PartEvent) -> None:
        if self._flaw is None:  # what follows a malformed header is no part
            self._events.append(event)
