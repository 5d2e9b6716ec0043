"""The tests of the HTTP layer run on the event loop that production runs on, and share a server within a module."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest_asyncio
import uvloop

from tests.http.harness import Running, running


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop: sockets close and pause in its own way."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[Running]:
    """One server for the tests of a module; they use different keys."""
    async with running() as up:
        yield up
        assert up.failures == []
