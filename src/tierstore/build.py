"""The composition root: builds everything from the config, in dependency order, and takes it down in reverse.

Each worker process builds its own set, inside its event loop; nothing but the stores is shared between workers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.types import ASGIApp

from tierstore import telemetry
from tierstore.admission.controls import Controls
from tierstore.admission.gate import Gate
from tierstore.admission.rate_limits import RateLimiter
from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.clock import Clock, SystemClock
from tierstore.config import Config, limits_from, rules_from
from tierstore.http.app import HttpSettings, Served, create_app
from tierstore.idsource import IdSource, SystemIds
from tierstore.limits import Limits
from tierstore.opening import (
    check_made,
    know_each_other,
    open_change_log,
    open_high_volume,
    open_long_term,
    places_of,
)
from tierstore.process.access import access_from
from tierstore.process.metrics_directory import open_buckets
from tierstore.process.reload import Reloads
from tierstore.service.service import ObjectService
from tierstore.tasks import TaskOwner
from tierstore.tiering.commit import Committer
from tierstore.tiering.operations import Operations
from tierstore.tiering.resumable import ResumableUploads
from tierstore.tiering.settling import Settler
from tierstore.tiering.sweeper import Sweeper
from tierstore.tiering.tiered import TieredStore
from tierstore.tiering.uploads import Uploads

log = structlog.get_logger(__name__)

_DRAIN_SECONDS_MIN = 1.0
"""Cleanup gets at least this long at shutdown, however short the grace: what it leaves, the sweeper must find again."""


@dataclass(frozen=True, slots=True)
class Stores:
    """One of each, open."""

    high_volume: HighVolumeBackend
    long_term: LongTermBackend
    changelog: ChangeLog


@dataclass(frozen=True, slots=True)
class Tiering:
    """The tiering layer over one set of stores."""

    committer: Committer
    settler: Settler
    uploads: Uploads
    resumable: ResumableUploads
    store: TieredStore
    sweeper: Sweeper


def build_tiering(stores: Stores, *, limits: Limits, clock: Clock, ids: IdSource, cleanup: TaskOwner) -> Tiering:
    """Build the tiering layer of one process; ``cleanup`` owns what it does off its callers' paths."""
    every = (stores.high_volume, stores.long_term, stores.changelog)
    operations = Operations(stores.long_term, stores.changelog, limits=limits, clock=clock, ids=ids, cleanup=cleanup)
    committer = Committer(*every, operations, limits=limits, clock=clock, ids=ids)
    settler = Settler(*every, limits=limits, clock=clock)
    uploads = Uploads(*every, operations, committer, settler, limits=limits, clock=clock, ids=ids)
    return Tiering(
        committer=committer,
        settler=settler,
        uploads=uploads,
        resumable=ResumableUploads(stores.long_term, stores.changelog, uploads, operations, limits=limits),
        store=TieredStore(stores.high_volume, stores.long_term, committer, limits=limits, clock=clock, cleanup=cleanup),
        sweeper=Sweeper(*every, committer, settler, limits=limits, clock=clock, ids=ids),
    )


def build_service(
    tiering: Tiering, stores: Stores, *, limits: Limits, ids: IdSource, mutations: TaskOwner
) -> ObjectService:
    """Build the service over the tiering layer; ``mutations`` owns what must outlive its callers."""
    return ObjectService(
        tiering.store,
        tiering.uploads,
        tiering.resumable,
        stores.high_volume,
        stores.long_term,
        stores.changelog,
        limits=limits,
        ids=ids,
        mutations=mutations,
    )


@dataclass(frozen=True, slots=True)
class Tools:
    """What operators' commands work with, open."""

    stores: Stores
    settler: Settler
    uploads: Uploads
    limits: Limits
    clock: Clock
    audit: bool = True
    """Whether what they change is written to the audit log."""


OpenStores = Callable[[Config, Limits, Clock, IdSource], AbstractAsyncContextManager[Stores]]
"""Opens stores, and closes them at the end."""


def create_application(
    config: Config,
    draining: Callable[[], bool],
    open_stores_of: OpenStores | None = None,
    reloads: Reloads | None = None,
) -> ASGIApp:
    """The ASGI application of one worker. Its lifespan opens the stores and closes them.

    ``draining`` tells whether the process has been asked to stop; readiness says so while it still serves. What comes
    through ``reloads`` while the lifespan lasts is put in force.
    ``open_stores_of`` opens other stores than the configured ones, for tests that serve over stores which fail.
    """
    limits, clock, ids = limits_from(config), SystemClock(), SystemIds()

    def open_served() -> AbstractAsyncContextManager[Served]:
        return _open_served(config, limits, clock, ids, open_stores_of or open_stores, reloads or Reloads())

    settings = HttpSettings(
        limits=limits,
        clock=clock,
        ids=ids,
        max_requests=config.http.max_requests,
        draining=draining,
        audit=config.log.audit,
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
    async with _opened_stores(config, limits, clock, ids, new=True) as stores:
        yield stores


@asynccontextmanager
async def _opened_stores(
    config: Config, limits: Limits, clock: Clock, ids: IdSource, *, new: bool
) -> AsyncIterator[Stores]:
    """As `open_stores`; without ``new``, stores that no server has begun yet are refused."""
    async with AsyncExitStack() as stack:
        high_volume = await open_high_volume(config, limits, clock, ids)
        stack.push_async_callback(high_volume.close)
        changelog = await open_change_log(config, limits, clock, ids)
        stack.push_async_callback(changelog.close)
        long_term = await open_long_term(config, limits, clock, ids)
        stack.push_async_callback(long_term.close)
        await know_each_other(places_of(config), (long_term, changelog, high_volume), limits, clock, ids, new=new)
        yield Stores(high_volume, long_term, changelog)


@asynccontextmanager
async def open_tools(config: Config) -> AsyncIterator[Tools]:
    """Open the stores of a server, which may run meanwhile, for an operator's command; at the end, finish and close.

    Raises `StartupError`, also if a store has not been made yet: only a server makes stores. One that an earlier
    release has made is brought to this release's schema, as by a server.
    """
    check_made(places_of(config))
    limits, clock, ids = limits_from(config), SystemClock(), SystemIds()
    async with _opened_stores(config, limits, clock, ids, new=False) as stores:
        cleanup = TaskOwner(limits.background_tasks_max, _report_failure)
        tiering = build_tiering(stores, limits=limits, clock=clock, ids=ids, cleanup=cleanup)
        try:
            yield Tools(stores, tiering.settler, tiering.uploads, limits, clock, config.log.audit)
        finally:
            await _drain((("cleanup", cleanup),), max(config.http.shutdown_grace, _DRAIN_SECONDS_MIN))


@asynccontextmanager
async def _open_served(
    config: Config, limits: Limits, clock: Clock, ids: IdSource, open_stores_of: OpenStores, reloads: Reloads
) -> AsyncIterator[Served]:
    """The service over the stores, with its background work. At the end: mutations, cleanup, sweeper, stores."""
    async with AsyncExitStack() as stack:
        buckets = open_buckets(telemetry.limits_judged_apart.inc)
        stack.callback(buckets.close)
        controls = Controls(rules_from(config), RateLimiter(buckets, clock))
        stores = await stack.enter_async_context(open_stores_of(config, limits, clock, ids))
        mutations = TaskOwner(limits.mutations_max, _report_failure)
        cleanup = TaskOwner(limits.background_tasks_max, _report_failure)
        periodic = TaskOwner(1, _report_failure)
        tiering = build_tiering(stores, limits=limits, clock=clock, ids=ids, cleanup=cleanup)
        service = build_service(tiering, stores, limits=limits, ids=ids, mutations=mutations)
        periodic.spawn("sweeper", tiering.sweeper.run(config.sweeper.period))
        gate = Gate(service, access_from(config), controls, clock=clock, limits=limits)
        reloads.subscribe(lambda changed: gate.replace(access_from(changed), rules_from(changed)))
        try:
            yield Served(service=service, gate=gate)
        finally:
            reloads.subscribe(None)
            grace = max(config.http.shutdown_grace, _DRAIN_SECONDS_MIN)
            await periodic.drain(0)
            await _drain((("mutations", mutations), ("cleanup", cleanup)), grace)


async def _drain(owners: Sequence[tuple[str, TaskOwner]], grace_seconds: float) -> None:
    """Let the work of each owner end, one owner after the other."""
    for name, owner in owners:
        if cut_off := await owner.drain(grace_seconds):
            log.warning("work cut off at shutdown; the sweeper will settle it", work=name, tasks=cut_off)


def _report_failure(name: str, error: BaseException) -> None:
    telemetry.background_failures.labels(name).inc()
    log.error("background work failed; the sweeper will settle it", work=name, exc_info=error)
