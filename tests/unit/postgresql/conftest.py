"""Pools to a real server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.engines.postgres import Postgres
from tierstore.clock import Clock, SystemClock
from tierstore.limits import Limits
from tierstore.postgresql.pool import Pool, Server

Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Opener: TypeAlias = Callable[..., Awaitable[Pool]]


@pytest.fixture
async def raw(postgres: Postgres) -> AsyncIterator[Raw]:
    """A connection beside the pool's."""
    raw = await asyncpg.connect(postgres.url)
    yield raw
    await raw.close()


@pytest.fixture
async def pool_of(postgres: Postgres) -> AsyncIterator[Opener]:
    """Opens a pool, of one connection unless told otherwise; with other limits, or with another clock."""
    pools: list[Pool] = []

    async def open_pool(connections: int = 1, clock: Clock | None = None, **limits: Any) -> Pool:
        server = Server(url=postgres.url, connections_max=connections, timeout_seconds=1.0, prepared_statements=True)
        chosen = replace(Limits(), **limits)
        pools.append(await Pool.open(server, limits=chosen, clock=clock or SystemClock(), name="high_volume"))
        return pools[-1]

    yield open_pool
    for pool in pools:
        await pool.close()
