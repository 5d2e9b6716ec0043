"""A process that is paused while it begins an upload."""

import pytest

from tests.unit.tiering.test_commit_paused import forgotten_meanwhile
from tests.unit.tiering.world import World, object_id, open_world
from tierstore.errors import GivenUp
from tierstore.testing.faults import Interpose
from tierstore.types.metadata import Metadata


@pytest.mark.parametrize("after_effect", [False, True])
async def test_no_client_gets_an_upload_whose_entry_has_been_forgotten(after_effect: bool) -> None:
    """It could not be completed. And none is left in progress that nobody will abort, also if the process dies."""
    async with open_world() as world:
        pause = Interpose(lambda: forgotten_meanwhile(world), after_effect=after_effect)
        world.script.at("long_term.initiate", pause)
        with pytest.raises(GivenUp):
            await world.uploads.initiate(object_id("k"), Metadata())
        assert not world.disk.uploads
        await world.sweep()
        await world.check_settled()


async def test_an_upload_begun_in_time_is_handed_out() -> None:
    """The look at the clock keeps nobody from beginning an upload."""
    async with open_world() as world:
        await _begin(world)
        assert len(world.disk.uploads) == 1


async def _begin(world: World) -> None:
    world.script.at("long_term.initiate", Interpose(lambda: _most_of_the_time(world)))
    await world.uploads.initiate(object_id("k"), Metadata())


async def _most_of_the_time(world: World) -> None:
    world.clock.advance(world.limits.operation_deadline_seconds)
