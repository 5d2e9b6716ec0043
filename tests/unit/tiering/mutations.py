"""The mutations of the tiered store, each over what there may be before it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.unit.tiering.world import LARGE, SMALL, World, open_world
from tierstore.types.metadata import TimeToLive

OLD_SMALL, OLD_LARGE = b"old", b"o" * 200


@dataclass(frozen=True)
class Mutation:
    """What is done, over what, and what it leaves."""

    before: bytes | None
    act: Callable[[World], Awaitable[object]]
    after: bytes | None
    expires_before: bool = False


async def _put_small(world: World) -> None:
    await world.put("k", SMALL)


async def _put_large(world: World) -> None:
    await world.put("k", LARGE)


async def _delete(world: World) -> None:
    await world.delete("k")


async def _sweep_once(world: World) -> None:
    await world.sweeper.run_once()


MUTATIONS = {
    "large over nothing": Mutation(None, _put_large, LARGE),
    "large over small": Mutation(OLD_SMALL, _put_large, LARGE),
    "large over large": Mutation(OLD_LARGE, _put_large, LARGE),
    "small over nothing": Mutation(None, _put_small, SMALL),
    "small over large": Mutation(OLD_LARGE, _put_small, SMALL),
    "delete large": Mutation(OLD_LARGE, _delete, None),
    "delete small": Mutation(OLD_SMALL, _delete, None),
    "large over expired large": Mutation(OLD_LARGE, _put_large, LARGE, expires_before=True),
    "small over expired large": Mutation(OLD_LARGE, _put_small, SMALL, expires_before=True),
    "settle expired large": Mutation(OLD_LARGE, _sweep_once, None, expires_before=True),
    "settle expired small": Mutation(OLD_SMALL, _sweep_once, None, expires_before=True),
}


async def prepare(world: World, mutation: Mutation) -> None:
    """Bring the object to the state before the mutation."""
    expiration = TimeToLive(60) if mutation.expires_before else None
    if mutation.before is not None:
        await world.put("k", mutation.before, expiration)
        await world.drain()
    if mutation.expires_before:
        world.clock.advance(61)
    world.script.trace.clear()


async def calls_of(mutation: Mutation) -> list[str]:
    """The calls that the mutation makes to the stores, in order."""
    async with open_world() as world:
        await prepare(world, mutation)
        await mutation.act(world)
        await world.drain()
        return list(world.script.trace)
