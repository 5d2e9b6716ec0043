"""What is left in the stores when all processes have ended and the sweeper has had all the time that it may need.

The production sweeper runs here, over the stores of the server that has ended, by a clock that is days ahead: retention
of uploads and of outcomes, leases of killed sweepers and second visits are over, without a wait.
"""

from collections.abc import Mapping
from pathlib import Path

from structlog.testing import capture_logs

from tests.end_to_end.helpers import remains
from tests.kill.history import Violation, Write
from tierstore.backends.high_volume.contract import FoundRow, Gone
from tierstore.build import Stores, build_tiering, open_stores
from tierstore.clock import MICROS_PER_SECOND, SystemClock, UnixMicros
from tierstore.config import limits_from
from tierstore.config_loading import Setting, load_config
from tierstore.idsource import SystemIds
from tierstore.tasks import TaskOwner
from tierstore.types.metadata_storage import decode_metadata

_DAYS_AT_ONCE = 9
"""Longer than everything that the sweeper waits for."""
_SWEEPS_MAX = 12
_ROWS_MAX = 100_000
_DRAIN_SECONDS = 10


class _ClockAhead(SystemClock):
    """The machine's clock, so many days ahead."""

    def __init__(self) -> None:
        self.days = 0

    def now(self) -> UnixMicros:
        return super().now() + self.days * 86_400 * MICROS_PER_SECOND


async def check_remains(data: Path, expected: Mapping[str, Write]) -> None:
    """Sweep, then find nothing but the ``expected`` objects, by key. Raises `Violation`."""
    rows = await _sweep(data)
    found = {row.object_id.key: _identity(row) for row in rows if not isinstance(row.row.content, Gone)}
    wanted = {key: write.identity for key, write in expected.items()}
    if found != wanted:
        raise Violation(f"the rows are not the objects: {_differences(found, wanted)}")
    try:
        (await remains(data)).check_settled()
    except AssertionError as error:
        raise Violation(f"after the sweep: {error}") from error


async def _sweep(data: Path) -> list[FoundRow]:
    """Sweep until there is nothing to do, and return the rows."""
    config = load_config(None, {}, {"data.path": Setting(str(data), "test")}).config
    limits, clock, ids = limits_from(config), _ClockAhead(), SystemIds()
    failures: list[str] = []
    with capture_logs() as told:
        async with open_stores(config, limits, clock, ids) as stores:
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


def _identity(found: FoundRow) -> str:
    content = found.row.content
    assert not isinstance(content, Gone)
    return dict(decode_metadata(content.metadata, found.row.expires).metadata.custom).get("write", "")


def _differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Of each key that differs: what is there, and what should be."""
    keys = sorted(found.keys() | wanted.keys())
    return {key: (found.get(key), wanted.get(key)) for key in keys if found.get(key) != wanted.get(key)}
