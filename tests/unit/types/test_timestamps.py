"""Timestamps, both ways."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.types.strategies import instants, texts
from tierstore.errors import InvalidRequest, InvariantBroken
from tierstore.types.timestamps import EARLIEST, LATEST, format_timestamp, parse_timestamp

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INSTANT = 1_767_323_045_678_901
"""2026-01-02T03:04:05.678901Z"""


def micros(moment: datetime) -> int:
    """The instant of ``moment``, by the standard library's arithmetic."""
    return (moment - EPOCH) // timedelta(microseconds=1)


@given(instants())
def test_a_timestamp_parses_back(instant: int) -> None:
    """What is written is read as the same microsecond."""
    assert parse_timestamp(format_timestamp(instant)) == instant


@given(instants())
def test_the_written_form(instant: int) -> None:
    """The standard library reads the same instant; six digits of fraction, and a Z."""
    text = format_timestamp(instant)
    assert micros(datetime.fromisoformat(text)) == instant
    assert len(text) == len("2026-01-02T03:04:05.678901Z")
    assert text.endswith("Z")


offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1), timezones=offsets),  # noqa: DTZ001  # because hypothesis wants naive bounds
    st.sampled_from(["auto", "microseconds", "milliseconds", "seconds"]),
    st.sampled_from("Tt "),
)
def test_any_offset_and_precision(moment: datetime, precision: str, separator: str) -> None:
    """A local time of any offset is read as its instant."""
    text = moment.isoformat(sep=separator, timespec=precision)
    assert parse_timestamp(text) == micros(datetime.fromisoformat(text))


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-01-02T03:04:05.678901Z", INSTANT),
        ("2026-01-02t03:04:05.678901z", INSTANT),
        ("2026-01-02 03:04:05.678901Z", INSTANT),
        ("2026-01-02T04:34:05.678901+01:30", INSTANT),
        ("2026-01-01T22:04:05.678901-05:00", INSTANT),
        ("2026-01-02T03:04:05.678901-00:00", INSTANT),
        ("2026-01-02T03:04:05.6789019999999Z", INSTANT),
        ("2026-01-02T03:04:05.6Z", INSTANT - 78_901),
        ("2026-01-02T03:04:05Z", INSTANT - 678_901),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2016-12-31T23:59:60Z", micros(datetime(2017, 1, 1, tzinfo=UTC))),
        ("2017-01-01T00:59:60.5+01:00", micros(datetime(2017, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC))),
        ("0001-01-01T00:00:00Z", EARLIEST),
        ("9999-12-31T23:59:59.999999Z", LATEST),
    ],
)
def test_timestamps(text: str, instant: int) -> None:
    """What RFC 3339 allows is read; finer digits are cut off; a leap second is the next day's first."""
    assert parse_timestamp(text) == instant


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-01-02", "2026-01-02T03:04:05", "2026-01-02T03:04Z", "2026-1-2T03:04:05Z", "20260102T030405Z",
        "1767323045",
        "2026-13-02T03:04:05Z", "2026-02-30T03:04:05Z", "2026-00-01T00:00:00Z", "0000-01-01T00:00:00Z",
        "2026-01-02T24:00:00Z",
        "2026-01-02T03:60:05Z", "2026-01-02T03:04:61Z", "2026-01-02T03:04:60Z", "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05,5Z",
        "2026-01-02T03:04:05+0100", "2026-01-02T03:04:05+24:00", "2026-01-02T03:04:05+01:60", "2026-01-02T03:04:05+01",
        "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:60Z", "2026-01-02T03:04:05Z\n",
        " 2026-01-02T03:04:05Z", "\u0662026-01-02T03:04:05Z", "-2026-01-02T03:04:05Z", "2026-01-02T03:04:05ZZ", "now",
    ],
)  # fmt: skip
def test_no_timestamps(text: str) -> None:
    """Local times, days that do not exist, other forms of ISO 8601, years out of reach: refused."""
    with pytest.raises(InvalidRequest):
        parse_timestamp(text)


@pytest.mark.parametrize("instant", [EARLIEST - 1, LATEST + 1, 2**63])
def test_an_instant_beyond_the_calendar_is_never_written(instant: int) -> None:
    """An instant outside the years 1 to 9999 is a fault of ours."""
    with pytest.raises(InvariantBroken):
        format_timestamp(instant)


@given(
    texts() | st.text("0123456789-:.TZ+ ") | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
)
def test_any_text_as_a_timestamp(text: str) -> None:
    """Text is an instant that can be written again, or an invalid request."""
    try:
        instant = parse_timestamp(text)
    except InvalidRequest:
        return
    assert parse_timestamp(format_timestamp(instant)) == instant
