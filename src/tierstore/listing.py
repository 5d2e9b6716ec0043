"""Listings that pass over what cannot be read, so that one damaged record does not hide the others.

Guarantees: a listing is short only when there is no more to list; every record that was passed over is in the log, once
for each listing, up to a bound.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

from tierstore.errors import CorruptObject

log = structlog.get_logger(__name__)

Record = TypeVar("Record")
Item = TypeVar("Item")

_LOGGED_MAX = 16
"""Unreadable records of one listing that have a line of their own; one more line counts the rest."""


def readable(records: Iterable[Record], parse: Callable[[Record], Item], limit: int) -> list[Item]:
    """The first ``limit`` records that ``parse`` accepts. Those for which it raises `CorruptObject` are logged."""
    items: list[Item] = []
    unreadable = 0
    for record in records:
        try:
            items.append(parse(record))
        except CorruptObject as error:
            unreadable += 1
            if unreadable <= _LOGGED_MAX:
                log.error("unreadable record passed over", reason=str(error))  # noqa: TRY400  # because the sentence says it all
        if len(items) == limit:
            break
    if unreadable > _LOGGED_MAX:
        log.error("more unreadable records passed over", count=unreadable - _LOGGED_MAX)
    return items
