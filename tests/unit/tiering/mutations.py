"""The mutations of the tiered store, each over what there may be before it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.unit.tiering.world import LARGE, SMALL, World, object_id, open_world
from tierstore.errors import NoSuchUpload, TierstoreError, Unavailable
from tierstore.types.metadata import Metadata, TimeToLive

OLD_SMALL, OLD_LARGE = b"old", b"o" * 200


UPLOADED = b"u" * 10 + b"v" * 60


@dataclass(frozen=True)
class Mutation:
    """What is done, over what, and what it leaves."""

    before: bytes | None
    act: Callable[[World], Awaitable[object]]
    after: bytes | None
    expires_before: bool = False
    before_is_upload: bool = False
    """Whether what is there before was made by an upload."""
    upload: bool = False
    """Whether an upload with all its parts is in progress."""
    retry_may_raise: tuple[type[TierstoreError], ...] = ()
    """What a retry may be answered while somebody else still has a hold on the upload, or when it has gone."""


async def _put_small(world: World) -> None:
    await world.put("k", SMALL)


async def _put_large(world: World) -> None:
    await world.put("k", LARGE)


async def _delete(world: World) -> None:
    await world.delete("k")


async def _sweep_once(world: World) -> None:
    await world.sweeper.run_once()


async def _initiate(world: World) -> None:
    await world.uploads.initiate(object_id("k"), Metadata())


async def _complete(world: World) -> None:
    await world.complete()


async def _complete_twice(world: World) -> None:
    await _complete(world)
    await _complete(world)


async def _abort(world: World) -> None:
    await world.abort()


async def _sweep_unfinished(world: World) -> None:
    world.clock.advance(world.limits.upload_retention_seconds + 1)
    await world.sweeper.run_once()


UPLOAD_MUTATIONS = {
    "complete over nothing": Mutation(None, _complete, UPLOADED, upload=True),
    "complete over small": Mutation(OLD_SMALL, _complete, UPLOADED, upload=True),
    "complete over large": Mutation(OLD_LARGE, _complete, UPLOADED, upload=True),
    "complete over an upload": Mutation(OLD_LARGE, _complete, UPLOADED, before_is_upload=True, upload=True),
    "complete twice": Mutation(OLD_LARGE, _complete_twice, UPLOADED, upload=True),
}
"""Those whose client tries again with the same upload."""

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
    "large over an upload": Mutation(OLD_LARGE, _put_large, LARGE, before_is_upload=True),
    "small over an upload": Mutation(OLD_LARGE, _put_small, SMALL, before_is_upload=True),
    "delete an upload": Mutation(OLD_LARGE, _delete, None, before_is_upload=True),
    "initiate": Mutation(OLD_LARGE, _initiate, OLD_LARGE),
    **UPLOAD_MUTATIONS,
    "abort": Mutation(OLD_LARGE, _abort, OLD_LARGE, upload=True, retry_may_raise=(Unavailable, NoSuchUpload)),
    "abort what nobody finished": Mutation(OLD_LARGE, _sweep_unfinished, OLD_LARGE, upload=True),
}


async def prepare(world: World, mutation: Mutation) -> None:
    """Bring the object to the state before the mutation."""
    expiration = TimeToLive(60) if mutation.expires_before else None
    if mutation.before is not None and mutation.before_is_upload:
        await world.begin_upload("k", mutation.before)
        await _complete(world)
        await world.drain()
    elif mutation.before is not None:
        await world.put("k", mutation.before, expiration)
        await world.drain()
    if mutation.upload:
        await world.begin_upload("k", UPLOADED)
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
