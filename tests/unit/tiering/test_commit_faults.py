"""Every mutation × every call it makes to a store × every fault × what comes after, judged by what is always true."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.unit.tiering.mutations import MUTATIONS, Mutation, calls_of, prepare
from tests.unit.tiering.world import World, open_world
from tierstore.backends.long_term.memory import Repeats
from tierstore.errors import OutcomeUnknown, TierstoreError, Unavailable
from tierstore.testing.faults import ArriveLate, Crash, Effect, FailBefore, Fault, LoseReply

OTHER_SMALL, OTHER_LARGE = b"other", b"t" * 300

FAULTS: dict[str, Callable[[], Fault]] = {
    "fails": lambda: FailBefore(Unavailable("scripted")),
    "reply lost": lambda: LoseReply(OutcomeUnknown("scripted")),
    "arrives late": lambda: ArriveLate(OutcomeUnknown("scripted")),
    "cancelled": lambda: FailBefore(asyncio.CancelledError()),
    "crash before": lambda: Crash(Effect.NEVER),
    "crash after": lambda: Crash(Effect.DONE),
    "crash, arrives late": lambda: Crash(Effect.LATE),
}

AFTERWARDS = ("nothing", "retry", "small write", "large write", "delete")

MAY_ARRIVE_LATE = {
    "long_term.put",
    "long_term.delete",
    "high_volume.compare_and_write",
    "high_volume.point",
    "long_term.complete",
}
"""Calls of mutations that a store may still execute after it seemed to have failed, and that would matter."""


@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.parametrize("fault_name", FAULTS)
@pytest.mark.parametrize("name", MUTATIONS)
async def test_a_fault_at_any_call_leaves_what_is_always_true(name: str, fault_name: str, afterwards: str) -> None:
    """Old or new is read, an acknowledged write stays, no tombstone dangles, no blob is orphaned after a sweep."""
    mutation = MUTATIONS[name]
    calls = await calls_of(mutation)
    assert calls
    for position in range(len(calls)):
        if "late" in fault_name and calls[position] not in MAY_ARRIVE_LATE:
            continue
        for repeats in Repeats if mutation.upload else (Repeats.NOT_FOUND,):
            for arrives_before_sweep in (True, False) if "late" in fault_name else (False,):
                async with open_world(repeats=repeats) as world:
                    await prepare(world, mutation)
                    await _run(world, mutation, calls, position, FAULTS[fault_name](), afterwards, arrives_before_sweep)


async def _run(
    world: World,
    mutation: Mutation,
    calls: list[str],
    position: int,
    fault: Fault,
    afterwards: str,
    arrives_before_sweep: bool,
) -> None:
    call = calls[position]
    world.script.at(call, *[None] * calls[:position].count(call), fault)
    old = None if mutation.expires_before else mutation.before
    try:
        await mutation.act(world)
        allowed = {mutation.after}
    except (TierstoreError, asyncio.CancelledError, ExceptionGroup):
        allowed = {old, mutation.after}
    await world.drain()
    world.script.restart()
    assert not world.script.unused, (call, position)
    await world.check_no_dangling()
    assert await world.get("k") in allowed, (call, position)
    if arrives_before_sweep:
        await world.script.arrive()
        await world.check_no_dangling()
        assert await world.get("k") in allowed, (call, position)
    allowed = await _afterwards(world, mutation, afterwards) or allowed
    await world.drain()
    await world.check_no_dangling()
    assert await world.get("k") in allowed, (call, position)
    if call == "long_term.put":  # what a store may still finish after a failure, it finishes before the second visit
        world.clock.advance(world.limits.entry_grace_seconds + 1)
        await world.sweeper.run_once()
        await world.script.arrive()
    await world.sweep()
    assert await world.get("k") in allowed, (call, position)
    await world.script.arrive()
    assert await world.get("k") in allowed, (call, position)
    await world.sweep()
    await world.check_settled()
    assert await world.get("k") in allowed, (call, position)


async def _afterwards(world: World, mutation: Mutation, afterwards: str) -> set[bytes | None] | None:
    match afterwards:
        case "retry":
            with suppress(*mutation.retry_may_raise):
                await mutation.act(world)
            return {mutation.after}
        case "small write":
            await world.put("k", OTHER_SMALL)
            return {OTHER_SMALL}
        case "large write":
            await world.put("k", OTHER_LARGE)
            return {OTHER_LARGE}
        case "delete":
            await world.delete("k")
            return {None}
        case _:
            return None
