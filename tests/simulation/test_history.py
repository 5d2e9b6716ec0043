"""The judge of histories: held against a search of all orders, and against histories that are known to be wrong."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.testing.simulation.history import Act, History, Seen, Verdict

VALUES = ("a", "b", "c")


def judge(operations: list[Seen], deadlines: dict[str, int | None] | None = None) -> Verdict:
    """The verdict over one object's operations."""
    return History({"k": operations}, {**dict.fromkeys(VALUES), **(deadlines or {})}).judge("k")


def write(value: str, begun: int, ended: float) -> Seen:
    """A write."""
    return Seen(Act.WRITE, value, begun, ended)


def delete(begun: int, ended: float) -> Seen:
    """A delete."""
    return Seen(Act.DELETE, None, begun, ended)


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
        else:
            operations.append(read(draw(st.sampled_from([None, *VALUES])), begun, ended))
    return operations


def explained(operations: list[Seen]) -> bool:
    """Whether some order of some of the operations is allowed, by trying all of them."""
    certain = [one for one in operations if one.answered]
    maybe = [one for one in operations if not one.answered and one.act is not Act.READ]
    for count in range(len(maybe) + 1):
        for some in itertools.combinations(maybe, count):
            for order in itertools.permutations([*certain, *some]):
                if _is_allowed(order):
                    return True
    return False


def _is_allowed(order: tuple[Seen, ...]) -> bool:
    value: str | None = None
    for position, one in enumerate(order):
        if any(later.ended <= one.begun for later in order[position + 1 :]):
            return False
        if one.act is Act.READ and one.value != value:
            return False
        if one.act is not Act.READ:
            value = one.value
    return True


@settings(max_examples=300, deadline=None, derandomize=True)
@given(histories())
def test_the_verdict_is_that_of_a_search_of_all_orders(operations: list[Seen]) -> None:
    """What is left out of the search is never what it would have needed."""
    expected = Verdict.RIGHT if explained(operations) else Verdict.WRONG
    assert judge(operations) is expected
