"""Tasks and their owner."""

import asyncio

import pytest

from tierstore.tasks import TaskOwner, for_each


async def _fail() -> None:
    raise ValueError("no")


async def _value(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def test_results_and_failures_reach_who_awaits() -> None:
    """`run` gives a task whose outcome is the caller's; nothing is reported then."""
    reported: list[str] = []
    owner = TaskOwner(3, lambda name, _: reported.append(name))
    assert await owner.run("value", _value(7)) == 7
    with pytest.raises(ValueError, match="no"):
        await owner.run("failing", _fail())
    assert (len(owner), reported) == (0, [])


async def test_failures_that_nobody_awaits_are_reported() -> None:
    """`spawn` reports what a task raises, with its name; cancellation is no failure."""
    reported: list[tuple[str, str]] = []
    owner = TaskOwner(3, lambda name, error: reported.append((name, str(error))))
    owner.spawn("failing", _fail())
    owner.spawn("endless", asyncio.sleep(3600))
    assert await owner.drain(0.01) == 1
    assert reported == [("failing", "no")]


async def test_failures_that_are_passed_over() -> None:
    """Who disowns a task says which exceptions are nobody's business."""
    reported: list[str] = []
    owner = TaskOwner(3, lambda name, _: reported.append(name))
    owner.disown(owner.run("passed over", _fail()), KeyError, ValueError)
    owner.disown(owner.run("reported", _fail()), KeyError)
    assert await owner.drain(5) == 0
    assert reported == ["reported"]


async def test_the_bound_is_visible() -> None:
    """`full` says when the bound is reached, and no longer when a task has ended."""
    owner = TaskOwner(2, lambda *_: None)
    first = owner.run("first", _value(1))
    seen = [owner.full]
    owner.spawn("second", _value(2))
    seen.append(owner.full)
    await first
    await asyncio.sleep(0)
    seen.append(owner.full)
    assert seen == [False, True, False]
    await owner.drain(1)


async def test_drain_waits_for_tasks_that_tasks_start() -> None:
    """Work that begins while draining is waited for as well."""
    owner = TaskOwner(9, lambda *_: None)
    done = asyncio.Event()

    async def later() -> None:
        await asyncio.sleep(0)
        done.set()

    async def first() -> None:
        await asyncio.sleep(0)
        owner.spawn("later", later())

    owner.spawn("first", first())
    assert await owner.drain(5) == 0
    assert done.is_set()


async def test_for_each_bounds_what_runs_at_once() -> None:
    """All items are worked on, never more than ``at_once`` at the same time."""
    running = most = 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return item * 2

    assert sorted(await for_each(range(20), work, at_once=3)) == [item * 2 for item in range(20)]
    assert most == 3
    assert await for_each([], work, at_once=3) == []


async def test_for_each_stops_at_a_failure() -> None:
    """An exception cancels the rest and is raised."""

    async def work(item: int) -> None:
        if item == 3:
            raise ValueError("no")
        await asyncio.sleep(0)

    with pytest.raises(ExceptionGroup):
        await for_each(range(20), work, at_once=2)
