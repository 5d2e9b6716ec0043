"""The stores that the settings name: where each is, how it is opened, and whether all that are open belong together.

Guarantees: the library of a store is imported only when the settings name that store. Does not: decide when stores are
opened and closed; `tierstore.build` does.
"""

import math
import os
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, assert_never
from uuid import UUID

from tierstore import config as settings
from tierstore.backends.high_volume.contract import HighVolumeBackend
from tierstore.backends.long_term.contract import LongTermBackend
from tierstore.changelog.contract import ChangeLog
from tierstore.clock import Clock
from tierstore.config import Config, kind_of, without_password
from tierstore.errors import StartupError, TierstoreError
from tierstore.idsource import IdSource
from tierstore.limits import Limits

T = TypeVar("T")

_IDENTITY_POLL_SECONDS = 0.05
_EMULATOR_VARIABLE = "BIGTABLE_EMULATOR_HOST"
"""What every client of Google's heeds."""


async def open_high_volume(config: Config, limits: Limits, clock: Clock, ids: IdSource) -> HighVolumeBackend:
    """Open the high-volume store. Raises `StartupError`."""
    chosen = config.high_volume
    with _library(kind_of(chosen)):
        match chosen:
            case settings.SqliteHighVolume():
                from tierstore.backends.high_volume.sqlite import SqliteHighVolume  # noqa: PLC0415  # because only this kind of store needs it

                return await SqliteHighVolume.open(
                    config.high_volume_path,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                    readers=chosen.readers,
                    reserve_bytes=chosen.reserve,
                )
            case settings.PostgresHighVolume():
                from tierstore.backends.high_volume.postgres import PostgresHighVolume  # noqa: PLC0415  # because only this kind of store needs it

                return await PostgresHighVolume.open(
                    chosen.url,
                    schema=chosen.schema,
                    connections_max=chosen.connections,
                    timeout_seconds=chosen.timeout,
                    prepared_statements=chosen.prepared_statements,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                )
            case settings.BigtableHighVolume():
                _check_emulator(allowed=chosen.emulator)
                from tierstore.backends.high_volume.bigtable import BigtableHighVolume  # noqa: PLC0415  # because only this kind of store needs it

                return await BigtableHighVolume.open(
                    project=chosen.project,
                    instance=chosen.instance,
                    table=chosen.table,
                    app_profile=chosen.app_profile,
                    timeout_seconds=chosen.timeout,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                )
            case _:
                assert_never(chosen)


async def open_change_log(config: Config, limits: Limits, clock: Clock, ids: IdSource) -> ChangeLog:
    """Open the change log. Raises `StartupError`."""
    chosen = config.change_log_settings
    with _library(kind_of(chosen)):
        match chosen:
            case settings.SqliteChangeLog():
                from tierstore.changelog.sqlite import SqliteChangeLog  # noqa: PLC0415  # because only this kind of store needs it

                return await SqliteChangeLog.open(config.change_log_path, limits=limits, clock=clock)
            case settings.PostgresChangeLog():
                from tierstore.changelog.postgres import PostgresChangeLog  # noqa: PLC0415  # because only this kind of store needs it

                return await PostgresChangeLog.open(
                    chosen.url,
                    schema=chosen.schema,
                    connections_max=chosen.connections,
                    timeout_seconds=chosen.timeout,
                    prepared_statements=chosen.prepared_statements,
                    limits=limits,
                    clock=clock,
                )
            case settings.BigtableChangeLog():
                _check_emulator(allowed=chosen.emulator)
                from tierstore.changelog.bigtable import BigtableChangeLog  # noqa: PLC0415  # because only this kind of store needs it

                return await BigtableChangeLog.open(
                    project=chosen.project,
                    instance=chosen.instance,
                    table=chosen.table,
                    app_profile=chosen.app_profile,
                    timeout_seconds=chosen.timeout,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                )
            case _:
                assert_never(chosen)


async def open_long_term(config: Config, limits: Limits, clock: Clock, ids: IdSource) -> LongTermBackend:
    """Open the long-term store. Raises `StartupError`."""
    chosen = config.long_term
    with _library(kind_of(chosen)):
        match chosen:
            case settings.FilesystemLongTerm():
                from tierstore.backends.long_term.filesystem import FilesystemLongTerm  # noqa: PLC0415  # because only this kind of store needs it

                return await FilesystemLongTerm.open(
                    config.long_term_path,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                    threads=chosen.threads,
                    reserve_bytes=chosen.reserve,
                )
            case settings.S3LongTerm():
                from tierstore.backends.long_term.s3 import S3LongTerm  # noqa: PLC0415  # because only this kind of store needs it

                return await S3LongTerm.open(
                    bucket=chosen.bucket,
                    endpoint=chosen.endpoint,
                    region=chosen.region,
                    prefix=chosen.prefix,
                    path_style=chosen.path_style and bool(chosen.endpoint),
                    ca=chosen.ca,
                    profile=chosen.profile,
                    connections_max=chosen.connections,
                    timeout_seconds=chosen.timeout,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                )
            case settings.GcsLongTerm():
                from tierstore.backends.long_term.gcs import GcsLongTerm  # noqa: PLC0415  # because only this kind of store needs it

                return await GcsLongTerm.open(
                    bucket=chosen.bucket,
                    endpoint=chosen.endpoint,
                    prefix=chosen.prefix,
                    ca=chosen.ca,
                    connections_max=chosen.connections,
                    timeout_seconds=chosen.timeout,
                    limits=limits,
                    clock=clock,
                    ids=ids,
                )
            case _:
                assert_never(chosen)


def _check_emulator(*, allowed: bool) -> None:
    """Raise `StartupError` if the environment turns Bigtable's client to an emulator that the settings do not mean."""
    if not allowed and os.environ.get(_EMULATOR_VARIABLE):
        raise StartupError(
            f"{_EMULATOR_VARIABLE} is set: objects would be in the memory of an emulator. Unset it; for trying things "
            "out, set emulator: true in the sections of the stores of type bigtable"
        )


@contextmanager
def _library(extra: str) -> Iterator[None]:
    """Say which extra is missing, if an import fails because a library is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StartupError(
            f"stores of the type {extra} need libraries that are not installed ({error.name} is missing): install "
            f"tierstore with the extra {extra}, from a checkout with pip install '.[{extra}]'"
        ) from error


# Where they are


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is, as an operator knows it."""

    name: str
    key: str
    """The setting that says so."""
    where: str
    file: Path | None = None
    """What is there once an embedded store has been made; its identity is in it. None for other stores."""

    def __str__(self) -> str:
        return f"the {self.name} {self.where}"


def places_of(config: Config) -> tuple[Place, Place, Place]:
    """Where the long-term store is, the change log, and the high-volume store."""
    return (
        _place("long-term store", config, "long_term", config.long_term),
        _place("change log", config, "change_log", config.change_log_settings),
        _place("high-volume store", config, "high_volume", config.high_volume),
    )


def _place(name: str, config: Config, section: str, store: settings.StoreSettings) -> Place:
    match store:
        case settings.SqliteHighVolume() | settings.SqliteChangeLog() | settings.FilesystemLongTerm():
            path = config.embedded_path(section)
            file = path / "identity" if path == config.store_path("long_term") else path
            return Place(name, f"{section}.path", str(path), file)
        case settings.PostgresHighVolume() | settings.PostgresChangeLog():
            return Place(name, f"{section}.url", f"in schema {store.schema} of {without_password(store.url)}")
        case settings.BigtableHighVolume() | settings.BigtableChangeLog():
            return Place(name, f"{section}.table", f"{store.table} of instance {store.instance} in {store.project}")
        case settings.S3LongTerm():
            return Place(name, f"{section}.bucket", f"s3://{store.bucket}/{store.prefix}")
        case settings.GcsLongTerm():
            return Place(name, f"{section}.bucket", f"gs://{store.bucket}/{store.prefix}")
        case _:
            assert_never(store)


def check_made(places: Sequence[Place]) -> None:
    """Raise `StartupError` unless each embedded store is there. Looks, and changes nothing."""
    for place in reversed(places):
        if place.file is None:
            continue
        try:
            made = place.file.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            made = False
        except (OSError, ValueError) as error:
            raise StartupError(f"{place} cannot be opened: {error}") from error
        if not made:
            raise _not_made(place)


def _not_made(place: Place) -> StartupError:
    mounted = "" if place.file is None else ", is its disk mounted"
    options = "--data, --config and " if place.file is not None else "--config and "
    return StartupError(
        f"there is no {place.name} at {place.where}: are {options}{place.key} those of the server{mounted}, and has a "
        "server been started on it yet?"
    )


# Whether they belong together

Store = LongTermBackend | ChangeLog | HighVolumeBackend


async def know_each_other(
    places: Sequence[Place], stores: Sequence[Store], limits: Limits, clock: Clock, ids: IdSource, *, new: bool
) -> None:
    """Check that the stores keep one identity, which they are given when none of them has one yet, if they may be new.

    The first of ``stores`` is the arbiter: of processes that start at once on new stores, the one whose identity it has
    taken wins, and all give that one to the others, in the same order. So while another process is at it, a store with
    an identity may stand before one without, for a moment.

    Raises `StartupError` with a sentence for the operator: a disk that is not mounted looks like a new store.
    """
    identities: list[UUID | None] = []
    for _ in range(1 + math.ceil(limits.identity_wait_seconds_max / _IDENTITY_POLL_SECONDS)):
        identities = [await _told(place, store.identity()) for place, store in zip(places, stores, strict=True)]
        if not any(identities):
            if not new:
                raise _not_made(places[0])
            identity = ids.uuid()
            identities = [
                identity := await _told(place, store.adopt(identity))
                for place, store in zip(places, stores, strict=True)
            ]
        if None not in identities:
            break
        await clock.sleep(_IDENTITY_POLL_SECONDS)
    if len(set(identities)) > 1:
        raise StartupError(_strangers(places, identities))


async def _told(place: Place, answer: Awaitable[T]) -> T:
    """What a store answers; what it raises, as a `StartupError`."""
    try:
        return await answer
    except TierstoreError as error:
        raise StartupError(f"{place} cannot be used: {error}") from error


def _strangers(places: Sequence[Place], identities: Sequence[UUID | None]) -> str:
    """The sentences about stores that do not belong together: which they are, and what to do."""
    known = [each for each, identity in zip(places, identities, strict=True) if identity is not None]
    new = [each for each, identity in zip(places, identities, strict=True) if identity is None]
    if not new:
        kept = "; ".join(f"{each} has {identity}" for each, identity in zip(places, identities, strict=True))
        keys = ", ".join(each.key for each in places)
        mounted = ", is every disk mounted where it should be" if any(each.file for each in places) else ""
        return (
            f"the stores do not belong together, each was begun with others ({kept}): "
            f"are {keys} right{mounted}, and do all three come from one backup?"
        )
    mounted = "is its disk mounted, " if any(each.file for each in new) else ""
    text = (
        f"{_listed(new)} {'has' if len(new) == 1 else 'have'} no identity, but {_listed(known)} "
        f"{'has' if len(known) == 1 else 'have'}: this looks like a new store in the place of another; "
        f"{mounted}is {' or '.join(each.key for each in new)} right, and is it whole if it was restored?"
    )
    if identities[0] is None or identities[-1] is not None:
        return text
    # The last one that would have been given it has none: so it may have been a start that was interrupted.
    left = " and ".join(str(each.file) if each.file else f"the identity of {each}" for each in known)
    return f"{text} Only if this was the very first start, and was interrupted: remove {left}, and start again"


def _listed(places: Sequence[Place]) -> str:
    return " and ".join(str(each) for each in places)
