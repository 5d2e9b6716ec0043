"""Durations as clients write them: one or more ``<number><unit>``, as in ``1d 1h``.

Guarantees: `parse_duration` of what `format_duration` wrote is the same number of seconds. Reading takes any order, any
spaces, and the short and long unit names; months (30.44 days) and years (365.25 days) have fixed lengths, and ``M`` is
a month while ``m`` is a minute. Does not: know fractions (``1.5h``), or keep parts of a second.
"""

import re

from tierstore.errors import InvalidRequest
from tierstore.invariants import invariant
from tierstore.limits import Limits

_TERM = re.compile(r"([0-9]+)[ \t]*([A-Za-zµ]+)[ \t]*")
_NUMBER_DIGITS_MAX = 19
"""Digits of one number: more than the longest duration has in nanoseconds."""

_NANOS_PER_SECOND = 1_000_000_000
_SECONDS_PER_DAY = 86_400
_UNIT_NANOS = {
    name: nanos
    for names, nanos in (
        ("ns nsec nanos", 1),
        ("us µs usec micros", 1_000),
        ("ms msec millis", 1_000_000),
        ("s sec secs second seconds", _NANOS_PER_SECOND),
        ("m min mins minute minutes", 60 * _NANOS_PER_SECOND),
        ("h hr hrs hour hours", 3_600 * _NANOS_PER_SECOND),
        ("d day days", _SECONDS_PER_DAY * _NANOS_PER_SECOND),
        ("w wk wks week weeks", 7 * _SECONDS_PER_DAY * _NANOS_PER_SECOND),
        ("M month months", 2_630_016 * _NANOS_PER_SECOND),
        ("y yr yrs year years", 31_557_600 * _NANOS_PER_SECOND),
    )
    for name in names.split()
}


def parse_duration(text: str, limits: Limits) -> int:
    """Return the seconds that ``text`` stands for, at most ``limits.duration_seconds_max``.

    Durations are whole seconds; what is left of one is rounded up, so that nothing expires earlier than it was told
    to. Raises `InvalidRequest`.
    """
    return check_duration(read_duration(text), limits)


def check_duration(seconds: int, limits: Limits) -> int:
    """Return ``seconds`` if they are at most ``limits.duration_seconds_max``. Else `InvalidRequest`."""
    if seconds > limits.duration_seconds_max:
        raise InvalidRequest(f"a duration is at most {format_duration(limits.duration_seconds_max)}")
    return seconds


def read_duration(text: str) -> int:
    """`parse_duration` without its bound, for callers that remember the result and check it each time."""
    nanos = 0
    position = len(text) - len(text.lstrip(" \t"))
    if position == len(text):
        raise InvalidRequest("a duration is not empty: write 30s, 15min or 1d 12h")
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise InvalidRequest("a duration is one or more numbers, each with its unit: 30s, 15min or 1d 12h")
        nanos += _term_nanos(*term.groups())
        position = term.end()
    return -(-nanos // _NANOS_PER_SECOND)


def _term_nanos(number: str, unit: str) -> int:
    if len(number) > _NUMBER_DIGITS_MAX:
        raise InvalidRequest(f"a number in a duration has at most {_NUMBER_DIGITS_MAX} digits")
    nanos = _UNIT_NANOS.get(unit)
    if nanos is None:
        raise InvalidRequest(f"a duration has no unit {unit[:16]!r}; units are s, m, h, d, w, M (month) and y")
    return int(number) * nanos


def format_duration(seconds: int) -> str:
    """Write ``seconds`` (0 or more) with ``d h m s`` in that order, zero units left out; ``0s`` for none."""
    invariant(seconds >= 0, "a duration is not negative")
    if not seconds:
        return "0s"
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    terms = ((day, "d"), (hour, "h"), (minute, "m"), (second, "s"))
    return " ".join(f"{number}{unit}" for number, unit in terms if number)
