"""The clock that stands still, and the identifiers that repeat."""

import asyncio

import pytest

from tierstore.clock import MICROS_PER_SECOND
from tierstore.testing.clock import ManualClock
from tierstore.testing.ids import SeededIds


async def test_time_moves_by_hand() -> None:
    """Both clocks stand still until they are moved; the wall clock may also be set, in either direction."""
    clock = ManualClock(1_000)
    assert (clock.now(), clock.monotonic()) == (1_000, 0.0)
    clock.advance(1.5)
    assert (clock.now(), clock.monotonic()) == (1_000 + 1.5 * MICROS_PER_SECOND, 1.5)
    clock.set_now(7)
    assert (clock.now(), clock.monotonic()) == (7, 1.5)


async def test_sleepers_wake_in_order() -> None:
    """Who sleeps wakes when the clock has moved far enough, not before, earliest first; the cancelled do not."""
    clock, woken = ManualClock(), list[float]()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    sleepers = [asyncio.ensure_future(sleep(seconds)) for seconds in (3.0, 1.0, 2.0, 1.5, 9.0)]
    await asyncio.sleep(0)
    clock.advance(0.999)
    await asyncio.sleep(0.001)
    assert woken == []
    sleepers[3].cancel()
    clock.advance(1.001)
    await asyncio.sleep(0.001)
    assert woken == [1.0, 2.0]
    clock.advance(5.0)
    clock.advance(2.0)
    await asyncio.gather(*sleepers, return_exceptions=True)
    assert woken == [1.0, 2.0, 3.0, 9.0]


async def test_sleeping_for_no_time_yields() -> None:
    """Sleeping for 0 seconds lets others run, and returns though the clock stands still."""
    clock, order = ManualClock(), list[str]()

    async def other() -> None:
        order.append("other")

    task = asyncio.ensure_future(other())
    await clock.sleep(0)
    order.append("me")
    await task
    assert order == ["other", "me"]


@pytest.mark.parametrize("draw", ["uuid", "version", "jitter"])
def test_a_seed_repeats(draw: str) -> None:
    """The same seed draws the same, another one something else, and nothing is drawn twice."""
    drawn = [[getattr(source, draw)() for _ in range(100)] for source in (SeededIds(1), SeededIds(1), SeededIds(2))]
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 200
