"""The judge of histories: held against a search of all orders, and against histories that are known to be wrong."""

import itertools
import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.testing.simulation.history import Act, History, Seen, Verdict

VALUES = ("a", "b", "c")


def judge(operations: list[Seen], deadlines: Mapping[str, int | None] | None = None) -> Verdict:
    """The verdict over one object's operations."""
    return History({"k": operations}, {**dict.fromkeys(VALUES), **(deadlines or {})}).judge("k")


def write(value: str, begun: int, ended: float) -> Seen:
    """A write."""
    return Seen(Act.WRITE, value, begun, ended)


def delete(begun: int, ended: float) -> Seen:
    """A delete."""
    return Seen(Act.DELETE, None, begun, ended)


def extend(until: int, begun: int, ended: float) -> Seen:
    """An extension of whatever was there, until then."""
    return Seen(Act.EXTEND, None, begun, ended, until=until)


def read(value: str | None, begun: int, ended: float, clock: int = 0) -> Seen:
    """A read; ``clock`` as in `Seen.latest_clock`."""
    return Seen(Act.READ, value, begun, ended, clock)


UNKNOWN = math.inf


@pytest.mark.parametrize(
    "operations",
    [
        [write("a", 1, 2), read(None, 3, 4)],
        [write("a", 1, 2), write("b", 3, 4), read("a", 5, 6)],
        [read("a", 1, 2), write("a", 3, 4)],
        [write("a", 1, 2), delete(3, 4), read("a", 5, 6)],
        [write("a", 1, UNKNOWN), read("a", 2, 3), read(None, 4, 5)],
        [write("a", 1, UNKNOWN), read(None, 2, 3), read("a", 4, 5), read(None, 6, 7)],
        [write("a", 1, 2), write("b", 1, 2), read("a", 3, 4), read("b", 5, 6), read("a", 7, 8)],
        [write("a", 1, 2), read("a", 3, 4), write("b", 5, UNKNOWN), read("b", 6, 7), read("a", 8, 9)],
    ],
)
def test_what_cannot_have_happened_is_wrong(operations: list[Seen]) -> None:
    """Lost, stale, early, resurrected and flickering values."""
    assert judge(operations) is Verdict.WRONG


@pytest.mark.parametrize(
    "operations",
    [
        [],
        [write("a", 1, 4), read(None, 2, 3)],
        [write("a", 1, 4), read("a", 2, 3)],
        [write("a", 1, UNKNOWN), read(None, 2, 3), read("a", 9, 10)],
        [write("a", 1, 2), delete(3, UNKNOWN), read("a", 4, 5), read(None, 6, 7)],
        [write("a", 1, 2), delete(3, UNKNOWN), write("b", 4, 5), read("b", 6, 7), read(None, 8, 9)],
        [write("a", 1, 10), write("b", 2, 9), read("b", 3, 4), read("a", 5, 6)],
    ],
)
def test_what_may_have_happened_is_right(operations: list[Seen]) -> None:
    """Concurrency, and answers that never came."""
    assert judge(operations) is Verdict.RIGHT


def test_a_value_may_be_absent_from_its_deadline_on() -> None:
    """Not earlier; and a value that never expires, never."""
    operations = [write("a", 1, 2), read(None, 3, 4, clock=100)]
    assert judge(operations, {"a": 100}) is Verdict.RIGHT
    assert judge(operations, {"a": 101}) is Verdict.WRONG
    assert judge(operations, {"a": None}) is Verdict.WRONG


def test_a_late_write_that_had_expired_hides_what_was_there() -> None:
    """Nobody has read it, and yet it explains an absence."""
    operations = [write("a", 1, UNKNOWN), write("b", 2, 3), read("b", 4, 5), read(None, 6, 7, clock=100)]
    assert judge(operations, {"a": 50}) is Verdict.RIGHT
    assert judge(operations) is Verdict.WRONG


UNTIL = 1_000
"""An instant after which extended values are absent."""
EXPIRING = {"a": 100}


@pytest.mark.parametrize(
    "operations",
    [
        [write("a", 1, 2), extend(UNTIL, 3, 4), read(None, 5, 6, clock=UNTIL - 1)],
        [write("a", 1, 2), extend(UNTIL, 3, 4), extend(500, 5, 6), read(None, 7, 8, clock=UNTIL - 1)],
        [write("b", 1, 2), extend(UNTIL, 3, 4)],
        [extend(UNTIL, 1, 2), write("a", 3, 4)],
        [write("a", 1, 2), delete(3, 4), extend(UNTIL, 5, 6)],
        [write("a", 1, UNKNOWN), read("a", 2, 3), extend(UNTIL, 4, 5), read(None, 6, 7, clock=500)],
        [write("a", 1, 2), extend(UNTIL, 3, 4), read(None, 5, 6, clock=500), write("b", 7, 8)],
    ],
)
def test_what_was_extended_does_not_vanish(operations: list[Seen]) -> None:
    """Nor is what is not there extended, or does not expire."""
    assert judge(operations, EXPIRING) is Verdict.WRONG


@pytest.mark.parametrize(
    "operations",
    [
        [write("a", 1, 2), extend(UNTIL, 3, 4), read("a", 5, 6), read(None, 7, 8, clock=UNTIL)],
        [write("a", 1, 2), extend(UNTIL, 3, 4), write("b", 5, 6), delete(7, 8), read(None, 9, 10, clock=1)],
        [write("a", 1, 2), extend(UNTIL, 3, 6), delete(4, 5), read(None, 7, 8, clock=1)],
        [write("a", 1, 2), extend(UNTIL, 3, 4), delete(5, UNKNOWN), read(None, 7, 8, clock=1)],
        [write("a", 1, 4), extend(UNTIL, 2, 3), read("a", 5, 6)],
        [write("a", 1, UNKNOWN), extend(UNTIL, 2, 3), read(None, 4, 5, clock=100)],
        [write("a", 1, 4), write("c", 2, 3), extend(UNTIL, 5, 6), read("c", 7, 8), read(None, 9, 10, clock=UNTIL)],
    ],
)
def test_what_was_extended_may_be_replaced_or_expire_in_time(operations: list[Seen]) -> None:
    """And an extension may have met a write of which nobody was told."""
    assert judge(operations, {**EXPIRING, "c": 100}) is Verdict.RIGHT


@st.composite
def histories(draw: st.DrawFn) -> list[Seen]:
    """A few operations that overlap in any way, with at most one write of each value."""
    count = draw(st.integers(1, 6))
    unwritten = list(VALUES)
    operations = []
    for _ in range(count):
        begun = draw(st.integers(0, 12))
        ended = draw(st.sampled_from([UNKNOWN, *[begun + length for length in (1, 2, 4, 8)]]))
        act = draw(st.sampled_from(list(Act)))
        if act is Act.WRITE and unwritten:
            operations.append(write(unwritten.pop(), begun, ended))
        elif act is Act.DELETE:
            operations.append(delete(begun, ended))
        elif act is Act.EXTEND:
            operations.append(extend(draw(st.sampled_from([50, 500, UNTIL])), begun, begun + 2))
        else:
            clock = draw(st.sampled_from([0, 99, 100, 500, UNTIL]))
            operations.append(read(draw(st.sampled_from([None, *VALUES])), begun, ended, clock))
    return operations


def explained(operations: list[Seen], deadlines: Mapping[str, int]) -> bool:
    """Whether some order of some of the operations is allowed, by trying all of them."""
    certain = [one for one in operations if one.answered]
    maybe = [one for one in operations if not one.answered and one.act is not Act.READ]
    for count in range(len(maybe) + 1):
        for some in itertools.combinations(maybe, count):
            for order in itertools.permutations([*certain, *some]):
                if _is_allowed(order, deadlines):
                    return True
    return False


def _is_allowed(order: tuple[Seen, ...], deadlines: Mapping[str, int]) -> bool:
    value: str | None = None
    until: float = math.inf
    for position, one in enumerate(order):
        if any(later.ended <= one.begun for later in order[position + 1 :]):
            return False
        match one.act:
            case Act.READ:
                if one.value != value and not (one.value is None and until <= one.latest_clock):
                    return False
            case Act.EXTEND:
                if until == math.inf:
                    return False
                until = max(until, one.until)
            case _:
                value = one.value
                until = deadlines.get(value or "") or math.inf
    return True


@settings(max_examples=300, deadline=None, derandomize=True)
@given(histories(), st.sampled_from([{}, {"a": 100}, {"a": 100, "b": 600}, dict.fromkeys(VALUES, 100)]))
def test_the_verdict_is_that_of_a_search_of_all_orders(operations: list[Seen], deadlines: Mapping[str, int]) -> None:
    """What is left out of the search is never what it would have needed.

    A write of which nobody was told counts as one that may have come and gone, and as what an extension may have met.
    """
    verdict = judge(operations, deadlines)
    if explained(operations, deadlines):
        assert verdict is Verdict.RIGHT
    elif not _is_unclear(operations, deadlines):
        assert verdict is Verdict.WRONG


def _is_unclear(operations: list[Seen], deadlines: Mapping[str, int]) -> bool:
    """Whether there is a write that expires, and of which nobody was told."""
    read_values = {one.value for one in operations if one.act is Act.READ and one.answered}
    return any(
        one.act is Act.WRITE and not one.answered and one.value in deadlines and one.value not in read_values
        for one in operations
    )
