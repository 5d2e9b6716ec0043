"""Laws of `tierstore.opening` that need no engine: what an operator is told before one is asked."""

import subprocess
import sys

import pytest

from tierstore.clock import SystemClock
from tierstore.config import BigtableChangeLog, BigtableHighVolume, Config, PostgresHighVolume, S3LongTerm
from tierstore.errors import StartupError
from tierstore.idsource import SystemIds
from tierstore.limits import Limits
from tierstore.opening import open_change_log, open_high_volume, places_of

_OPEN_WITHOUT = """
import asyncio, sys
sys.modules[sys.argv[1]] = None  # as where it is not installed
from tierstore import config, opening
from tierstore.clock import SystemClock
from tierstore.errors import StartupError
from tierstore.idsource import SystemIds
from tierstore.limits import Limits

stores = eval(sys.argv[3], vars(config))
opened = getattr(opening, sys.argv[2])
try:
    asyncio.run(opened(stores, Limits(), SystemClock(), SystemIds()))
except StartupError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("library", "opened", "settings", "extra"),
    [
        ("asyncpg", "open_high_volume", "Config(high_volume=PostgresHighVolume(url='postgresql://h/d'))", "postgres"),
        ("asyncpg", "open_change_log", "Config(change_log=PostgresChangeLog(url='postgresql://h/d'))", "postgres"),
        (
            "google.cloud.bigtable.data",
            "open_high_volume",
            "Config(high_volume=BigtableHighVolume('p', 'i'))",
            "bigtable",
        ),
        ("grpc", "open_change_log", "Config(change_log=BigtableChangeLog('p', 'i'))", "bigtable"),
        ("botocore", "open_long_term", "Config(long_term=S3LongTerm('b'))", "s3"),
        ("aiohttp", "open_long_term", "Config(long_term=S3LongTerm('b'))", "s3"),
        ("google_crc32c", "open_long_term", "Config(long_term=GcsLongTerm('b'))", "gcs"),
    ],
)
def test_a_missing_library_is_one_sentence(library: str, opened: str, settings: str, extra: str) -> None:
    """Without a store's library, its type, what is missing, and the extra that brings it are named."""
    command = [sys.executable, "-c", _OPEN_WITHOUT, library, opened, settings]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith(f"stores of the type {extra} need libraries that are not installed ({library}")
    assert f"[{extra}]" in said


def test_the_embedded_stores_need_no_library_of_others() -> None:
    """A server on the default stores imports none of the engines' libraries."""
    looked = (
        "import sys, tierstore.build; "
        "print({'asyncpg', 'botocore', 'aiohttp', 'google', 'grpc'} & {name.split('.')[0] for name in sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "set()\n"


@pytest.mark.parametrize("value", ["127.0.0.1:1", "anything"])
async def test_an_emulator_that_is_not_meant_stops_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of an emulator in the environment is refused, unless the settings mean it: it loses everything."""
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", value)
    config = Config(high_volume=BigtableHighVolume("p", "i"), change_log=BigtableChangeLog("p", "i"))
    for opened in (open_high_volume, open_change_log):
        with pytest.raises(StartupError, match="BIGTABLE_EMULATOR_HOST is set: objects would be in the memory"):
            await opened(config, Limits(), SystemClock(), SystemIds())


def test_places_are_named_without_passwords() -> None:
    """Where stores are is said as an operator knows it, and no password with it."""
    config = Config(
        high_volume=PostgresHighVolume("postgresql://u:hidden@db.example/objects"), long_term=S3LongTerm("blobs")
    )
    long_term, _, high_volume = places_of(config)
    assert str(long_term) == "the long-term store s3://blobs/tierstore"
    assert str(high_volume) == "the high-volume store in schema tierstore of postgresql://u:***@db.example/objects"
    assert (long_term.key, high_volume.key) == ("long_term.bucket", "high_volume.url")
