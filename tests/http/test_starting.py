"""What the application says when it cannot start."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from tierstore.clock import SystemClock
from tierstore.errors import StartupError
from tierstore.http.app import HttpSettings, Served, create_app
from tierstore.idsource import SystemIds
from tierstore.limits import Limits


async def messages_of_start(error: Exception) -> list[Message]:
    """What an application says whose stores cannot be opened, because of ``error``."""

    @asynccontextmanager
    async def open_served() -> AsyncIterator[Served]:
        raise error
        yield  # type: ignore[unreachable]  # because without it, this is no generator

    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        said.append(message)

    settings = HttpSettings(
        limits=Limits(), clock=SystemClock(), ids=SystemIds(), max_requests=1, draining=lambda: False, audit=False
    )
    with pytest.raises(type(error)):
        await create_app(open_served, settings)({"type": "lifespan", "asgi": {}}, receive, send)
    return said


async def test_a_store_that_is_away_is_one_sentence() -> None:
    """What an operator can mend is said in its own words, without a traceback."""
    said = await messages_of_start(StartupError("the database cannot be reached"))
    assert said == [{"type": "lifespan.startup.failed", "message": "the database cannot be reached"}]


async def test_what_nobody_foresaw_has_its_traceback() -> None:
    """Any other failure is told with where it came from."""
    [said] = await messages_of_start(RuntimeError("a mistake of ours"))
    assert "Traceback" in said["message"]
    assert "a mistake of ours" in said["message"]
