"""A process that is paused while it begins an upload."""

import pytest

from tests.unit.tiering.world import World, object_id, open_world
from tierstore.errors import GivenUp
from tierstore.testing.faults import Interpose
from tierstore.types.metadata import Metadata


async def _forgotten_meanwhile(world: World) -> None:
    """Time in which a sweeper finds that there is no upload yet, and forgets its entry."""
    world.clock.advance(world.limits.upload_retention_seconds + 1)
    await world.sweeper.run_once()
    world.clock.advance(world.limits.operation_deadline_seconds + world.limits.sweep_second_visit_seconds + 1)
    await world.sweeper.run_once()
    assert await world.logged() == 0


async def test_an_upload_that_begins_when_its_entry_has_been_forgotten_is_given_up_and_aborted() -> None:
    """No client gets an upload that cannot be completed, and none is left in progress that nobody will abort."""
    async with open_world() as world:
        world.script.at("long_term.initiate", Interpose(lambda: _forgotten_meanwhile(world)))
        with pytest.raises(GivenUp):
            await world.uploads.initiate(object_id("k"), Metadata())
        assert world.disk.uploads
        await world.sweep()
        assert not world.disk.uploads
        await world.check_settled()
