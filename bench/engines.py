"""``python -m bench engines``: CPU time of what each store does, beside its bare driver doing the least of the same.

The store and the driver talk to the same real engine on loopback, in turns, in this process; what is measured is the
CPU time of this process, so neither that of the engine nor its waiting. The bare driver does what cannot be left out:
one statement, one request, one mutation, with no checksum, no version and no row to be decoded; so what the store costs
more is what its promises cost. Engines that this machine does not have are left out, with the reason.
"""

import contextlib
import hashlib
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
import uvloop

from tests.engines.engine import EngineMissing
from tierstore.backends.high_volume.contract import HighVolumeBackend, Inline
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.clock import SystemClock
from tierstore.idsource import SystemIds
from tierstore.limits import KIB, MIB, Limits
from tierstore.types.ids import ObjectId, Revision

_LIMITS = Limits(part_bytes_min=5 * MIB)
_SMALL = bytes(range(256)) * 4
_LARGE = bytes(range(256)) * (8 * MIB // 256)
_CHUNK_BYTES = 256 * KIB
ENGINES = ("postgresql", "seaweedfs", "bigtable")

Work = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation, as the store does it and as the bare driver does."""

    name: str
    store: Work
    driver: Work
    count: int
    """How often in a round."""


def run(chosen: Sequence[str], rounds: int) -> None:
    """Measure the chosen engines, as far as they are here, and print a table."""
    if unknown := set(chosen) - set(ENGINES):
        sys.exit(f"there is no engine called {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    heading = f"{'µs of CPU an operation':<44}{'store':>10}{'driver':>10}{'ratio':>8}"
    print(f"{heading}\n{'-' * len(heading)}", flush=True)
    measured = 0
    for name, measure in zip(ENGINES, (_postgres, _seaweedfs, _bigtable), strict=True):
        if name not in chosen:
            continue
        try:
            uvloop.run(measure(rounds))
            measured += 1
        except EngineMissing as missing:
            print(f"left out: {missing}", flush=True)
    if not measured:
        sys.exit("no engine is here")


async def _compare(cases: Sequence[Case], rounds: int) -> None:
    for case in cases:
        for work in (case.store, case.driver):  # whatever is made at the first call
            await work(-1)
        costs: dict[str, list[float]] = {"store": [], "driver": []}
        for number in range(rounds):
            for name, work in (("store", case.store), ("driver", case.driver)):
                costs[name].append(await _cpu_seconds(work, number * case.count, case.count))
        store, driver = (1e6 * statistics.median(costs[name]) for name in ("store", "driver"))
        print(f"{case.name:<44}{store:>10.0f}{driver:>10.0f}{store / driver:>8.2f}", flush=True)


async def _cpu_seconds(work: Work, first: int, count: int) -> float:
    before = time.process_time()
    for number in range(first, first + count):
        await work(number)
    return (time.process_time() - before) / count


def _object_id(number: int) -> ObjectId:
    return ObjectId("bench", (), f"object-{number % 100}")


async def _source(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), _CHUNK_BYTES):
        yield content[at : at + _CHUNK_BYTES]


def _rows(name: str, store: HighVolumeBackend, driver_put: Work, driver_get: Work, driver_swap: Work) -> list[Case]:
    """What is measured of a high-volume store."""
    versions: dict[ObjectId, bytes] = {}

    async def put(number: int) -> None:
        await store.put_inline(_object_id(number), Inline(b"{}", _SMALL), None)

    async def swap(number: int) -> None:
        object_id = _object_id(number)
        if object_id not in versions:
            head = await store.head(object_id)
            versions[object_id] = b"" if head is None else head.version
        version = await store.compare_and_write(object_id, versions[object_id] or None, Inline(b"{}", _SMALL), None)
        if version is None:
            raise RuntimeError("somebody else writes")
        versions[object_id] = version

    return [
        Case(f"{name}: put 1 KiB", put, driver_put, 200),
        Case(f"{name}: get it", lambda number: store.read(_object_id(number)), driver_get, 200),
        Case(f"{name}: compare and write it", swap, driver_swap, 200),
    ]


def _entries(name: str, log: ChangeLog, driver: Work) -> list[Case]:
    """What is measured of a change log."""

    async def record_and_forget(number: int) -> None:
        owner = SystemIds().uuid()
        await log.record(owner, new=Revision(_object_id(number), owner), old=None, not_before=0)
        await log.forget(owner)

    return [Case(f"{name}: record an entry and forget it", record_and_forget, driver, 100)]


async def _postgres(rounds: int) -> None:
    import asyncpg  # noqa: PLC0415  # because the engines are measured one by one, and one may be missing

    from tests.engines.postgres import Postgres  # noqa: PLC0415  # because only this engine needs it
    from tierstore.backends.high_volume.postgres import PostgresHighVolume  # noqa: PLC0415  # because only this engine needs it
    from tierstore.changelog.postgres import PostgresChangeLog  # noqa: PLC0415  # because only this engine needs it

    with _served(Postgres) as engine:
        clock, ids = SystemClock(), SystemIds()
        store = await PostgresHighVolume.open(engine.url, limits=_LIMITS, clock=clock, ids=ids)
        log = await PostgresChangeLog.open(engine.url, limits=_LIMITS, clock=clock)
        driver: Any = await asyncpg.connect(engine.url)
        await driver.execute("CREATE TABLE bare (key bytea PRIMARY KEY, payload bytea)")
        await driver.execute("ALTER TABLE bare ALTER payload SET STORAGE EXTERNAL")
        upsert = "INSERT INTO bare VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET payload = excluded.payload"

        async def put(number: int) -> None:
            await driver.fetch(upsert, b"object-%d" % (number % 100), _SMALL)

        async def get(number: int) -> None:
            await driver.fetch("SELECT payload FROM bare WHERE key = $1", b"object-%d" % (number % 100))

        async def swap(number: int) -> None:
            await driver.fetch("UPDATE bare SET payload = $2 WHERE key = $1", b"object-%d" % (number % 100), _SMALL)

        async def record_and_forget(number: int) -> None:
            await driver.fetch("INSERT INTO bare VALUES ($1, '')", b"entry-%d" % number)
            await driver.fetch("DELETE FROM bare WHERE key = $1", b"entry-%d" % number)

        await _compare(
            [*_rows("PostgreSQL", store, put, get, swap), *_entries("PostgreSQL", log, record_and_forget)], rounds
        )
        await driver.close()
        await log.close()
        await store.close()


async def _seaweedfs(rounds: int) -> None:
    import aiohttp  # noqa: PLC0415  # because only this engine needs it
    from botocore.auth import S3SigV4Auth  # noqa: PLC0415  # because only this engine needs it
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415  # because only this engine needs it
    from botocore.credentials import Credentials  # noqa: PLC0415  # because only this engine needs it

    from tests.engines.seaweedfs import ACCESS_KEY, REGION, SECRET_KEY, SeaweedFs  # noqa: PLC0415  # because only this engine needs it
    from tierstore.backends.long_term.s3 import S3LongTerm  # noqa: PLC0415  # because only this engine needs it

    credentials = Credentials(ACCESS_KEY, SECRET_KEY)
    with _served(SeaweedFs) as engine, _environment(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY):
        store: LongTermBackend = await S3LongTerm.open(
            bucket=engine.bucket, endpoint=engine.url, limits=_LIMITS, clock=SystemClock(), ids=SystemIds()
        )
        async with aiohttp.ClientSession() as session:

            async def ask(method: str, key: str, content: bytes | None = None) -> None:
                url = f"{engine.url}/{engine.bucket}/{key}"
                request = AWSRequest(method, url, headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
                S3SigV4Auth(credentials, "s3", REGION).add_auth(request)
                headers = {name: str(value) for name, value in request.headers.items()}
                if content is not None:
                    headers["content-length"] = str(len(content))
                data = None if content is None else _source(content)
                async with session.request(method, url, data=data, headers=headers) as answer:
                    async for _ in answer.content.iter_any():
                        continue
                    answer.raise_for_status()

            def revision(number: int) -> Revision:
                return Revision(_object_id(number), UUID(bytes=hashlib.md5(b"%d" % number).digest()))

            async def get(number: int) -> None:
                stream = await store.get(revision(number))
                if stream is None:
                    raise RuntimeError("it is not there")
                async for _ in stream:
                    continue

            async def head(number: int) -> None:
                await store.head(revision(0 * number))

            await _compare(
                [
                    Case(
                        "S3: put 8 MiB",
                        lambda number: store.put(revision(number % 8), _source(_LARGE), len(_LARGE)),
                        lambda number: ask("PUT", f"bare-{number % 8}", _LARGE),
                        8,
                    ),
                    Case(
                        "S3: get them",
                        lambda number: get(number % 8),
                        lambda number: ask("GET", f"bare-{number % 8}"),
                        8,
                    ),
                    Case("S3: head", head, lambda _: ask("HEAD", "bare-0"), 100),
                ],
                rounds,
            )
        await store.close()


async def _bigtable(rounds: int) -> None:
    warnings.simplefilter("ignore")  # the client's, of the Python that it will not support some day
    from google.cloud.bigtable.data import BigtableDataClientAsync, SetCell  # noqa: PLC0415  # because only this engine needs it
    from google.cloud.bigtable.data.row_filters import PassAllFilter  # noqa: PLC0415  # because only this engine needs it

    from tests.engines.bigtable_emulator import BigtableEmulator  # noqa: PLC0415  # because only this engine needs it
    from tierstore.backends.high_volume.bigtable import BigtableHighVolume  # noqa: PLC0415  # because only this engine needs it
    from tierstore.backends.high_volume.bigtable_rows import PAYLOAD  # noqa: PLC0415  # because only this engine needs it
    from tierstore.changelog.bigtable import BigtableChangeLog  # noqa: PLC0415  # because only this engine needs it

    with _served(BigtableEmulator) as engine, _environment(BIGTABLE_EMULATOR_HOST=engine.address):
        clock, ids = SystemClock(), SystemIds()
        place: Any = {"project": "bench", "instance": "bench", "app_profile": "default", "timeout_seconds": 10.0}
        store = await BigtableHighVolume.open(table="objects", limits=_LIMITS, clock=clock, ids=ids, **place)
        log = await BigtableChangeLog.open(table="changes", limits=_LIMITS, clock=clock, ids=ids, **place)
        async with BigtableDataClientAsync(project="bench") as client:
            table = client.get_table("bench", "objects")

            def key(number: int) -> bytes:
                return b"bare-%d" % (number % 100)

            async def put(number: int) -> None:
                await table.mutate_row(key(number), SetCell(PAYLOAD, b"bare", _SMALL))

            async def get(number: int) -> None:
                await table.read_row(key(number))

            async def swap(number: int) -> None:
                cell = SetCell(PAYLOAD, b"bare", _SMALL)
                await table.check_and_mutate_row(key(number), PassAllFilter(True), true_case_mutations=cell)

            await _compare([*_rows("Bigtable", store, put, get, swap), *_entries("Bigtable", log, put)], rounds)
        await log.close()
        await store.close()


@contextlib.contextmanager
def _served(make: Callable[[], Any]) -> Iterator[Any]:
    with make() as engine:
        yield engine


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
