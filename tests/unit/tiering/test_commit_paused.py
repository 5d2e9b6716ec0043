"""A process that is paused while it writes a blob."""

import asyncio

import pytest

from tests.unit.tiering.world import LARGE, World, open_world
from tierstore.errors import GivenUp
from tierstore.testing.faults import Crash, Effect, Interpose


async def forgotten_meanwhile(world: World) -> None:
    """Time in which a sweeper settles whatever the operation has recorded, and forgets it."""
    world.clock.advance(max(world.limits.entry_grace_seconds, world.limits.upload_retention_seconds) + 1)
    await world.sweeper.run_once()
    world.clock.advance(world.limits.new_entry_kept_seconds_min + 1)
    await world.sweeper.run_once()
    assert await world.logged() == 0


async def test_no_blob_appears_when_its_entry_has_been_forgotten() -> None:
    """The store looks at the clock itself: so nothing is in the store that nobody knows of, not for a moment."""
    async with open_world() as world:
        world.script.at("long_term.put", Interpose(lambda: forgotten_meanwhile(world)))
        with pytest.raises(GivenUp):
            await world.put("k", LARGE)
        assert await world.blobs() == []
        await world.sweep()
        await world.check_settled()


async def test_nor_if_the_writer_dies_then() -> None:
    """There is nothing for it to delete."""
    async with open_world() as world:
        world.script.at("long_term.put", Interpose(lambda: forgotten_meanwhile(world)))
        world.script.at("long_term.delete", None, Crash(Effect.NEVER))
        with pytest.raises((GivenUp, asyncio.CancelledError)):
            await world.put("k", LARGE)
        await world.drain()
        world.script.restart()
        await world.sweep()
        await world.check_settled()
