"""The pairs of stores that servers are tried on.

Guarantees: each deployment has a namespace of its own on the engines that it shares with other tests (schema, table,
prefix), so that none sees another's objects.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from xml.etree import ElementTree as ET

from tests.engines.bigtable_emulator import INSTANCE, PROJECT, VARIABLE, BigtableEmulator
from tests.engines.deployment import EMBEDDED, Deployment, Settings, merged
from tests.engines.engine import HOST
from tests.engines.fake_gcs import FakeGcs
from tests.engines.gcs_tokens import credentials_file
from tests.engines.gcs_xml import StrictGcs
from tests.engines.postgres import Postgres
from tests.engines.seaweedfs import REGION, SeaweedFs
from tierstore.limits import MIB
from tierstore.object_storage.names import Names
from tierstore.testing.tcp_proxy import TcpProxy
from tierstore.types.ids import UPLOAD_UUID_VERSION, Revision

T = TypeVar("T")

_END_SECONDS_MAX = 20.0


def postgres_and_s3(
    postgres: Postgres, seaweedfs: SeaweedFs, rows: TcpProxy | None = None, blobs: TcpProxy | None = None
) -> Deployment:
    """Rows and the change log in PostgreSQL, blobs in SeaweedFS; each reached through its line, if there is one."""
    prefix = seaweedfs.new_prefix()
    return Deployment(
        "postgres-s3",
        merged(_in_postgres(postgres, rows), _in_s3(seaweedfs, prefix, blobs)),
        seaweedfs.environment(),
        engines=(postgres, seaweedfs),
        lines=tuple(filter(None, (rows, blobs))),
        find_strays=partial(_strays_in_s3, seaweedfs, prefix),
    )


def bigtable_and_s3(
    bigtable: BigtableEmulator, seaweedfs: SeaweedFs, rows: TcpProxy | None = None, blobs: TcpProxy | None = None
) -> Deployment:
    """Rows and the change log in Bigtable, blobs in SeaweedFS; each reached through its line, if there is one.

    The emulator is in memory, and so no engine that can be killed.
    """
    prefix = seaweedfs.new_prefix()
    return Deployment(
        "bigtable-s3",
        merged(_in_bigtable(bigtable), _in_s3(seaweedfs, prefix, blobs)),
        {**seaweedfs.environment(), VARIABLE: bigtable.address if rows is None else _address(rows)},
        engines=(seaweedfs,),
        lines=tuple(filter(None, (rows, blobs))),
        find_strays=partial(_strays_in_s3, seaweedfs, prefix),
    )


@contextmanager
def postgres_and_gcs(
    postgres: Postgres, fake_gcs: FakeGcs, directory: Path, *, part_bytes_min: int = 5 * MIB
) -> Iterator[Deployment]:
    """Rows and the change log in PostgreSQL, blobs in what stands in for Google Cloud Storage, for so long.

    ``directory`` is for credentials. With another ``part_bytes_min`` the service takes smaller parts than Google's.
    """
    bucket = fake_gcs.new_bucket()
    with on_a_thread(StrictGcs(fake_gcs.url, part_bytes_min=part_bytes_min)) as (gcs, run):
        run(gcs.make_bucket(bucket))
        credentials = credentials_file(directory, gcs.token_uri)
        yield Deployment(
            "postgres-gcs",
            merged(
                _in_postgres(postgres),
                {"long_term": {"type": "gcs", "bucket": bucket, "endpoint": gcs.address}},
                {} if part_bytes_min == 5 * MIB else {"uploads": {"part_min": part_bytes_min}},
            ),
            {"GOOGLE_APPLICATION_CREDENTIALS": str(credentials)},
            engines=(postgres,),
        )


PAIRS = ("embedded", "postgres-s3", "bigtable-s3", "postgres-gcs")


@contextmanager
def deployment_called(name: str, engine: Callable[[str], Any], directory: Path) -> Iterator[Deployment]:
    """The pair of that name, on the engines that ``engine`` gives by the names of their fixtures."""
    match name:
        case "embedded":
            yield EMBEDDED
        case "postgres-s3":
            yield postgres_and_s3(engine("postgres"), engine("seaweedfs"))
        case "bigtable-s3":
            yield bigtable_and_s3(engine("bigtable_emulator"), engine("seaweedfs"))
        case _:
            with postgres_and_gcs(engine("postgres"), engine("fake_gcs"), directory) as deployment:
                yield deployment


@contextmanager
def on_a_thread(server: AbstractAsyncContextManager[T]) -> Iterator[tuple[T, Callable[[Any], Any]]]:
    """``server`` in an event loop of its own, for tests that block; and what runs a coroutine there, to its end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine's stand-in")
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(_END_SECONDS_MAX)

    try:
        entered = run(server.__aenter__())
        try:
            yield entered, run
        finally:
            run(server.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_END_SECONDS_MAX)
        loop.close()


def _address(line: TcpProxy) -> str:
    return f"{HOST}:{line.port}"


def _in_postgres(postgres: Postgres, line: TcpProxy | None = None) -> Settings:
    schema = postgres.new_schema()
    url = postgres.url_for(port=None if line is None else line.port)
    return {
        "high_volume": {"type": "postgres", "url": url, "schema": schema},
        "change_log": {"type": "postgres", "schema": schema},
    }


def _in_bigtable(bigtable: BigtableEmulator) -> Settings:
    return {
        "high_volume": {
            "type": "bigtable",
            "project": PROJECT,
            "instance": INSTANCE,
            "table": bigtable.new_table(),
            "emulator": True,
        },
        "change_log": {"type": "bigtable", "table": bigtable.new_table(), "emulator": True},
    }


def _in_s3(seaweedfs: SeaweedFs, prefix: str, line: TcpProxy | None = None) -> Settings:
    return {
        "long_term": {
            "type": "s3",
            "bucket": seaweedfs.bucket,
            "endpoint": seaweedfs.url if line is None else f"http://{_address(line)}",
            "region": REGION,
            "prefix": prefix,
        },
    }


def _strays_in_s3(seaweedfs: SeaweedFs, prefix: str, blobs: Collection[Revision]) -> set[str]:
    """The names of objects, and of uploads in progress, below ``prefix`` that are no blob's and not the store's own.

    Of uploads, those that clients have begun: one of a put, during which a server was killed, is debris that goes hours
    later, by the store's clock.
    """
    names = Names(prefix)
    known = {names.identity} | {name for blob in blobs for name in (names.blob(blob), names.layout(blob))}
    found: set[str] = set()
    last = ""
    while page := _listed(seaweedfs, f"list-type=2&prefix={prefix}%2F&start-after={quote(last, safe='')}"):
        found |= set(page)
        last = page[-1]
    uploads = _listed(seaweedfs, f"prefix={prefix}%2F&uploads=")
    of_clients = [name for name in uploads if getattr(names.uuid(name), "version", 0) == UPLOAD_UUID_VERSION]
    return (found - known) | {f"an upload of {name}" for name in of_clients}


def _listed(seaweedfs: SeaweedFs, query: str) -> list[str]:
    answer = seaweedfs.ask("GET", "", query=query)
    assert answer.status_code == 200, answer.text
    keys = ET.fromstring(answer.content).iterfind("{*}Contents/{*}Key" if "list-type" in query else "{*}Upload/{*}Key")
    return sorted(key.text or "" for key in keys)
