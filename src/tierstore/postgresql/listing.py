"""Listings in pages, that pass over what cannot be read."""

from collections.abc import Callable
from typing import TypeVar

from tierstore.listing import readable
from tierstore.postgresql.pool import Pool, Record

Item = TypeVar("Item")


async def listed(
    pool: Pool, statement: str, arguments: tuple[object, ...], parse: Callable[[Record], Item], limit: int
) -> list[Item]:
    """The first ``limit`` rows of ``statement`` that ``parse`` accepts; those for which it raises are logged.

    The statement's last two parameters are how many rows it is to return, and how many it is to pass over. One round
    trip, unless there are rows that cannot be read.
    """
    items: list[Item] = []
    passed = 0
    while True:
        records = await pool.read(statement, *arguments, limit, passed)
        items += readable(records, parse, limit - len(items))
        passed += len(records)
        if len(items) >= limit or len(records) < limit:
            return items
