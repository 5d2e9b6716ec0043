"""The internal routes: is the process alive, should it get requests, its metrics, and how busy the server is.

Guarantees: they are neither gated nor bounded, and answer within seconds whatever the stores do; a scrape never fails
because a store does.
"""

import asyncio
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import tierstore
from tierstore.changelog.entries import Backlog
from tierstore.clock import MICROS_PER_SECOND, UnixMicros
from tierstore.errors import TierstoreError
from tierstore.http.responses import status_of, told
from tierstore.http.settings import HttpSettings, Served

_log = structlog.get_logger(__name__)

_ANSWER_SECONDS_MAX = 5.0
"""How long a store may take to answer a probe or a scrape; what asks has a timeout of its own, often ten seconds."""


class InternalRoutes:
    """``/health``, ``/ready``, ``/metrics``, ``/keda``.

    ``served`` gives what is served, or None while the stores are closed.
    """

    def __init__(self, settings: HttpSettings, served: Callable[[], Served | None]) -> None:
        self._settings = settings
        self._served = served

    @property
    def routes(self) -> list[Route]:
        """The routes, for a Starlette application."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/keda", self.keda, methods=["GET"]),
        ]

    async def health(self, _request: Request) -> Response:
        """200: the event loop turns."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """200, or 503 while the process is draining or a store does not answer."""
        served = self._served()
        if served is None or self._settings.draining():
            return _not_ready("the server is starting or stopping")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                await served.service.check()
        except TimeoutError:
            return _not_ready(f"a store has not answered within {_ANSWER_SECONDS_MAX:g} seconds")
        except TierstoreError as error:
            fault = status_of(error) == 500
            _log.warning("not ready", reason=str(error), exc_info=error if fault else None)
            return _not_ready("a fault of ours; the log says more" if fault else told(error))
        return JSONResponse({"status": "ok"})

    async def metrics(self, _request: Request) -> Response:
        """The metrics of all worker processes, in the Prometheus text format."""
        backlog = await self._backlog()
        at_scrape = CollectorRegistry(auto_describe=False)
        at_scrape.register(_AtScrape(backlog, self._settings.clock.now()))
        kept = await run_in_threadpool(_kept_metrics)
        return Response(kept + generate_latest(at_scrape), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def keda(self, _request: Request) -> Response:
        """How busy the server is, all of its workers together: few gauges, in the Prometheus text format, for scaling.

        Each is between 0 and 1, at which requests wait or are refused; a debt of bandwidth is more than 1.
        """
        served = self._served()
        load = await run_in_threadpool(_load)
        if served is not None:
            load["throughput"] = served.gate.controls.requests_used()
            load["bandwidth"] = served.gate.controls.bytes_used()
        at_scrape = CollectorRegistry(auto_describe=False)
        at_scrape.register(_Load(load))
        return Response(generate_latest(at_scrape), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _backlog(self) -> Backlog | None:
        served = self._served()
        if served is None:
            return None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                return await served.service.backlog()
        except (TierstoreError, TimeoutError) as error:
            _log.warning("the change log's backlog is unknown", exc_info=error)
            return None


def _not_ready(why: str) -> Response:
    return JSONResponse({"detail": why}, status_code=503, headers={"retry-after": "1"})


def _kept_metrics() -> bytes:
    """What the process, or with ``PROMETHEUS_MULTIPROC_DIR`` all of them together, have counted. Reads files."""
    return generate_latest(_kept())


def _kept() -> CollectorRegistry:
    together = CollectorRegistry(auto_describe=False)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        together.register(_OfThisProcess())
    else:
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # because the library leaves it untyped
    return together


_LOAD = {
    "requests": ("tierstore_requests_in_flight", "tierstore_requests_max"),
    "operations": ("tierstore_operations_in_flight", "tierstore_operations_max"),
    "queue": ("tierstore_operations_waiting", "tierstore_operations_queue_max"),
}
"""What is used, and of how much, by what it is called in `_Load`."""


def _load() -> dict[str, float]:
    """How much of what there is is used, by what it is. Reads files."""
    values = {sample.name: sample.value for family in _kept().collect() for sample in family.samples}
    return {what: values.get(used, 0.0) / (values.get(most) or 1.0) for what, (used, most) in _LOAD.items()}


class _Load(Collector):
    """How busy the server is."""

    def __init__(self, load: Mapping[str, float]) -> None:
        self._load = load

    def collect(self) -> Iterable[Metric]:
        for what, used in self._load.items():
            yield GaugeMetricFamily(f"tierstore_load_{what}", f"Share of its {what} that the server uses.", value=used)
        yield GaugeMetricFamily("tierstore_load", "The largest of these shares.", value=max(self._load.values()))


class _OfThisProcess(Collector):
    """What the process has counted: the same as is shown of several, so without what the library adds by itself."""

    def collect(self) -> Iterable[Metric]:
        for family in REGISTRY.collect():
            if family.name.startswith("tierstore_"):
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family


class _AtScrape(Collector):
    """Metrics that are looked up for each scrape."""

    def __init__(self, backlog: Backlog | None, now: UnixMicros) -> None:
        self._backlog = backlog
        self._now = now

    def collect(self) -> Iterable[Metric]:
        yield from self._changelog()
        build = GaugeMetricFamily("tierstore_build_info", "What runs here.", labels=["version", "python"])
        build.add_metric([tierstore.__version__, platform.python_version()], 1)
        yield build

    def _changelog(self) -> Iterator[Metric]:
        backlog = self._backlog
        if backlog is None:
            return
        oldest = backlog.oldest
        seconds = 0.0 if oldest is None else max(self._now - oldest, 0) / MICROS_PER_SECOND
        yield GaugeMetricFamily("tierstore_changelog_entries", "Entries of the change log.", value=backlog.entries)
        yield GaugeMetricFamily(
            "tierstore_changelog_oldest_seconds", "Age of its oldest entry that is no upload's own.", value=seconds
        )
        yield GaugeMetricFamily(
            "tierstore_uploads_in_progress", "Multipart uploads that can be completed.", value=backlog.uploads
        )
        yield GaugeMetricFamily(
            "tierstore_upload_outcomes", "Completed multipart uploads that are remembered.", value=backlog.outcomes
        )
