"""Instants as clients see them: RFC 3339 in UTC with microseconds, ``2026-01-02T03:04:05.678901Z``.

Guarantees: `parse_timestamp` of what `format_timestamp` wrote is the same instant. Both know the years 1 to 9999.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import InvalidRequest
from tierstore.invariants import invariant

EARLIEST: Final = -62_135_596_800_000_000
"""0001-01-01T00:00:00Z, the first instant that can be written."""
LATEST: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MICROS_PER_DAY = 86_400 * MICROS_PER_SECOND
_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)


def format_timestamp(instant: UnixMicros) -> str:
    """Write ``instant`` (between `EARLIEST` and `LATEST`) in UTC with six digits of fraction and a ``Z``."""
    invariant(EARLIEST <= instant <= LATEST, "an instant lies in the years 1 to 9999")
    second, micros = divmod(instant, MICROS_PER_SECOND)
    day, second = divmod(second, 86_400)
    minute, second = divmod(second, 60)
    hour, minute = divmod(minute, 60)
    return f"{_date(day)}T{hour:02d}:{minute:02d}:{second:02d}.{micros:06d}Z"


@lru_cache(maxsize=4096)
def _date(day: int) -> str:
    """``YYYY-MM-DD`` of a day counted from 1970-01-01. Remembered: every answer has a timestamp or two, of few days."""
    return (_EPOCH + timedelta(days=day)).date().isoformat()


def parse_timestamp(text: str) -> UnixMicros:
    """Read an RFC 3339 ``date-time``, of any offset; what is finer than a microsecond is cut off.

    A leap second reads as the first second of the next day, as Unix time counts it. Raises `InvalidRequest`.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise InvalidRequest("a timestamp is written as in RFC 3339: 2026-01-02T03:04:05Z")
    *date_and_time, fraction, sign, offset_hours, offset_minutes = match.groups()
    year, month, day, hour, minute, second = map(int, date_and_time)
    leap = second == 60
    try:
        moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
    except ValueError:
        raise InvalidRequest("a timestamp names a day and a time that exist") from None
    instant = (moment - _EPOCH) // _MICROSECOND + leap * MICROS_PER_SECOND
    if fraction:
        instant += int(fraction[:6].ljust(6, "0"))
    if sign:
        offset = (int(offset_hours) * 60 + int(offset_minutes)) * 60 * MICROS_PER_SECOND
        instant += offset if sign == "-" else -offset
    if leap and instant % _MICROS_PER_DAY >= MICROS_PER_SECOND:
        raise InvalidRequest("a leap second is the last one of a day in UTC")
    if not EARLIEST <= instant <= LATEST:
        raise InvalidRequest("a timestamp lies in the years 1 to 9999 in UTC")
    return instant
