"""The composition root: builds everything from the config, in dependency order, and takes it down in reverse.

Each worker process builds its own set, inside its event loop; nothing but the stores is shared between workers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.types import ASGIApp

from tierstore import telemetry
from tierstore.admission.gate import Gate
from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.high_volume.sqlite import SqliteHighVolume
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.backends.long_term.filesystem import FilesystemLongTerm
from tierstore.changelog.contract import ChangeLog
from tierstore.changelog.sqlite import SqliteChangeLog
from tierstore.clock import Clock, SystemClock
from tierstore.config import Config, limits_from
from tierstore.http.app import HttpSettings, Served, create_app
from tierstore.idsource import IdSource, SystemIds
from tierstore.limits import Limits
from tierstore.service.service import ObjectService
from tierstore.tasks import TaskOwner
from tierstore.tiering.commit import Committer
from tierstore.tiering.sweeper import Sweeper
from tierstore.tiering.tiered import TieredStore

log = structlog.get_logger(__name__)

_DRAIN_SECONDS_MIN = 1.0
"""Cleanup gets at least this long at shutdown, however short the grace: what it leaves, the sweeper must find again."""


@dataclass(frozen=True, slots=True)
class Stores:
    """One of each, open."""

    high_volume: HighVolumeBackend
    long_term: LongTermBackend
    changelog: ChangeLog


def create_application(config: Config, draining: Callable[[], bool]) -> ASGIApp:
    """The ASGI application of one worker. Its lifespan opens the stores and closes them.

    ``draining`` tells whether the process has been asked to stop; readiness says so while it still serves.
    """
    limits, clock, ids = limits_from(config), SystemClock(), SystemIds()

    def open_served() -> AbstractAsyncContextManager[Served]:
        return _open_served(config, limits, clock, ids)

    settings = HttpSettings(
        limits=limits, clock=clock, ids=ids, max_requests=config.http.max_requests, draining=draining
    )
    return create_app(open_served, settings)


def check_stores(config: Config) -> None:
    """Open every store once, creating and migrating what is not there yet, and close it again.

    Raises `StartupError` with a sentence for the operator.
    """

    async def open_and_close() -> None:
        async with open_stores(config, limits_from(config), SystemClock(), SystemIds()):
            log.debug("stores checked")

    asyncio.run(open_and_close())


@asynccontextmanager
async def open_stores(config: Config, limits: Limits, clock: Clock, ids: IdSource) -> AsyncIterator[Stores]:
    """Open the configured stores, and close them at the end. Raises `StartupError`."""
    async with AsyncExitStack() as stack:
        high_volume = await SqliteHighVolume.open(
            config.high_volume_path, limits=limits, clock=clock, ids=ids, readers=config.high_volume.readers
        )
        stack.push_async_callback(high_volume.close)
        changelog = await SqliteChangeLog.open(config.change_log_path, limits=limits, clock=clock)
        stack.push_async_callback(changelog.close)
        long_term = await FilesystemLongTerm.open(
            config.long_term_path,
            limits=limits,
            clock=clock,
            ids=ids,
            threads=config.long_term.threads,
            reserve_bytes=config.long_term.reserve,
        )
        stack.push_async_callback(long_term.close)
        yield Stores(high_volume, long_term, changelog)


@asynccontextmanager
async def _open_served(config: Config, limits: Limits, clock: Clock, ids: IdSource) -> AsyncIterator[Served]:
    """The service over the stores, with its background work. At the end: mutations, cleanup, sweeper, stores."""
    async with open_stores(config, limits, clock, ids) as stores:
        mutations = TaskOwner(limits.mutations_max, _report_failure)
        cleanup = TaskOwner(limits.background_tasks_max, _report_failure)
        periodic = TaskOwner(1, _report_failure)
        high_volume, long_term, changelog = stores.high_volume, stores.long_term, stores.changelog
        committer = Committer(high_volume, long_term, changelog, limits=limits, clock=clock, ids=ids, cleanup=cleanup)
        store = TieredStore(high_volume, long_term, committer, limits=limits, clock=clock, cleanup=cleanup)
        sweeper = Sweeper(high_volume, long_term, changelog, committer, limits=limits, clock=clock, ids=ids)
        service = ObjectService(store, high_volume, long_term, changelog, ids=ids, mutations=mutations)
        periodic.spawn("sweeper", sweeper.run(config.sweeper.period))
        try:
            yield Served(service=service, gate=Gate(enforce=config.auth.enforce))
        finally:
            grace = max(config.http.shutdown_grace, _DRAIN_SECONDS_MIN)
            await periodic.drain(0)
            for name, owner in (("mutations", mutations), ("cleanup", cleanup)):
                if cut_off := await owner.drain(grace):
                    log.warning("work cut off at shutdown; the sweeper will settle it", work=name, tasks=cut_off)


def _report_failure(name: str, error: BaseException) -> None:
    telemetry.background_failures.labels(name).inc()
    log.error("background work failed; the sweeper will settle it", work=name, exc_info=error)
