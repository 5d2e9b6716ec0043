"""Byte ranges (RFC 9110, section 14): one ``bytes=`` range, resolved against an object's size.

Guarantees: what `resolve` returns lies within the object and is not empty. Several ranges in one header are legal and
are answered with the whole object (RFC 9110, section 14.2, allows a server to ignore them).
"""

import re
from dataclasses import dataclass
from typing import assert_never

from tierstore.errors import InvalidRequest, RangeNotSatisfiable

_ONE_RANGE = re.compile(r"(\d*)-(\d*)")
_POSITION_DIGITS_MAX = 19
"""Digits of a position, after leading zeros, that are told apart: enough for 2^63 - 1."""
_BEYOND_EVERY_OBJECT = 10**_POSITION_DIGITS_MAX


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start`` (included) to ``stop`` (excluded) of an object; never empty."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class FromStart:
    """``first-last`` or ``first-``: from a position to a last one (included) or the end."""

    first: int
    last: int | None


@dataclass(frozen=True, slots=True)
class Suffix:
    """``-length``: the last bytes of the object."""

    length: int


ByteRange = FromStart | Suffix


def parse_range(header: str) -> ByteRange | None:
    """Parse a ``Range`` header; None means the whole object (several ranges).

    A position may have any number of digits (RFC 9110, section 14.1.1); beyond every object, all of them mean the same.
    Raises `InvalidRequest` for another unit, or for text that is no range. Empty elements of the list do not count
    (RFC 9110, section 5.6.1.2).
    """
    unit, equals, ranges = header.strip(" \t").partition("=")
    if not equals or unit.lower() != "bytes":
        raise InvalidRequest("a Range header is written bytes=first-last, bytes=first- or bytes=-length")
    elements = [element for part in ranges.split(",") if (element := part.strip(" \t"))]
    if not elements:
        raise InvalidRequest("a byte range is not empty")
    parsed = [_parse_one(element) for element in elements]
    return parsed[0] if len(parsed) == 1 else None


def _parse_one(text: str) -> ByteRange:
    match = _ONE_RANGE.fullmatch(text)
    if match is None or not text.isascii():
        raise InvalidRequest("a byte range is written first-last, first- or -length, in decimal digits")
    first, last = match.groups()
    if first:
        start, end = _position(first), _position(last) if last else None
        if end is not None and end < start:
            raise InvalidRequest("a byte range does not end before it starts")
        return FromStart(start, end)
    if not last:
        raise InvalidRequest("a byte range is not empty")
    return Suffix(_position(last))


def _position(digits: str) -> int:
    """The number, bounded, for Python refuses to convert thousands of digits."""
    digits = digits.lstrip("0")
    return _BEYOND_EVERY_OBJECT if len(digits) > _POSITION_DIGITS_MAX else int(digits or "0")


def resolve(byte_range: ByteRange, size: int) -> Span:
    """The bytes that ``byte_range`` selects of an object of ``size`` bytes. Raises `RangeNotSatisfiable` for none."""
    match byte_range:
        case FromStart(first, last):
            start, stop = first, size if last is None else min(last + 1, size)
        case Suffix(length):
            start, stop = max(size - length, 0), size
        case _:
            assert_never(byte_range)
    if start >= stop:
        raise RangeNotSatisfiable(size)
    return Span(start, stop)
