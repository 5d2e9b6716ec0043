"""How a table of Bigtable is opened: the client, the table's families, and the checks without which nothing is safe.

Guarantees, when `open_table` returns: the table is there with the families that were asked for; none of them loses
cells sooner than the store can bear; and the application profile routes to a single cluster and allows single-row
transactions, without which reads would be old and conditional mutations refused. A table that is missing is made, by
one of any number of processes at once; instances and profiles are not.

With ``BIGTABLE_EMULATOR_HOST`` in the environment the client of every vendor's library talks to that address, without
credentials. It is a stand-in that keeps everything in memory, so there is a warning in the log, and the profile, which
it does not have, is not looked at.
"""

import math
import os
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio  # type: ignore[import-untyped]  # because it has no types of its own
import structlog
from google.api_core import exceptions
from google.api_core.retry import AsyncRetry, if_exception_type
from google.auth.exceptions import GoogleAuthError
from google.cloud.bigtable.data import BigtableDataClientAsync
from google.cloud.bigtable_admin_v2 import BigtableInstanceAdminAsyncClient, BigtableTableAdminAsyncClient
from google.cloud.bigtable_admin_v2.services.bigtable_table_admin.transports import (
    BigtableTableAdminGrpcAsyncIOTransport,
)
from google.cloud.bigtable_admin_v2.types import ColumnFamily, GcRule

from tierstore.bigtable.table import BigtableTable
from tierstore.errors import StartupError
from tierstore.limits import Limits

log = structlog.get_logger(__name__)

EMULATOR = "BIGTABLE_EMULATOR_HOST"
_EMULATOR_WARNING = "Connecting to Bigtable emulator"


@dataclass(frozen=True, slots=True)
class Family:
    """A column family, and for how long after their timestamps its cells are kept at least; None: forever."""

    name: str
    kept_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which table, and by which application profile."""

    project: str
    instance: str
    table: str
    app_profile: str

    @property
    def instance_path(self) -> str:
        """The instance's full name."""
        return f"projects/{self.project}/instances/{self.instance}"

    @property
    def table_path(self) -> str:
        """The table's full name."""
        return f"{self.instance_path}/tables/{self.table}"

    def __str__(self) -> str:
        return f"table {self.table} of the Bigtable instance {self.instance} in project {self.project}"


async def open_table(
    place: Place, families: Sequence[Family], *, timeout_seconds: float, limits: Limits
) -> BigtableTable:
    """Connect, make the table if it is missing, and check it. Raises `StartupError`."""
    try:
        if emulator := os.environ.get(EMULATOR):
            log.warning("an emulator of Bigtable is in use: it keeps everything in memory", address=emulator)
        else:
            await _check_profile(place, timeout_seconds)
        await _check_table(place, families, emulator, timeout_seconds)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_EMULATOR_WARNING, category=RuntimeWarning)
            client = BigtableDataClientAsync(project=place.project)
    except (exceptions.GoogleAPIError, GoogleAuthError, grpc.RpcError) as error:
        raise StartupError(_sentence(place, error)) from error
    table = client.get_table(place.instance, place.table, app_profile_id=place.app_profile)
    return BigtableTable(client, table, limits, seconds_max=timeout_seconds)


async def _check_profile(place: Place, seconds: float) -> None:
    """Raise `StartupError` unless the profile routes to one cluster and allows conditional mutations."""
    client = BigtableInstanceAdminAsyncClient()
    async with _closing(client):
        profile = await client.get_app_profile(
            name=f"{place.instance_path}/appProfiles/{place.app_profile}", retry=_patience(seconds), timeout=seconds
        )
    check_routing(
        place,
        single_cluster=bool(profile.single_cluster_routing.cluster_id),
        transactions=bool(profile.single_cluster_routing.allow_transactional_writes),
    )


def check_routing(place: Place, *, single_cluster: bool, transactions: bool) -> None:
    """Raise `StartupError` unless an application profile is fit for linearizable stores."""
    name = f"the application profile {place.app_profile} of the Bigtable instance {place.instance}"
    if not single_cluster:
        raise StartupError(
            f"{name} routes to any cluster, so that reads could be old: use one with single-cluster routing and "
            "single-row transactions"
        )
    if not transactions:
        raise StartupError(f"{name} does not allow single-row transactions, without which nothing can be written")


async def _check_table(place: Place, families: Sequence[Family], emulator: str | None, seconds: float) -> None:
    """Make the table if it is missing; raise `StartupError` if it is not as it must be."""
    client = _table_admin(emulator)
    async with _closing(client):
        try:
            found = await client.get_table(name=place.table_path, retry=_patience(seconds), timeout=seconds)
        except exceptions.NotFound:
            wanted = {"column_families": {family.name: {"gc_rule": _rule(family)} for family in families}}
            request = {"parent": place.instance_path, "table_id": place.table, "table": wanted}
            with suppress(exceptions.AlreadyExists):  # another process was faster
                await client.create_table(request=request, timeout=seconds)
            found = await client.get_table(name=place.table_path, retry=_patience(seconds), timeout=seconds)
    check_families(place, families, found.column_families)


def _patience(seconds: float) -> AsyncRetry:
    """How long a look is repeated where nobody answers; the library's own is a minute."""
    unanswered = if_exception_type(exceptions.ServiceUnavailable, exceptions.DeadlineExceeded)
    return AsyncRetry(unanswered, initial=0.1, maximum=1.0, timeout=seconds)


@asynccontextmanager
async def _closing(client: BigtableInstanceAdminAsyncClient | BigtableTableAdminAsyncClient) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await client.transport.close()  # type: ignore[no-untyped-call]  # because it is not typed


def _table_admin(emulator: str | None) -> BigtableTableAdminAsyncClient:
    if emulator is None:
        return BigtableTableAdminAsyncClient()
    channel = grpc.aio.insecure_channel(emulator)
    return BigtableTableAdminAsyncClient(transport=BigtableTableAdminGrpcAsyncIOTransport(channel=channel))


def check_families(place: Place, families: Sequence[Family], found: Mapping[str, ColumnFamily]) -> None:
    """Raise `StartupError` unless the families are there and lose nothing too soon."""
    for family in families:
        if family.name not in found:
            raise StartupError(f"{place} has no column family {family.name}: it is not one of tierstore's")
        kept = _kept_seconds(found[family.name].gc_rule)
        if kept is not None and (family.kept_seconds is None or kept < family.kept_seconds):
            least = "never by age" if family.kept_seconds is None else f"no sooner than {family.kept_seconds:.0f} s"
            raise StartupError(
                f"{place} would lose objects: the garbage collection of its column family {family.name} removes cells "
                f"{kept:.0f} s after their timestamps, and may do so {least}"
            )
        if kept is None and family.kept_seconds is not None:
            log.warning(
                "nothing removes expired objects: a column family has no garbage collection by age",
                table=place.table,
                family=family.name,
            )


def _rule(family: Family) -> dict[str, Any]:
    """The garbage collection that a family gets with its table."""
    superseded = {"max_num_versions": 1}
    if family.kept_seconds is None:
        return superseded
    return {"union": {"rules": [superseded, {"max_age": {"seconds": math.ceil(family.kept_seconds)}}]}}


def _kept_seconds(rule: GcRule) -> float | None:
    """How long the rule keeps the latest cell of a column, at least; None: it never removes it."""
    match GcRule.pb(rule).WhichOneof("rule"):
        case "max_age":
            return float(rule.max_age.total_seconds())
        case "union":
            ages = [age for each in rule.union.rules if (age := _kept_seconds(each)) is not None]
            return min(ages, default=None)
        case "intersection":
            longest = [_kept_seconds(each) for each in rule.intersection.rules]
            return None if None in longest else max((age for age in longest if age is not None), default=None)
        case _:
            return None


def _sentence(place: Place, error: Exception) -> str:
    """What an operator should know and do."""
    match error:
        case GoogleAuthError():
            return f"there are no usable Google credentials for {place}: {error}"
        case exceptions.NotFound():
            return f"{place} cannot be opened, for something of it is not there: {error}"
        case exceptions.Forbidden() | exceptions.Unauthorized():
            return (
                f"the credentials do not permit to open {place} (roles/bigtable.user, and to make it, admin): {error}"
            )
        case _:
            return f"{place} cannot be reached: {error}"
