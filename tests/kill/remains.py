"""What is left in the stores when all processes have ended and the sweeper has had all the time that it may need.

The production sweeper runs here, over the stores of the server that has ended, by a clock that is days ahead: retention
of uploads and of outcomes, leases of killed sweepers and second visits are over, without a wait. Embedded stores have
that clock too; engines have their own, and their clients sign requests by it.
"""

from collections.abc import Mapping
from pathlib import Path

from structlog.processors import format_exc_info
from structlog.testing import capture_logs

from tests.end_to_end.helpers import remains
from tests.engines.deployment import EMBEDDED, Deployment
from tests.kill.history import Violation, Write
from tierstore.backends.high_volume.contract import FoundRow, Gone, InlineHead
from tierstore.build import Stores, build_tiering, open_stores
from tierstore.clock import MICROS_PER_SECOND, SystemClock, UnixMicros
from tierstore.config import limits_from
from tierstore.idsource import SystemIds
from tierstore.tasks import TaskOwner
from tierstore.types.metadata_storage import decode_metadata

_DAYS_AT_ONCE = 9
"""Longer than everything that the sweeper waits for."""
_SWEEPS_MAX = 12
_ROWS_MAX = 100_000
_DRAIN_SECONDS = 10
_TOLD_CHARACTERS = 4_000


class _ClockAhead(SystemClock):
    """The machine's clock, so many days ahead."""

    def __init__(self) -> None:
        self.days = 0

    def now(self) -> UnixMicros:
        return super().now() + self.days * 86_400 * MICROS_PER_SECOND


async def check_remains(data: Path, expected: Mapping[str, Write], deployment: Deployment = EMBEDDED) -> None:
    """Sweep, then find nothing but the ``expected`` objects, by key. Raises `Violation`."""
    with deployment.environment_here():
        rows = await _sweep(data, deployment)
    found = {row.object_id.key: _identity(row) for row in rows if not _is_gone(row, deployment)}
    wanted = {key: write.identity for key, write in expected.items()}
    if found != wanted:
        told = "\n".join(str(row) for row in rows if found.get(row.object_id.key) != wanted.get(row.object_id.key))
        raise Violation(f"the rows are not the objects: {_differences(found, wanted)}\n{told[:_TOLD_CHARACTERS]}")
    try:
        (await remains(data, deployment)).check_settled()
    except AssertionError as error:
        raise Violation(f"after the sweep: {error}") from error


async def _sweep(data: Path, deployment: Deployment) -> list[FoundRow]:
    """Sweep until there is nothing to do, and return the rows."""
    config = deployment.config(data)
    limits, clock, ids = limits_from(config), _ClockAhead(), SystemIds()
    stores_clock = clock if deployment.is_embedded else SystemClock()
    failures: list[str] = []
    with capture_logs((format_exc_info,)) as told:
        async with open_stores(config, limits, stores_clock, ids) as stores:
            cleanup = TaskOwner(limits.background_tasks_max, lambda name, error: failures.append(f"{name}: {error!r}"))
            sweeper = build_tiering(stores, limits=limits, clock=clock, ids=ids, cleanup=cleanup).sweeper
            for _ in range(_SWEEPS_MAX):
                clock.days += _DAYS_AT_ONCE
                results = await sweeper.run_once()
                await cleanup.drain(_DRAIN_SECONDS)
                if failures or results["error"]:
                    raise Violation(f"a sweep failed: {results} {failures} {told}")
                if not results:
                    return await _swept(stores)
    raise Violation(f"the sweeper does not come to an end: {told}")


async def _swept(stores: Stores) -> list[FoundRow]:
    """The rows; nothing else is left, not even the memory of uploads."""
    backlog = await stores.changelog.backlog()
    if backlog.entries or backlog.uploads or backlog.outcomes:
        raise Violation(f"the change log is not empty: {backlog}")
    return list(await stores.high_volume.scan("", None, _ROWS_MAX))


def _is_gone(found: FoundRow, deployment: Deployment) -> bool:
    """Whether it is no object, or will be none; an engine may remove small ones that expire by itself, and later."""
    content = found.row.content
    expires = isinstance(content, InlineHead) and found.row.expires is not None
    return isinstance(content, Gone) or (expires and not deployment.is_embedded)


def _identity(found: FoundRow) -> str:
    content = found.row.content
    assert not isinstance(content, Gone)
    return dict(decode_metadata(content.metadata, found.row.expires).metadata.custom).get("write", "")


def _differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Of each key that differs: what is there, and what should be."""
    keys = sorted(found.keys() | wanted.keys())
    return {key: (found.get(key), wanted.get(key)) for key in keys if found.get(key) != wanted.get(key)}
