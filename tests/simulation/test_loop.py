"""Virtual time."""

import asyncio
import time

import pytest

from tierstore.testing.simulation.loop import Machine, Stuck, VirtualTimeLoop, machine_at_work, run_on_virtual_time


def test_hours_pass_at_once_and_in_order() -> None:
    """Timers fire in the order of their time, at exactly their time, and nobody waits for them."""
    fired: list[tuple[str, float]] = []

    async def after(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        fired.append((name, asyncio.get_running_loop().time()))

    async def work() -> None:
        await asyncio.gather(after(7200, "late"), after(0.5, "soon"), after(0, "now"))

    begun = time.monotonic()
    run_on_virtual_time(work())
    assert time.monotonic() - begun < 60
    assert [name for name, _ in fired] == ["now", "soon", "late"]
    assert [when for _, when in fired] == pytest.approx([0, 0.5, 7200])


def test_a_program_that_waits_for_nothing_is_told_so() -> None:
    """It does not hang."""

    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        run_on_virtual_time(work())


def test_what_is_left_behind_is_cancelled() -> None:
    """Also what the cancelled start in their turn."""
    ended: list[str] = []

    async def last() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.append("last")

    async def left() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            tasks.append(asyncio.get_running_loop().create_task(last()))
            ended.append("left")

    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        tasks.append(asyncio.get_running_loop().create_task(left()))
        await asyncio.sleep(1)

    run_on_virtual_time(work())
    assert ended[0] == "left"
    assert all(task.done() for task in tasks)


def test_timers_of_a_machine_that_stands_still() -> None:
    """They fire when it goes on, in their order; not those that were cancelled meanwhile, or by what fires first."""
    fired: list[str] = []

    async def work() -> None:
        machine = Machine()
        machine_at_work.set(machine)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        timers = [loop.call_later(seconds, fired.append, f"after {seconds}") for seconds in (2, 3, 4, 20)]
        loop.call_later(1, timers[1].cancel)
        machine.pause()
        loop.jump(10)
        await asyncio.sleep(0)
        assert fired == []
        timers[2].cancel()
        machine.resume()
        await asyncio.sleep(15)

    run_on_virtual_time(work())
    assert fired == ["after 2", "after 20"]
