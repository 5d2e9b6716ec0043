"""The stores on Bigtable as tests open them, on a table of their own in the emulator."""

from tests.engines.bigtable_emulator import INSTANCE, PROJECT
from tierstore.backends.high_volume.bigtable import BigtableHighVolume
from tierstore.changelog.bigtable import BigtableChangeLog
from tierstore.clock import Clock
from tierstore.idsource import IdSource
from tierstore.limits import Limits

TIMEOUT_SECONDS = 10.0


async def open_high_volume(
    table: str, clock: Clock, ids: IdSource, *, limits: Limits | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> BigtableHighVolume:
    """One more instance of the high-volume store in ``table``."""
    return await BigtableHighVolume.open(
        project=PROJECT,
        instance=INSTANCE,
        table=table,
        app_profile="default",
        timeout_seconds=timeout_seconds,
        limits=limits or Limits.tiny(),
        clock=clock,
        ids=ids,
    )


async def open_change_log(
    table: str, clock: Clock, ids: IdSource, *, limits: Limits | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> BigtableChangeLog:
    """One more instance of the change log in ``table``."""
    return await BigtableChangeLog.open(
        project=PROJECT,
        instance=INSTANCE,
        table=table,
        app_profile="default",
        timeout_seconds=timeout_seconds,
        limits=limits or Limits.tiny(),
        clock=clock,
        ids=ids,
    )
