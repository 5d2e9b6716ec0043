"""Durations, both ways."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.types.strategies import LIMITS, durations, texts
from tierstore.errors import InvalidRequest, InvariantBroken
from tierstore.limits import Limits
from tierstore.types.durations import check_duration, format_duration, parse_duration

UNIT_SECONDS = {
    "s sec secs second seconds": 1,
    "m min mins minute minutes": 60,
    "h hr hrs hour hours": 3_600,
    "d day days": 86_400,
    "w week weeks": 604_800,
    "M month months": 2_630_016,  # 30.44 days
    "y year years": 31_557_600,  # 365.25 days
}


@given(durations())
def test_a_duration_parses_back(seconds: int) -> None:
    """What is written is read as the same number of seconds."""
    assert parse_duration(format_duration(seconds), LIMITS) == seconds


@given(durations())
def test_the_written_form(seconds: int) -> None:
    """Days, hours, minutes, seconds in that order, none of them zero, none more than the next larger unit."""
    match = re.fullmatch(r"(?:(\d+)d)?(?: ?(\d+)h)?(?: ?(\d+)m)?(?: ?(\d+)s)?", format_duration(seconds))
    assert match is not None
    days, hours, minutes, rest = (int(number or 0) for number in match.groups())
    assert days * 86_400 + hours * 3_600 + minutes * 60 + rest == seconds
    assert hours < 24
    assert minutes < 60
    assert rest < 60
    assert seconds == 0 or "0" not in match.groups()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1, "1s"), (60, "1m"), (90_000, "1d 1h"), (86_400 * 400 + 59, "400d 59s"), (3_661, "1h 1m 1s")],
)
def test_examples_of_the_written_form(seconds: int, text: str) -> None:
    """The examples of the wire protocol, and their like."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("names", "seconds"), UNIT_SECONDS.items())
def test_units(names: str, seconds: int) -> None:
    """Every unit has its short and its long names; ``M`` and ``m`` differ."""
    for name in names.split():
        assert parse_duration(f"1{name}", LIMITS) == seconds
        assert parse_duration(f"3 {name}", LIMITS) == 3 * seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("15min", 900), ("2days", 172_800), ("1week", 604_800), ("1d2h", 93_600), ("1d 2h", 93_600),
        ("  1h\t30 m ", 5_400), ("1s 1d", 86_401), ("1s1s", 2), ("0s", 0), ("0d 0h", 0), ("007s", 7), ("1000ms", 1),
        ("500ms 500ms", 1), ("1500 ms 500000us", 2), ("1s 1000000000ns", 2), ("0ms", 0),
        ("1ns", 1), ("500ms", 1), ("1s 1us", 2),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: int) -> None:
    """Any order, any spaces, repeated units; what is left of a second is rounded up."""
    assert parse_duration(text, LIMITS) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "5", "s", "1", "1.5h", "-1s", "+1s", "1x", "1 d 2", "1d,2h", "P1D", "1D", "1H", "1S", "1e3s",
        "\u0661s",
        "1s\n", "1s\x00", "1 fortnight", "9" * 20 + "s", "1\u00a0s", "inf", "forever", "1_0s",
    ],
)  # fmt: skip
def test_no_durations(text: str) -> None:
    """No unit, an unknown one, fractions, signs, other digits: refused."""
    with pytest.raises(InvalidRequest):
        parse_duration(text, LIMITS)


def test_the_refusals_help() -> None:
    """The text of an error names what was wrong, and never repeats much of it."""
    with pytest.raises(InvalidRequest, match="no unit 'fortnights'"):
        parse_duration("2 fortnights", LIMITS)
    with pytest.raises(InvalidRequest, match="at most 1d"):
        parse_duration("25h", Limits(duration_seconds_max=86_400))
    with pytest.raises(InvalidRequest) as caught:
        parse_duration("1" + "x" * 10_000, LIMITS)
    assert len(str(caught.value)) < 200


def test_the_bound() -> None:
    """The longest duration is accepted, a second more is not, however it is written."""
    longest = LIMITS.duration_seconds_max
    assert parse_duration(f"{longest}s", LIMITS) == longest == check_duration(longest, LIMITS)
    for text in (f"{longest + 1}s", f"{longest}s 1s", "9999999999999999999y"):
        with pytest.raises(InvalidRequest):
            parse_duration(text, LIMITS)


def test_a_negative_duration_is_never_written() -> None:
    """A negative number of seconds is a fault of ours."""
    with pytest.raises(InvariantBroken):
        format_duration(-1)


@given(texts() | st.text("0123456789 dhmsMyw\u00b5n."))
def test_any_text_as_a_duration(text: str) -> None:
    """Text is a duration within the bound, or an invalid request."""
    try:
        seconds = parse_duration(text, LIMITS)
    except InvalidRequest:
        return
    assert 0 <= seconds <= LIMITS.duration_seconds_max
